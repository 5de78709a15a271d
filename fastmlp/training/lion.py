"""The LION optimiser, in one pass over memory."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from ..device import compiled_or_none
from ..models.torch_threads import (
    FIRST,
    NUMBERS,
    ROWS,
    TILES,
    TileLoop,
    floats_at,
    integers_at,
    multiply_add,
    next_tile,
)
from .eager_optimizer import EagerOptimizer

# Elements per block on the CPU: 1 MiB each of parameters, momenta and gradients stays in the caches between the
# operations. Blocks of 2**14 took about twice as long, no blocks at all three to five times.
BLOCK = 2**18
# Parameters with fewer elements are updated by eager operations: the compiled kernel's checks (30 us) cost more.
SMALL = 2**15
TILE = 2**14  # elements that a thread takes at a time, on the CPU
THREADS_SHA256 = "20548179155453ed"  # of torch_threads.py, for numba's cache (fused_passes.py)
_HALF, _ONE = np.float32(0.5), np.float32(1)


def _lion(p: Tensor, m: Tensor, g: Tensor, step: Tensor, keep: Tensor, w1: float, w2: float) -> None:
    """Update p and m in place; p, m (momentum) and g (gradient) are (n,).

    step = -lr and keep = 1 - lr * weight_decay are tensors, (): torch.compile would build numbers into its kernel, and
    compile a new one for every learning rate.
    """
    update = torch.lerp(m, g, w1).sign_()
    m.lerp_(g, w2)
    p.mul_(keep).addcmul_(update, step)


@TileLoop
def _lion_loop(pointer):
    """Compute _lion of several parameters in one pass, with its rounding: that of torch's CPU kernels.

    Operands: int64 (parameters, 5), the addresses of p, m and g, their elements and their first tile; float32 (4,),
    step, keep, w1 and w2.
    """
    numbers = carray(pointer, (NUMBERS,))
    tiles, table = numbers[TILES], carray(integers_at(numbers[FIRST]), (numbers[ROWS], 5))
    settings = carray(floats_at(numbers[FIRST + 1]), (4,))
    step, keep, w1, w2 = settings[0], settings[1], settings[2], settings[3]
    c1, c2 = (w1 if w1 < _HALF else w1 - _ONE), (w2 if w2 < _HALF else w2 - _ONE)  # from m, or back from g
    while True:
        tile = next_tile(pointer)
        if tile >= tiles:
            return
        which = 0
        while which + 1 < len(table) and table[which + 1, 4] <= tile:
            which += 1
        start = (tile - table[which, 4]) * TILE
        size = min(TILE, table[which, 3] - start)
        p = carray(floats_at(table[which, 0] + 4 * start), (size,))
        m = carray(floats_at(table[which, 1] + 4 * start), (size,))
        g = carray(floats_at(table[which, 2] + 4 * start), (size,))
        for i in range(size):
            difference = g[i] - m[i]
            update = multiply_add(c1, difference, m[i] if w1 < _HALF else g[i])
            m[i] = multiply_add(c2, difference, m[i] if w2 < _HALF else g[i])
            kept = p[i] * keep
            p[i] = kept + step if update > 0 else kept - step if update < 0 else kept


class Lion(EagerOptimizer):
    """LION (Chen et al. 2023, algorithm 2).

    `p <- p - lr * (sign(b1 m + (1 - b1) g) + weight_decay p)`, then `m <- b2 m + (1 - b2) g`.

    For float32 on the CPU it is one pass over memory, which is the limit, compiled by numba. compile=True makes it one
    elsewhere: torch.compile builds one kernel for all sizes, in about 1 s if torch.compile has been used before, else
    in 13 s, at the first step or in warm_up. (On the CPU that kernel takes twice as long as numba's.) Without either,
    the update goes block by block. The momenta are contiguous, whatever the parameters' layout, so that a checkpoint
    does not depend on it; a parameter that is not contiguous costs two copies more per step.
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
    def warm_up(self) -> None:
        """Compile what the first steps would compile, on scratch tensors: parameters and momenta stay as they are.

        Call it before other threads compile, such as the loader's, which runs Numba. If compiling fails, this warns,
        and the update goes block by block. Does nothing without compile=True.
        """
        if self._fused is None:
            return
        firsts: dict[tuple, tuple[Tensor, dict[str, Any]]] = {}  # of each kind, the parameter that step compiles for
        for group in self.param_groups:
            for p in group["params"]:
                if p.numel() >= SMALL:
                    firsts.setdefault((p.dtype, p.device, *group["betas"]), (p, group))

        def update_scratch() -> bool:
            for p, group in firsts.values():
                zeros = torch.zeros_like(p, memory_format=torch.contiguous_format)
                self._update(zeros, zeros.clone(), zeros.clone(), group)
            return True

        if not compiled_or_none(update_scratch, "LION updates the weights block by block"):
            self._fused = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have gradients. Raises ValueError for a sparse gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            together = []
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.layout != torch.strided:
                    raise ValueError(
                        "LION takes dense gradients, got a sparse one: is there an Embedding(sparse=True)?"
                    )
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
                momentum = self.state[p]["momentum"] = self.state[p]["momentum"].contiguous()
                if momentum.shape != p.shape:
                    raise ValueError(
                        f"LION's momentum of shape {tuple(momentum.shape)} does not fit a parameter of shape "
                        f"{tuple(p.shape)}: is the optimiser's state that of another model?"
                    )
                state = p.contiguous(), momentum, p.grad.contiguous()
                if self._fused is None and all(
                    one.device.type == "cpu" and one.dtype == torch.float32 for one in state
                ):
                    together.append((p, *state))
                else:
                    self._update(*state, group)
                    if not p.is_contiguous():
                        p.copy_(state[0])
            self._update_together(together, group)
        return loss

    def _settings(self, group: dict[str, Any]) -> tuple[float, float, float, float]:
        """Return -lr, 1 - lr * weight_decay, 1 - b1 and 1 - b2."""
        b1, b2 = group["betas"]
        return -group["lr"], 1 - group["lr"] * group["weight_decay"], 1 - b1, 1 - b2

    def _update_together(self, states: list[tuple[Tensor, Tensor, Tensor, Tensor]], group: dict[str, Any]) -> None:
        """Compute _update for parameters on the CPU in one pass over memory. Before p comes what it is a copy of."""
        table, tiles = [], 0
        for _, p, m, g in states:
            if p.numel():
                table.append([p.data_ptr(), m.data_ptr(), g.data_ptr(), p.numel(), tiles])
                tiles += -(-p.numel() // TILE)
        if table:
            settings = torch.tensor(self._settings(group), dtype=torch.float32, device="cpu")
            _lion_loop.run(tiles, len(table), 5, torch.tensor(table, dtype=torch.int64, device="cpu"), settings)
            for p, _, m, _ in states:
                torch.autograd.graph.increment_version((p, m))  # as torch's operations do
        for original, p, _, _ in states:
            if not original.is_contiguous():
                original.copy_(p)

    def _update(
        self,
        p: Tensor,  # contiguous, like m and g, which have its shape
        m: Tensor,
        g: Tensor,
        group: dict[str, Any],
    ) -> None:
        """Update p and its momentum m in place by the gradient g."""
        *rates, w1, w2 = self._settings(group)
        # full() fills on the device; tensor() would copy to it, and wait.
        step, keep = (torch.full((), rate, dtype=p.dtype, device=p.device) for rate in rates)
        # detach(): torch.compile would compile anew for views of matrices and of vectors.
        p, m, g = (tensor.view(-1).detach() for tensor in (p, m, g))
        if self._fused is not None and p.numel() >= SMALL:
            self._fused(p, m, g, step, keep, w1, w2)
            return
        size = BLOCK if p.device.type == "cpu" else max(1, p.numel())
        for p_block, m_block, g_block in zip(p.split(size), m.split(size), g.split(size), strict=True):
            _lion(p_block, m_block, g_block, step, keep, w1, w2)
