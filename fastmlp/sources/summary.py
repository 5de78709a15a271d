"""What was understood of a data set, for people to read before anything is written."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from .base import Source, Subset
from .listing import told

SHOWN = 8  # names of classes on a line


def summary(dataset: str, sources: Mapping[str, Source]) -> list[str]:
    """Return lines about the splits, their classes and images, what is left out, and what looks odd.

    The first split trains. Raises ValueError if there is only one class.
    """
    train = next(iter(sources.values()))
    if len(train.classes) < 2:
        raise ValueError(
            f"{dataset}: only one class was found, {train.classes[0]!r}, expected at least two. Is it the folder "
            "around the classes, or one of them? Name the folder that holds a folder per class"
        )
    sizes = ", ".join(f"{split} {len(source):,} images" for split, source in sources.items())
    lines = [f"{dataset}: {sizes}; {len(train.classes):,} classes: {listed(train.classes)}"]
    left_out: Counter[str] = Counter()
    for counts in {id(source.left_out): source.left_out for source in sources.values()}.values():
        left_out += counts  # once for both parts of a source with a holdout
    if left_out:
        lines.append(f"left out: {told(left_out)}")
    notices = dict.fromkeys(notice for source in sources.values() for notice in source.notices)
    if untrained := without_images(train):
        notices[f"no training image of {len(untrained):,} classes: {listed(untrained)}"] = None
    for split, source in list(sources.items())[1:]:
        if not isinstance(source, Subset) and (lacking := without_images(source)):  # of one at random, some do
            notices[f"no {split} image of {len(lacking):,} classes: {listed(lacking)}"] = None
    if alike := _differing_in_case(train.classes):
        notices[f"classes that differ only in case: {listed(alike)}"] = None
    return lines + [f"notice: {notice}" for notice in notices]


def without_images(source: Source) -> list[str]:
    """Return the names of the classes that have no image, none if the source does not know its labels yet."""
    labels = getattr(source, "labels", None)
    if labels is None:
        return []
    counts = np.bincount(labels, minlength=len(source.classes))
    return [source.classes[label] for label in np.flatnonzero(counts == 0)]


def _differing_in_case(names: Sequence[str]) -> list[str]:
    counts = Counter(name.casefold() for name in names)
    return [name for name in names if counts[name.casefold()] > 1]


def listed(names: Sequence[str]) -> str:
    """Return the names on one line, those in the middle left out if there are many."""
    shown = [repr(name)[1:-1] for name in names]
    return ", ".join(shown if len(shown) <= SHOWN else [*shown[: SHOWN - 1], "...", shown[-1]])
