"""Whether the files of a source are still those that a beton was written from."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ..messages import logger, progress_bar
from .workers import FileState, WriteJob, file_state

COMPARED_CHUNKS = 8  # if only times differ, as in a copied folder


def check_unchanged(
    job: WriteJob,  # its `partial` is the file that holds the images
    written: Iterable[tuple[tuple[int, int], FileState | None]],  # bounds of chunks, and their files when written
    choice: str,  # how to write all images anew
) -> None:
    """Raise ValueError naming an image that is not what was written, and the choice.

    Sizes and times of all files are compared, then the images of all chunks with another size. If only times differ,
    some chunks are compared, and a notice says so.
    """
    other_times, count = [], 0
    name, parts = job.partial.name.removesuffix(".partial"), list(written)
    for bounds, state in progress_bar(parts, desc=f"{name}: comparing files", mininterval=0.5, delay=1, leave=False):
        found = None if state is None else file_state(job.source, job.order[slice(*bounds)])
        if state is None or found is None or found == state:
            continue
        if found.sizes != state.sizes:
            _compare(job, bounds, choice)
        else:
            other_times.append(bounds)
    chosen = np.unique(np.linspace(0, len(other_times) - 1, min(COMPARED_CHUNKS, len(other_times))).astype(int))
    for number in progress_bar(
        chosen.tolist(), desc=f"{name}: comparing images", mininterval=0.5, delay=1, leave=False
    ):
        first, last = other_times[number]
        _compare(job, (first, last), choice)
        count += last - first
    if other_times:
        logger.warning(
            f"{name}: the files have other times than when they were read, but the same sizes; {count:,} images were "
            "compared and are the same: going on"
        )


def _compare(job: WriteJob, bounds: tuple[int, int], choice: str) -> None:
    """Read the images of a chunk again and compare them with the file."""
    first, last = bounds
    _, slots = replace(job, on_error="skip").read(bounds)
    with job.partial.open("rb") as file:
        for start, count in job.layout.runs(first, last):
            file.seek(start)
            there = np.frombuffer(file.read(count * job.layout.slot_bytes), np.uint8).reshape(count, -1)
            differs = (there != slots[:count]).any(1)
            if differs.any():
                image = job.source.location(int(job.order[first + int(differs.argmax())]))
                raise ValueError(f"{image} has changed since it was written. Restore it, or {choice}")
            slots, first = slots[count:], first + count
