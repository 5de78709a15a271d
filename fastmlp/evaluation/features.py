"""Features of a frozen backbone, computed once for a data set: batches of features instead of images."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..data.split import SINGLE_PROCESS, Split, shard_batches
from ..device import autocast, compute_dtype, free_bytes
from ..distributed import DistributedContext
from ..loader.order import random_order
from ..messages import progress_bar
from ..models.mlp import MLP
from .evaluate import evaluation_micro_batch_size

MEMORY_SHARE = 0.5  # of the free memory, at most


def fits_in_memory(model: MLP, images: int, world_size: int = 1) -> bool:
    """Return whether the features of so many images fit in the device memory of each process (the CPU's is shared)."""
    device = next(model.parameters()).device
    size = images * model.arch.width * compute_dtype(device).itemsize
    return size * (world_size if device.type == "cpu" else 1) <= MEMORY_SHARE * free_bytes(device)


class CachedFeatures:
    """A split's features by the backbone of `model`, with Split's interface: batches of (B, m) and labels (B,).

    values (N, m) and labels (N,) stay on the model's device, in the beton's order. Without batch_size an epoch is one
    batch of all samples in that order. With it an epoch is in random order, of whole batches, the same as that of
    images.
    """

    def __init__(
        self,
        model: MLP,
        split: Split,  # of mode "evaluate" or "validate"
        batch_size: int = 0,
        seed: int = 0,
        context: DistributedContext = SINGLE_PROCESS,
    ):
        self.path, self.fingerprint, self.device = split.path, split.fingerprint, split.device
        self.num_samples, self._batch_size, self._seed = split.num_samples, batch_size, seed
        self._context = context
        dtype = compute_dtype(self.device)
        self.values = torch.empty(self.num_samples, model.arch.width, dtype=dtype, device=self.device)
        self.labels = torch.empty(self.num_samples, dtype=torch.int64, device=self.device)
        self._fill(model, split)

    @torch.inference_mode()
    def _fill(self, model: MLP, split: Split) -> None:
        start, show_progress, was_training = 0, self._context.is_main, model.training
        size = evaluation_micro_batch_size(model)
        model.eval()
        with progress_bar(
            total=self.num_samples,
            desc=f"features of {split.path.name}",
            unit=" images",
            unit_scale=True,
            leave=False,
            **({} if show_progress else {"disable": True}),  # else TQDM_DISABLE is obeyed
            delay=1,
        ) as bar:
            for images, labels in split.batches(epoch=0):
                self.labels[start : start + len(labels)] = labels
                for micro_batch in images.split(size):
                    with autocast(self.device):
                        self.values[start : start + len(micro_batch)] = model.features(micro_batch)
                    start += len(micro_batch)
                bar.update(len(labels))
        model.train(was_training)

    @property
    def batches_per_epoch(self) -> int:
        return self.num_samples // self._batch_size if self._batch_size else 1

    def batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the epoch's features and labels from batch `first` on, each pair valid until the next."""
        if not self._batch_size:
            yield self.values, self.labels
            return
        order = shard_batches(
            random_order(np.arange(self.num_samples), self._seed, epoch), self._batch_size, self._context
        )
        size = self._context.local_batch_size(self._batch_size)
        batches = torch.from_numpy(order).to(self.device).split(size)
        buffer = torch.empty(size, self.values.shape[1], dtype=self.values.dtype, device=self.device)
        for samples in batches[first:]:
            yield torch.index_select(self.values, 0, samples, out=buffer), self.labels[samples]
