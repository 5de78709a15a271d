"""The passes over a bottleneck block's activations that are not matrix products, compiled by numba, in float32.

GELU with its bias and its slope is one pass: erf and exp are computed once for both directions, and the backward pass
multiplies and sums up the bias's gradient. LayerNorm's backward pass adds the skip connection's gradient. B_6-Wi_256,
batch 1024: with LION in one pass, a step takes 0.92 of the time that it takes with torch's own passes.

Rows are worked on in tiles; results do not depend on the number of threads. Contraction lets a product and a sum be one
instruction.
"""

from functools import partial

import numpy as np
import torch
from llvmlite import ir
from numba import carray
from numba.core import types
from numba.extending import intrinsic
from torch import Tensor

from ..transforms.numba_cache import numba as nb
from .torch_threads import COLUMNS, FIRST, NUMBERS, ROWS, TILES, TileLoop, floats_at, next_tile

TILE = 128  # rows
# The first 16 digits of the SHA-256 of torch_threads.py, which a test compares: numba's cache on disk notices only
# changes of this file.
THREADS_SHA256 = "20548179155453ed"
EPS = np.float32(1e-5)  # LayerNorm's, torch's default
_pass = partial(TileLoop, contract=True)
_f4 = np.float32
_ONE = _f4(1)
# 2**f on (-1, 0], to 1e-7 of it (Chebyshev's nodes).
_EXP2 = tuple(
    map(_f4, np.polynomial.Chebyshev.interpolate(np.exp2, 5, [-1, 0]).convert(kind=np.polynomial.Polynomial).coef)
)
_HALF_LOG2E = _f4(-0.5 / np.log(2))
_LEAST_POWER = _f4(-100)  # of 2; products with it are still normal numbers, and others are slow
_DENSITY_AT_0 = _f4(1 / np.sqrt(2 * np.pi))
# erfc(t) / 2 = exp(-t * t) q (a[0] + q a[1] + ...), q = 1 / (1 + 0.4 t): the form of Abramowitz and Stegun 7.1.26, with
# coefficients fitted to an error of 2e-8 for all t >= 0.
_SLOWNESS = _f4(0.4 / np.sqrt(2))
_TAIL = tuple(
    _f4(a / 2) for a in (0.2311504832, 0.1666949556, 0.4560606240, -0.3557029060, 0.6997457092, -0.1979488327)
)


@intrinsic
def _float_of_bits(typingctx, bits):
    """Return the float32 of an int32's bits."""

    def generate(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@nb.njit(fastmath={"contract"}, error_model="numpy")
def _gelu(x):
    """Return GELU and its slope: x Phi(x) and Phi(x) + x phi(x), to 4e-7 for |x| < 10."""
    power = max(_HALF_LOG2E * x * x, _LEAST_POWER)
    whole = np.int32(power)
    f = power - _f4(whole)
    f2 = f * f  # short chains of dependent operations
    e = (_EXP2[0] + f * _EXP2[1]) + f2 * ((_EXP2[2] + f * _EXP2[3]) + f2 * (_EXP2[4] + f * _EXP2[5]))
    e *= _float_of_bits(np.int32((whole + np.int32(127)) << np.int32(23)))
    e = e if power > _LEAST_POWER else _f4(0)
    q = _ONE / (_ONE + _SLOWNESS * abs(x))
    q2 = q * q
    tail = (_TAIL[0] + q * _TAIL[1]) + q2 * ((_TAIL[2] + q * _TAIL[3]) + q2 * (_TAIL[4] + q * _TAIL[5]))
    tail *= e * q
    share = _ONE - tail if x >= 0 else tail
    return x * share, share + x * e * _DENSITY_AT_0


@nb.njit
def _rows(tile, numbers):
    """Return the first row of a tile and the one after its last."""
    return tile * TILE, min(numbers[ROWS], (tile + 1) * TILE)


@nb.njit
def _matrix(numbers, place):
    """Return operand number `place` as (rows, columns)."""
    return carray(floats_at(numbers[FIRST + place]), (numbers[ROWS], numbers[COLUMNS]))


@nb.njit
def _vector(numbers, place):
    """Return operand number `place` as (columns,)."""
    return carray(floats_at(numbers[FIRST + place]), (numbers[COLUMNS],))


@nb.njit
def _of_rows(numbers, place):
    """Return operand number `place` as (rows,)."""
    return carray(floats_at(numbers[FIRST + place]), (numbers[ROWS],))


@nb.njit
def _totals(numbers, place, count):
    """Return operand number `place` as (tiles, count, columns)."""
    return carray(floats_at(numbers[FIRST + place]), (numbers[TILES], count, numbers[COLUMNS]))


@_pass
def _gelu_and_slope_loop(pointer):
    numbers = carray(pointer, (NUMBERS,))
    x, bias, act = _matrix(numbers, 0), _vector(numbers, 1), _matrix(numbers, 2)
    while True:
        tile = next_tile(pointer)
        if tile >= numbers[TILES]:
            return
        first, last = _rows(tile, numbers)
        for i in range(first, last):
            for j in range(x.shape[1]):
                act[i, j], x[i, j] = _gelu(x[i, j] + bias[j])


@_pass
def _gelu_loop(pointer):
    numbers = carray(pointer, (NUMBERS,))
    x, bias = _matrix(numbers, 0), _vector(numbers, 1)
    while True:
        tile = next_tile(pointer)
        if tile >= numbers[TILES]:
            return
        first, last = _rows(tile, numbers)
        for i in range(first, last):
            for j in range(x.shape[1]):
                x[i, j] = _gelu(x[i, j] + bias[j])[0]


@_pass
def _multiply_and_sum_loop(pointer):
    numbers = carray(pointer, (NUMBERS,))
    grad, slope, totals = _matrix(numbers, 0), _matrix(numbers, 1), _totals(numbers, 2, 1)
    while True:
        tile = next_tile(pointer)
        if tile >= numbers[TILES]:
            return
        first, last = _rows(tile, numbers)
        total = totals[tile, 0]
        total[:] = 0
        for i in range(first, last):
            for j in range(grad.shape[1]):
                product = grad[i, j] * slope[i, j]
                grad[i, j] = product
                total[j] += product


@nb.njit(fastmath={"contract", "reassoc"}, error_model="numpy")  # sums become vectors
def _mean_and_variance(row):
    total = squares = _f4(0)
    for j in range(len(row)):
        total += row[j]
    mean = total / _f4(len(row))
    for j in range(len(row)):
        squares += (row[j] - mean) * (row[j] - mean)
    return mean, squares / _f4(len(row))


@_pass
def _layer_norm_loop(pointer):
    numbers = carray(pointer, (NUMBERS,))
    z, normed, shifted = _matrix(numbers, 0), _matrix(numbers, 1), _matrix(numbers, 2)
    mean, rstd = _of_rows(numbers, 3), _of_rows(numbers, 4)
    weight, bias, shift = _vector(numbers, 5), _vector(numbers, 6), _vector(numbers, 7)
    while True:
        tile = next_tile(pointer)
        if tile >= numbers[TILES]:
            return
        first, last = _rows(tile, numbers)
        for i in range(first, last):
            m, variance = _mean_and_variance(z[i])
            r = _ONE / np.sqrt(variance + EPS)
            mean[i], rstd[i] = m, r
            for j in range(z.shape[1]):
                value = z[i, j]
                normed[i, j] = (value - m) * r * weight[j] + bias[j]
                shifted[i, j] = value + shift[j]


@nb.njit(fastmath={"contract", "reassoc"}, error_model="numpy")
def _row_means(grad, z, mean, rstd, weight):
    """Return the means over a row of a = grad * weight and of a * normalised z."""
    first = second = _f4(0)
    for j in range(len(z)):
        a = grad[j] * weight[j]
        first += a
        second += a * ((z[j] - mean) * rstd)
    return first / _f4(len(z)), second / _f4(len(z))


@_pass
def _layer_norm_backward_loop(pointer):
    numbers = carray(pointer, (NUMBERS,))
    grad, z, skip = _matrix(numbers, 0), _matrix(numbers, 1), _matrix(numbers, 5)
    mean, rstd = _of_rows(numbers, 2), _of_rows(numbers, 3)
    weight, totals = _vector(numbers, 4), _totals(numbers, 6, 3)
    while True:
        tile = next_tile(pointer)
        if tile >= numbers[TILES]:
            return
        first, last = _rows(tile, numbers)
        total = totals[tile]
        total[:] = 0
        for i in range(first, last):
            m, r = mean[i], rstd[i]
            first_mean, second_mean = _row_means(grad[i], z[i], m, r, weight)
            for j in range(grad.shape[1]):
                g, normed, s = grad[i, j], (z[i, j] - m) * r, skip[i, j]
                total[0, j] += g * normed
                total[1, j] += g
                total[2, j] += s
                grad[i, j] = r * (g * weight[j] - first_mean - normed * second_mean) + s


def _tiles(rows: int) -> int:
    return -(-rows // TILE)


def _sum(totals: Tensor) -> Tensor:
    """Return the sum over the tiles. (numpy's takes 5 us, torch's 80.)"""
    with np.errstate(all="ignore"):  # a diverged run is told of elsewhere
        return torch.from_numpy(totals.numpy().sum(0))


def layer_norm(
    z: Tensor,  # (B, m) contiguous
    weight: Tensor,  # (m,)
    bias: Tensor,  # (m,)
    shift: Tensor,  # (m,)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return LayerNorm's result and z + shift, (B, m), and the rows' means and 1 / their standard deviations, (B,)."""
    normed, shifted, mean, rstd = torch.empty_like(z), torch.empty_like(z), *z.new_empty(2, len(z))
    parameters = (one.contiguous() for one in (weight, bias, shift))
    _layer_norm_loop.run(_tiles(len(z)), *z.shape, z, normed, shifted, mean, rstd, *parameters)
    return normed, shifted, mean, rstd


def gelu_and_slope(
    x: Tensor,  # (B, n) contiguous
    bias: Tensor,  # (n,)
) -> tuple[Tensor, Tensor]:
    """Return gelu(x + bias) and the derivative there, both (B, n), of which the second is in x's place."""
    act = torch.empty_like(x)
    _gelu_and_slope_loop.run(_tiles(len(x)), *x.shape, x, bias.contiguous(), act)
    return act, x


def gelu_(
    x: Tensor,  # (B, n) contiguous, overwritten
    bias: Tensor,  # (n,)
) -> Tensor:
    """Return gelu(x + bias), in x's place."""
    _gelu_loop.run(_tiles(len(x)), *x.shape, x, bias.contiguous())
    return x


def multiply_and_sum(
    grad: Tensor,  # (B, n) contiguous, overwritten
    slope: Tensor,  # (B, n) contiguous
) -> tuple[Tensor, Tensor]:
    """Return grad * slope, in grad's place, and its sum over the rows, (n,)."""
    totals = grad.new_empty(_tiles(len(grad)), grad.shape[1])
    _multiply_and_sum_loop.run(len(totals), *grad.shape, grad, slope, totals)
    return grad, _sum(totals)


def layer_norm_backward(
    grad: Tensor,  # (B, m) contiguous, of LayerNorm's result; overwritten
    z: Tensor,  # (B, m) contiguous, LayerNorm's input
    mean: Tensor,  # (B,), of its rows
    rstd: Tensor,  # (B,), 1 / their standard deviation
    weight: Tensor,  # (m,)
    skip: Tensor,  # (B, m) contiguous, the gradient that goes past LayerNorm
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return z's gradient plus skip, in grad's place, the weight's and the bias's gradients and skip's sum, (m,)."""
    totals = grad.new_empty(_tiles(len(grad)), 3, grad.shape[1])
    operands = grad, z, mean, rstd, weight.contiguous(), skip, totals
    _layer_norm_backward_loop.run(len(totals), *grad.shape, *operands)
    return grad, *_sum(totals)
