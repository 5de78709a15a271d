"""Evaluation of a model on every image of a split: top-1, top-5, loss, ReaL, per class, over one view or several.

All scores are of float32 logits and follow one order of classes (label_ranks): by falling logit, of equal logits the
lower class index first, as torch.argmax and torch.max have it.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost.budget import EVALUATION_BATCH_SIZE
from ..data.split import Split
from ..device import autocast, compute_dtype
from ..messages import progress_bar
from ..models.bottleneck_autograd import bottleneck_in_place
from ..models.grey_images import embed
from ..models.mlp import BMLP, MLP

MICRO_BATCH = 1024  # images per forward pass on the CPU
MAX_MICRO_BATCH = 16384  # elsewhere, as in training
MICRO_BATCH_BYTES = 1 << 30  # elsewhere, at most, of a pass's widest activation, its logits and their log-softmax
BLOCK_BYTES = 1 << 30  # of summed logits at a time
Average = Literal["logits", "softmax"]


class Batches(Protocol):
    """The part of Split and of CachedFeatures that evaluation uses."""

    device: torch.device
    path: Path  # of the beton

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

    scores.top1 is the share of images whose prediction is their label. An image with a NaN logit has the prediction -1,
    which is right for no label, and no place in the confusion matrix.

    real_images is the number of images with a ReaL label (Beyer et al. 2020), real_top1 the share of them whose
    prediction is one of their ReaL labels; None if no ReaL labels were given.
    """

    scores: Scores
    labels: np.ndarray  # (N,) int64
    predicted: np.ndarray  # (N,) int64 (predict)
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
        pairs = (self.labels * self.num_classes + self.predicted)[self.predicted >= 0]
        pairs = np.bincount(pairs, minlength=self.num_classes**2)
        return pairs.reshape(self.num_classes, self.num_classes)


def predict(logits: Tensor) -> Tensor:  # (B, num_classes) -> (B,) int64
    """Return the class of the highest logit, of equal ones the lowest index; -1, no class, if a logit is NaN."""
    highest, predicted = logits.max(1)
    return predicted.masked_fill_(highest.isnan(), -1)


def label_ranks(
    logits: Tensor,  # (B, num_classes)
    labels: Tensor,  # (B,) int64
) -> Tensor:
    """Return how many classes are ahead of each label, (B,) int32: 0 if it is what `predict` returns.

    Ahead are the classes of a higher logit, and those of an equal logit and a lower index; num_classes, all, if a logit
    is NaN.
    """
    num_classes = logits.shape[1]
    own = logits.gather(1, labels[:, None])
    lower = torch.arange(num_classes, dtype=torch.int32, device=logits.device) < labels[:, None].int()
    ahead = (logits > own).logical_or_((logits == own).logical_and_(lower)).sum(1, dtype=torch.int32)
    return ahead.masked_fill_(logits.amax(1).isnan(), num_classes)


def topk_correct(
    logits: Tensor,  # (B, num_classes)
    labels: Tensor,  # (B,) int64
    k: int,
) -> Tensor:
    """Return how many labels are among the first k classes, () int64 (label_ranks)."""
    return (label_ranks(logits, labels) < k).sum()


def evaluation_micro_batch_size(model: nn.Module) -> int:
    """Return the images per forward pass: MICRO_BATCH on the CPU, elsewhere a power of two by MICRO_BATCH_BYTES."""
    head, device = _head_of(model), next(model.parameters()).device
    if device.type == "cpu":
        return MICRO_BATCH
    bytes_per_image = 4 * (2 * head.out_features + head.in_features)
    if isinstance(model, MLP):
        widest = max(3 * model.res * model.res, model.arch.expansion * model.arch.width)
        bytes_per_image += compute_dtype(device).itemsize * widest
    return min(MAX_MICRO_BATCH, 1 << (max(1, MICRO_BATCH_BYTES // bytes_per_image).bit_length() - 1))


def evaluation_batch_size(device: torch.device) -> int:
    """Return the images per batch where nothing is trained."""
    return 2048 if device.type == "cpu" else EVALUATION_BATCH_SIZE


def select_forward(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the model's fastest function from a batch to float32 logits, (B, num_classes), without gradients.

    model: an MLP, for batches of images (B, 3 * res * res), or its head, nn.Linear, for features (B, m) of any dtype.
    The backbone runs under autocast, the head in float32: in bfloat16, of 8 bits, the highest of 11,230 logits tie.
    """
    head, device = _head_of(model), next(model.parameters()).device
    plain = device.type == "cpu" and compute_dtype(device) == head.weight.dtype == torch.float32
    block = bottleneck_in_place if plain and isinstance(model, BMLP) else None

    def features(batch: Tensor) -> Tensor:
        if not isinstance(model, MLP):
            return batch
        return model.forward_blocks(embed(model.linear_in, batch) if plain else model.embed(batch), block)

    def forward(batch: Tensor) -> Tensor:
        with autocast(device):
            batch = features(batch)
        with nullcontext() if compute_dtype(device) == torch.float32 else torch.autocast(device.type, enabled=False):
            return head(batch.float())

    # Without the contexts, which take 50 us: an image of a small model takes 800.
    return (lambda batch: head(features(batch).float())) if plain else forward


def _head_of(model: nn.Module) -> nn.Linear:
    head = model.linear_out if isinstance(model, MLP) else model
    assert isinstance(head, nn.Linear)
    return head


@torch.inference_mode()
def evaluate(model: nn.Module, split: Batches) -> Scores:
    """Return the scores over every image of the split, each once, unaugmented."""
    return _scores(iter_logits(model, split), split)[0]


@torch.inference_mode()
def evaluate_detailed(
    model: nn.Module,
    split: Batches,
    views: int = 1,
    average: Average = "logits",
    multi_labels: np.ndarray | None = None,  # (N, max_labels) int64, padded with -1: ReaL labels
    show_progress: bool = True,  # as a bar
) -> DetailedScores:
    """Return the scores and each image's prediction, averaged over the views of a split of mode "tta" (iter_logits)."""
    predictions: list[Tensor] = []  # (3, B) float64 on the device: labels, predicted classes and their probabilities

    def recorded() -> Iterator[tuple[Tensor, Tensor]]:
        for logits, labels in iter_logits(model, split, views, average, bar):
            predictions.append(torch.stack([n.double() for n in (labels, predict(logits), logits.softmax(1).amax(1))]))
            yield logits, labels

    with progress_bar(
        total=views * split.num_samples,
        desc=split.path.name,
        unit=" images",
        unit_scale=True,
        delay=1,
        leave=False,
        **({} if show_progress else {"disable": True}),  # else TQDM_DISABLE is obeyed
    ) as bar:
        scores, num_classes = _scores(recorded(), split)
    labels, predicted, probability = torch.cat(predictions, 1).cpu().numpy()  # one transfer, at the end
    detailed = DetailedScores(
        scores, labels.astype(np.int64), predicted.astype(np.int64), probability.astype(np.float32), num_classes
    )
    if multi_labels is None:
        return detailed
    is_label = multi_labels >= 0  # the padding is no class, and neither is the prediction of NaN logits
    correct = (is_label & (multi_labels == detailed.predicted[:, None])).any(1)
    has_label = is_label.any(1)
    images = int(has_label.sum())
    return replace(detailed, real_top1=int(correct[has_label].sum()) / max(1, images), real_images=images)


def iter_logits(
    model: nn.Module, split: Batches, views: int = 1, average: Average = "logits", bar: Any = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield logits (B, num_classes) float32 and labels (B,) of all images in order, each pair valid until the next.

    views: if above 1, the split has the mode "tta", and the mean is taken over so many crops of each image (paper,
    section 4.3: 100), of the logits or, as in the authors' code, of the softmax, whose logarithm is then yielded
    instead of the logits.
    """
    forward, was_training, size = select_forward(model), model.training, evaluation_micro_batch_size(model)
    model.eval()
    try:
        if views == 1:
            for images, labels in split.batches(epoch=0):
                for micro_batch, own_labels in zip(images.split(size), labels.split(size), strict=True):
                    yield forward(micro_batch), own_labels
                if bar is not None:
                    bar.update(len(images))
        else:
            assert isinstance(split, Split) and isinstance(model, MLP)
            block = max(1, BLOCK_BYTES // (4 * model.num_classes))
            for first in range(0, split.num_samples, block):
                with split.sample_range(first, first + block):
                    logits, labels = _mean_of_views(forward, size, split, views, average, model.num_classes, bar)
                    yield from zip(logits.split(size), labels.split(size), strict=True)
    finally:
        model.train(was_training)


def _mean_of_views(
    forward: Callable[[Tensor], Tensor],
    micro_batch_size: int,
    split: Split,
    views: int,
    average: Average,
    num_classes: int,
    bar: Any,  # a tqdm bar, or None
) -> tuple[Tensor, Tensor]:
    """Return the mean over the views, (N, num_classes) float32 logits, and the labels (N,) of the split's samples."""
    total = torch.zeros(len(split.loader.indices), num_classes, device=split.device)
    all_labels = torch.empty(len(total), dtype=torch.int64, device=split.device)
    for view in range(views):
        start = 0
        for images, labels in split.batches(epoch=view):
            all_labels[start : start + len(labels)] = labels
            for micro_batch in images.split(micro_batch_size):
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
        ranks = label_ranks(logits, labels)
        totals += torch.stack([(ranks < 1).sum(), (ranks < 5).sum(), loss])
    top1, top5, loss = (totals / split.num_samples).tolist()
    return Scores(top1, top5, loss, split.num_samples), num_classes


def wilson_interval(share: float, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a share that was measured on so many images, (low, high) (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    middle = (share + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * (share * (1 - share) / images + (z / (2 * images)) ** 2) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
