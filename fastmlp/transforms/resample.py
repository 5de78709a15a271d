"""Crop, resize, flip and normalise in one pass over each image, on the CPU.

Pixel centres lie at half integers and the borders of a box are repeated, as in
torch.nn.functional.interpolate(mode="bilinear", align_corners=False). (FFCV's crop decoders resize with INTER_AREA.)

Loops over vectors of pixels are written in LLVM's terms, which become the widest instructions of the machine at hand:
Numba's own loops over interleaved bytes do not become vectors (crop, resize, flip and normalise at 64 px at 0.20 of
the speed of torch's fill_ on the same output instead of 0.60, 2 cores of an AMD EPYC). They lie in this file, with
the functions that use them, because Numba's cache on disk does not notice when an imported one changes.
"""

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 8  # floats at a time, 32 bytes
IMAGES_PER_TASK = 16
_WORD, _BYTE, _FLOAT = ir.IntType(32), ir.IntType(8), ir.FloatType()
_FUSE = ("contract",)  # multiply and add may become one instruction
_f4 = np.float32


# --- vectors; addresses and lengths are uintp, nothing is checked


def _vector(kind, length):
    return ir.VectorType(kind, length)


def _pointer(builder, address, kind, offset=0):
    moved = builder.add(address, ir.Constant(address.type, offset)) if offset else address
    return builder.inttoptr(moved, kind.as_pointer())


def _scaled(builder, index, factor):
    return builder.mul(index, ir.Constant(index.type, factor))


def _shuffle(builder, first, second, lanes):
    return builder.shuffle_vector(first, second, ir.Constant(_vector(_WORD, len(lanes)), list(lanes)))


def _splat(builder, value, length):
    """A vector of one float."""
    none = ir.Constant(_vector(_FLOAT, length), ir.Undefined)
    return _shuffle(builder, builder.insert_element(none, value, ir.Constant(_WORD, 0)), none, [0] * length)


def _normalisation(builder, numbers):
    """Three scales and three biases in memory, each as a vector."""
    values = [_splat(builder, builder.load(_pointer(builder, numbers, _FLOAT, 4 * i)), LANES) for i in range(6)]
    return values[:3], values[3:]


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=_FUSE), c, flags=_FUSE)


def _store(builder, value, address, nontemporal):
    stored = builder.store(value, _pointer(builder, address, value.type), align=4 * LANES if nontemporal else 4)
    if nontemporal:  # past the caches: a plain store reads the line that it is about to overwrite
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_WORD, 1)]))


@intrinsic
def _widen(typingctx, source, target, count):
    """target[i] = float32(source[i]) for `count` bytes."""

    def generate(context, builder, signature, args):
        source, target, count = args

        def convert(index, length):
            pixels = builder.load(_pointer(builder, builder.add(source, index), _vector(_BYTE, length)), align=1)
            values = builder.uitofp(pixels, _vector(_FLOAT, length))
            at = builder.add(target, _scaled(builder, index, 4))
            builder.store(values, _pointer(builder, at, values.type), align=4)

        groups = builder.udiv(count, ir.Constant(count.type, LANES))
        with cgutils.for_range(builder, groups) as loop:
            convert(_scaled(builder, loop.index, LANES), LANES)
        with cgutils.for_range(builder, builder.urem(count, ir.Constant(count.type, LANES))) as loop:
            convert(builder.add(_scaled(builder, groups, LANES), loop.index), 1)
        return context.get_dummy_value()

    return types.void(*[types.uintp] * 3), generate


@intrinsic
def _clear(typingctx, target, count):
    """target[i] = 0 for `count` floats."""

    def generate(context, builder, signature, args):
        cgutils.memset(builder, _pointer(builder, args[0], _BYTE), _scaled(builder, args[1], 4), 0)
        return context.get_dummy_value()

    return types.void(*[types.uintp] * 2), generate


@intrinsic
def _blend_pixels(typingctx, row, offsets, weights, target, plane_bytes, quads):
    """target[c][x] = lerp of the floats row[c], row[3 + c] at byte offsets[x], by weights[x]; 4 * quads places x.

    `row` is interleaved (x, c) and must have a fourth float after the last pixel; the target's planes lie
    plane_bytes apart. offsets (int32) and weights (float32) are arrays.
    """

    def generate(context, builder, signature, args):
        row, offsets, weights, target, plane_bytes, quads = args
        four = _vector(_FLOAT, 4)
        with cgutils.for_range(builder, quads) as loop:
            step = _scaled(builder, loop.index, 16)
            pixels = []
            for lane in range(4):
                offset = builder.load(_pointer(builder, builder.add(offsets, step), _WORD, 4 * lane))
                at = builder.add(row, builder.zext(offset, row.type))
                left = builder.load(_pointer(builder, at, four), align=4)  # r, g, b and what follows
                right = builder.load(_pointer(builder, at, four, 12), align=4)
                share = builder.load(_pointer(builder, builder.add(weights, step), _FLOAT, 4 * lane))
                share = _splat(builder, share, 4)
                pixels.append(_multiply_add(builder, share, builder.fsub(right, left), left))
            low = [_shuffle(builder, *pixels[i : i + 2], [0, 4, 1, 5]) for i in (0, 2)]
            high = [_shuffle(builder, *pixels[i : i + 2], [2, 6, 3, 7]) for i in (0, 2)]
            planes = [
                _shuffle(builder, *pair, lanes)
                for pair, lanes in ((low, [0, 1, 4, 5]), (low, [2, 3, 6, 7]), (high, [0, 1, 4, 5]))
            ]
            at = builder.add(target, step)
            for plane in planes:
                builder.store(plane, _pointer(builder, at, four), align=4)
                at = builder.add(at, plane_bytes)
        return context.get_dummy_value()

    return types.void(*[types.uintp] * 6), generate


@intrinsic
def _blend_rows(typingctx, upper, lower, weight, numbers, target, plane_bytes, groups, nontemporal):
    """target[c] = lerp(upper[c], lower[c], weight) * scale[c] + bias[c] for three rows of groups * LANES floats.

    The rows of upper and lower lie side by side, those of target plane_bytes apart. numbers: three scales, three
    biases. stream: past the caches; target is aligned to a vector.
    """

    def generate(context, builder, signature, args):
        upper, lower, weight, numbers, target, plane_bytes, groups, nontemporal = args
        floats = _vector(_FLOAT, LANES)
        weight = _splat(builder, weight, LANES)
        scales, biases = _normalisation(builder, numbers)
        row_bytes = _scaled(builder, groups, 4 * LANES)
        with builder.if_else(nontemporal) as branches:
            for branch, past in zip(branches, (True, False), strict=True):
                with branch:
                    rows = upper, lower, target
                    for scale, bias in zip(scales, biases, strict=True):
                        with cgutils.for_range(builder, groups) as loop:
                            step = _scaled(builder, loop.index, 4 * LANES)
                            top, bottom = (
                                builder.load(_pointer(builder, builder.add(row, step), floats), align=4)
                                for row in rows[:2]
                            )
                            value = _multiply_add(builder, weight, builder.fsub(bottom, top), top)
                            value = _multiply_add(builder, value, scale, bias)
                            _store(builder, value, builder.add(rows[2], step), past)
                        steps = row_bytes, row_bytes, plane_bytes
                        rows = tuple(builder.add(row, step) for row, step in zip(rows, steps, strict=True))
        return context.get_dummy_value()

    u = types.uintp
    return types.void(u, u, types.float32, u, u, u, u, types.boolean), generate


@intrinsic
def _scale_pixels(typingctx, source, numbers, target, plane_bytes, rows, groups, mirrored, nontemporal):
    """target[c][y][x] = source[y][x][c] * scale[c] + bias[c] for groups * LANES places x.

    mirrored: from right to left. numbers, stream as above.
    """

    def generate(context, builder, signature, args):
        source, numbers, target, plane_bytes, rows, groups, mirrored, nontemporal = args
        pixels = _vector(_BYTE, 3 * LANES)
        none = ir.Constant(pixels, ir.Undefined)
        scales, biases = _normalisation(builder, numbers)
        last = builder.sub(groups, ir.Constant(groups.type, 1))

        def loops(backward, past):
            lanes = range(LANES)[:: -1 if backward else 1]
            with cgutils.for_range(builder, rows) as row:
                start = builder.mul(row.index, groups)
                with cgutils.for_range(builder, groups) as loop:
                    group = builder.add(start, loop.index)
                    at = builder.add(source, _scaled(builder, group, 3 * LANES))
                    read = builder.load(_pointer(builder, at, pixels), align=1)
                    group = builder.add(start, builder.sub(last, loop.index)) if backward else group
                    at = builder.add(target, _scaled(builder, group, 4 * LANES))
                    for c in range(3):
                        channel = _shuffle(builder, read, none, [3 * lane + c for lane in lanes])
                        floats = builder.uitofp(channel, _vector(_FLOAT, LANES))
                        _store(builder, _multiply_add(builder, floats, scales[c], biases[c]), at, past)
                        at = builder.add(at, plane_bytes)

        with builder.if_else(mirrored) as directions:
            for direction, backward in zip(directions, (True, False), strict=True):
                with direction, builder.if_else(nontemporal) as branches:
                    for branch, past in zip(branches, (True, False), strict=True):
                        with branch:
                            loops(backward, past)
        return context.get_dummy_value()

    u, flag = types.uintp, types.boolean
    return types.void(u, u, u, u, u, u, flag, flag), generate


@intrinsic
def _pack_pixels(typingctx, row, plane_bytes, target, groups):
    """target[x][c] = uint8(row[c][x]), which is in its range, for groups * LANES places x."""

    def generate(context, builder, signature, args):
        row, plane_bytes, target, groups = args
        with cgutils.for_range(builder, groups) as loop:
            at = builder.add(row, _scaled(builder, loop.index, 4 * LANES))
            channels = []
            for _ in range(3):
                values = builder.load(_pointer(builder, at, _vector(_FLOAT, LANES)), align=4)
                words = builder.fptosi(values, _vector(_WORD, LANES))
                channels.append(builder.trunc(words, _vector(_BYTE, LANES)))
                at = builder.add(at, plane_bytes)
            red_green = _shuffle(builder, *channels[:2], range(2 * LANES))
            blue = _shuffle(builder, channels[2], channels[2], range(2 * LANES))
            lanes = [c * LANES + x for x in range(LANES) for c in range(3)]
            at = builder.add(target, _scaled(builder, loop.index, 3 * LANES))
            pixels = _shuffle(builder, red_green, blue, lanes)
            builder.store(pixels, _pointer(builder, at, pixels.type), align=1)
        return context.get_dummy_value()

    return types.void(*[types.uintp] * 4), generate


@intrinsic
def _fence(typingctx):
    """Makes stores past the caches visible to other threads; on x86 nothing else orders them."""

    def generate(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


# --- images


# No fastmath: results must not depend on how a compiler reorders them. Each image is written by one thread.
@nb.njit(nogil=True, inline="always")
def _tap(place, box, res):
    """The lower of the two pixels that an output place lies between, and the weight of the upper one."""
    at = min(max((_f4(place) + _f4(0.5)) * (_f4(box) / _f4(res)) - _f4(0.5), _f4(0)), _f4(box - 1))
    low = np.int32(at)
    return low, _f4(at - _f4(low))


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _prepare_columns(box_width, flip, offsets, weights, res):
    for x in range(res):
        low, weights[x] = _tap(res - 1 - x if flip else x, box_width, res)
        offsets[x] = low * np.int32(12)  # bytes of three floats


@nb.njit(nogil=True, inline="always")
def _widen_row(image, height, width, row, left, box_width, line_at):
    """A row of a box as floats, black where the image ends."""
    first, last = min(max(0, -left), box_width), max(0, min(box_width, width - left))
    if not 0 <= row < height or first >= last:
        first = last = 0
    if last - first < box_width:
        _clear(line_at, np.uintp(3 * box_width))
    if first < last:
        _widen(
            image + np.uintp(3 * (row * width + left + first)),
            line_at + np.uintp(12 * first),
            np.uintp(3 * (last - first)),
        )


# Scratch is passed by address: a slice of an array costs more than the vectors of a row.
@nb.njit(nogil=True, cache=True, error_model="numpy")
def _resize(image, height, width, box, flip, numbers_at, target, row_bytes, plane_bytes, res, nontemporal, scratch):
    """An image's box to (3, res, res) float32 at `target`, times three scales plus three biases."""
    top, left, box_height, box_width = np.int64(box[0]), np.int64(box[1]), np.int64(box[2]), np.int64(box[3])
    lines, offsets, weights, rows = scratch
    places = len(offsets)
    _prepare_columns(box_width, flip, offsets, weights, res)
    lines_at, rows_at, line_bytes = np.uintp(lines.ctypes.data), np.uintp(rows.ctypes.data), 4 * lines.shape[1]
    offsets_at, weights_at = np.uintp(offsets.ctypes.data), np.uintp(weights.ctypes.data)
    widened = done = 0
    for y in range(res):
        low, weight = _tap(y, box_height, res)
        for row in range(max(done, low), min(low + 2, box_height)):
            for ahead in range(max(widened, row), min(row + 2, box_height)):  # type: ignore[call-overload]  # numba
                # one row ahead: what was just stored is slow to load
                _widen_row(
                    image, height, width, top + ahead, left, box_width, lines_at + np.uintp((ahead & 1) * line_bytes)
                )
            widened = row + 2
            _blend_pixels(
                lines_at + np.uintp((row & 1) * line_bytes),
                offsets_at,
                weights_at,
                rows_at + np.uintp((row & 1) * 12 * places),
                np.uintp(4 * places),
                np.uintp(places // 4),
            )
        done = max(done, low + 2)
        _blend_rows(
            rows_at + np.uintp((low & 1) * 12 * places),
            rows_at + np.uintp((1 - (low & 1)) * 12 * places),
            weight,
            numbers_at,
            target + np.uintp(y * row_bytes),
            np.uintp(plane_bytes),
            np.uintp(places // LANES),
            nontemporal,
        )


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _scratch(box_width, res):
    """What one thread works in: two source rows as floats, their columns' taps, two resized rows."""
    places = (res + LANES - 1) // LANES * LANES
    lines = np.zeros((2, 3 * box_width + 4), np.float32)
    return lines, np.zeros(places, np.int32), np.zeros(places, np.float32), np.zeros((2, 3, places), np.float32)


# What one thread does: some images. Apart from the loops over threads, which compile slowly.
@nb.njit(nogil=True, cache=True, error_model="numpy")
def _to_floats(first, last, images, heights, widths, boxes, flips, mean, std, out, res):
    exact = res % LANES == 0
    nontemporal = exact and out.ctypes.data % (4 * LANES) == 0
    scratch = _scratch(boxes[first:last, 3].max(), res)
    places, plane = len(scratch[1]), res * res
    numbers = np.empty(6, np.float32)
    for c in range(3):
        numbers[c], numbers[3 + c] = _f4(1) / std[c], -mean[c] / std[c]
    numbers_at, groups = np.uintp(numbers.ctypes.data), np.uintp(res // LANES)
    padded = np.empty((3, res, places), np.float32)  # where rows of `out` are no whole vectors
    for b in range(first, last):
        image, height, width, box = np.uintp(images[b]), heights[b], widths[b], boxes[b]
        target = np.uintp(out.ctypes.data) + np.uintp(12 * plane * b)
        if not exact:
            _resize(
                image,
                height,
                width,
                box,
                flips[b],
                numbers_at,
                np.uintp(padded.ctypes.data),
                4 * places,
                4 * res * places,
                res,
                False,
                scratch,
            )
            for c in range(3):
                for y in range(res):
                    for x in range(res):
                        out[b, c * plane + y * res + x] = padded[c, y, x]
        elif box[0] == 0 and box[1] == 0 and box[2] == height == res and box[3] == width == res:
            _scale_pixels(image, numbers_at, target, np.uintp(4 * plane), np.uintp(res), groups, flips[b], nontemporal)
        else:
            _resize(
                image, height, width, box, flips[b], numbers_at, target, 4 * res, 4 * plane, res, nontemporal, scratch
            )
    _fence()


@nb.njit(nogil=True, cache=True, error_model="numpy")
def _to_bytes(first, last, images, heights, widths, boxes, flips, out, res):
    scratch = _scratch(boxes[first:last, 3].max(), res)
    places = len(scratch[1])
    numbers = np.ones(6, np.float32)
    numbers[3:] = 0.5  # truncated later
    numbers_at, groups = np.uintp(numbers.ctypes.data), np.uintp(res // LANES)
    planes = np.empty((res, 3, places), np.float32)
    planes_at = np.uintp(planes.ctypes.data)
    for b in range(first, last):
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
        )
        target = np.uintp(out.ctypes.data) + np.uintp(3 * res * res * b)
        for y in range(res):
            _pack_pixels(
                planes_at + np.uintp(12 * places * y), np.uintp(4 * places), target + np.uintp(3 * res * y), groups
            )
            for x in range(res // LANES * LANES, res):
                for c in range(3):
                    out[b, y, x, c] = np.uint8(planes[y, c, x])


@nb.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def crop_resize_normalize(
    images,  # (B,) uint64 addresses of images (height, width, 3) uint8
    heights,  # (B,) int64
    widths,  # (B,) int64
    boxes,  # (B, 4) int32: top, left, height, width in image pixels; outside of the image is black
    flips,  # (B,) bool
    mean,  # (3,) float32, 0-255 scale
    std,  # (3,) float32, 0-255 scale
    out,  # (B, 3 * res * res) float32, contiguous, written
    res,
):
    """out[b] = the box of images[b], resized bilinearly to (res, res), mirrored where flips[b], normalised, C,H,W."""
    for task in nb.prange((len(images) + IMAGES_PER_TASK - 1) // IMAGES_PER_TASK):
        first, last = task * IMAGES_PER_TASK, min(len(images), (task + 1) * IMAGES_PER_TASK)
        _to_floats(first, last, images, heights, widths, boxes, flips, mean, std, out, res)


@nb.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def crop_resize(
    images,  # (B,) uint64 addresses, and so on as above
    heights,
    widths,
    boxes,
    flips,
    out,  # (B, res, res, 3) uint8, contiguous, written
    res,
):
    """The same without normalising, rounded, H,W,C: a quarter of the bytes to send to a device."""
    for task in nb.prange((len(images) + IMAGES_PER_TASK - 1) // IMAGES_PER_TASK):
        first, last = task * IMAGES_PER_TASK, min(len(images), (task + 1) * IMAGES_PER_TASK)
        _to_bytes(first, last, images, heights, widths, boxes, flips, out, res)
