"""Threads that share the rows of a batch: compiled code without Python's lock, started from Python.

Numba's own threads are no choice for a loader: its TBB layer leaks 7 kB per parallel loop, GNU OpenMP ends a forked
child that enters one, and its workqueue aborts if two loaders run at once.
"""

import os
import queue
import threading
from collections.abc import Callable

import numba.core.compiler_lock

# A fork waits until no thread compiles: while a loader's first batch is loaded, the child would inherit a lock that
# nobody releases.
_compiling = numba.core.compiler_lock.global_compiler_lock
os.register_at_fork(before=_compiling.acquire, after_in_parent=_compiling.release, after_in_child=_compiling.release)


class RowThreads:
    """Up to `count` threads, the calling one included, that work on parts of a batch. Use it as a context manager.

    They start with the first batch that is large enough, and belong to the process that made them.
    """

    def __init__(self, count: int):
        self._count = count
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._others: list[threading.Thread] = []

    def run(
        self,
        work: Callable[[int, int], object],  # of the rows from the first number to before the second
        rows: int,
        min_rows: int,  # of a part: to hand one out costs about 20 us
    ) -> None:
        """Return after `work` has been called for all rows, in parts. Raises what a call has raised."""
        parts = min(self._count, rows // max(1, min_rows))  # four for each thread: 3 to 20 % slower
        if parts < 2:
            work(0, rows)
            return
        if not self._others:
            self._start()
        job = _Job(work, [(rows * i // parts, rows * (i + 1) // parts) for i in range(parts)])
        for _thread in self._others[: parts - 1]:
            self._jobs.put(job)
        job.help()
        job.finish()

    def _start(self) -> None:
        for _ in range(self._count - 1):
            thread = threading.Thread(target=_help, args=(self._jobs,), name="fastmlp-rows", daemon=True)
            thread.start()
            self._others.append(thread)

    def __enter__(self) -> "RowThreads":
        return self

    def __exit__(self, *_: object) -> None:
        for _thread in self._others:
            self._jobs.put(None)
        for thread in self._others:
            thread.join()


class _Job:
    """The parts of one call of `run`; threads take the next one until there is none."""

    def __init__(self, work: Callable[[int, int], object], parts: list[tuple[int, int]]):
        self._work: Callable[[int, int], object] | None = work
        self._count, self._parts = len(parts), iter(parts)
        self._ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def help(self) -> None:
        """Work on parts until all are taken."""
        for first, last in self._parts:  # one thread after the other advances it, by Python's lock
            self._ended.put(self._do(first, last))

    def _do(self, first: int, last: int) -> BaseException | None:
        assert self._work is not None
        try:
            self._work(first, last)
        except BaseException as error:  # of any kind: `finish` raises it
            return error
        return None

    def finish(self) -> None:
        """Wait until all parts are done, and raise the first error."""
        errors = [self._ended.get() for _ in range(self._count)]
        self._work = None  # a thread that comes late must not look as if a caller held the batch
        for error in errors:
            if error is not None:
                raise error


def _help(jobs: "queue.SimpleQueue[_Job | None]") -> None:
    """Help with one job after the other, until there is None: a thread's work."""
    while (job := jobs.get()) is not None:
        job.help()
        del job
