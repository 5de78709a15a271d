"""Loops over vectors of pixels as Numba intrinsics, written in LLVM's terms.

They become the widest instructions of the machine. Numba's own loops over interleaved bytes do not become vectors
(crop, resize, flip and normalise at 64 px at 0.20 of the speed of torch's fill_ on the same output instead of 0.60,
2 cores of an AMD EPYC).

Addresses and lengths are uintp; nothing is checked.

A trap: Numba's cache on disk does not notice when this file changes, because the functions that it caches are in
resample.py. They are compiled again if resample.py changes, which therefore holds a hash of this file (VECTORS_SHA256).
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 8  # floats at a time, 32 bytes
_WORD, _BYTE, _FLOAT = ir.IntType(32), ir.IntType(8), ir.FloatType()
_FUSE = ("contract",)  # multiply and add may become one instruction


def _vector(kind, length):
    return ir.VectorType(kind, length)


def _pointer(builder, address, kind, offset=0):
    moved = builder.add(address, ir.Constant(address.type, offset)) if offset else address
    return builder.inttoptr(moved, kind.as_pointer())


def _times(builder, index, factor):
    return builder.mul(index, ir.Constant(index.type, factor))


def _shuffle(builder, first, second, lanes):
    return builder.shuffle_vector(first, second, ir.Constant(_vector(_WORD, len(lanes)), list(lanes)))


def _splat(builder, value, length):
    """Return a vector whose lanes all hold one float."""
    none = ir.Constant(_vector(_FLOAT, length), ir.Undefined)
    return _shuffle(builder, builder.insert_element(none, value, ir.Constant(_WORD, 0)), none, [0] * length)


def _normalisation(builder, numbers):
    """Return three scales and three biases from memory, each as a vector."""
    values = [_splat(builder, builder.load(_pointer(builder, numbers, _FLOAT, 4 * i)), LANES) for i in range(6)]
    return values[:3], values[3:]


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=_FUSE), c, flags=_FUSE)


def _store(builder, value, address, nontemporal):
    stored = builder.store(value, _pointer(builder, address, value.type), align=4 * LANES if nontemporal else 4)
    if nontemporal:  # past the caches: a plain store reads the line that it is about to overwrite
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_WORD, 1)]))


@intrinsic
def widen(typingctx, source, target, count):
    """Write target[i] = float32(source[i]) for `count` bytes."""

    def generate(context, builder, signature, args):
        source, target, count = args

        def convert(index, length):
            pixels = builder.load(_pointer(builder, builder.add(source, index), _vector(_BYTE, length)), align=1)
            values = builder.uitofp(pixels, _vector(_FLOAT, length))
            at = builder.add(target, _times(builder, index, 4))
            builder.store(values, _pointer(builder, at, values.type), align=4)

        groups = builder.udiv(count, ir.Constant(count.type, LANES))
        with cgutils.for_range(builder, groups) as loop:
            convert(_times(builder, loop.index, LANES), LANES)
        with cgutils.for_range(builder, builder.urem(count, ir.Constant(count.type, LANES))) as loop:
            convert(builder.add(_times(builder, groups, LANES), loop.index), 1)
        return context.get_dummy_value()

    return types.void(*[types.uintp] * 3), generate


@intrinsic
def clear(typingctx, target, count):
    """Write target[i] = 0 for `count` floats."""

    def generate(context, builder, signature, args):
        cgutils.memset(builder, _pointer(builder, args[0], _BYTE), _times(builder, args[1], 4), 0)
        return context.get_dummy_value()

    return types.void(*[types.uintp] * 2), generate


@intrinsic
def blend_pixels(typingctx, row, offsets, weights, target, plane_bytes, quads):
    """Write target[c][x] = lerp of the floats row[c], row[3 + c] at byte offsets[x], by weights[x], for 4 * quads x.

    `row` is interleaved (x, c) and must have a fourth float after the last pixel. The planes of the target are stored
    plane_bytes apart. offsets (int32) and weights (float32) are arrays.
    """

    def generate(context, builder, signature, args):
        row, offsets, weights, target, plane_bytes, quads = args
        four = _vector(_FLOAT, 4)
        with cgutils.for_range(builder, quads) as loop:
            step = _times(builder, loop.index, 16)
            pixels = []
            for lane in range(4):
                offset = builder.load(_pointer(builder, builder.add(offsets, step), _WORD, 4 * lane))
                at = builder.add(row, builder.zext(offset, row.type))
                left = builder.load(_pointer(builder, at, four), align=4)  # r, g, b and what follows
                right = builder.load(_pointer(builder, at, four, 12), align=4)
                weight = builder.load(_pointer(builder, builder.add(weights, step), _FLOAT, 4 * lane))
                weight = _splat(builder, weight, 4)
                pixels.append(_multiply_add(builder, weight, builder.fsub(right, left), left))
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
def blend_rows(typingctx, upper, lower, weight, numbers, target, plane_bytes, groups, nontemporal):
    """Write target[c] = lerp(upper[c], lower[c], weight) * scale[c] + bias[c] for three rows of groups * LANES floats.

    The rows of upper and lower follow one another, those of the target are stored plane_bytes apart. numbers: three
    scales, three biases. nontemporal: store past the caches, to a target that is aligned to a vector.
    """

    def generate(context, builder, signature, args):
        upper, lower, weight, numbers, target, plane_bytes, groups, nontemporal = args
        floats = _vector(_FLOAT, LANES)
        weight = _splat(builder, weight, LANES)
        scales, biases = _normalisation(builder, numbers)
        row_bytes = _times(builder, groups, 4 * LANES)
        with builder.if_else(nontemporal) as branches:
            for branch, past in zip(branches, (True, False), strict=True):
                with branch:
                    rows = upper, lower, target
                    for scale, bias in zip(scales, biases, strict=True):
                        with cgutils.for_range(builder, groups) as loop:
                            step = _times(builder, loop.index, 4 * LANES)
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
def scale_pixels(typingctx, source, numbers, target, plane_bytes, rows, groups, mirrored, nontemporal):
    """Write target[c][y][x] = source[y][x][c] * scale[c] + bias[c] for groups * LANES places x.

    mirrored: from right to left. numbers and nontemporal as in blend_rows.
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
                    at = builder.add(source, _times(builder, group, 3 * LANES))
                    read = builder.load(_pointer(builder, at, pixels), align=1)
                    group = builder.add(start, builder.sub(last, loop.index)) if backward else group
                    at = builder.add(target, _times(builder, group, 4 * LANES))
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
def pack_pixels(typingctx, row, plane_bytes, target, groups):
    """Write target[x][c] = uint8(row[c][x]), whose values must be in its range, for groups * LANES places x."""

    def generate(context, builder, signature, args):
        row, plane_bytes, target, groups = args
        with cgutils.for_range(builder, groups) as loop:
            at = builder.add(row, _times(builder, loop.index, 4 * LANES))
            channels = []
            for _ in range(3):
                values = builder.load(_pointer(builder, at, _vector(_FLOAT, LANES)), align=4)
                words = builder.fptosi(values, _vector(_WORD, LANES))
                channels.append(builder.trunc(words, _vector(_BYTE, LANES)))
                at = builder.add(at, plane_bytes)
            red_green = _shuffle(builder, *channels[:2], range(2 * LANES))
            blue = _shuffle(builder, channels[2], channels[2], range(2 * LANES))
            lanes = [c * LANES + x for x in range(LANES) for c in range(3)]
            at = builder.add(target, _times(builder, loop.index, 3 * LANES))
            pixels = _shuffle(builder, red_green, blue, lanes)
            builder.store(pixels, _pointer(builder, at, pixels.type), align=1)
        return context.get_dummy_value()

    return types.void(*[types.uintp] * 4), generate


@intrinsic
def fence(typingctx):
    """Make stores past the caches visible to other threads; on x86 nothing else orders them."""

    def generate(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate
