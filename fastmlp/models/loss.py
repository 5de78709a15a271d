"""The training loss: cross-entropy with label smoothing under MixUp."""

import torch
from torch import Tensor

from ..transforms.mixup import swap_partners


def mixed_cross_entropy(
    logits: Tensor,  # (B, num_classes) float32
    labels: Tensor,  # (B,) int64
    weight: float,  # lambda of MixUp, 1 for none
    label_smoothing: float,
) -> Tensor:
    """Summed over the batch: lambda * CE(labels) + (1 - lambda) * CE(partners' labels), from one log-softmax."""
    log_p = logits.log_softmax(1)
    right = log_p.gather(1, labels[:, None]).squeeze(1)
    if weight != 1.0:
        right = torch.lerp(log_p.gather(1, swap_partners(labels)[:, None]).squeeze(1), right, weight)
    loss = -right.sum() * (1 - label_smoothing)
    return loss - log_p.sum() * (label_smoothing / logits.shape[1]) if label_smoothing else loss
