"""The account of a step: every launch of a kernel and every eager operation, by the part of the step it belongs to."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .graphs import Graph
from .kernel_source import Access, kernel_accesses
from .live_memory import LiveMemory
from .operations import PRODUCTS, argument, operation_accesses, operation_name, product_flop

PARTS = ("augmentation", "embedding and MixUp", "blocks", "loss", "optimiser")  # without the matrix products


@dataclass(frozen=True)
class Entry:
    """A launch of a Triton kernel (of a graph), or an eager operation (graph None)."""

    part: str
    phase: str  # "forward", "backward" or "update"
    name: str
    graph: int | None
    accesses: list[Access]
    flop: int = 0  # of a matrix product

    @property
    def bytes(self) -> int:
        return sum(access.bytes for access in self.accesses)

    @property
    def reread_bytes(self) -> int:
        return sum(access.reread_bytes for access in self.accesses)


class Ledger(TorchDispatchMode):
    """While it is entered, counts what runs on fake tensors, and the memory that they would take."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.phase = PARTS[0], "forward"
        self.entries: list[Entry] = []
        self.memory = LiveMemory()
        self.weight_shapes: set[tuple[int, ...]] = set()  # of copies in the products' precision, and of their gradients
        self._counting = False

    @classmethod
    def is_infra_mode(cls) -> bool:
        return True  # else Dynamo compiles anew when it is entered

    def __enter__(self) -> Any:
        self._counting = True
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._counting = False
        super().__exit__(*error)

    @contextmanager
    def at(self, part: str, phase: str) -> Iterator[None]:
        """A context in which what runs belongs to this part and phase."""
        kept = self.part, self.phase
        self.part, self.phase = part, phase
        yield
        self.part, self.phase = kept

    def launched(self, graph: Graph, name: str, arguments: dict[str, Any]) -> None:
        """Count a launch of a Triton kernel."""
        if not self._counting:
            return
        given = {key: argument(one) if isinstance(one, Tensor) else one for key, one in arguments.items()}
        accesses = kernel_accesses(graph.kernels[name], given)
        self.entries.append(Entry(self.part, self.phase, name, graph.number, accesses))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.device.type == "cuda":
                self.memory.note(tensor, self._role(tensor), (self.part, self.phase))
        accesses = operation_accesses(func, args, kwargs or {}, out)
        if accesses:
            name = operation_name(func)
            flop = product_flop(name, args) if name in PRODUCTS else 0
            self.entries.append(Entry(self.part, self.phase, name, None, accesses, flop))
        return out

    def _role(self, tensor: Tensor) -> str:
        """Return what the budget would call a new tensor."""
        if tuple(tensor.shape) in self.weight_shapes and tensor.dtype != torch.float32:
            return "copies of weights and gradients"
        if self.part == "loss":
            return "logits"
        return "activations" if self.phase == "forward" else "gradients of activations"
