"""`Loader`: ffcv.loader.Loader with its sharp edges taken off."""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..beton import layout
from .order import shuffled

_torch_threads = torch.get_num_threads()

import ffcv.loader  # noqa: E402  importing ffcv sets torch's threads to 1 (ffcv/pipeline/compiler.py)
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder  # noqa: E402
from ffcv.loader import OrderOption  # noqa: E402
from ffcv.transforms import Squeeze, ToTensor  # noqa: E402

torch.set_num_threads(_torch_threads)

__all__ = ["Loader", "OrderOption", "clamp_workers", "raw_pipelines"]


def raw_pipelines() -> dict[str, list]:
    """FFCV pipelines for our betons as they are: images (B, H, W, 3) uint8, labels (B,) int64."""
    return {"image": [SimpleRGBImageDecoder(), ToTensor()], "label": [IntDecoder(), ToTensor(), Squeeze(1)]}


def clamp_workers(num_workers: int) -> int:
    """The number of threads to use: every core for 0 and below, at most every core, with a warning."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_workers > cores:
        # numba raises on more threads than it found cores
        warnings.warn(f"num_workers={num_workers} is more than the {cores} cores here: {cores} are used", stacklevel=2)
    return cores if num_workers < 1 else min(num_workers, cores)


class Loader(ffcv.loader.Loader):
    """A drop-in for ffcv.loader.Loader: the same arguments, pipelines and batches.

    What differs: a missing, truncated or foreign beton is refused at construction (FileNotFoundError, ValueError);
    `num_workers` is clamped to the cores; RANDOM hashes seed and epoch together; torch's thread count is left as
    it was. A batch is valid until the next `next()`.
    """

    def __init__(
        self,
        fname: str | os.PathLike[str],
        batch_size: int,
        num_workers: int = -1,
        *args: Any,
        **kwargs: Any,
    ):
        layout.check(fname)
        threads = torch.get_num_threads()
        super().__init__(str(fname), batch_size, clamp_workers(num_workers), *args, **kwargs)
        torch.set_num_threads(threads)

    def next_traversal_order(self) -> Sequence[int] | np.ndarray:
        """The sample indices of the coming epoch, in order."""
        if self._args["order"] == OrderOption.RANDOM and not self.distributed:
            return shuffled(self.indices, self.seed, self.next_epoch)
        return super().next_traversal_order()
