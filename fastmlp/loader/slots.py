"""The buffers of a batch, and the pool that keeps them over epochs."""

import collections
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from .. import device
from ..device import Reader
from ..transforms.ffcv_import import AllocationQuery


class Slot:
    """The buffers of one batch; the reference count of each one's root array tells whether a caller still holds it."""

    def __init__(self, queries: dict[tuple[str, int], Any], batch_size: int, pinned: bool = False):
        """pinned: buffers on the host are page-locked, for copies to an accelerator."""
        self.buffers: dict[tuple[str, int], Any] = {}
        self._roots: list[Any] = []
        self._on_device: list[torch.Tensor] = []
        self.batch_size = batch_size
        self._pinned = pinned
        self.readers: set[Reader] = set()  # streams that have received a batch of this slot
        # Events after all work that reads the slot's last batch; None if they are still to be recorded: a caller may
        # keep a batch after the epoch, and submit more work.
        self.released: list[Any] | None = None
        self.lent: list[weakref.ref[Any]] = []  # the parts of the last batch that are in these buffers
        for key, query in queries.items():
            if isinstance(query, AllocationQuery):
                self.buffers[key] = self._allocate(query, batch_size)
            elif query is not None:
                self.buffers[key] = tuple(self._allocate(q, batch_size) for q in query)
        self._unused = self._references()
        self._ranges = [
            (at.ctypes.data, at.ctypes.data + at.nbytes) for at in self._roots if isinstance(at, np.ndarray)
        ]
        self._ranges += [(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in self._on_device]

    def _allocate(self, query: AllocationQuery, batch_size: int) -> Callable[[int], Any]:
        """Return a function from a batch's length to a new view of the buffer."""
        shape = (batch_size, *(int(n) for n in query.shape))
        if on_accelerator(query):
            tensor = torch.empty(shape, dtype=query.dtype, device=query.device)
            self._on_device.append(tensor)
            return lambda count: tensor[:count]
        dtype = query.dtype
        itemsize = dtype.itemsize if isinstance(dtype, torch.dtype) else np.dtype(dtype).itemsize
        root = device.host_buffer(int(np.prod(shape)) * itemsize, self._pinned)
        # A NumPy view refers to the owner of the memory, a tensor made from an array to that array.
        self._roots += [root] if root.base is None else [root, root.base]
        if isinstance(dtype, torch.dtype):
            return lambda count: torch.from_numpy(root).view(dtype).view(shape)[:count]
        return lambda count: root.view(dtype).reshape(shape)[:count]

    def lend(self, batch: tuple[Any, ...]) -> bool:
        """Note the parts of a batch that are views of these buffers. Return whether any of the last batch is in use."""
        overwritten = any(part() is not None for part in self.lent)
        self.lent = [weakref.ref(part) for part in batch if self._contains(part)]
        return overwritten

    def _contains(self, part: Any) -> bool:
        """Return whether a tensor or an array is in these buffers."""
        if isinstance(part, torch.Tensor):
            address = part.data_ptr()
        elif isinstance(part, np.ndarray):
            address = part.ctypes.data
        else:
            return False
        return any(first <= address < end for first, end in self._ranges)

    def _references(self) -> list[int]:
        """Return the number of references to each buffer."""
        return [sys.getrefcount(root) for root in self._roots] + [device.storage_uses(t) for t in self._on_device]

    @property
    def referenced(self) -> bool:
        """Whether a caller still has a view of a buffer: each view of a root refers to it."""
        return self._references() != self._unused


def on_accelerator(query: AllocationQuery) -> bool:
    """Return whether a buffer is to be allocated on an accelerator."""
    return isinstance(query.dtype, torch.dtype) and torch.device(query.device or "cpu").type != "cpu"


class SlotPool:
    """Slots that no iterator uses, kept over epochs. It has no lock: the garbage collector may call it anytime."""

    def __init__(self, limit: int):
        self._slots: collections.deque[Slot] = collections.deque(maxlen=limit)
        self.warned = False  # that a caller held batches while they were overwritten

    def take(self, batch_size: int) -> Slot | None:
        """Return a slot of which no caller holds a tensor, None if there is none; the others stay for later."""
        for _ in range(len(self._slots)):
            try:
                slot = self._slots.popleft()
            except IndexError:
                return None
            if slot.batch_size == batch_size:
                if not slot.referenced:
                    return slot
                self._slots.append(slot)
        return None

    def give(self, slot: Slot) -> None:
        """Put a slot back; if the pool is full, the oldest one is dropped."""
        self._slots.append(slot)

    def clear(self) -> None:
        self._slots.clear()
