"""What a model makes of every image of a split: top-1, top-5, loss, ReaL, per class, over several views if asked."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..data.split import Split
from ..device import autocast
from ..models.bottleneck_autograd import bottleneck_in_place
from ..models.mlp import BMLP, MLP

MICRO_BATCH = 1024  # images per forward pass
BLOCK_BYTES = 1 << 30  # of summed logits at a time
Average = Literal["logits", "softmax"]


class Batches(Protocol):
    """Of a Split, or of Features."""

    device: torch.device

    @property
    def num_samples(self) -> int: ...

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class Scores:
    """Shares of 1 and the mean cross-entropy (nats, without label smoothing), over `images` images."""

    top1: float
    top5: float
    loss: float
    images: int


@dataclass(frozen=True)
class DetailedScores:
    """Scores, and what they are made of, in the order of the split.

    real_top1 is the share of the real_images images with a ReaL label whose prediction is among them (Beyer et al.
    2020); None where none was given.
    """

    scores: Scores
    labels: np.ndarray  # (N,) int64
    predicted: np.ndarray  # (N,) int64
    probability: np.ndarray  # (N,) float32, of the predicted class
    num_classes: int
    real_top1: float | None = None
    real_images: int = 0

    @property
    def per_class_top1(self) -> np.ndarray:
        """(num_classes,), NaN for a class without images."""
        right, images = (
            np.bincount(labels, minlength=self.num_classes)
            for labels in (self.labels[self.labels == self.predicted], self.labels)
        )
        return np.divide(right, images, out=np.full(self.num_classes, np.nan), where=images > 0)

    @property
    def confusion(self) -> np.ndarray:
        """(num_classes, num_classes) int64: row label, column predicted."""
        pairs = np.bincount(self.labels * self.num_classes + self.predicted, minlength=self.num_classes**2)
        return pairs.reshape(self.num_classes, self.num_classes)


def topk_correct(
    logits: Tensor,  # (B, num_classes)
    labels: Tensor,  # (B,) int64
    k: int,
) -> Tensor:
    """How many labels are among the k highest logits. Ties and NaN count against the label."""
    own = logits.gather(1, labels[:, None])
    ahead = (~(logits < own)).sum(1) - 1  # less the label itself
    return (ahead < k).sum()


def forward(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model's fastest way from a batch to float32 logits, (B, num_classes), without gradients."""
    device = next(model.parameters()).device
    if device.type == "cpu" and isinstance(model, BMLP):
        return lambda images: model.linear_out(model.forward_blocks(model.embed(images), bottleneck_in_place))

    def run(images: Tensor) -> Tensor:
        with autocast(device):
            return model(images).float()

    return run


@torch.inference_mode()
def evaluate(model: nn.Module, split: Batches) -> Scores:
    """Every image of the split once, unaugmented."""
    return _scores(iter_logits(model, split), split)[0]


@torch.inference_mode()
def evaluate_detailed(
    model: nn.Module,
    split: Split,
    views: int = 1,
    average: Average = "logits",
    multi_labels: np.ndarray | None = None,  # (N, most) int64, -1 for none
) -> DetailedScores:
    """evaluate in detail; over several views of a split of purpose "tta" (predictions)."""
    chosen: list[tuple[Tensor, ...]] = []

    def noted() -> Iterator[tuple[Tensor, Tensor]]:
        for logits, labels in iter_logits(model, split, views, average, bar):
            probability, predicted = logits.softmax(1).max(1)
            chosen.append((labels.cpu().clone(), predicted.cpu(), probability.cpu()))
            yield logits, labels

    with tqdm(
        total=views * split.num_samples, desc=split.path.name, unit=" images", unit_scale=True, delay=1, leave=False
    ) as bar:
        scores, classes = _scores(noted(), split)
    labels, predicted, probability = (torch.cat(parts).numpy() for parts in zip(*chosen, strict=True))
    if multi_labels is None:
        return DetailedScores(scores, labels, predicted, probability, classes)
    right = (multi_labels == predicted[:, None]).any(1)
    with_label = (multi_labels >= 0).any(1)
    images = int(with_label.sum())
    return DetailedScores(
        scores, labels, predicted, probability, classes, int(right[with_label].sum()) / max(1, images), images
    )


def iter_logits(
    model: nn.Module, split: Batches, views: int = 1, average: Average = "logits", bar: tqdm | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (B, num_classes) float32 and labels (B,) of all images in order, each pair valid until the next.

    views: of a split of purpose "tta", the mean over so many crops of each image (paper, section 4.3: 100), of the
    logits or, as the authors' code does, of the softmax; its logarithm takes the place of the logits then.
    """
    run, was_training = forward(model), model.training
    model.eval()
    try:
        if views == 1:
            for images, labels in split.batches(epoch=0):
                for part, answers in zip(images.split(MICRO_BATCH), labels.split(MICRO_BATCH), strict=True):
                    yield run(part), answers
                if bar is not None:
                    bar.update(len(images))
        else:
            assert isinstance(split, Split) and isinstance(model, MLP)
            size = max(1, BLOCK_BYTES // (4 * model.num_classes))
            for first in range(0, split.num_samples, size):
                with split.sample_range(first, first + size):
                    total, answers = _mean(run, split, views, average, model.num_classes, bar)
                    yield from zip(total.split(MICRO_BATCH), answers.split(MICRO_BATCH), strict=True)
    finally:
        model.train(was_training)


def _mean(
    run: Callable[[Tensor], Tensor], split: Split, views: int, average: Average, num_classes: int, bar: tqdm | None
) -> tuple[Tensor, Tensor]:
    total = torch.zeros(len(split.loader.indices), num_classes, device=split.device)
    answers = torch.empty(len(total), dtype=torch.int64, device=split.device)
    for view in range(views):
        at = 0
        for images, labels in split.batches(epoch=view):
            answers[at : at + len(labels)] = labels
            for part in images.split(MICRO_BATCH):
                logits = run(part)
                total[at : at + len(part)] += logits if average == "logits" else logits.softmax(1)
                at += len(part)
            if bar is not None:
                bar.update(len(images))
    total /= views
    return total if average == "logits" else total.clamp_(min=torch.finfo(total.dtype).tiny).log_(), answers


def _scores(results: Iterator[tuple[Tensor, Tensor]], split: Batches) -> tuple[Scores, int]:
    totals, classes = torch.zeros(3, dtype=torch.float64, device=split.device), 0
    for logits, labels in results:
        classes = logits.shape[1]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals += torch.stack([topk_correct(logits, labels, 1), topk_correct(logits, labels, 5), loss])
    top1, top5, loss = (totals / split.num_samples).tolist()
    return Scores(top1, top5, loss, split.num_samples), classes


def wilson_interval(share: float, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share that was seen on so many images (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = (share + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * (share * (1 - share) / images + (z / (2 * images)) ** 2) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
