"""The embedding of grey images, whose three planes are equal, in a third of the products, on the CPU.

With x = (g, g, g), W x = (W_R + W_G + W_B) g, and the three parts of W have the same gradient. Weights, gradients and
optimiser state keep their three planes. B_2-Wi_256-E_2 on Fashion-MNIST: 1.4 times the images/sec.
"""

from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor, nn

from .torch_threads import (
    COLUMNS,
    FIRST,
    NUMBERS,
    ROWS,
    TILES,
    TileLoop,
    floats_at,
    integers_at,
    next_tile,
)

TILE = 16  # rows
THREADS_SHA256 = "20548179155453ed"  # of torch_threads.py, for numba's cache (fused_passes.py)


class _FoldedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        plane = images[:, : images.shape[1] // 3]
        ctx.save_for_backward(plane)
        return torch.addmm(bias, plane, weight.view(len(weight), 3, -1).sum(1).t())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor]:
        (grad,), (plane,) = gradients, ctx.saved_tensors
        return None, (grad.t() @ plane).repeat(1, 3), grad.sum(0)


@TileLoop
def _planes_differ_loop(pointer):
    """Set a flag if a row's planes differ. Operands: float32 (rows, columns) and the flag, int64 (1,), 0 before."""
    numbers = carray(pointer, (NUMBERS,))
    images = carray(floats_at(numbers[FIRST]), (numbers[ROWS], numbers[COLUMNS]))
    differ = carray(integers_at(numbers[FIRST + 1]), (1,))
    size = numbers[COLUMNS] // 3
    while True:
        tile = next_tile(pointer)
        if tile >= numbers[TILES] or differ[0]:
            return
        for row in range(tile * TILE, min(numbers[ROWS], (tile + 1) * TILE)):
            red, green, blue = images[row, :size], images[row, size : 2 * size], images[row, 2 * size :]
            count = np.int32(0)
            for i in range(size):
                count += np.int32((red[i] != green[i]) | (red[i] != blue[i]))
            if count:
                differ[0] = 1


def are_grey(images: Tensor) -> bool:  # (B, 3 * res * res) float32 on the CPU
    """Return whether the three planes of each image are equal. Of coloured images it looks at the first, mostly."""
    if not len(images) or images.shape[1] % 3:
        return False
    size = images.shape[1] // 3
    red, green, blue = (images[0, plane * size : (plane + 1) * size] for plane in range(3))
    if not (torch.equal(red, green) and torch.equal(red, blue)):
        return False
    if not images.is_contiguous() or images.dtype != torch.float32:
        planes = images.unflatten(1, (3, size))
        return torch.equal(planes[:, 0], planes[:, 1]) and torch.equal(planes[:, 0], planes[:, 2])
    differ = torch.zeros(1, dtype=torch.int64)
    _planes_differ_loop.run(-(-len(images) // TILE), *images.shape, images, differ)
    return not differ.item()


def embed(linear: nn.Linear, images: Tensor) -> Tensor:
    """Return linear(images), (B, m), except for rounding. images: (B, 3 * res * res) on the CPU."""
    is_plain = not (images.requires_grad or linear._forward_hooks or linear._forward_pre_hooks)
    if is_plain and not torch.is_autocast_enabled("cpu") and are_grey(images):
        return _FoldedLinear.apply(images, linear.weight, linear.bias)
    return linear(images)
