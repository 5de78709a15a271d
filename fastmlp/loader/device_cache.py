"""The pixels of a beton on the device, where batches are gathered from them."""

import numpy as np
import torch
from torch import Tensor

from .. import device as devices
from ..worker_pool import cores_per_process
from .gather import PART_BYTES, gather_rows
from .mapped_beton import MappedBeton
from .row_threads import RowThreads

CHUNK_BYTES = 64 << 20  # copied through a host buffer at once


class DeviceCache:
    """The raw images of some samples of a beton, all of one size, on a device.

    Raises MemoryError, with the sizes, if the device has too little free memory for them.
    """

    def __init__(self, beton: MappedBeton, addresses: np.ndarray, image_bytes: int, indices: np.ndarray, device: str):
        self._samples = np.unique(indices)
        check_room(len(self._samples) * image_bytes, torch.device(device), beton.file_name)
        self.rows = torch.empty(len(self._samples), image_bytes, dtype=torch.uint8, device=device)
        size = max(1, CHUNK_BYTES // image_bytes)
        pinned = self.rows.device.type != "cpu"
        staging = devices.host_buffer(min(size, len(self._samples)) * image_bytes, pinned).reshape(-1, image_bytes)
        with RowThreads(cores_per_process()) as threads:
            for start in range(0, len(self._samples), size):
                chosen = addresses[self._samples[start : start + size]]
                target = staging[: len(chosen)]

                def fill(first, last, chosen=chosen, target=target):
                    gather_rows(beton.bytes, chosen[first:last], target[first:last])

                threads.run(fill, len(chosen), PART_BYTES // image_bytes)
                self.rows[start : start + len(chosen)] = torch.from_numpy(target)

    def gather(
        self,
        indices: np.ndarray,  # (B,) sample indices
        out: Tensor,  # (B, height, width, 3) uint8 on the device
        staging: np.ndarray,  # (B, 1) int64, page-locked: what is sent there
    ) -> Tensor:
        """Return `out`, filled with the images of a batch. Raises IndexError for a sample that is not cached."""
        found = np.searchsorted(self._samples, indices)
        if not np.array_equal(self._samples.take(found, mode="clip"), indices):
            raise IndexError("cache='device' has only the samples of the `indices` that the loader was made with")
        staging[:, 0] = found
        rows = torch.from_numpy(staging[:, 0]).to(out.device, non_blocking=True)
        torch.index_select(self.rows, 0, rows, out=out.view(len(indices), -1))
        return out


def check_room(needed_bytes: int, device: torch.device, name: str) -> None:
    """Raise MemoryError if a device has too little free memory for a beton's pixels."""
    free = devices.free_bytes(device)
    if needed_bytes > free:
        raise MemoryError(
            f"cache='device': {name} takes {needed_bytes / 1e9:.2f} GB, {device} has {free / 1e9:.2f} GB free. "
            "Use cache='none', or fewer indices"
        )
