"""Traversal orders without state: each a pure function of its arguments."""

import numpy as np


def shuffled(
    indices: np.ndarray,  # (N,) sample indices
    seed: int,
    epoch: int,
) -> np.ndarray:
    """A permutation of `indices` from (seed, epoch), hashed together.

    FFCV's RANDOM uses seed + epoch, so that seed 0's second epoch is seed 1's first
    (ffcv/traversal_order/random.py); NumPy's SeedSequence hashes the pair.
    """
    return np.random.default_rng([seed, epoch]).permutation(indices)
