"""The bytes of the tensors that live on the pretended card, their peak, and what they are."""

import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import Tensor

GRANULE = 512  # bytes: torch's CUDA allocator rounds up to it


@dataclass(eq=False)
class Live:
    """A storage: what it is for, where it was made, and the shape and the type of the tensor that it was made for."""

    bytes: int
    role: str
    origin: tuple[str, str]  # part and phase of the step; empty for what was there before
    shape: tuple[int, ...]
    dtype: str


class LiveMemory:
    """Follows the storages that `note` sees, until they are freed."""

    def __init__(self) -> None:
        self._live: dict[int, tuple[weakref.ref[Any], Live]] = {}
        self.bytes = self.peak_bytes = 0
        self._at_peak: list[Live] = []

    def note(self, tensor: Tensor, role: str, origin: tuple[str, str] = ("", "")) -> None:
        """Count a tensor's storage, if it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._live.get(key)
        if known is not None and known[0]() is storage:
            return
        size = -(-storage.nbytes() // GRANULE) * GRANULE
        live = Live(size, role, origin, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

        def freed(_: Any) -> None:
            if self._live.get(key, (None, None))[1] is live:
                del self._live[key]
            self.bytes -= size

        self._live[key] = weakref.ref(storage, freed), live
        self.bytes += size
        if self.bytes > self.peak_bytes:
            self.peak_bytes = self.bytes
            self._at_peak = [one for _, one in self._live.values()]

    def rename(self, tensor: Tensor, role: str) -> None:
        """Set the role of a tensor's storage, in the peak, too."""
        known = self._live.get(tensor.untyped_storage()._cdata)
        if known is not None:
            known[1].role = role

    def peak_by_role(self) -> dict[str, int]:
        """Return the bytes at the peak, the largest first."""
        sums: Counter[str] = Counter()
        for one in self._at_peak:
            sums[one.role] += one.bytes
        return dict(sums.most_common())

    def live(self) -> list[Live]:
        return [one for _, one in self._live.values()]
