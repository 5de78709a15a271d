"""The LION optimiser, in one pass over memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Elements per block on the CPU: 1 MiB each of parameters, momenta and gradients stays in the caches between the
# operations. Blocks of 2**14 took about twice as long, no blocks at all three to five times.
BLOCK = 2**18
# Parameters with fewer elements are updated by eager operations: the compiled kernel's checks (30 us) cost more.
SMALL = 2**15


def _lion(p: Tensor, m: Tensor, g: Tensor, step: Tensor, keep: Tensor, w1: float, w2: float) -> None:
    """Update p and m in place; p, m (momentum) and g (gradient) are (n,).

    step = -lr and keep = 1 - lr * weight_decay are tensors, (): torch.compile would build numbers into its kernel, and
    compile a new one for every learning rate.
    """
    update = torch.lerp(m, g, w1).sign_()
    m.lerp_(g, w2)
    p.mul_(keep).addcmul_(update, step)


class Lion(torch.optim.Optimizer):
    """LION (Chen et al. 2023, algorithm 2).

    `p <- p - lr * (sign(b1 m + (1 - b1) g) + weight_decay p)`, then `m <- b2 m + (1 - b2) g`.

    compile=True makes it one pass over memory, which is the limit: torch.compile builds one kernel for all sizes, in
    about 1 s if torch.compile has been used before, else in 13 s. Without it, the update goes block by block.
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
                # full() fills on the device; tensor() would copy to it, and wait.
                step = torch.full((), -group["lr"], dtype=p.dtype, device=p.device)
                keep = torch.full((), 1 - group["lr"] * group["weight_decay"], dtype=p.dtype, device=p.device)
                flat, m, g = p.view(-1), self.state[p]["momentum"].view(-1), p.grad.reshape(-1)
                if self._fused is not None and p.numel() >= SMALL:
                    self._fused(flat, m, g, step, keep, 1 - b1, 1 - b2)
                    continue
                size = BLOCK if p.device.type == "cpu" else max(1, p.numel())
                for p_block, m_block, g_block in zip(flat.split(size), m.split(size), g.split(size), strict=True):
                    _lion(p_block, m_block, g_block, step, keep, 1 - b1, 1 - b2)
        return loss
