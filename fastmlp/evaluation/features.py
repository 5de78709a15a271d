"""What a frozen body makes of a data set, computed once: batches of features in the place of images."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data.split import SINGLE_PROCESS, Split, shard_batches
from ..device import autocast, compute_dtype, free_bytes
from ..distributed import DistributedContext
from ..loader.order import random_order
from ..models.mlp import MLP

MICRO_BATCH = 1024  # images per forward pass
MEMORY_SHARE = 0.5  # of the free memory, at most


def fits_in_memory(model: MLP, images: int, context: int = 1) -> bool:
    """Whether each process may keep so many images' features in the memory of its device, the CPU's being shared."""
    device = next(model.parameters()).device
    size = images * model.arch.width * compute_dtype(device).itemsize
    return size * (context if device.type == "cpu" else 1) <= MEMORY_SHARE * free_bytes(device)


class CachedFeatures:
    """A split as the body of `model` sees it, with Split's interface: batches are (B, m) features and labels (B,).

    values (N, m) and labels (N,) stay on the model's device, in the beton's order. Without batch_size an epoch is in
    that order and complete, with it random and of whole batches: the same order as that of images.
    """

    def __init__(
        self,
        model: MLP,
        split: Split,  # of purpose "evaluate"
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
        at, hidden, was_training = 0, not self._context.is_main, model.training
        model.eval()
        with tqdm(
            total=self.num_samples,
            desc=f"features of {split.path.name}",
            unit=" images",
            unit_scale=True,
            leave=False,
            disable=hidden,
            delay=1,
        ) as bar:
            for images, labels in split.batches(epoch=0):
                self.labels[at : at + len(labels)] = labels
                for part in images.split(MICRO_BATCH):
                    with autocast(self.device):
                        self.values[at : at + len(part)] = model.features(part)
                    at += len(part)
                bar.update(len(labels))
        model.train(was_training)

    @property
    def batches_per_epoch(self) -> int:
        return self.num_samples // self._batch_size if self._batch_size else 1

    def batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch's features and labels, each pair valid until the next is asked for, from batch `first` on."""
        if not self._batch_size:
            yield self.values, self.labels
            return
        order = shard_batches(
            random_order(np.arange(self.num_samples), self._seed, epoch), self._batch_size, self._context
        )
        size = self._context.local_batch_size(self._batch_size)
        places = torch.from_numpy(order).to(self.device).split(size)
        kept = torch.empty(size, self.values.shape[1], dtype=self.values.dtype, device=self.device)
        for place in places[first:]:
            yield torch.index_select(self.values, 0, place, out=kept), self.labels[place]
