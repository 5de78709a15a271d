"""LION, parameter groups, and learning rates as pure functions of the step."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Lion(torch.optim.Optimizer):
    """LION (Chen et al. 2023, algorithm 2).

    `p <- p - lr * (sign(b1 m + (1 - b1) g) + weight_decay p)`, then `m <- b2 m + (1 - b2) g`.
    """

    def __init__(
        self, params: Any, lr: float = 5e-5, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            for p in params:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
            momenta = [self.state[p]["momentum"] for p in params]
            b1, b2 = group["betas"]
            updates: list[Tensor] = list(torch._foreach_lerp(momenta, grads, 1 - b1))
            torch._foreach_sign_(updates)
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(params, updates, alpha=-group["lr"])
            torch._foreach_lerp_(momenta, grads, 1 - b2)
        return loss


def build_optimizer(name: str, model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """lion (0.9, 0.99), adamw (0.9, 0.999) or sgd (momentum 0.9). Weight decay on matrices, not on biases and norms."""
    params = list(model.parameters())
    groups = [
        {"params": [p for p in params if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    if name == "lion":
        return Lion(groups, lr=lr)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)
    raise ValueError(f"unknown optimiser {name!r}: expected lion, adamw or sgd")


def learning_rate(
    step: int,  # from 0
    total_steps: int,
    peak: float,
    schedule: str = "constant",  # or cosine, linear
    warmup_steps: int = 0,
) -> float:
    """The rate of a step: linear up to the peak over warmup_steps, then constant, or falling to 0 at total_steps."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)  # 0 at the peak, 1 after the last step
    if schedule == "constant":
        return peak
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    if schedule == "linear":
        return peak * (1 - done)
    raise ValueError(f"unknown schedule {schedule!r}: expected constant, cosine or linear")
