"""Autocast to bfloat16 as a CUDA device computes it, emulated in float32 on the CPU, whose own products would crawl.

Numbers stay float32 and are rounded to bfloat16 wherever a device would store one. By torch's lists for CUDA
(ATen/autocast_mode.h), linear takes and gives bfloat16 (AT_FORALL_LOWER_PRECISION_FP), and so does its backward pass:
the gradients of weights become float32 only on their way to `.grad`. layer_norm computes in float32 (AT_FORALL_FP32).
GELU, ReLU, sums and MixUp's lerp give what they take, which is bfloat16. Logits are bfloat16, the loss is computed from
them in float32, and its gradient is rounded. The CPU's lists lack layer_norm: there it gives bfloat16, and so are the
gradients of its weights.

Not emulated: products that cuBLAS splits, whose parts it may add in bfloat16, and what a compiled block does not round
between two operations.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastmlp.training.muon import NS_COEFFS, NS_STEPS


def rounded(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).to(x.dtype)


class _Round(torch.autograd.Function):
    """Rounds a tensor, and the gradient that comes back for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return rounded(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return rounded(grad)


class _Linear(torch.autograd.Function):
    """F.linear of rounded arguments: its result and its gradients are rounded, its sums are float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x, weight = rounded(x), rounded(weight)
        ctx.save_for_backward(x, weight)
        return rounded(torch.addmm(rounded(bias), x, weight.t()))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight = ctx.saved_tensors
        grad = rounded(grad)
        return rounded(grad @ weight), rounded(grad.t() @ x), rounded(grad.sum(0))


class Bfloat16(TorchFunctionMode):
    """A context that stands for torch.autocast(device, torch.bfloat16). Raises for operations that it does not know."""

    ROUNDED = F.gelu, F.relu, Tensor.add  # of bfloat16, and with the gradients of linear, which are rounded
    EXACT = Tensor.__getitem__, Tensor.flatten, Tensor.flip, Tensor.unflatten

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.linear:
            return _Linear.apply(*args)
        if function is F.layer_norm:
            return function(_Round.apply(args[0]), *args[1:], **kwargs)
        if function is torch.lerp:
            start, end, weight = args
            return _Round.apply(function(_Round.apply(start), _Round.apply(end), weight))
        if function in self.ROUNDED:
            return _Round.apply(function(*args, **kwargs))
        out = function(*args, **kwargs)
        if isinstance(out, Tensor) and out.is_floating_point() and function not in self.EXACT:
            raise NotImplementedError(f"{function}: is its result bfloat16 on a device?")
        return out


def bfloat16_orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute muon.orthogonalize(matrix, torch.bfloat16)."""
    a, b, c = NS_COEFFS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = rounded(matrix.T if is_tall else matrix)
    x = rounded(x / rounded(x.norm()))
    for _ in range(NS_STEPS):
        gram = rounded(x @ x.T)
        x = rounded(torch.addmm(x, rounded(torch.addmm(gram, gram, gram, beta=b, alpha=c)), x, beta=a))
    return x.T if is_tall else x
