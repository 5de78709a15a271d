"""LION and Muon, parameter groups, and learning rates as pure functions of the step."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from ..device import compute_dtype

# Elements of LION's blocks on the CPU: 1 MiB each of parameters, momenta and gradients stay in the caches between
# its operations. Blocks of 2**14 took about twice as long, no blocks at all three to five times.
BLOCK = 2**18
# Parameters of fewer elements are updated by plain operations: the compiled kernel's checks (30 us) cost more.
SMALL = 2**15


def _lion(p: Tensor, m: Tensor, g: Tensor, step: Tensor, keep: Tensor, w1: float, w2: float) -> None:
    """Parameters, momenta and gradients (n,); step = -lr and keep = 1 - lr * weight_decay (): tensors, since
    torch.compile would build numbers into its kernel, and build a new one for every learning rate."""
    update = torch.lerp(m, g, w1).sign_()
    m.lerp_(g, w2)
    p.mul_(keep).addcmul_(update, step)


class Lion(torch.optim.Optimizer):
    """LION (Chen et al. 2023, algorithm 2).

    `p <- p - lr * (sign(b1 m + (1 - b1) g) + weight_decay p)`, then `m <- b2 m + (1 - b2) g`.

    compile=True makes it one pass over memory, which is the limit: torch.compile builds one kernel for all sizes, in
    about 1 s where torch.compile has been used before and 13 s where it has not. Otherwise it goes by blocks.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 5e-5,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        compile: bool = False,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self._fused = torch.compile(_lion, fullgraph=True, dynamic=True) if compile else None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
                # full() fills on the device; tensor() would copy there, and wait for it.
                step = torch.full((), -group["lr"], dtype=p.dtype, device=p.device)
                keep = torch.full((), 1 - group["lr"] * group["weight_decay"], dtype=p.dtype, device=p.device)
                flat, m, g = p.view(-1), self.state[p]["momentum"].view(-1), p.grad.reshape(-1)
                if self._fused is not None and p.numel() >= SMALL:
                    self._fused(flat, m, g, step, keep, 1 - b1, 1 - b2)
                    continue
                size = BLOCK if p.device.type == "cpu" else max(1, p.numel())
                for parts in zip(flat.split(size), m.split(size), g.split(size), strict=True):
                    _lion(parts[0], parts[1], parts[2], step, keep, 1 - b1, 1 - b2)
        return loss


def orthogonalize(
    matrix: Tensor,  # (rows, columns)
    dtype: torch.dtype,  # of the products
) -> Tensor:
    """Nearly U V^T of the matrix's SVD, (rows, columns) of dtype: singular values come to lie in about [0.7, 1.2].

    Five steps of Jordan's quintic Newton-Schulz iteration (https://kellerjordan.github.io/posts/muon), whose
    coefficients raise small singular values fast rather than bring all to 1. Tiny ones (below 1/1000 of the
    Frobenius norm, say) stay below 0.7.
    """
    x = matrix.to(dtype)
    if matrix.shape[0] > matrix.shape[1]:
        x = x.T  # products with the smaller Gram matrix
    x = x / x.norm().clamp(min=1e-7)
    if dtype == torch.float32 and x.shape[1] >= 2 * x.shape[0]:
        x = _through_gram(x)
    else:
        for _ in range(5):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def _through_gram(x: Tensor) -> Tensor:  # (rows, columns), fewer rows than columns
    """The same five steps as one polynomial of the Gram matrix times x: two products with x in the place of ten, half
    of the time at 192 x 3072. The Gram matrix squares the condition number, which float32 alone bears."""
    gram = x @ x.T
    product = torch.eye(len(x), dtype=x.dtype, device=x.device)
    for _ in range(5):
        step = torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        step.diagonal().add_(3.4445)
        product = step @ product
        gram = step @ gram @ step
    return product @ x


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for groups of kind "hidden", whose parameters are matrices; AdamW for all others.

    Muon: Nesterov momentum 0.95, orthogonalised, times 0.2 * sqrt(max(rows, columns)), which gives an update the
    root mean square of AdamW's (Moonlight, arXiv 2502.16982, equation 4), so that one learning rate and one
    decoupled weight decay serve both. Products are in bfloat16 on CUDA, as the author's, and in float32 on the CPU:
    torch.optim.Muon's bfloat16 is twice as fast there if the processor has instructions for it (avx512_bf16), and
    crawls, a hundred times slower, if it has not.
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
        # "fused" also tells load_state_dict to leave AdamW's step counts in float32 on the parameters' device.
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults | {"kind": "rest", "fused": True})
        for group in self.param_groups:
            if group["kind"] == "hidden" and any(p.ndim != 2 for p in group["params"]):
                raise ValueError('Muon: parameters of kind "hidden" must be matrices')

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
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
        update = orthogonalize(torch.lerp(p.grad, momentum, beta), compute_dtype(p.device))
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))

    def _adamw(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p].update(
                    step=torch.zeros((), dtype=torch.float32, device=p.device),
                    exp_avg=torch.zeros_like(p),
                    exp_avg_sq=torch.zeros_like(p),
                )
        states = [self.state[p] for p in params]
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
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


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    decay_all: bool = False,
    head_lr_scale: float = 1.0,
    body_lr_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """The model's parameters that require gradients, in as few groups as their settings allow.

    Each group holds "params", "weight_decay" (0 for biases and norms unless decay_all), "lr_scale" (the head is
    model.linear_out, the body all else) and "kind": "hidden" for the weight matrices of the body, else "rest": pixels
    are no embedding table, and with Muon on linear_in 5 epochs of Fashion-MNIST get as far as 25 of AdamW.
    Raises ValueError where the scales differ and the model, wrapped perhaps, has no linear_out of its own.
    """
    groups: dict[tuple, list[nn.Parameter]] = {}
    names = [name for name, _ in model.named_parameters()]
    if head_lr_scale != body_lr_scale and not any(name.startswith("linear_out.") for name in names):
        raise ValueError(f"{type(model).__name__} has no linear_out, whose learning rate could differ from the body's")
    for name, p in model.named_parameters():
        if p.requires_grad:
            kind = "hidden" if name.startswith(("blocks.", "linear_in.")) and p.ndim == 2 else "rest"
            scale = head_lr_scale if name.startswith("linear_out.") else body_lr_scale
            decay = weight_decay if decay_all or p.ndim >= 2 else 0.0
            groups.setdefault((decay, scale, kind), []).append(p)
    return [
        {"params": params, "weight_decay": decay, "lr_scale": scale, "kind": kind}
        for (decay, scale, kind), params in groups.items()
    ]


def build_optimizer(
    name: str,
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    decay_all: bool = False,
    head_lr_scale: float = 1.0,
    body_lr_scale: float = 1.0,
    compile: bool = False,  # LION's kernel; needs a compiler
) -> torch.optim.Optimizer:
    """lion (0.9, 0.99), adamw (0.9, 0.999), sgd (momentum 0.9), or muon (0.95, and adamw's for what is not hidden)."""
    groups = parameter_groups(
        model, weight_decay, decay_all=decay_all, head_lr_scale=head_lr_scale, body_lr_scale=body_lr_scale
    )
    optimizer: torch.optim.Optimizer
    # fused: one pass. On the CPU, foreach AdamW took 8 to 10 times as long, foreach SGD 1.1 to 1.6 times.
    if name == "lion":
        optimizer = Lion(groups, lr=lr, compile=compile)
    elif name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    elif name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=True)
    elif name == "muon":
        if all(group["kind"] != "hidden" for group in groups):
            raise ValueError(f"muon needs hidden matrices, {type(model).__name__} has none to train in its blocks")
        optimizer = Muon(groups, lr=lr)
    else:
        raise ValueError(f"unknown optimiser {name!r}: expected lion, adamw, sgd or muon")
    set_learning_rate(optimizer, lr)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives each group of parameter_groups its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def learning_rate(
    step: int,  # from 0
    total_steps: int,
    peak: float,
    schedule: str = "constant",  # or cosine, linear
    warmup_steps: int = 0,
    cooldown_steps: int = 0,
) -> float:
    """The rate of a step: linear up to the peak over warmup_steps, then constant, or falling to 0 at total_steps.

    With cooldown_steps, a constant rate falls linearly over that many last steps, from the peak at the first of them
    to 0 at total_steps. Steps before do not depend on total_steps: cool-downs to several ends may branch off one run.
    Raises ValueError for an unknown schedule, and a cool-down of another schedule or longer than what follows warm-up.
    """
    if schedule not in ("constant", "cosine", "linear"):
        raise ValueError(f"unknown schedule {schedule!r}: expected constant, cosine or linear")
    if cooldown_steps and schedule != "constant":
        raise ValueError(f"a cool-down ends a constant schedule, {schedule} falls to 0 by itself: leave one out")
    if cooldown_steps > max(0, total_steps - warmup_steps):
        raise ValueError(
            f"a cool-down of {cooldown_steps} steps does not fit into {total_steps} steps, {warmup_steps} of warm-up"
        )
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if cooldown_steps:
        return peak * min(1.0, (total_steps - step) / cooldown_steps)
    if schedule == "constant":
        return peak
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)  # 0 at the peak, 1 after the last step
    return peak * (0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done)
