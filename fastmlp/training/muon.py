"""Muon for matrices, AdamW for the rest."""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ..device import compute_dtype
from ..models.grey_images import are_grey
from .eager_optimizer import EagerOptimizer

NS_STEPS = 5
# Jordan's quintic x <- a x + b (x x^T) x + c (x x^T)^2 x (https://kellerjordan.github.io/posts/muon).
NS_COEFFS = (3.4445, -4.7750, 2.0315)


def orthogonalize(
    matrix: Tensor,  # (rows, columns)
    dtype: torch.dtype,  # of the matrix products
) -> Tensor:
    """Return nearly U V^T of the matrix's SVD, (rows, columns) of dtype, with singular values of about 0.7 to 1.2.

    NS_STEPS steps of the Newton-Schulz iteration with NS_COEFFS, which raise small singular values fast rather than
    bring all to 1. Tiny ones (for example, below 1/1000 of the Frobenius norm) stay below 0.7.
    """
    a, b, c = NS_COEFFS
    x = matrix.to(dtype)
    if matrix.shape[0] > matrix.shape[1]:
        x = x.T  # products with the smaller Gram matrix
    x = x / x.norm().clamp(min=1e-7)
    if dtype == torch.float32 and x.shape[1] >= 2 * x.shape[0]:
        x = _iterate_gram(x)
    else:
        for _ in range(NS_STEPS):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def _iterate_gram(x: Tensor) -> Tensor:  # (rows, columns), fewer rows than columns
    """Compute the same steps as one polynomial of the Gram matrix times x.

    That makes two products with x instead of ten, and takes half of the time at 192 x 3072. The Gram matrix squares the
    condition number, for which only float32 is precise enough.
    """
    a, b, c = NS_COEFFS
    gram = x @ x.T
    factors: list[Tensor] = []
    for _ in range(NS_STEPS):
        if factors:
            gram = factors[-1] @ gram @ factors[-1]
        step = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal().add_(a)
        factors.append(step)
    return reduce(lambda product, step: step @ product, factors) @ x


def add_orthogonalized(
    p: Tensor,  # (rows, columns), a contiguous parameter
    grad: Tensor,
    momentum: Tensor,
    beta: float,
    alpha: float,
) -> None:
    """Add alpha * orthogonalize(lerp(grad, momentum, beta)) to p, in place.

    On grey images the first layer's gradients are (G, G, G): then G alone is orthogonalised, in a third of the
    products, and divided by sqrt(3) it is each plane of the result, except for rounding.
    """
    dtype, scale = compute_dtype(p.device), 1.0
    if p.device.type == "cpu" and are_grey(grad) and are_grey(momentum):
        planes, scale = (len(p), 3, -1), 1 / math.sqrt(3)
        p, grad, momentum = p.view(planes), grad.view(planes)[:, 0], momentum.view(planes)[:, 0]
    update = orthogonalize(torch.lerp(grad, momentum, beta), dtype)
    p.add_(update if p.ndim == 2 else update[:, None], alpha=scale * alpha)


class Muon(EagerOptimizer):
    """Muon (Jordan et al. 2024) for groups of kind "hidden", whose parameters are matrices; AdamW for all others.

    Muon: Nesterov momentum 0.95, orthogonalised, times 0.2 * sqrt(max(rows, columns)), which gives an update the
    root mean square of AdamW's (Moonlight, arXiv 2502.16982, equation 4), so that one learning rate and one
    decoupled weight decay suit both. Matrix products are in bfloat16 on CUDA, as in the author's code, and in float32
    on the CPU: torch.optim.Muon's bfloat16 is twice as fast there if the processor has instructions for it
    (avx512_bf16), and a hundred times slower if it has not.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        # "fused" tells load_state_dict to leave AdamW's step counts in float32 on the parameters' device.
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"kind": "rest", "fused": True})
        for group in self.param_groups:
            if group["kind"] == "hidden" and any(p.ndim != 2 for p in group["params"]):
                raise ValueError('Muon: parameters of kind "hidden" must be matrices')

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have gradients. Raises ValueError for a sparse gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if any(p.grad.layout != torch.strided for p in params):
                raise ValueError("Muon takes dense gradients, got a sparse one: is there an Embedding(sparse=True)?")
            if group["kind"] == "hidden":
                for p in params:
                    self._muon(p, group)
            elif params:
                self._adamw(params, group)
        return loss

    def _muon(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state, beta = self.state[p], group["momentum"]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        momentum = state["momentum"].lerp_(p.grad, 1 - beta)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        add_orthogonalized(p, p.grad, momentum, beta, -group["lr"] * 0.2 * math.sqrt(max(p.shape)))

    def _adamw(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p].update(
                    step=torch.zeros((), dtype=torch.float32, device=p.device),
                    exp_avg=torch.zeros_like(p, memory_format=torch.contiguous_format),
                    exp_avg_sq=torch.zeros_like(p, memory_format=torch.contiguous_format),
                )
        states = [self.state[p] for p in params]
        # The fused kernel ignores strides: it would pair a parameter with the wrong elements of a transposed gradient.
        dense = [p.contiguous() for p in params]
        adamw(
            dense,
            [p.grad.contiguous() for p in params if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            max_exp_avg_sqs=[],
            state_steps=[state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for p, updated in zip(params, dense, strict=True):
            if not p.is_contiguous():
                p.copy_(updated)
