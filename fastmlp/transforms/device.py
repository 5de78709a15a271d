"""The same crop, resize, flip and normalise as host.py, as whole-batch torch expressions for any device."""

import torch
from torch import Tensor


def crop_resize_normalize(
    images: Tensor,  # (B, H, W, 3) uint8
    boxes: Tensor,  # (B, 4) int: top, left, height, width; outside of the image is black
    flips: Tensor,  # (B,) bool
    mean: Tensor,  # (3,) float32, 0-255 scale
    std: Tensor,  # (3,) float32, 0-255 scale
    res: int,
) -> Tensor:
    """(B, 3 * res * res) float32 in C, H, W order; host.py's docstring says what is computed."""
    height, width = images.shape[1:3]
    top, left, box_h, box_w = boxes.to(torch.int64).unbind(1)
    place = torch.arange(res, device=images.device)
    columns = torch.where(flips[:, None], res - 1 - place, place)
    y0, y1, wy = _taps(place.expand(len(boxes), res), box_h, res)  # each (B, res)
    x0, x1, wx = _taps(columns, box_w, res)
    pixels = images.permute(0, 3, 1, 2)  # (B, 3, H, W)

    def tap(y: Tensor, x: Tensor) -> Tensor:  # (B, res), (B, res) -> (B, 3, res, res) float32
        y, x = (y + top[:, None])[:, :, None], (x + left[:, None])[:, None, :]
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        batch = torch.arange(len(boxes), device=images.device)[:, None, None]
        taken = pixels[batch, :, y.clamp(0, height - 1), x.clamp(0, width - 1)]  # (B, res, res, 3)
        return (taken * inside[..., None]).float()

    wy, wx = wy[:, :, None, None], wx[:, None, :, None]
    upper, lower = torch.lerp(tap(y0, x0), tap(y1, x0), wy), torch.lerp(tap(y0, x1), tap(y1, x1), wy)
    out = (torch.lerp(upper, lower, wx) - mean) / std  # (B, res, res, 3)
    return out.permute(0, 3, 1, 2).reshape(len(boxes), -1)


def _taps(place: Tensor, box: Tensor, res: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lower tap, upper tap and weight of the upper one, for output places (B, res) in boxes of `box` pixels."""
    box = box[:, None]
    at = ((place + 0.5) * box / res - 0.5).clamp(min=0).minimum((box - 1).float())
    low = at.to(torch.int64)
    return low, (low + 1).minimum(box - 1), at - low
