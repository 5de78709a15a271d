"""Writes raw images of one size into a beton: workers put pixels straight into place, the name appears at the end."""

import fcntl
import itertools
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from ..datasets import describe
from ..sources.base import Source, fit_square
from .checksum import checksum, checksum_file
from .journal import Journal
from .layout import Layout

CHUNK_BYTES = 4 << 20  # of pixels per task
CHECKED_IMAGES = 32
CHECKPOINT_S = 2.0  # between entries in the journal


def write_beton(
    path: str | Path,
    source: Source,
    res: int,
    *,
    facts: dict | None = None,  # goes into the description beside the beton
    seed: int | None = 0,  # of the order of samples; None keeps the source's order
    num_workers: int = 1,
    on_error: Literal["stop", "skip"] = "stop",
) -> Path:
    """Writes every image of `source`, as its centre square at res x res, to `path`; returns `path`.

    The same source, res and seed give the same bytes whatever the number of workers and however often the writing was
    interrupted. Until it is whole the file is called `path.partial`, and a journal beside it tells what is written: the
    same call goes on from there. Class names and `facts` go into a JSON file beside it.

    on_error: a bad image stops the writing ("stop"), or is left out and listed in a text file beside it ("skip").

    Raises ValueError naming a bad image, OSError where the disk is too small or another writer is at the same file.
    """
    path = Path(path)
    layout = Layout(len(source), res)
    if source.stacked(np.arange(1), res) is not None:
        num_workers = 1  # to hand over the arrays would take longer than to write them
    order = np.arange(len(source)) if seed is None else np.random.default_rng(seed).permutation(len(source))
    path.parent.mkdir(parents=True, exist_ok=True)
    identity = {"num_samples": len(source), "res": res, "seed": seed, "source": source.fingerprint(),
                "on_error": on_error, "chunk_bytes": CHUNK_BYTES}  # fmt: skip
    with _partial_file(path, layout, identity) as (partial, journal):
        bounds = _chunks(len(source), max(1, CHUNK_BYTES // layout.image_bytes))
        kept = sum(len(chunk["labels"]) for chunk in journal.chunks.values())
        todo = [(first, last) for first, last in bounds if first not in journal.chunks]
        progress = tqdm(total=len(source), initial=kept, desc=path.name, unit=" images", unit_scale=True,
                        mininterval=0.5)  # fmt: skip
        with progress, _Checkpoints(partial, journal) as checkpoints:
            for (first, last), (labels, bad) in _fill(partial, source, layout, order, todo, num_workers, on_error):
                checkpoints.add(first, labels, bad)
                progress.update(last - first)
        all_labels = np.empty(len(source), np.int64)
        skipped: dict[int, str] = {}
        for first, chunk in journal.chunks.items():
            all_labels[first : first + len(chunk["labels"])] = chunk["labels"]
            skipped |= {int(at): text for at, text in chunk["bad"].items()}
        written = np.delete(np.arange(len(source)), sorted(skipped))
        if not len(written):
            raise ValueError(f"{path}: not one of {len(source)} images could be read, the first: {skipped[0]}")
        with partial.open("r+b") as file:
            file.write(layout.head(len(written)) + layout.metadata(all_labels[written], written))
            file.seek(layout.allocation_start)
            file.write(layout.allocation_table(written))
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        if skipped:
            _write_whole(skipped_list(path), "".join(f"{text}\n" for text in sorted(skipped.values())))
        else:
            skipped_list(path).unlink(missing_ok=True)  # of an earlier beton
        _check_pixels(partial, source, layout, order, written)
        digest = checksum(partial)
        checksum_file(path).unlink(missing_ok=True)  # of an earlier beton
        _write_description(path, source, layout, all_labels[written], {**(facts or {}), "skipped": len(skipped)})
        os.replace(partial, path)
        _write_whole(checksum_file(path), f"{digest}  {path.name}\n")
        journal.path.unlink()
    _sync_folder(path.parent)
    return path


def skipped_list(path: Path) -> Path:
    """The text file that names the images left out of a beton, a line each."""
    return path.with_suffix(".skipped.txt")


class _Checkpoints:
    """Enters chunks into the journal once their pixels are on disk, some seconds' work at a time, and at the end."""

    def __init__(self, partial: Path, journal: Journal):
        self._fd, self._journal = os.open(partial, os.O_RDWR), journal
        self._waiting: list[tuple[int, list[int], dict[int, str]]] = []
        self._last = time.monotonic()

    def add(self, first: int, labels: list[int], bad: dict[int, str]) -> None:
        self._waiting.append((first, labels, bad))
        if time.monotonic() - self._last > CHECKPOINT_S:
            self.save()

    def save(self) -> None:
        os.fdatasync(self._fd)
        for chunk in self._waiting:
            self._journal.add(*chunk)
        self._journal.sync()
        self._waiting.clear()
        self._last = time.monotonic()

    def __enter__(self) -> "_Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.save()
        finally:
            os.close(self._fd)


@contextmanager
def _partial_file(path: Path, layout: Layout, identity: dict[str, Any]) -> Iterator[tuple[Path, Journal]]:
    """A locked file of the final size next to the final name, and its journal.

    If anything fails both stay, so that the same command goes on; without a finished chunk they go.
    """
    partial = path.with_name(path.name + ".partial")
    journal_path = path.with_name(path.name + ".journal")
    with partial.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"another writer is at {path} (it holds {partial.name})") from None
        if not partial.exists() or not os.path.samestat(partial.stat(), os.fstat(file.fileno())):
            raise OSError(f"another writer has just been at {path}: look whether it is there, else run again")
        journal: Journal | None = None
        try:
            there = os.fstat(file.fileno()).st_size
            with Journal(journal_path, identity, layout.allocation_start <= there <= layout.file_bytes) as journal:
                if journal.chunks:
                    print(f"{path.name}: goes on where it was interrupted", file=sys.stderr)
                else:
                    file.truncate(0)
                    _reserve(file.fileno(), path, layout.file_bytes)
                yield partial, journal
        except BaseException:
            if journal is None or not journal.chunks:
                partial.unlink(missing_ok=True)
                journal_path.unlink(missing_ok=True)
            else:
                print(f"{path.name}: unfinished; the same command goes on from here", file=sys.stderr)
            raise


def _reserve(fd: int, path: Path, file_bytes: int) -> None:
    """Takes the whole file's room: a full disk shows here, not after hours."""
    free = shutil.disk_usage(path.parent).free
    if free < file_bytes:
        raise OSError(f"{path.parent} has {free / 1e9:.1f} GB free, {path.name} needs {file_bytes / 1e9:.1f} GB")
    os.posix_fallocate(fd, 0, file_bytes)


def _chunks(count: int, size: int) -> list[tuple[int, int]]:
    return [(first, min(first + size, count)) for first in range(0, count, size)]


def _write_chunk(
    partial: Path, source: Source, layout: Layout, first: int, chosen: np.ndarray, on_error: str
) -> tuple[list[int], dict[int, str]]:
    """Puts source images `chosen` at the places first, first + 1, ...; returns their labels, and bad ones by place."""
    labels: list[int] = []
    bad: dict[int, str] = {}
    if (stacked := source.stacked(chosen, layout.res)) is not None:
        pixels, labels = stacked[0].reshape(len(chosen), -1), stacked[1].tolist()
    else:
        pixels = np.zeros((len(chosen), layout.image_bytes), np.uint8)
        for row, index in zip(pixels, chosen, strict=True):
            try:
                image, label = source[int(index)]
                row[:] = fit_square(image, layout.res).reshape(-1)
            except ValueError as error:
                if on_error == "stop":
                    raise
                bad[first + len(labels)] = " ".join(str(error).split())
                label = -1
            labels.append(label)
    addresses = layout.addresses(first, first + len(chosen))
    fd = os.open(partial, os.O_WRONLY)
    try:
        gaps = np.flatnonzero(np.diff(addresses) != layout.image_bytes) + 1  # between pages
        for run, start in zip(np.split(pixels, gaps), addresses[np.r_[0, gaps]], strict=True):
            written = os.pwrite(fd, np.ascontiguousarray(run).data, int(start))
            if written != run.nbytes:
                raise OSError(f"{partial}: only {written} of {run.nbytes} bytes could be written; disk full?")
    finally:
        os.close(fd)
    return labels, bad


def _fill(
    partial: Path, source: Source, layout: Layout, order: np.ndarray, bounds: list[tuple[int, int]], num_workers: int,
    on_error: str,
) -> Iterator[tuple[tuple[int, int], tuple[list[int], dict[int, str]]]]:  # fmt: skip
    """Writes all pixels; yields each chunk's bounds, and its labels and bad images, as it is done.

    Each worker hangs on a pipe of its own, so that the death of one is seen at once. (A ProcessPoolExecutor
    can wait for ever then: CPython issues 94777 and 107219, mended in 3.11.6.)
    """
    if num_workers <= 1 or len(bounds) <= 1:
        for first, last in bounds:
            yield (first, last), _write_chunk(partial, source, layout, first, order[first:last], on_error)
        return
    context = get_context("spawn")  # a fork would copy locks that numba's or torch's threads may hold
    workers: dict[Any, tuple[SpawnProcess, tuple[int, int]]] = {}  # by our end of the pipe: process, chunk at work
    todo = iter(bounds)
    try:
        for first, last in itertools.islice(todo, num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, partial, source, layout, on_error), daemon=True)
            process.start()
            theirs.close()  # so that the worker's death ends the pipe
            workers[ours] = process, (first, last)
            ours.send((first, order[first:last]))
        while workers:
            ready: Any = connection.wait(list(workers))
            for pipe in ready:
                process, done = workers[pipe]
                answer = pipe.recv()
                if isinstance(answer, Exception):
                    raise answer
                yield done, answer
                if (chunk := next(todo, None)) is None:
                    pipe.close()
                    process.join()
                    del workers[pipe]
                else:
                    workers[pipe] = process, chunk
                    pipe.send((chunk[0], order[chunk[0] : chunk[1]]))
    except (EOFError, ConnectionError) as error:
        raise OSError(
            f"{partial}: a writer process died (killed, or out of memory?). Run the command again, "
            "with a smaller --num-workers if memory is short"
        ) from error
    finally:
        for pipe, (process, _) in workers.items():
            pipe.close()
            process.terminate()
            process.join()


def _serve(tasks: Any, partial: Path, source: Source, layout: Layout, on_error: str) -> None:
    """A worker: chunks in, labels or an exception out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    while True:
        try:
            first, chosen = tasks.recv()
        except EOFError:
            return
        try:
            answer: Any = _write_chunk(partial, source, layout, first, chosen, on_error)
        except Exception as error:  # whatever it is, the parent tells it
            answer = error
        tasks.send(answer)


def _check_pixels(partial: Path, source: Source, layout: Layout, order: np.ndarray, written: np.ndarray) -> None:
    """Some images anew from the source, against what lies in the file."""
    addresses = layout.addresses()
    with partial.open("rb") as file:
        for place in np.unique(np.linspace(0, len(written) - 1, CHECKED_IMAGES).astype(int)):
            file.seek(int(addresses[written[place]]))
            image, _ = source[int(order[written[place]])]
            if file.read(layout.image_bytes) != fit_square(image, layout.res).tobytes():
                raise OSError(f"{partial}: image {place} is not what was written. Is the disk sound? Delete the file")


def _write_description(path: Path, source: Source, layout: Layout, labels: np.ndarray, facts: dict) -> None:
    description = {
        **facts,
        "num_samples": len(labels),
        "res": layout.res,
        "classes": list(source.classes),
        "images_per_class": np.bincount(labels, minlength=len(source.classes)).tolist(),
    }
    _write_whole(describe(path), json.dumps(description, indent=1, ensure_ascii=False) + "\n")


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", errors="surrogateescape")
    os.replace(partial, path)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself survive a power loss."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
