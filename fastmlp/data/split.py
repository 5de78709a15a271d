"""Settings, data set and device to a Loader whose FFCV pipelines give training-ready batches."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .. import device as devices
from ..beton import layout
from ..datasets import DatasetSpec, beton_path
from ..distributed import DistributedContext
from ..loader.loader import Loader, OrderOption, TraversalOrder
from ..loader.mapped_beton import MappedBeton
from ..loader.order import random_order
from ..transforms.augment_params import Augment
from ..transforms.pipelines import image_pipelines
from .subset import stratified_subset

SINGLE_PROCESS = DistributedContext()
MULTI_LABEL = "multi_label"  # the field of all labels that are right for an image, where a beton has one


def shard_batches(
    order: np.ndarray,  # (N,) samples of an epoch
    batch_size: int,
    context: DistributedContext,
) -> np.ndarray:
    """A process's contiguous part of each whole batch that one process alone would train on."""
    whole = order[: len(order) // batch_size * batch_size]
    return whole.reshape(-1, context.world_size, context.local_batch_size(batch_size))[:, context.rank].reshape(-1)


class ShardedOrder(TraversalOrder):
    """shard_batches of a random order."""

    def __init__(self, loader: Loader, context: DistributedContext, batch_size: int):
        super().__init__(loader)
        self._context, self._batch_size = context, batch_size

    def sample_order(self, epoch: int) -> np.ndarray:
        return shard_batches(random_order(self.indices, self.seed, epoch), self._batch_size, self._context)


class Split:
    """One split of a data set, from its beton, as training-ready batches.

    mode: "train" reads in random order, whole batches only; "evaluate" in order, every image; "tta" is the same
    with the augmentation of training, a view of the images per epoch. Of a training batch each process of the
    `context` gets its contiguous part. With a fraction below 1 the split is a share of its images, the same share of
    each class, chosen by the seed (subset.py).

    Raises FileNotFoundError or ValueError where the beton is missing, damaged, of another resolution, smaller
    than a training batch, or holds labels outside of the data set's classes.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        split: str,
        mode: Literal["train", "evaluate", "tta"],
        *,
        data_dir: str | Path,
        res: int,  # of the beton
        batch_size: int,
        image_res: int = 0,  # of the batches: images are scaled to it; 0 for the beton's
        num_workers: int = 0,
        seed: int = 0,
        augment: Augment | None = None,  # None: images as they are
        device: torch.device | str = "cpu",
        augment_on: str = "auto",
        context: DistributedContext = SINGLE_PROCESS,
        fraction: float = 1.0,
    ):
        beton = beton_path(data_dir, spec.name, split, res)
        writer = f"{spec.writer} --res {res} --out {data_dir}"
        self.path, self.res = beton, res
        training = mode == "train"
        layout.check(beton, writer)
        contents = MappedBeton(beton)
        self._check_content(contents, spec, writer)
        labels = contents.metadata["f1"]
        indices = stratified_subset(labels, fraction, seed) if fraction < 1 else None
        if training:
            self._check_size(len(labels) if indices is None else len(indices), batch_size, fraction)
        self.device = torch.device(device)
        augment = augment or Augment()
        if not (contents.metadata["f0"]["width"] == contents.metadata["f0"]["height"]).all():
            augment_on = "host"  # what goes to a device as it is must be of one size
            if augment.crop == "none":
                augment = replace(augment, crop="center")  # the paper's evaluation of images of any shape
        order: Any = OrderOption.RANDOM if training else OrderOption.SEQUENTIAL
        shared = training and context.world_size > 1
        self.loader = Loader(
            beton,
            context.local_batch_size(batch_size) if training else batch_size,
            num_workers,
            order=ShardedOrder if shared else order,
            order_kwargs={"context": context, "batch_size": batch_size} if shared else None,
            seed=seed,
            indices=indices,
            drop_last=training,
            batches_ahead=1,
            pipelines={
                **image_pipelines(
                    augment,
                    image_res or res,
                    mean=spec.mean,
                    std=spec.std,
                    seed=seed,
                    device=self.device,
                    augment_on=augment_on,
                    dtype=devices.compute_dtype(self.device),
                ),
                **{name: None for name in contents.handlers if name == MULTI_LABEL},
            },
        )

    def _check_size(self, images: int, batch_size: int, fraction: float) -> None:
        if images < batch_size:
            left = "" if fraction == 1 else f" that --cfg.train_fraction={fraction} leaves"
            raise ValueError(
                f"the batch of {batch_size} is larger than the data set: {self.path} holds {images} images{left}. "
                f"Use --cfg.batch_size={images} or less"
            )

    def _check_content(self, beton: MappedBeton, spec: DatasetSpec, writer: str) -> None:
        mend = f"Write it with: {writer}"
        ours = {("image", "label"): layout.METADATA, ("image", "label", MULTI_LABEL): layout.MULTI_METADATA}
        if ours.get(tuple(beton.handlers)) != beton.metadata_type:
            raise ValueError(f"{self.path}: its fields are {list(beton.handlers)}, not an image and a label. {mend}")
        images, labels = beton.metadata["f0"], beton.metadata["f1"]
        if (images["mode"] != layout.RAW_MODE).any():
            raise ValueError(f"{self.path} holds JPEG images, raw ones are expected. {mend}")
        if (np.maximum(images["width"], images["height"]) != self.res).any():
            raise ValueError(f"{self.path}: its images are not {self.res} x {self.res} pixels, as it is named. {mend}")
        if labels.min() < 0 or labels.max() >= spec.num_classes:
            raise ValueError(
                f"{self.path}: labels {labels.min()}..{labels.max()} outside of the {spec.num_classes} classes of "
                f"{spec.name}. {mend}"
            )

    @property
    def fingerprint(self) -> int:
        """Of the beton."""
        return self.loader.reader.fingerprint

    def multi_labels(self) -> np.ndarray:
        """All labels that are right for each image, (N, most) int64 padded with -1, in the beton's order.

        Raises ValueError where the beton holds none.
        """
        reader = self.loader.reader
        if MULTI_LABEL not in reader.handlers:
            raise ValueError(f"{self.path} holds no ReaL labels: write it with --real real.json")
        size = 8 * int(np.prod(reader.handlers[MULTI_LABEL].shape))
        return np.stack([reader.bytes[at : at + size].view("<i8") for at in reader.metadata["f2"].astype(int).tolist()])

    @property
    def num_samples(self) -> int:
        return len(self.loader.indices)

    @property
    def batches_per_epoch(self) -> int:
        return len(self.loader)

    @contextmanager
    def sample_range(self, first: int, last: int) -> Iterator[None]:
        """Samples `first` to `last`, the end excluded, alone inside of `with`."""
        kept = self.loader.indices
        self.loader.indices = kept[first:last]
        try:
            yield
        finally:
            self.loader.indices = kept

    def batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The epoch's images (B, 3 * res * res) and labels (B,), each pair valid until the next is asked for.

        From batch `first` on. Order and augmentation depend on nothing but (seed, epoch).
        """
        position = {"epoch": epoch, "samples": first * self.loader.batch_size}
        self.loader.load_state_dict({**self.loader.state_dict(), **position})
        with closing(iter(self.loader)) as batches:
            yield from batches
