"""Chunks of images put straight into their places in the file, by one process or several."""

import ctypes
import itertools
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..sources.base import Source
from ..sources.fit import Fit, fit_image
from .layout import Layout

PR_SET_PDEATHSIG = 1


@dataclass
class Chunk:
    """What was put at the places from `first` on."""

    first: int
    labels: np.ndarray  # (B,) int64, -1 where the image is bad
    sizes: np.ndarray  # (B, 2) heights and widths, uint16; (0, 2) where all are res x res
    bad: dict[int, str] = field(default_factory=dict)  # by place, what is wrong with images that are left out


@dataclass(frozen=True)
class Job:
    """What is written where; travels to worker processes."""

    partial: Path
    source: Source
    layout: Layout
    order: np.ndarray  # (num_samples,) the source's index at each place
    on_error: Literal["stop", "skip"]
    fit: Fit

    def slot(self, index: int) -> tuple[np.ndarray, int, tuple[int, int]]:
        """A source's image as the bytes of its slot, its label, its height and width."""
        image, label = self.source[index]
        fitted = fit_image(image, self.layout.res, self.fit)
        slot = np.zeros(self.layout.slot_bytes, np.uint8)
        slot[: fitted.size] = fitted.reshape(-1)
        if self.source.multi_labels is not None:
            slot[self.layout.image_bytes :] = self.source.multi_labels[index].astype("<i8").view(np.uint8)
        return slot, label, fitted.shape[:2]

    def write(self, first: int, last: int) -> Chunk:
        """Puts images to the places first..last-1."""
        chosen = self.order[first:last]
        chunk = Chunk(first, np.full(len(chosen), -1), np.zeros((0 if self.fit == "square" else len(chosen), 2), "<u2"))
        stacked = None if self.layout.multi_labels else self.source.stacked(chosen, self.layout.res)
        if stacked is not None:
            slots, chunk.labels = stacked[0].reshape(len(chosen), -1), stacked[1].astype(np.int64)
            chunk.sizes[:] = self.layout.res
        else:
            slots = np.zeros((len(chosen), self.layout.slot_bytes), np.uint8)
            for place, index in enumerate(chosen.tolist()):
                try:
                    slots[place], chunk.labels[place], size = self.slot(index)
                except ValueError as error:
                    if self.on_error == "stop":
                        raise
                    chunk.bad[first + place] = " ".join(str(error).split())
                    continue
                if len(chunk.sizes):
                    chunk.sizes[place] = size
        self._put(slots, first)
        return chunk

    def _put(self, slots: np.ndarray, first: int) -> None:
        addresses = self.layout.addresses(first, first + len(slots))
        fd = os.open(self.partial, os.O_WRONLY)
        try:
            gaps = np.flatnonzero(np.diff(addresses) != self.layout.slot_bytes) + 1  # between pages
            for run, start in zip(np.split(slots, gaps), addresses[np.r_[0, gaps]], strict=True):
                written = os.pwrite(fd, np.ascontiguousarray(run).data, int(start))
                if written != run.nbytes:
                    raise OSError(f"{self.partial}: only {written} of {run.nbytes} bytes could be written; disk full?")
        finally:
            os.close(fd)

    def is_stacked(self) -> bool:
        """Whether the images lie in memory as they are written: to hand them to a process would take longer."""
        return not self.layout.multi_labels and self.source.stacked(np.arange(1), self.layout.res) is not None


def write_chunks(job: Job, bounds: list[tuple[int, int]], num_workers: int) -> Iterator[Chunk]:
    """Writes all chunks; yields each as it is done.

    Raises what a source raised, OSError where a process died.
    """
    if job.is_stacked():
        with ThreadPoolExecutor(num_workers) as threads:
            yield from threads.map(lambda chunk: job.write(*chunk), bounds)
    elif num_workers <= 1 or len(bounds) <= 1:
        yield from itertools.starmap(job.write, bounds)
    else:
        yield from _in_processes(job, bounds, num_workers)


def _in_processes(job: Job, bounds: list[tuple[int, int]], num_workers: int) -> Iterator[Chunk]:
    """Each worker hangs on a pipe of its own, so that the death of one is seen at once.

    (A ProcessPoolExecutor can wait for ever then: CPython issues 94777 and 107219, mended in 3.11.6.)
    """
    context = get_context("spawn")  # a fork would copy locks that numba's or torch's threads may hold
    workers: dict[Any, SpawnProcess] = {}  # by our end of the pipe
    todo = iter(bounds)
    try:
        for bound in itertools.islice(todo, num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, job), daemon=True)
            process.start()
            theirs.close()  # so that the worker's death ends the pipe
            workers[ours] = process
            ours.send(bound)
        while workers:
            ready: Any = connection.wait(list(workers))
            for pipe in ready:
                answer = pipe.recv()
                if isinstance(answer, Exception):
                    raise answer
                if (bound_or_none := next(todo, None)) is None:
                    pipe.close()
                    workers.pop(pipe).join()
                else:
                    pipe.send(bound_or_none)
                yield answer
    except (EOFError, ConnectionError) as error:
        raise OSError(
            f"{job.partial}: a writer process died (killed, or out of memory?). Run the command again, "
            "with a smaller --num-workers if memory is short"
        ) from error
    finally:
        for pipe, process in workers.items():
            pipe.close()
            process.terminate()
            process.join()  # none may write when the file is no longer locked


def _serve(tasks: Any, job: Job) -> None:
    """A worker: bounds in, a chunk or an exception out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # the lock on the file dies with the parent
    while True:
        try:
            bound = tasks.recv()
        except EOFError:
            return
        try:
            answer: Any = job.write(*bound)
        except Exception as error:  # whatever it is, the parent tells it
            answer = error
        tasks.send(answer)
