"""The training loss: cross-entropy with label smoothing under MixUp."""

import torch
from torch import Tensor

from ..transforms.mixup import swap_partners


def mixed_cross_entropy(
    logits: Tensor,  # (B, num_classes) float32
    labels: Tensor,  # (B,) int64
    lam: float,  # MixUp's lambda, 1 without MixUp
    label_smoothing: float,
) -> Tensor:
    """Return the loss summed over the batch, () float32.

    lam * CE(labels) + (1 - lam) * CE(partners' labels), both from one log-softmax.
    """
    log_p = logits.log_softmax(1)
    log_p_label = log_p.gather(1, labels[:, None]).squeeze(1)
    if lam != 1.0:
        log_p_partner = log_p.gather(1, swap_partners(labels)[:, None]).squeeze(1)
        log_p_label = torch.lerp(log_p_partner, log_p_label, lam)
    loss = -log_p_label.sum() * (1 - label_smoothing)
    return loss - log_p.sum() * (label_smoothing / logits.shape[1]) if label_smoothing else loss
