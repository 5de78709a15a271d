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

from .journal import Journal, is_journal_of, journals, read_journal
from .layout import Layout

WAIT_S = 600.0  # for another shard that is just reserving the room, which takes long where writing is emulated


@contextmanager
def open_partial(
    path: Path,
    layout: Layout,
    identity: dict[str, Any],
    shard: tuple[int, int] | None,
    finish: bool,
) -> Iterator[tuple[Path, Journal]]:
    """A locked file of the final size beside `path`, and the journal of this writer.

    A writer of everything has the file for itself; writers of shards share it, each with a journal of its own, which is
    locked. If anything fails all stay, so that the same command goes on; without a finished chunk they go.

    Raises OSError where another writer is at it or the disk is too small, ValueError where shards of something else
    are there, or nothing to finish.
    """
    partial = path.with_name(path.name + ".partial")
    own = path.with_name(f"{path.name}.journal" + ("" if shard is None else f".{shard[0]}-of-{shard[1]}"))
    with partial.open("a+b") as file, own.open("a+b") as own_file:  # NFS wants both directions for both kinds of lock
        fd = file.fileno()
        alone = _lock(fd, path, share=shard is not None)
        _check_place(partial, fd, path)
        _lock(own_file.fileno(), path)
        begins = False
        try:
            begins = _begins_anew(path, layout, identity, os.fstat(fd).st_size, alone, shard, finish)
            if begins:
                for stale in journals(path):
                    os.truncate(stale, 0)
                file.truncate(0)
                _reserve(fd, path, layout.file_bytes)
            with Journal(own, identity) as journal:  # before others come in, who look for it
                if shard is not None:
                    fcntl.flock(fd, fcntl.LOCK_SH)  # lets go of it for a moment
                    _check_place(partial, fd, path)
                yield partial, journal
        except BaseException:
            if any(read_journal(there, identity)[0] for there in journals(path)):
                print(f"{path.name}: unfinished; the same command goes on from here", file=sys.stderr)
            elif begins and shard is None:
                for there in (partial, *journals(path)):
                    there.unlink(missing_ok=True)
            if own.exists() and not own.stat().st_size:
                own.unlink()
            if partial.exists() and not partial.stat().st_size and not journals(path):
                partial.unlink()
            raise


def _check_place(partial: Path, fd: int, path: Path) -> None:
    if not partial.exists() or not os.path.samestat(partial.stat(), os.fstat(fd)):
        raise OSError(f"another writer has just been at {path}: look whether it is there, else run again")


def _lock(fd: int, path: Path, share: bool = False) -> bool:
    """Whether we have it alone. With `share`, it may also be had with others who share it."""
    began, told = time.monotonic(), False
    while True:
        for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH) if share else (fcntl.LOCK_EX,):
            try:
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
                return kind == fcntl.LOCK_EX
            except BlockingIOError:
                continue
        waited = time.monotonic() - began
        if not share or waited >= WAIT_S:
            raise OSError(f"another writer is at {path} (it holds {path.name}.partial or a journal of it)")
        if waited > 2 and not told:
            print(f"{path.name}: waits for another writer that reserves its room", file=sys.stderr)
            told = True
        time.sleep(0.1)


def _begins_anew(
    path: Path,
    layout: Layout,
    identity: dict[str, Any],
    size: int,
    alone: bool,
    shard: tuple[int, int] | None,
    finish: bool,
) -> bool:
    """Whether nothing that lies there is the beginning of what is to be written. Shards of anything else stay."""
    there = [journal for journal in journals(path) if journal.stat().st_size]
    others = [journal for journal in there if not is_journal_of(journal, identity)]
    if there and not others and layout.allocation_start <= size <= layout.file_bytes:
        return False
    if finish and not there:
        raise ValueError(f"{path}: there is nothing to finish: write every shard first (--shard 0/N to N-1/N)")
    if others and (finish or shard is not None or any(journal.suffix != ".journal" for journal in others)):
        raise ValueError(
            f"{path.name}.partial is of other images or other options. Give the same ones, or delete "
            f"{path.name}.partial and {path.name}.journal* to begin anew"
        )
    if finish or not alone:
        raise ValueError(
            f"{path.name}.partial has not the size that these images need: do all the machines see the same ones?"
        )
    if others:
        print(
            f"{path.name}: begins anew, what an interrupted run of other images or other options left is dropped",
            file=sys.stderr,
        )
    return True


def _reserve(fd: int, path: Path, file_bytes: int) -> None:
    """Takes the whole file's room: a full disk shows here, not after hours."""
    free = shutil.disk_usage(path.parent).free
    if free < file_bytes:
        raise OSError(f"{path.parent} has {free / 1e9:.1f} GB free, {path.name} needs {file_bytes / 1e9:.1f} GB")
    try:
        os.posix_fallocate(fd, 0, file_bytes)
    except OSError as error:
        raise OSError(f"{path.parent} has no room for {path.name} ({file_bytes / 1e9:.1f} GB): {error}") from error
