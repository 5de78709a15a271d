"""Stratified subsets of a training set, the same share of each class: data-scaling runs train on them (paper)."""

import numpy as np

KEY = 2**32  # keys the generator along with the seed; orders use (seed, epoch), and epochs are smaller


def counts(
    images: np.ndarray,  # (C,) of each class
    fraction: float,  # above 0, at most 1
) -> np.ndarray:
    """Return the number of images of each class that are in the subset, (C,) int64."""
    return np.maximum(np.rint(fraction * images).astype(np.int64), np.minimum(images, 1))


def stratified_subset(
    labels: np.ndarray,  # (N,) integers from 0 on
    fraction: float,  # above 0, at most 1
    seed: int,
) -> np.ndarray:
    """Return the indices, ascending, (n,) int64, of a random share of each class; at least one of a class that has any.

    For the same labels and seed, a smaller fraction gives a subset of what a larger one gives. Which images are taken
    depends on the order of `labels`, which is that of the beton of all images. 2 s for 12 M images.
    """
    labels = np.ascontiguousarray(labels)
    if labels.max(initial=0) < 2**16:
        labels = labels.astype(np.uint16)  # NumPy sorts these in linear time
    shuffled = np.random.default_rng([seed, KEY]).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    images = np.bincount(labels)
    kept = counts(images, fraction)
    rank = np.arange(len(labels)) - np.repeat(images.cumsum() - images, images)  # of each image within its class
    chosen = np.zeros(len(labels), bool)
    chosen[by_class[rank < np.repeat(kept, images)]] = True
    return np.flatnonzero(chosen)
