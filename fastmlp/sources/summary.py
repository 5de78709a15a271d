"""What was understood of a data set, for people to read before anything is written."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from .base import Source
from .listing import told

SHOWN = 8  # names of classes on a line


def summary(dataset: str, sources: Mapping[str, Source]) -> list[str]:
    """Return lines about the splits, their classes and images, what is left out, and what looks odd.

    The first split trains. Raises ValueError if there is only one class.
    """
    train = next(iter(sources.values()))
    if len(train.classes) < 2:
        raise ValueError(
            f"{dataset}: only one class, {train.classes[0]!r}, was found, expected at least two. Is it the folder around the "
            "classes, or is --source one of the classes?"
        )
    sizes = ", ".join(f"{split} {len(source):,} images" for split, source in sources.items())
    lines = [f"{dataset}: {sizes}; {len(train.classes):,} classes: {_listed(train.classes)}"]
    left_out: Counter[str] = Counter()
    for counts in {id(source.left_out): source.left_out for source in sources.values()}.values():
        left_out += counts  # once for both parts of a source with a holdout
    if left_out:
        lines.append(f"left out: {told(left_out)}")
    notices = dict.fromkeys(notice for source in sources.values() for notice in source.notices)
    untrained = _without_images(train)
    if untrained:
        notices[f"no training image of {len(untrained):,} classes: {_listed(untrained)}"] = None
    return lines + [f"notice: {notice}" for notice in notices]


def _without_images(source: Source) -> list[str]:
    labels = getattr(source, "labels", None)
    if labels is None:
        return []
    counts = np.bincount(labels, minlength=len(source.classes))
    return [source.classes[label] for label in np.flatnonzero(counts == 0)]


def _listed(names: Sequence[str]) -> str:
    shown = [repr(name)[1:-1] for name in names]
    return ", ".join(shown if len(shown) <= SHOWN else [*shown[: SHOWN - 1], "...", shown[-1]])
