"""Betons to training-ready batches: FFCV loads and collates, our transforms augment and normalise."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .beton import layout
from .datasets import DatasetSpec, beton_path
from .loader.loader import Loader, OrderOption, raw_pipelines
from .loader.memory import MappedBeton
from .transforms import device as on_device
from .transforms import host as on_host
from .transforms.params import Augment, draw_params


@dataclass(frozen=True)
class RawBatch:
    """One batch as it lies in the beton. `images` and `labels` are valid until the next batch is asked for."""

    images: Tensor  # (B, H, W, 3) uint8, on the CPU
    labels: Tensor  # (B,) int64, on the CPU
    samples: np.ndarray  # (B,) indices in the beton
    epoch: int

    def __len__(self) -> int:
        return len(self.samples)


class Split:
    """One split of a data set, from its beton: raw batches by epoch, and what turns them into model input.

    Raises FileNotFoundError or ValueError where the beton is missing, damaged, of another resolution, smaller
    than a training batch, or holds labels outside of the data set's classes.
    """

    def __init__(
        self,
        spec: DatasetSpec,
        split: str,
        *,
        data_dir: str | Path,
        res: int,
        batch_size: int,
        num_workers: int = 0,
        seed: int = 0,
        augment: Augment | None = None,  # None: evaluation, in order, every image
        device: torch.device | str = "cpu",
    ):
        path = beton_path(data_dir, spec.name, split, res)
        writer = f"{spec.writer} --res {res} --out {data_dir}"
        self.path, self.res, self.seed, self.augment = path, res, seed, augment or Augment()
        layout.check(path, writer)
        self._check_content(MappedBeton(path), spec, augment is not None and batch_size, writer)
        self.device = torch.device(device)
        self.loader = Loader(
            path,
            batch_size,
            num_workers,
            order=OrderOption.SEQUENTIAL if augment is None else OrderOption.RANDOM,
            seed=seed,
            drop_last=augment is not None,
            batches_ahead=1,
            pipelines=raw_pipelines(),
        )
        self.mean, self.std = (torch.tensor(x, dtype=torch.float32, device=self.device) for x in (spec.mean, spec.std))

    def _check_content(self, beton: MappedBeton, spec: DatasetSpec, batch_size: int, writer: str) -> None:
        mend = f"Write it with: {writer}"
        if list(beton.handlers) != ["image", "label"] or beton.metadata_type != layout.METADATA:
            raise ValueError(f"{self.path}: its fields are {list(beton.handlers)}, not an image and a label. {mend}")
        images, labels = beton.metadata["f0"], beton.metadata["f1"]
        if (images["mode"] != layout.RAW_MODE).any():
            raise ValueError(f"{self.path} holds JPEG images, raw ones are expected. {mend}")
        if (images["width"] != self.res).any() or (images["height"] != self.res).any():
            raise ValueError(f"{self.path}: its images are not {self.res} x {self.res} pixels, as it is named. {mend}")
        if len(labels) < batch_size:
            raise ValueError(
                f"the batch of {batch_size} is larger than the data set: {self.path} holds {len(labels)} images. "
                f"Use --cfg.batch_size={len(labels)} or less"
            )
        if labels.min() < 0 or labels.max() >= spec.num_classes:
            raise ValueError(
                f"{self.path}: labels {labels.min()}..{labels.max()} outside of the {spec.num_classes} classes of "
                f"{spec.name}. {mend}"
            )

    @property
    def num_samples(self) -> int:
        return len(self.loader.indices)

    @property
    def batches_per_epoch(self) -> int:
        return len(self.loader)

    def raw_batches(self, epoch: int) -> Iterator[RawBatch]:
        """The epoch's batches; its order depends on nothing but (seed, epoch)."""
        self.loader.next_epoch = epoch
        order = np.asarray(self.loader.next_traversal_order())
        size = self.loader.batch_size
        with closing(iter(self.loader)) as batches:
            for number, (images, labels) in enumerate(batches):
                yield RawBatch(images, labels, order[number * size : number * size + len(images)], epoch)

    def prepare(self, batch: RawBatch, first: int = 0, last: int | None = None) -> tuple[Tensor, Tensor]:
        """Images first..last-1 of a batch, augmented and normalised: (b, 3 * res * res) float32, and labels (b,).

        Both on the split's device. Augmentation depends on nothing but (seed, epoch, sample).
        """
        images, labels = batch.images[first:last], batch.labels[first:last]
        boxes, flips = draw_params(self.augment, self.res, self.seed, batch.epoch, batch.samples[first:last])
        if self.device.type != "cpu":
            images, labels = images.to(self.device), labels.to(self.device)
            sent, mirrored = (torch.from_numpy(x).to(self.device) for x in (boxes, flips))
            return on_device.crop_resize_normalize(images, sent, mirrored, self.mean, self.std, self.res), labels
        ready = torch.empty(len(images), 3 * self.res * self.res)
        on_host.crop_resize_normalize(
            images.numpy(), boxes, flips, self.mean.numpy(), self.std.numpy(), ready.numpy(), self.res
        )
        return ready, labels

    def preview(self, rows: int, columns: int) -> np.ndarray:
        """Epoch 0's first images, (2 * rows, columns, res, res, 3) uint8: a row as stored, below it as augmented."""
        for batch in self.raw_batches(epoch=0):
            count = min(rows * columns, len(batch)) // columns * columns or min(columns, len(batch))
            ready, _ = self.prepare(batch, 0, count)
            planes = ready.view(count, 3, self.res, self.res) * self.std[:, None, None] + self.mean[:, None, None]
            augmented = planes.permute(0, 2, 3, 1).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
            pair = np.stack([batch.images[:count].numpy(), augmented])  # (2, count, res, res, 3)
            columns = min(columns, count)
            return pair.reshape(2, -1, columns, *pair.shape[2:]).swapaxes(0, 1).reshape(-1, columns, *pair.shape[2:])
        raise ValueError(f"{self.path} holds no batch")
