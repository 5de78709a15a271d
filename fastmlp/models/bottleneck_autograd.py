"""The bottleneck block with its own backward pass, for float32 on the CPU without a compiler: few passes over memory.

What is not a matrix product is in fused_passes.py; the products add the skip connection.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .fused_passes import gelu_, gelu_and_slope, layer_norm, layer_norm_backward, multiply_and_sum
from .mlp import bottleneck_block


class _BottleneckFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        ln_weight: Tensor,
        ln_bias: Tensor,
        expand: Tensor,
        expand_bias: Tensor,
        collapse: Tensor,
        collapse_bias: Tensor,
    ) -> Tensor:
        z = z.contiguous()
        normed, out, mean, rstd = layer_norm(z, ln_weight, ln_bias, collapse_bias)
        act, slope = gelu_and_slope(normed @ expand.t(), expand_bias)
        ctx.save_for_backward(z, ln_weight, expand, collapse, normed, mean, rstd, act, slope)
        return out.addmm_(act, collapse.t())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        z, ln_weight, expand, collapse, normed, mean, rstd, act, slope = ctx.saved_tensors
        grad_out = gradients[0].contiguous()
        grad_hidden, grad_expand_bias = multiply_and_sum(grad_out @ collapse, slope)
        grad_z, grad_ln_weight, grad_ln_bias, grad_collapse_bias = layer_norm_backward(
            grad_hidden @ expand, z, mean, rstd, ln_weight, grad_out
        )
        return (
            grad_z,
            grad_ln_weight,
            grad_ln_bias,
            grad_hidden.t() @ normed,
            grad_expand_bias,
            grad_out.t() @ act,
            grad_collapse_bias,
        )


def bottleneck_in_place(
    z: Tensor,  # (B, m), overwritten
    ln_weight: Tensor,
    ln_bias: Tensor,
    expand: Tensor,
    expand_bias: Tensor,
    collapse: Tensor,
    collapse_bias: Tensor,
) -> Tensor:
    """Compute models.mlp.bottleneck_block without gradients, in z.

    Only LayerNorm's result and the hidden activations, (B, expansion * m), are allocated.
    """
    if not _is_plain(z):
        return bottleneck_block(z, ln_weight, ln_bias, expand, expand_bias, collapse, collapse_bias)
    hidden = F.layer_norm(z, ln_weight.shape, ln_weight, ln_bias) @ expand.t()
    return z.addmm_(gelu_(hidden, expand_bias), collapse.t()).add_(collapse_bias)


def bottleneck_own_backward(*arguments: Tensor) -> Tensor:
    """Compute models.mlp.bottleneck_block: same arguments, same result except for rounding, first derivatives only."""
    return _BottleneckFunction.apply(*arguments) if _is_plain(arguments[0]) else bottleneck_block(*arguments)


def _is_plain(z: Tensor) -> bool:
    """Return whether all results are float32: not in double precision, nor under a caller's autocast."""
    return z.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
