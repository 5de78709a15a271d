"""Traversal orders without state: an epoch's order is a function of only (seed, epoch, rank, world size).

NumPy's SeedSequence hashes seed and epoch together. (FFCV adds them, so that seed 0's second epoch is seed 1's first,
and its QUASI_RANDOM depends on all epochs before: ffcv/traversal_order/.)
"""

import numpy as np


def random_order(
    indices: np.ndarray,  # (N,) sample indices
    seed: int,
    epoch: int,
) -> np.ndarray:
    """Return a permutation of `indices`."""
    return np.random.default_rng([seed, epoch]).permutation(indices)


def windowed_order(
    indices: np.ndarray,  # (N,) sample indices
    pages: np.ndarray,  # (N,) the page of the file that each of them is stored in
    pages_per_window: int,
    seed: int,
    epoch: int,
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return a permutation that visits one window of the file after the other.

    The file's pages are shuffled and divided into windows; within a window the samples are shuffled. Returns the
    order (N,), the window of each of its positions (N,), and each window's pages.
    """
    if len(indices) == 0:
        return indices, np.empty(0, np.uint32), []
    rng = np.random.default_rng([seed, epoch])
    used = rng.permutation(np.unique(pages))
    windows = np.array_split(used, range(pages_per_window, len(used), pages_per_window))
    window_of_page = np.empty(int(pages.max()) + 1, np.uint32)
    for number, members in enumerate(windows):
        window_of_page[members] = number
    shuffled = rng.permutation(len(indices))
    window_of_sample = window_of_page[pages[shuffled]]
    by_window = np.argsort(window_of_sample, kind="stable")
    return indices[shuffled[by_window]], window_of_sample[by_window], windows


def shard(
    order: np.ndarray,  # (N,)
    rank: int,
    world_size: int,
) -> np.ndarray:
    """Return a rank's part: every world_size-th position of the order, which is repeated from its start to fill up.

    Ranks have equal counts and together all samples, as with torch's DistributedSampler(drop_last=False).
    """
    missing = -len(order) % world_size
    return np.resize(order, len(order) + missing)[rank::world_size]
