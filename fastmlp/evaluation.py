"""Top-1, top-5 and loss over a whole split."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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
    for batch in split.raw_batches(epoch=0):
        for first in range(0, len(batch), MICRO_BATCH):
            images, labels = split.prepare(batch, first, first + MICRO_BATCH)
            logits = model(images).float()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            totals += torch.stack([hits(logits, labels, 1), hits(logits, labels, 5), loss])
    model.train()
    top1, top5, loss = (totals / split.num_samples).tolist()
    return Scores(top1, top5, loss, split.num_samples)
