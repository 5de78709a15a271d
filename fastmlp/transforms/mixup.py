"""MixUp (Zhang et al. 2018) with one lambda per batch, as the paper trains.

Position p of the batch is mixed with position p XOR 1, so that even, contiguous slices of a batch mix the same
pairs as the whole; an odd last one keeps itself. The embedding is affine and the weights add up to 1, so mixing
embeddings (B, m) equals mixing images (B, 3 * res * res) at a fraction of the bytes.
"""

import numpy as np
import torch
from torch import Tensor


def mixup_lam(alpha: float, seed: int, step: int) -> float:
    """lambda ~ Beta(alpha, alpha), a function of (seed, step) alone; 1.0 (off) for alpha 0."""
    return float(np.random.default_rng([seed, step]).beta(alpha, alpha)) if alpha > 0 else 1.0


def swap_partners(
    values: Tensor,  # (B, ...)
) -> Tensor:
    """values[p ^ 1] for every p, the odd last one itself."""
    even = len(values) // 2 * 2
    swapped = values[:even].unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return swapped if even == len(values) else torch.cat([swapped, values[even:]])


def mix(
    values: Tensor,  # (B, ...)
    weight: float,
) -> Tensor:
    """weight * values[p] + (1 - weight) * values[p ^ 1]."""
    return values if weight == 1.0 else torch.lerp(swap_partners(values), values, weight)
