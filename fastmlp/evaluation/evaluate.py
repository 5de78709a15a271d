"""Evaluation of a model on every image of a split: top-1, top-5, loss, ReaL, per class, over one view or several."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
    """The part of Split and of CachedFeatures that evaluation uses."""

    device: torch.device

    @property
    def num_samples(self) -> int: ...

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class Scores:
    """Top-1 and top-5 (0-1) and the mean cross-entropy (nats, without label smoothing) over `images` images."""

    top1: float
    top5: float
    loss: float
    images: int


@dataclass(frozen=True)
class DetailedScores:
    """Scores with the label and the prediction of each image, in the order of the split.

    real_images is the number of images with a ReaL label (Beyer et al. 2020), real_top1 the share of them whose
    prediction is one of their ReaL labels; None if no ReaL labels were given.
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
        """Top-1 of each class (0-1), (num_classes,) float64, NaN for a class without images."""
        right, images = (
            np.bincount(labels, minlength=self.num_classes)
            for labels in (self.labels[self.labels == self.predicted], self.labels)
        )
        return np.divide(right, images, out=np.full(self.num_classes, np.nan), where=images > 0)

    @property
    def confusion(self) -> np.ndarray:
        """The numbers of images, (num_classes, num_classes) int64: row label, column predicted."""
        pairs = np.bincount(self.labels * self.num_classes + self.predicted, minlength=self.num_classes**2)
        return pairs.reshape(self.num_classes, self.num_classes)


def topk_correct(
    logits: Tensor,  # (B, num_classes)
    labels: Tensor,  # (B,) int64
    k: int,
) -> Tensor:
    """Return how many labels are among the k highest logits, () int64. Ties and NaN count against the label."""
    own = logits.gather(1, labels[:, None])
    ahead = (~(logits < own)).sum(1) - 1  # without the label itself
    return (ahead < k).sum()


def select_forward(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the model's fastest function from a batch to float32 logits, (B, num_classes), without gradients."""
    device = next(model.parameters()).device
    if device.type == "cpu" and isinstance(model, BMLP):
        return lambda images: model.linear_out(model.forward_blocks(model.embed(images), bottleneck_in_place))

    def forward(images: Tensor) -> Tensor:
        with autocast(device):
            return model(images).float()

    return forward


@torch.inference_mode()
def evaluate(model: nn.Module, split: Batches) -> Scores:
    """Return the scores over every image of the split, each once, unaugmented."""
    return _scores(iter_logits(model, split), split)[0]


@torch.inference_mode()
def evaluate_detailed(
    model: nn.Module,
    split: Split,
    views: int = 1,
    average: Average = "logits",
    multi_labels: np.ndarray | None = None,  # (N, max_labels) int64, padded with -1: ReaL labels
) -> DetailedScores:
    """Return the scores and each image's prediction, averaged over the views of a split of mode "tta" (iter_logits)."""
    predictions: list[tuple[Tensor, ...]] = []

    def recorded() -> Iterator[tuple[Tensor, Tensor]]:
        for logits, labels in iter_logits(model, split, views, average, bar):
            probability, predicted = logits.softmax(1).max(1)
            predictions.append((labels.cpu().clone(), predicted.cpu(), probability.cpu()))
            yield logits, labels

    with tqdm(
        total=views * split.num_samples, desc=split.path.name, unit=" images", unit_scale=True, delay=1, leave=False
    ) as bar:
        scores, num_classes = _scores(recorded(), split)
    labels, predicted, probability = (torch.cat(parts).numpy() for parts in zip(*predictions, strict=True))
    detailed = DetailedScores(scores, labels, predicted, probability, num_classes)
    if multi_labels is None:
        return detailed
    correct = (multi_labels == predicted[:, None]).any(1)
    has_label = (multi_labels >= 0).any(1)
    images = int(has_label.sum())
    return replace(detailed, real_top1=int(correct[has_label].sum()) / max(1, images), real_images=images)


def iter_logits(
    model: nn.Module, split: Batches, views: int = 1, average: Average = "logits", bar: tqdm | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits (B, num_classes) float32 and labels (B,) of all images in order, each pair valid until the next.

    views: if above 1, the split has the mode "tta", and the mean is taken over so many crops of each image (paper,
    section 4.3: 100), of the logits or, as in the authors' code, of the softmax, whose logarithm is then yielded
    instead of the logits.
    """
    forward, was_training = select_forward(model), model.training
    model.eval()
    try:
        if views == 1:
            for images, labels in split.batches(epoch=0):
                for micro_batch, own_labels in zip(images.split(MICRO_BATCH), labels.split(MICRO_BATCH), strict=True):
                    yield forward(micro_batch), own_labels
                if bar is not None:
                    bar.update(len(images))
        else:
            assert isinstance(split, Split) and isinstance(model, MLP)
            block = max(1, BLOCK_BYTES // (4 * model.num_classes))
            for first in range(0, split.num_samples, block):
                with split.sample_range(first, first + block):
                    logits, labels = _mean_of_views(forward, split, views, average, model.num_classes, bar)
                    yield from zip(logits.split(MICRO_BATCH), labels.split(MICRO_BATCH), strict=True)
    finally:
        model.train(was_training)


def _mean_of_views(
    forward: Callable[[Tensor], Tensor],
    split: Split,
    views: int,
    average: Average,
    num_classes: int,
    bar: tqdm | None,
) -> tuple[Tensor, Tensor]:
    """Return the mean over the views, (N, num_classes) float32 logits, and the labels (N,) of the split's samples."""
    total = torch.zeros(len(split.loader.indices), num_classes, device=split.device)
    all_labels = torch.empty(len(total), dtype=torch.int64, device=split.device)
    for view in range(views):
        start = 0
        for images, labels in split.batches(epoch=view):
            all_labels[start : start + len(labels)] = labels
            for micro_batch in images.split(MICRO_BATCH):
                logits = forward(micro_batch)
                total[start : start + len(micro_batch)] += logits if average == "logits" else logits.softmax(1)
                start += len(micro_batch)
            if bar is not None:
                bar.update(len(images))
    total /= views
    return total if average == "logits" else total.clamp_(min=torch.finfo(total.dtype).tiny).log_(), all_labels


def _scores(results: Iterator[tuple[Tensor, Tensor]], split: Batches) -> tuple[Scores, int]:
    """Return the scores of iter_logits' results, and the number of classes."""
    totals, num_classes = torch.zeros(3, dtype=torch.float64, device=split.device), 0
    for logits, labels in results:
        num_classes = logits.shape[1]
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals += torch.stack([topk_correct(logits, labels, 1), topk_correct(logits, labels, 5), loss])
    top1, top5, loss = (totals / split.num_samples).tolist()
    return Scores(top1, top5, loss, split.num_samples), num_classes


def wilson_interval(share: float, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a share that was measured on so many images, (low, high) (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = (share + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * (share * (1 - share) / images + (z / (2 * images)) ** 2) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
