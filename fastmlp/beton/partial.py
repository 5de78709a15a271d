"""The unfinished file: locked, of its final size from the start, and never under the final name."""

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .journal import Journal, journals, read_journal
from .layout import Layout

WAIT_S = 10.0  # for another shard that is just reserving the room


@contextmanager
def open_partial(
    path: Path,
    layout: Layout,
    identity: dict[str, Any],
    shard: tuple[int, int] | None,
) -> Iterator[tuple[Path, Journal]]:
    """A locked file of the final size beside `path`, and the journal of this writer.

    A writer of everything has the file for itself; writers of shards share it, each with a journal of its own, which is
    locked. If anything fails all stay, so that the same command goes on; without a finished chunk they go.

    Raises OSError where another writer is at it or the disk is too small, ValueError where shards of something else
    are there.
    """
    partial = path.with_name(path.name + ".partial")
    own = path.with_name(f"{path.name}.journal" + ("" if shard is None else f".{shard[0]}-of-{shard[1]}"))
    with partial.open("a+b") as file, own.open("a+b") as own_file:  # NFS wants both directions for both kinds of lock
        fd = file.fileno()
        alone = _lock(fd, path, share=shard is not None)
        if not partial.exists() or not os.path.samestat(partial.stat(), os.fstat(fd)):
            raise OSError(f"another writer has just been at {path}: look whether it is there, else run again")
        _lock(own_file.fileno(), path)
        try:
            if alone and not _goes_on(path, layout, identity, os.fstat(fd).st_size, shard):
                for stale in journals(path):
                    os.truncate(stale, 0)
                file.truncate(0)
                _reserve(fd, path, layout.file_bytes)
            if shard is not None:
                fcntl.flock(fd, fcntl.LOCK_SH)
            with Journal(own, identity) as journal:
                yield partial, journal
        except BaseException:
            if any(read_journal(there, identity)[0] for there in journals(path)):
                print(f"{path.name}: unfinished; the same command goes on from here", file=sys.stderr)
            elif shard is None:
                partial.unlink(missing_ok=True)
                for there in journals(path):
                    there.unlink()
            raise


def _lock(fd: int, path: Path, share: bool = False) -> bool:
    """Whether we have it alone. With `share`, it may also be had with others who share it."""
    deadline = time.monotonic() + (WAIT_S if share else 0)
    while True:
        for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH) if share else (fcntl.LOCK_EX,):
            try:
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
                return kind == fcntl.LOCK_EX
            except BlockingIOError:
                continue
        if time.monotonic() >= deadline:
            raise OSError(f"another writer is at {path} (it holds {path.name}.partial or a journal of it)")
        time.sleep(0.1)


def _goes_on(path: Path, layout: Layout, identity: dict[str, Any], size: int, shard: tuple[int, int] | None) -> bool:
    """Whether what lies there is the beginning of what is to be written."""
    if not layout.allocation_start <= size <= layout.file_bytes:
        return False
    there = [journal for journal in journals(path) if journal.stat().st_size]
    if any(read_journal(journal, identity)[1] for journal in there):
        return True
    if shard is not None and there:
        raise ValueError(f"{path.name}.partial is of other images or other options. Delete {path.name}.partial and "
                         f"{path.name}.journal* to begin anew")  # fmt: skip
    return False


def _reserve(fd: int, path: Path, file_bytes: int) -> None:
    """Takes the whole file's room: a full disk shows here, not after hours."""
    free = shutil.disk_usage(path.parent).free
    if free < file_bytes:
        raise OSError(f"{path.parent} has {free / 1e9:.1f} GB free, {path.name} needs {file_bytes / 1e9:.1f} GB")
    try:
        os.posix_fallocate(fd, 0, file_bytes)
    except OSError as error:
        raise OSError(f"{path.parent} has no room for {path.name} ({file_bytes / 1e9:.1f} GB): {error}") from error
