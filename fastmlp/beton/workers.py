"""Write chunks of images directly into their places in the file, with one process or several."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..atomic import no_links
from ..sources.base import Source
from ..sources.fit import Fit, fit_image
from ..worker_pool import Pool
from .layout import Layout


class FileState(NamedTuple):
    """Hashes of the states of the files that hold some images: of `content`, and of the rest (sources.base)."""

    sizes: str
    times: str


def file_state(source: Source, indices: np.ndarray) -> FileState | None:
    """Return the state of the files of some images, None if they are not in files."""
    states = [source.file_state(index) for index in indices.tolist()]
    if None in states:
        return None
    numbers = np.array(states, np.int64)
    parts = numbers[:, :1], numbers[:, 1:]
    return FileState(*(new_digest(np.ascontiguousarray(part).data).hexdigest() for part in parts))


@dataclass
class Chunk:
    """What was written to the places from `first` on."""

    first: int
    labels: np.ndarray  # (B,) int64, -1 where the image is bad
    sizes: np.ndarray  # (B, 2) heights and widths, uint16; (0, 2) if all are res x res
    bad: dict[int, str] = field(default_factory=dict)  # place -> what is wrong with an image that is left out
    digest: str = ""  # of the slots' bytes
    files: FileState | None = None


@dataclass(frozen=True)
class WriteJob:
    """What is written where; sent to worker processes."""

    partial: Path
    source: Source
    layout: Layout
    order: np.ndarray  # (num_samples,) the source's index at each place
    on_error: Literal["stop", "skip"]
    fit: Fit

    def slot(self, index: int) -> tuple[np.ndarray, int, tuple[int, int]]:
        """Return the bytes of the slot of a source's image, its label, and its (height, width)."""
        image, label = self.source[index]
        fitted = fit_image(image, self.layout.res, self.fit)
        slot = np.zeros(self.layout.slot_bytes, np.uint8)
        slot[: fitted.size] = fitted.reshape(-1)
        if self.source.multi_labels is not None:
            slot[self.layout.image_bytes :] = self.source.multi_labels[index].astype("<i8").view(np.uint8)
        return slot, label, fitted.shape[:2]

    def write(self, bounds: tuple[int, int]) -> Chunk:
        """Write the images of places first to last, the last one excluded."""
        files = file_state(self.source, self.order[slice(*bounds)])  # before: a file changed meanwhile is noticed
        chunk, slots = self.read(bounds)
        chunk.files = files
        chunk.digest = new_digest(slots.data).hexdigest()
        self._write_slots(slots, chunk.first)
        return chunk

    def read(self, bounds: tuple[int, int]) -> tuple[Chunk, np.ndarray]:
        """Return the images of places first to last, the last one excluded, and the bytes of their slots."""
        first, last = bounds
        chosen = self.order[first:last]
        chunk = Chunk(first, np.full(len(chosen), -1), np.zeros((0 if self.fit == "square" else len(chosen), 2), "<u2"))
        batch = None if self.layout.multi_labels else self.source.get_batch(chosen, self.layout.res)
        if batch is not None:
            slots, chunk.labels = batch[0].reshape(len(chosen), -1), batch[1].astype(np.int64)
            chunk.sizes[:] = self.layout.res
        else:
            slots = np.zeros((len(chosen), self.layout.slot_bytes), np.uint8)
            for place, index in enumerate(chosen.tolist()):
                try:
                    slots[place], chunk.labels[place], size = self.slot(index)
                except ValueError as error:
                    if self.on_error == "stop":
                        raise ValueError(
                            f'{error}. To leave out and list such images: --on-error skip, from Python on_error="skip"'
                        ) from error
                    chunk.bad[first + place] = " ".join(str(error).split())
                    continue
                if len(chunk.sizes):
                    chunk.sizes[place] = size
        return chunk, np.ascontiguousarray(slots)

    def _write_slots(self, slots: np.ndarray, first: int) -> None:
        fd, at = no_links(self.partial, os.O_WRONLY), 0
        try:
            for start, count in self.layout.runs(first, first + len(slots)):
                run, at = slots[at : at + count], at + count
                written = os.pwrite(fd, run.data, start)
                if written != run.nbytes:
                    raise OSError(f"{self.partial}: only {written} of {run.nbytes} bytes could be written; disk full?")
        finally:
            os.close(fd)

    def has_batches(self) -> bool:
        """Return whether images are in memory as they are written; sending them to a process would take longer."""
        return not self.layout.multi_labels and self.source.get_batch(np.arange(1), self.layout.res) is not None


def new_digest(content: bytes | memoryview = b"") -> Any:
    """Return a hash of 128 bits: it tells damage, not forgery."""
    return hashlib.blake2b(content, digest_size=16)


def write_chunks(job: WriteJob, bounds: list[tuple[int, int]], num_workers: int) -> Iterator[Chunk]:
    """Write all chunks; yield each after it is written.

    Raises what the source raised, or OSError if a process died.
    """
    if job.has_batches():
        with ThreadPoolExecutor(num_workers) as threads:
            yield from threads.map(job.write, bounds)
    elif num_workers <= 1 or len(bounds) <= 1:
        yield from map(job.write, bounds)
    else:
        try:
            with Pool(job.write, num_workers) as pool:
                yield from pool.map(bounds)
        except ChildProcessError as error:
            raise OSError(
                f"{job.partial}: {error}. Run the command again, with a smaller --num-workers if memory is short"
            ) from error
