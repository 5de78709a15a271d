"""Crop, resize, flip and normalise in one pass over each image, on the CPU; the two ways to resize.

"bilinear": pixel centres are at half integers and the borders of a box are repeated, as in
torch.nn.functional.interpolate(mode="bilinear", align_corners=False).

"area": OpenCV's INTER_AREA, as in FFCV's crop decoders, which the released models were trained with, but not rounded to
whole numbers. A box that is at least as high and as wide as the output is averaged over each output pixel's area. Any
other is blended from two pixels in each direction by a rule of OpenCV's own, which at whole factors repeats pixels.
"""

import numpy as np

from .numba_cache import numba as nb
from .vectors import LANES, blend_pixels, blend_rows, clear, fence, pack_pixels, scale_pixels, widen

# The first 16 digits of the SHA-256 of vectors.py, which a test compares. Numba's cache on disk notices only changes of
# this file: without a new hash here it would keep the functions that were compiled from the old vectors.
VECTORS_SHA256 = "1d495e133241731f"
RESAMPLINGS = ("bilinear", "area")
_f4 = np.float32


def check_resampling(resampling: str) -> str:
    """Return the way to resize. Raises ValueError if it is not one of RESAMPLINGS."""
    if resampling not in RESAMPLINGS:
        raise ValueError(f"unknown resampling {resampling!r}: expected one of {', '.join(RESAMPLINGS)}")
    return resampling


# No fastmath: results must not depend on how a compiler reorders them. It is turned off explicitly, because a function
# inherits it from the function that makes Numba compile it: FFCV compiles its pipelines with fastmath, and the result
# would be cached on disk for every other caller. No loop is parallel: callers divide a batch among their threads.
@nb.njit(nogil=True, inline="always")
def _tap(place, box, res):
    """Return the lower of the two pixels that an output place is between, and the weight of the upper one."""
    at = min(max((_f4(place) + _f4(0.5)) * (_f4(box) / _f4(res)) - _f4(0.5), _f4(0)), _f4(box - 1))
    low = np.int32(at)
    return low, _f4(at - _f4(low))


@nb.njit(nogil=True, inline="always")
def _area_tap(place, box, res):
    """Return the same as _tap for "area".

    In doubles in OpenCV's order (resize.cpp), whose rounding moves some places: at 57 to 63 px one shows another pixel.
    """
    factor = np.float64(res) / np.float64(box)
    low = np.int32(np.floor(place * (1.0 / factor)))
    weight = _f4((place + 1) - (low + 1) * factor)
    weight = _f4(0) if weight <= 0 or low >= box - 1 else _f4(weight - np.floor(weight))
    return min(low, np.int32(box - 1)), weight


@nb.njit(nogil=True, inline="always")
def _cell(place, box, res):
    """Return the first pixel and the end of those that an output place covers, and its borders in pixels."""
    scale = np.float64(box) / np.float64(res)
    start = place * scale
    stop = min(start + scale, np.float64(box))
    first = min(np.int64(start), np.int64(box) - 1)
    return first, max(first + 1, min(np.int64(np.ceil(stop)), np.int64(box))), start, stop


@nb.njit(nogil=True, inline="always")
def _share(pixel, start, stop):
    """Return the share of an output place that a pixel covers."""
    return _f4((min(stop, pixel + 1.0) - max(start, np.float64(pixel))) / (stop - start))


@nb.njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def fill_area_taps(low, weights):
    """Write the taps of "area" for each side of a box, for a device.

    low: (2, sides, res) int32, the lowest pixel that output place [., box, place] is made of; weights: (2, sides, taps,
    res) float32 of it and those after it. First those of two pixels, then, for boxes of at least res, the averages.
    """
    sides, taps, res = weights.shape[1:]
    low[:], weights[:] = 0, 0
    for box in range(1, sides):
        for place in range(res):
            low[0, box, place], upper = _area_tap(place, box, res)
            weights[0, box, 0, place], weights[0, box, 1, place] = _f4(1) - upper, upper
            if box >= res:
                first, end, start, stop = _cell(place, box, res)
                low[1, box, place] = first
                for pixel in range(first, end):
                    weights[1, box, pixel - first, place] = _share(pixel, start, stop)


@nb.njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def _prepare_columns(box_width, flip, offsets, weights, res, area):
    if area:
        for x in range(res):
            low, weights[x] = _area_tap(res - 1 - x if flip else x, box_width, res)
            offsets[x] = low * np.int32(12)  # bytes of three floats
        return
    for x in range(res):
        low, weights[x] = _tap(res - 1 - x if flip else x, box_width, res)
        offsets[x] = low * np.int32(12)


@nb.njit(nogil=True, inline="always")
def _widen_row(image, height, width, row, left, box_width, line_at):
    """Write a row of a box as floats, black outside of the image."""
    first, last = min(max(0, -left), box_width), max(0, min(box_width, width - left))
    if not 0 <= row < height or first >= last:
        first = last = 0
    if last - first < box_width:
        clear(line_at, np.uintp(3 * box_width))
    if first < last:
        source = image + np.uintp(3 * (row * width + left + first))
        widen(source, line_at + np.uintp(12 * first), np.uintp(3 * (last - first)))


# Scratch memory is passed by address: slicing an array takes longer than the vectors of a row.
@nb.njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def _blend(
    image, height, width, box, flip, numbers_at, target, row_bytes, plane_bytes, res, nontemporal, scratch, area
):
    """Resize an image's box to (3, res, res) float32 at `target`, from two pixels in each direction.

    Times three scales plus three biases.
    """
    top, left, box_height, box_width = np.int64(box[0]), np.int64(box[1]), np.int64(box[2]), np.int64(box[3])
    lines, offsets, weights, rows = scratch
    places = len(offsets)
    _prepare_columns(box_width, flip, offsets, weights, res, area)
    lines_at, rows_at, line_bytes = np.uintp(lines.ctypes.data), np.uintp(rows.ctypes.data), 4 * lines.shape[1]
    offsets_at, weights_at = np.uintp(offsets.ctypes.data), np.uintp(weights.ctypes.data)
    widened = done = 0
    for y in range(res):
        low, weight = _area_tap(y, box_height, res) if area else _tap(y, box_height, res)
        for row in range(max(done, low), min(low + 2, box_height)):
            for ahead in range(max(widened, row), min(row + 2, box_height)):  # type: ignore[call-overload]  # numba
                # one row ahead: what was just stored is slow to load
                _widen_row(
                    image, height, width, top + ahead, left, box_width, lines_at + np.uintp((ahead & 1) * line_bytes)
                )
            widened = row + 2
            blend_pixels(
                lines_at + np.uintp((row & 1) * line_bytes),
                offsets_at,
                weights_at,
                rows_at + np.uintp((row & 1) * 12 * places),
                np.uintp(4 * places),
                np.uintp(places // 4),
            )
        done = max(done, low + 2)
        blend_rows(
            rows_at + np.uintp((low & 1) * 12 * places),
            rows_at + np.uintp((1 - (low & 1)) * 12 * places),
            weight,
            numbers_at,
            target + np.uintp(y * row_bytes),
            np.uintp(plane_bytes),
            np.uintp(places // LANES),
            nontemporal,
        )


@nb.njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def _add_averages(line, box_width, flip, share, row, res):
    """Add `share` of a source row, (3 * box_width,) floats, averaged over each place's area, to (3, places) floats."""
    for place in range(res):
        first, end, start, stop = _cell(place, box_width, res)
        red = green = blue = _f4(0)
        for pixel in range(first, end):
            weight = share * _share(pixel, start, stop)
            red += weight * line[3 * pixel]
            green += weight * line[3 * pixel + 1]
            blue += weight * line[3 * pixel + 2]
        x = res - 1 - place if flip else place
        row[0, x] += red
        row[1, x] += green
        row[2, x] += blue


@nb.njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def _average(image, height, width, box, flip, numbers_at, target, row_bytes, plane_bytes, res, nontemporal, scratch):
    """Resize as _blend does, each output pixel the mean over its area, from a box that is not smaller."""
    top, left, box_height, box_width = np.int64(box[0]), np.int64(box[1]), np.int64(box[2]), np.int64(box[3])
    lines, _, weights, rows = scratch
    line_at, row_at, groups = np.uintp(lines.ctypes.data), np.uintp(rows.ctypes.data), np.uintp(len(weights) // LANES)
    for y in range(res):
        rows[0] = 0
        first, end, start, stop = _cell(y, box_height, res)
        for source in range(first, end):
            _widen_row(image, height, width, top + source, left, box_width, line_at)
            _add_averages(lines[0], box_width, flip, _share(source, start, stop), rows[0], res)
        blend_rows(
            row_at,
            row_at,
            _f4(0),
            numbers_at,
            target + np.uintp(y * row_bytes),
            np.uintp(plane_bytes),
            groups,
            nontemporal,
        )


@nb.njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def _resize(
    image, height, width, box, flip, numbers_at, target, row_bytes, plane_bytes, res, nontemporal, scratch, area
):
    """Resize an image's box to (3, res, res) float32 at `target`, times three scales plus three biases."""
    if area and box[2] >= res and box[3] >= res:
        _average(image, height, width, box, flip, numbers_at, target, row_bytes, plane_bytes, res, nontemporal, scratch)
    else:
        _blend(
            image, height, width, box, flip, numbers_at, target, row_bytes, plane_bytes, res, nontemporal, scratch, area
        )


@nb.njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def _scratch(box_width, res):
    """Return the memory that one thread works in: two source rows as floats, their columns' taps, two resized rows."""
    places = (res + LANES - 1) // LANES * LANES
    lines = np.zeros((2, 3 * box_width + 4), np.float32)
    return lines, np.zeros(places, np.int32), np.zeros(places, np.float32), np.zeros((2, 3, places), np.float32)


@nb.njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def crop_resize_normalize(
    images,  # (B,) uint64 addresses of images (height, width, 3) uint8
    heights,  # (B,) int64
    widths,  # (B,) int64
    boxes,  # (B, 4) int32: top, left, height, width in image pixels; black outside of the image
    flips,  # (B,) bool
    mean,  # (3,) float32, 0-255 scale
    std,  # (3,) float32, 0-255 scale
    out,  # (B, 3 * res * res) float32, contiguous, written
    res,
    area,  # bool: the way to resize
):
    """Write out[b] = the box of images[b] resized to (res, res), mirrored if flips[b], normalised.

    In C, H, W order.
    """
    exact = res % LANES == 0
    nontemporal = exact and out.ctypes.data % (4 * LANES) == 0
    if len(images) == 0:
        return
    scratch = _scratch(boxes[:, 3].max(), res)
    places, plane = len(scratch[1]), res * res
    numbers = np.empty(6, np.float32)
    for c in range(3):
        numbers[c], numbers[3 + c] = _f4(1) / std[c], -mean[c] / std[c]
    numbers_at, groups = np.uintp(numbers.ctypes.data), np.uintp(res // LANES)
    padded = np.empty((3, res, places), np.float32)  # if the rows of `out` are not whole vectors
    for b in range(len(images)):
        image, height, width, box = np.uintp(images[b]), heights[b], widths[b], boxes[b]
        target, row_bytes = np.uintp(out.ctypes.data) + np.uintp(12 * plane * b), 4 * res
        if not exact:
            target, row_bytes = np.uintp(padded.ctypes.data), 4 * places
        if exact and box[0] == 0 and box[1] == 0 and box[2] == height == res and box[3] == width == res:
            scale_pixels(image, numbers_at, target, np.uintp(4 * plane), np.uintp(res), groups, flips[b], nontemporal)
        else:
            _resize(
                image,
                height,
                width,
                box,
                flips[b],
                numbers_at,
                target,
                row_bytes,
                res * row_bytes,
                res,
                nontemporal,
                scratch,
                area,
            )
        if not exact:
            for c in range(3):
                for y in range(res):
                    for x in range(res):
                        out[b, c * plane + y * res + x] = padded[c, y, x]
    fence()


@nb.njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def crop_resize(
    images,  # the first five as in crop_resize_normalize
    heights,
    widths,
    boxes,
    flips,
    out,  # (B, res, res, 3) uint8, contiguous, written
    res,
    area,
):
    """Write the pixels of crop_resize_normalize unnormalised, rounded, in H, W, C order.

    A quarter of the bytes to send to a device.
    """
    if len(images) == 0:
        return
    scratch = _scratch(boxes[:, 3].max(), res)
    places = len(scratch[1])
    numbers = np.ones(6, np.float32)
    numbers[3:] = 0.5  # truncated later
    numbers_at, groups = np.uintp(numbers.ctypes.data), np.uintp(res // LANES)
    planes = np.empty((res, 3, places), np.float32)
    planes_at = np.uintp(planes.ctypes.data)
    for b in range(len(images)):
        _resize(
            np.uintp(images[b]),
            heights[b],
            widths[b],
            boxes[b],
            flips[b],
            numbers_at,
            planes_at,
            12 * places,
            4 * places,
            res,
            False,
            scratch,
            area,
        )
        target = np.uintp(out.ctypes.data) + np.uintp(3 * res * res * b)
        for y in range(res):
            pack_pixels(
                planes_at + np.uintp(12 * places * y), np.uintp(4 * places), target + np.uintp(3 * res * y), groups
            )
            for x in range(res // LANES * LANES, res):
                for c in range(3):
                    out[b, y, x, c] = np.uint8(planes[y, c, x])
