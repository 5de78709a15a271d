"""Writes raw images of one size into a beton: workers put pixels straight into place, the name appears at the end."""

import fcntl
import itertools
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..datasets import describe
from ..sources.base import Source, fit_square
from .layout import Layout

CHUNK_BYTES = 4 << 20  # of pixels per task


def write_beton(
    path: str | Path,
    source: Source,
    res: int,
    *,
    facts: dict | None = None,  # goes into the description beside the beton
    seed: int | None = 0,  # of the order of samples; None keeps the source's order
    num_workers: int = 1,
) -> Path:
    """Writes every image of `source`, as its centre square at res x res, to `path`; returns `path`.

    The same source, res and seed give the same bytes whatever the number of workers. Until it is whole the
    file is called `path.partial`; an interruption leaves no file under the final name. Class names and
    `facts` go into a JSON file beside it. Raises ValueError naming a bad image, OSError where the disk is too small
    or another writer is at the same file.
    """
    path = Path(path)
    layout = Layout(len(source), res)
    order = np.arange(len(source)) if seed is None else np.random.default_rng(seed).permutation(len(source))
    path.parent.mkdir(parents=True, exist_ok=True)
    with _partial_file(path, layout.file_bytes) as partial:
        labels = np.empty(len(source), np.int64)
        bounds = _chunks(len(source), max(1, CHUNK_BYTES // layout.image_bytes))
        progress = tqdm(total=len(source), desc=path.name, unit=" images", unit_scale=True, mininterval=0.5)
        with progress:
            for (first, last), chunk_labels in _fill(partial, source, layout, order, bounds, num_workers):
                labels[first:last] = chunk_labels
                progress.update(last - first)
        with partial.open("r+b") as file:
            file.write(layout.head() + layout.metadata(labels))
            file.seek(layout.allocation_start)
            file.write(layout.allocation_table())
            file.flush()
            os.fsync(file.fileno())
        _write_description(path, source, layout, labels, facts or {})
        os.replace(partial, path)
    _sync_folder(path.parent)
    return path


@contextmanager
def _partial_file(path: Path, file_bytes: int) -> Iterator[Path]:
    """An empty, locked file of the final size next to the final name; gone again if anything fails."""
    free = shutil.disk_usage(path.parent).free
    if free < file_bytes:
        raise OSError(f"{path.parent} has {free / 1e9:.1f} GB free, {path.name} needs {file_bytes / 1e9:.1f} GB")
    partial = path.with_name(path.name + ".partial")
    with partial.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"another writer is at {path} (it holds {partial.name})") from None
        if not partial.exists() or not os.path.samestat(partial.stat(), os.fstat(file.fileno())):
            raise OSError(f"another writer has just been at {path}: look whether it is there, else run again")
        try:
            file.truncate(0)
            os.posix_fallocate(file.fileno(), 0, file_bytes)  # a full disk shows here, not after hours
            yield partial
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _chunks(count: int, size: int) -> list[tuple[int, int]]:
    return [(first, min(first + size, count)) for first in range(0, count, size)]


def _write_chunk(partial: Path, source: Source, layout: Layout, first: int, chosen: np.ndarray) -> list[int]:
    """Puts source images `chosen` at the places first, first + 1, ...; returns their labels."""
    labels = []
    addresses = layout.addresses(first, first + len(chosen))
    fd = os.open(partial, os.O_WRONLY)
    try:
        for index, address in zip(chosen, addresses, strict=True):
            image, label = source[int(index)]
            written = os.pwrite(fd, fit_square(image, layout.res).tobytes(), int(address))
            if written != layout.image_bytes:
                raise OSError(f"{partial}: only {written} of {layout.image_bytes} bytes could be written; disk full?")
            labels.append(label)
    finally:
        os.close(fd)
    return labels


def _fill(
    partial: Path, source: Source, layout: Layout, order: np.ndarray, bounds: list[tuple[int, int]], num_workers: int
) -> Iterator[tuple[tuple[int, int], list[int]]]:
    """Writes all pixels; yields each chunk's bounds and labels as it is done.

    Each worker hangs on a pipe of its own, so that the death of one is seen at once. (A ProcessPoolExecutor
    can wait for ever then: CPython issues 94777 and 107219, mended in 3.11.6.)
    """
    if num_workers <= 1 or len(bounds) == 1:
        for first, last in bounds:
            yield (first, last), _write_chunk(partial, source, layout, first, order[first:last])
        return
    context = get_context("spawn")  # a fork would copy locks that numba's or torch's threads may hold
    workers: dict[Any, tuple[SpawnProcess, tuple[int, int]]] = {}  # by our end of the pipe: process, chunk at work
    todo = iter(bounds)
    try:
        for first, last in itertools.islice(todo, num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, partial, source, layout), daemon=True)
            process.start()
            theirs.close()  # so that the worker's death ends the pipe
            workers[ours] = process, (first, last)
            ours.send((first, order[first:last]))
        while workers:
            ready: Any = connection.wait(list(workers))
            for pipe in ready:
                process, done = workers[pipe]
                labels = pipe.recv()
                if isinstance(labels, Exception):
                    raise labels
                yield done, labels
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


def _serve(tasks: Any, partial: Path, source: Source, layout: Layout) -> None:
    """A worker: chunks in, labels or an exception out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    while True:
        try:
            first, chosen = tasks.recv()
        except EOFError:
            return
        try:
            answer: Any = _write_chunk(partial, source, layout, first, chosen)
        except Exception as error:  # whatever it is, the parent tells it
            answer = error
        tasks.send(answer)


def _write_description(path: Path, source: Source, layout: Layout, labels: np.ndarray, facts: dict) -> None:
    description = {
        **facts,
        "num_samples": layout.num_samples,
        "res": layout.res,
        "classes": list(source.classes),
        "images_per_class": np.bincount(labels, minlength=len(source.classes)).tolist(),
    }
    target = describe(path)
    partial = target.with_name(target.name + ".partial")
    partial.write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, target)


def _sync_folder(folder: Path) -> None:
    """Makes the rename itself survive a power loss."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
