"""Top-1, top-5 and loss over a whole split."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .device import autocast
from .models import MLP
from .pipelines import Split

MICRO_BATCH = 1000  # images per forward pass


@dataclass(frozen=True)
class Scores:
    """Shares of 1 and the mean cross-entropy (nats, without label smoothing), over `images` images."""

    top1: float
    top5: float
    loss: float
    images: int


def hits(
    logits: Tensor,  # (B, num_classes)
    labels: Tensor,  # (B,) int64
    k: int,
) -> Tensor:
    """How many labels are among the k highest logits. Ties and NaN count against the label."""
    own = logits.gather(1, labels[:, None])
    ahead = (~(logits < own)).sum(1) - 1  # less the label itself
    return (ahead < k).sum()


@torch.inference_mode()
def evaluate(model: MLP, split: Split) -> Scores:
    """Every image of the split once, unaugmented."""
    model.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=split.device)  # top-1 hits, top-5 hits, summed loss
    for images, labels in split.batches(epoch=0):
        for part, answers in zip(images.split(MICRO_BATCH), labels.split(MICRO_BATCH), strict=True):
            with autocast(split.device):
                logits = model(part).float()
            loss = F.cross_entropy(logits, answers, reduction="sum")
            totals += torch.stack([hits(logits, answers, 1), hits(logits, answers, 5), loss])
    model.train()
    top1, top5, loss = (totals / split.num_samples).tolist()
    return Scores(top1, top5, loss, split.num_samples)
