"""MixUp (Zhang et al. 2018) with one lambda per batch, as the paper trains.

Position p of the batch is mixed with position p XOR 1, so that contiguous slices of even size mix the same pairs as
the whole batch; the last sample of an odd batch has no partner and stays. The embedding is affine and the weights lam
and 1 - lam add up to 1, so mixing embeddings (B, m) equals mixing images (B, 3 * res * res) at a fraction of the bytes.
"""

import numpy as np
import torch
from torch import Tensor


def mixup_lam(alpha: float, seed: int, step: int) -> float:
    """Draw lam ~ Beta(alpha, alpha), a function of only (seed, step); 1.0 (no MixUp) if alpha is 0."""
    return float(np.random.default_rng([seed, step]).beta(alpha, alpha)) if alpha > 0 else 1.0


def swap_partners(
    values: Tensor,  # (B, ...)
) -> Tensor:
    """Return values[p ^ 1] for every p; the last of an odd number stays."""
    even = len(values) // 2 * 2
    swapped = values[:even].unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return swapped if even == len(values) else torch.cat([swapped, values[even:]])


def mix(
    values: Tensor,  # (B, ...)
    lam: float,
) -> Tensor:
    """Return lam * values[p] + (1 - lam) * values[p ^ 1]."""
    return values if lam == 1.0 else torch.lerp(swap_partners(values), values, lam)
