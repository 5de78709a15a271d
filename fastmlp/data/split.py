"""Training-ready batches of a data set's split: its beton, order, shard, augmentation and device in one Loader."""

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
from .subset import hold_out, stratified_subset

SINGLE_PROCESS = DistributedContext()
MULTI_LABEL = "multi_label"  # the optional field of a beton with all labels that are right for an image


def shard_batches(
    order: np.ndarray,  # (N,) samples of an epoch
    batch_size: int,
    context: DistributedContext,
) -> np.ndarray:
    """Return a process's contiguous shard of each whole batch that a single process would train on."""
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
    """One split of a data set, read from its beton, as training-ready batches.

    mode: "train" reads in random order, whole batches only; of each batch every process of `context` gets its
    contiguous shard. "evaluate" reads every image, in order. "tta" is the same with the augmentation of training: each
    epoch is another view of the images. If `validation` is above 0, that share of each class is held out, chosen by the
    seed; "validate" reads those images alone, in order, and the other modes the rest of them. If `fraction` is below 1,
    the split is a subset of that rest, the same share of each class (subset.py).

    Raises FileNotFoundError or ValueError if the beton is missing, damaged, of another resolution, smaller than a
    training batch, or holds labels outside of the data set's classes.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        split: str,
        mode: Literal["train", "evaluate", "tta", "validate"],
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
        resampling: str = "bilinear",  # of the model
        context: DistributedContext = SINGLE_PROCESS,
        fraction: float = 1.0,
        validation: float = 0.0,
    ):
        self.path, self.res, self.device = beton_path(data_dir, spec.name, split, res), res, torch.device(device)
        writer = f"{spec.writer} --res {res} --out {data_dir}"
        layout.check(self.path, writer)
        beton = MappedBeton(self.path)
        self._check_content(beton, spec, writer)
        labels = beton.metadata["f1"]
        indices = _choose_samples(labels, mode == "validate", fraction, validation, seed)
        if mode == "train":
            flags = {"--cfg.validation": validation, "--cfg.train_fraction": fraction if fraction < 1 else 0}
            left = " and ".join(f"{flag}={value}" for flag, value in flags.items() if value)
            self._check_size(len(labels) if indices is None else len(indices), batch_size, left)
        if indices is not None and not len(indices):
            raise ValueError(f"--cfg.validation={validation} of {self.path} holds out no image: use a larger share")
        augment, augment_on = _for_shapes(augment or Augment(), augment_on, beton.metadata["f0"])
        pipelines = image_pipelines(
            augment,
            image_res or res,
            mean=spec.mean,
            std=spec.std,
            seed=seed,
            device=self.device,
            augment_on=augment_on,
            dtype=devices.compute_dtype(self.device),
            resampling=resampling,
        )
        self.loader = Loader(
            self.path,
            num_workers=num_workers,
            seed=seed,
            indices=indices,
            batches_ahead=1,
            pipelines={**pipelines, **{name: None for name in beton.handlers if name == MULTI_LABEL}},
            **_batches_and_order(mode == "train", batch_size, context),
        )

    def _check_size(self, images: int, batch_size: int, left: str) -> None:
        if images < batch_size:
            that = f" that {left} leave" + "s" * (" and " not in left) if left else ""
            fewer = 1 << max(0, (images // 10).bit_length() - 1)  # a power of two: ten steps an epoch, or more
            raise ValueError(
                f"the batch of {batch_size} is larger than the data set: {self.path} holds {images} images{that}. "
                f"--cfg.batch_size={fewer} makes {images // fewer} steps of an epoch"
            )

    def _check_content(self, beton: MappedBeton, spec: DatasetSpec, writer: str) -> None:
        fix = f"Write it with: {writer}"
        expected = {("image", "label"): layout.METADATA, ("image", "label", MULTI_LABEL): layout.MULTI_METADATA}
        if expected.get(tuple(beton.handlers)) != beton.metadata_type:
            raise ValueError(f"{self.path}: its fields are {list(beton.handlers)}, not an image and a label. {fix}")
        images, labels = beton.metadata["f0"], beton.metadata["f1"]
        if (images["mode"] != layout.RAW_MODE).any():
            raise ValueError(f"{self.path} holds JPEG images instead of raw images. {fix}")
        if (np.maximum(images["width"], images["height"]) != self.res).any():
            raise ValueError(f"{self.path}: its images are not {self.res} x {self.res} pixels, as its name says. {fix}")
        if labels.min() < 0 or labels.max() >= spec.num_classes:
            raise ValueError(
                f"{self.path}: labels {labels.min()}..{labels.max()} are outside of the {spec.num_classes} classes of "
                f"{spec.name}. {fix}"
            )

    @property
    def fingerprint(self) -> int:
        """The fingerprint of the beton."""
        return self.loader.reader.fingerprint

    def multi_labels(self) -> np.ndarray:
        """Return all labels that are right for each image, (N, max_labels) int64 padded with -1, in the beton's order.

        Raises ValueError if the beton holds none.
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
        """Read only samples `first` to `last`, the end excluded, inside of `with`."""
        indices = self.loader.indices
        self.loader.indices = indices[first:last]
        try:
            yield
        finally:
            self.loader.indices = indices

    def batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the epoch's images (B, 3 * res * res) and labels (B,) from batch `first` on, each valid until the next.

        Order and augmentation depend only on (seed, epoch).
        """
        position = {"epoch": epoch, "samples": first * self.loader.batch_size}
        self.loader.load_state_dict({**self.loader.state_dict(), **position})
        with closing(iter(self.loader)) as batches:
            yield from batches


def _choose_samples(
    labels: np.ndarray, held_out: bool, fraction: float, validation: float, seed: int
) -> np.ndarray | None:
    """Return the indices of a split's samples, None for all (see Split)."""
    if not validation:
        return stratified_subset(labels, fraction, seed) if fraction < 1 else None
    rest, validating = hold_out(labels, validation, seed)
    if held_out:
        return validating
    return rest[stratified_subset(labels[rest], fraction, seed)] if fraction < 1 else rest


def _for_shapes(
    augment: Augment,
    augment_on: str,
    records: np.ndarray,  # (N,) of the beton's metadata: width, height
) -> tuple[Augment, str]:
    """Return the augmentation and where it is done, changed if not all images are square."""
    if (records["width"] == records["height"]).all():
        return augment, augment_on
    if augment.crop == "none":
        augment = replace(augment, crop="center")  # the paper's evaluation of images of any shape
    return augment, "host"  # whole images that are sent to a device must have one size


def _batches_and_order(training: bool, batch_size: int, context: DistributedContext) -> dict[str, Any]:
    """Return the Loader's arguments for its batches and their order (see `mode` of Split)."""
    if not training:
        return {"batch_size": batch_size, "order": OrderOption.SEQUENTIAL, "drop_last": False}
    batches = {"batch_size": context.local_batch_size(batch_size), "drop_last": True}
    if context.world_size == 1:
        return {**batches, "order": OrderOption.RANDOM}
    return {**batches, "order": ShardedOrder, "order_kwargs": {"context": context, "batch_size": batch_size}}
