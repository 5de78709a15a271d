"""The unfinished file of a beton: locked, of the final size from the start, and never under the final name."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..atomic import no_links
from ..messages import logger
from .journal import Journal, is_journal_of, journals, other_identity, read_journal, stored_identity
from .layout import Layout

WAIT_S = 600.0  # for another shard that is reserving disk space, which is slow if posix_fallocate is emulated


@contextmanager
def open_partial(
    path: Path,
    layout: Layout,
    identity: dict[str, Any],
    shard: tuple[int, int] | None,
    finish: bool,
) -> Iterator[tuple[Path, Journal]]:
    """Yield a locked file of the final size beside `path`, and the journal of this writer.

    A writer of the whole beton locks the file for itself; writers of shards share it, each with its own locked journal.
    After a failure the files are kept, so that the same command resumes; without a finished chunk they are deleted.

    Raises OSError if another writer has the file or the disk is too small, ValueError if there are shards of something
    else, or nothing to finish.
    """
    partial = path.with_name(path.name + ".partial")
    own = path.with_name(f"{path.name}.journal" + ("" if shard is None else f".{shard[0]}-of-{shard[1]}"))
    # NFS wants both directions for both kinds of lock.
    with open(partial, "a+b", opener=no_links) as file, open(own, "a+b", opener=no_links) as own_file:
        fd = file.fileno()
        exclusive = _lock(fd, path, share=shard is not None)
        _check_not_replaced(partial, fd, path)
        _lock(own_file.fileno(), path)
        starts_over = False
        try:
            if not _can_resume(path, layout, identity, os.fstat(fd).st_size):
                _check_may_start_over(path, identity, exclusive, shard, finish)
                starts_over = True  # only now: _clean_up must not delete shards that the check protects
                for stale in journals(path):
                    os.close(no_links(stale, os.O_WRONLY | os.O_TRUNC))
                file.truncate(0)
                _reserve(fd, path, layout.file_bytes)
            with Journal(own, identity) as journal:  # before the lock is shared: other shards look for it
                if shard is not None:
                    fcntl.flock(fd, fcntl.LOCK_SH)  # releases the exclusive lock for a moment
                    _check_not_replaced(partial, fd, path)
                yield partial, journal
        except BaseException:
            _clean_up(path, partial, own, identity, delete_empty=starts_over and shard is None)
            raise


def _clean_up(path: Path, partial: Path, own: Path, identity: dict[str, Any], delete_empty: bool) -> None:
    """Keep what the same command can resume; otherwise delete the files, or only the empty ones."""
    if any(read_journal(journal, identity) for journal in journals(path)):
        logger.warning(f"{path.name}: unfinished; run the same command again to resume")
    elif delete_empty:
        for file in (partial, *journals(path)):
            file.unlink(missing_ok=True)
    if own.exists() and not own.stat().st_size:
        own.unlink()
    if partial.exists() and not partial.stat().st_size and not journals(path):
        partial.unlink()


def _check_not_replaced(partial: Path, fd: int, path: Path) -> None:
    """Raise OSError if another writer finished or deleted the file while this one waited for the lock."""
    if not partial.exists() or not os.path.samestat(partial.stat(), os.fstat(fd)):
        raise OSError(f"another writer has just had {path}: check whether it is finished, else run the command again")


def _lock(fd: int, path: Path, share: bool = False) -> bool:
    """Lock the file; return whether exclusively. With `share`, a lock shared with other shards is enough."""
    started, notified = time.monotonic(), False
    while True:
        for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH) if share else (fcntl.LOCK_EX,):
            try:
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
                return kind == fcntl.LOCK_EX
            except BlockingIOError:
                continue
        waited = time.monotonic() - started
        if not share or waited >= WAIT_S:
            raise OSError(
                f"another writer is writing {path} (it has locked {path.name}.partial or one of its journals)"
            )
        if waited > 2 and not notified:
            logger.warning(f"{path.name}: waiting for another writer that is reserving disk space")
            notified = True
        time.sleep(0.1)


def _nonempty(files: list[Path]) -> list[Path]:
    return [file for file in files if file.stat().st_size]


def _others(path: Path, identity: dict[str, Any]) -> list[Path]:
    """Return the journals of other images or other options."""
    return [journal for journal in _nonempty(journals(path)) if not is_journal_of(journal, identity)]


def _can_resume(path: Path, layout: Layout, identity: dict[str, Any], size: int) -> bool:
    """Return whether the files, the partial one of `size` bytes, are the start of what is to be written."""
    right_size = layout.allocation_start <= size <= layout.file_bytes
    return bool(_nonempty(journals(path))) and not _others(path, identity) and right_size


def _check_may_start_over(
    path: Path,
    identity: dict[str, Any],
    exclusive: bool,
    shard: tuple[int, int] | None,
    finish: bool,
) -> None:
    """Raise ValueError if starting over would destroy shards; a single writer's own remains may be discarded."""
    if finish and not _nonempty(journals(path)):
        raise ValueError(f"{path}: there is nothing to finish: write every shard first (--shard 0/N to N-1/N)")
    others = _others(path, identity)
    differ = other_identity(stored_identity(others[0]), identity) if others else ""
    if others and (finish or shard is not None or any(journal.suffix != ".journal" for journal in others)):
        raise ValueError(
            f"{path.name}.partial is of other images or other options ({differ}). Use the same ones, or delete "
            f"{path.name}.partial and {path.name}.journal* to start over"
        )
    if finish or not exclusive:
        raise ValueError(
            f"{path.name}.partial does not have the size that these images need: do all machines see the same images?"
        )
    if others:
        logger.warning(
            f"{path.name}: starting over; an interrupted run with other images or options ({differ}) is discarded"
        )


def _reserve(fd: int, path: Path, file_bytes: int) -> None:
    """Reserve disk space for the whole file, so that a full disk is an error now, not after hours."""
    free = shutil.disk_usage(path.parent).free
    if free < file_bytes:
        raise OSError(f"{path.parent} has {free / 1e9:.1f} GB free, {path.name} needs {file_bytes / 1e9:.1f} GB")
    try:
        os.posix_fallocate(fd, 0, file_bytes)
    except OSError as error:
        raise OSError(f"{path.parent} has no space for {path.name} ({file_bytes / 1e9:.1f} GB): {error}") from error
