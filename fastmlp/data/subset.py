"""Stratified subsets of a training set, the same share of each class: trained on (the paper's scaling) or held out."""

import numpy as np

# Each keys the generator along with the seed; orders use (seed, epoch), and epochs are smaller.
KEY, HELD_OUT_KEY = 2**32, 2**32 + 1


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
    images = np.bincount(labels)
    return np.flatnonzero(_chosen(labels, images, counts(images, fraction), [seed, KEY]))


def held_out_counts(
    images: np.ndarray,  # (C,) of each class
    share: float,  # above 0, below 1
) -> np.ndarray:
    """Return the number of images of each class that are held out, (C,) int64: none of a class's only image."""
    return np.minimum(counts(images, share), np.maximum(images - 1, 0))


def hold_out(
    labels: np.ndarray,  # (N,) integers from 0 on
    share: float,  # above 0, below 1
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices, ascending, of the images that are left and of a random share of each class, held out.

    At least one image of each class is left. As in stratified_subset, a smaller share lies within a larger one.
    """
    images = np.bincount(labels)
    chosen = _chosen(labels, images, held_out_counts(images, share), [seed, HELD_OUT_KEY])
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _chosen(labels: np.ndarray, images: np.ndarray, kept: np.ndarray, key: list[int]) -> np.ndarray:
    """Return which images are chosen, (N,) bool: `kept` (C,) at random of the `images` (C,) of each class."""
    labels = np.ascontiguousarray(labels)
    if labels.max(initial=0) < 2**16:
        labels = labels.astype(np.uint16)  # NumPy sorts these in linear time
    shuffled = np.random.default_rng(key).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(images.cumsum() - images, images)  # of each image within its class
    chosen = np.zeros(len(labels), bool)
    chosen[by_class[rank < np.repeat(kept, images)]] = True
    return chosen
