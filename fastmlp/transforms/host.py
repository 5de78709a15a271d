"""Crop, resize, flip and normalise in one pass over each image, on the CPU (numba)."""

import numba as nb
import numpy as np


# No fastmath: results must not depend on how a compiler reorders them. Each image is written by one thread.
@nb.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def crop_resize_normalize(
    images,  # (B, H, W, 3) uint8
    boxes,  # (B, 4) int32: top, left, height, width in image pixels; outside of the image is black
    flips,  # (B,) bool
    mean,  # (3,) float32, 0-255 scale
    std,  # (3,) float32, 0-255 scale
    out,  # (B, 3 * res * res) float32, written
    res,
):
    """out[b] = the box of images[b], resized bilinearly to (res, res), mirrored where flips[b], normalised, C,H,W.

    Pixel centres lie at half integers and borders of the box are repeated, as in
    torch.nn.functional.interpolate(mode="bilinear", align_corners=False).
    """
    batch, height, width = images.shape[0], images.shape[1], images.shape[2]
    plane = res * res
    scale = (np.float32(1) / std).astype(np.float32)
    for b in nb.prange(batch):
        top, left, box_h, box_w = boxes[b, 0], boxes[b, 1], boxes[b, 2], boxes[b, 3]
        row = np.empty(3 * box_w, np.float32)  # one output row before its horizontal pass, interleaved
        for y in range(res):
            sy = min(max((np.float32(y) + np.float32(0.5)) * box_h / np.float32(res) - np.float32(0.5), np.float32(0)),
                     np.float32(box_h - 1))  # fmt: skip
            y0 = int(sy)
            wy = np.float32(sy - y0)
            y1 = min(y0 + 1, box_h - 1)
            row0, row1 = top + y0, top + y1
            in0, in1 = 0 <= row0 < height, 0 <= row1 < height
            for x in range(box_w):
                column = left + x
                inside = 0 <= column < width
                for c in range(3):
                    a = np.float32(images[b, row0, column, c]) if inside and in0 else np.float32(0)
                    z = np.float32(images[b, row1, column, c]) if inside and in1 else np.float32(0)
                    row[3 * x + c] = a + wy * (z - a)
            for x in range(res):
                source = res - 1 - x if flips[b] else x
                sx = min(max((np.float32(source) + np.float32(0.5)) * box_w / np.float32(res) - np.float32(0.5),
                             np.float32(0)), np.float32(box_w - 1))  # fmt: skip
                x0 = int(sx)
                wx = np.float32(sx - x0)
                x1 = min(x0 + 1, box_w - 1)
                for c in range(3):
                    a, z = row[3 * x0 + c], row[3 * x1 + c]
                    out[b, c * plane + y * res + x] = (a + wx * (z - a) - mean[c]) * scale[c]
