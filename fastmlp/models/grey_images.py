"""The embedding of grey images, whose three planes are equal, in a third of the products, on the CPU.

With x = (g, g, g), W x = (W_R + W_G + W_B) g, and the three parts of W have the same gradient. Weights, gradients and
optimiser state keep their three planes. B_2-Wi_256-E_2 on Fashion-MNIST: 1.4 times the images/sec.
"""

from typing import Any

import torch
from torch import Tensor, nn


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


def are_grey(images: Tensor) -> bool:  # (B, 3 * res * res)
    """Return whether the three planes of each image are equal. Of coloured images it looks at the first, mostly."""
    if not len(images) or images.shape[1] % 3:
        return False
    size = images.shape[1] // 3
    red, green, blue = (slice(plane * size, (plane + 1) * size) for plane in range(3))
    return all(torch.equal(some[:, red], some[:, other]) for some in (images[:1], images) for other in (green, blue))


def embed(linear: nn.Linear, images: Tensor) -> Tensor:
    """Return linear(images), (B, m), except for rounding. images: (B, 3 * res * res) on the CPU."""
    is_plain = not (images.requires_grad or linear._forward_hooks or linear._forward_pre_hooks)
    if is_plain and not torch.is_autocast_enabled("cpu") and are_grey(images):
        return _FoldedLinear.apply(images, linear.weight, linear.bias)
    return linear(images)
