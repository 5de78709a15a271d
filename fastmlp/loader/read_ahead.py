"""Read-ahead of a beton, window by window, which drops the windows that batches have passed."""

import threading

import numpy as np

from .mapped_beton import MappedBeton

READ_BYTES = 8 << 20  # of one read


class Windows:
    """A thread that reads the file's pages window by window ahead of the batches, and drops those that are passed.

    At most two windows are in memory: the one that batches come from and the one being read.
    """

    def __init__(
        self,
        beton: MappedBeton,
        pages: list[np.ndarray],  # each window's page numbers
        spans: list[tuple[int, int]],  # first and last window of each batch
    ):
        self._beton, self._spans = beton, spans
        self._ranges = [self._runs(members) for members in pages]
        self._ready = 0  # windows read so far
        self._current = spans[0][0] if spans else 0  # window that batches come from
        self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self.thread = threading.Thread(target=self._read_ahead, name="fastmlp-read-ahead", daemon=True)
        self.thread.start()

    def _runs(self, pages: np.ndarray) -> list[tuple[int, int]]:
        """Return the ranges (first byte, end) that the pages cover, with adjacent pages joined."""
        pages, page_bytes = np.sort(pages), int(self._beton.page_size)
        end = int(self._beton.header["alloc_table_ptr"])
        runs = np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1)
        return [(int(run[0]) * page_bytes, min((int(run[-1]) + 1) * page_bytes, end)) for run in runs]

    def _read_ahead(self) -> None:
        """Read each window as soon as batches come from the one before it: the thread's work."""
        try:
            for window in range(self._current, len(self._ranges)):
                with self._changed:
                    while not self._closed and window > self._current + 1:
                        self._changed.wait()
                    passed = window < self._current  # by a batch that spans several windows
                for first, last in () if passed else self._ranges[window]:
                    for offset in range(first, last, READ_BYTES):
                        if self._closed:
                            return
                        self._beton.fetch(offset, min(READ_BYTES, last - offset))
                with self._changed:
                    self._ready = window + 1
                    self._changed.notify_all()
        except BaseException as error:  # of any kind: `enter` raises it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def enter(self, batch: int) -> None:
        """Drop the windows before a batch and wait for those that it needs.

        A batch that spans more than two windows does not wait for the others: the kernel reads them page by page.
        """
        first, last = self._spans[batch]
        for window in range(self._current, first):
            for start, end in self._ranges[window]:
                self._beton.release(start, end - start)
        with self._changed:
            self._current = first
            self._changed.notify_all()
            self._changed.wait_for(
                lambda: self._closed or self._error is not None or self._ready > min(last, first + 1)
            )
            if self._error is not None:
                raise self._error

    def stop(self) -> None:
        """End the thread and drop the windows in memory."""
        with self._changed:  # an RLock: the garbage collector may call this while the thread holds it
            self._closed = True
            self._changed.notify_all()
        for window in range(self._current, min(self._ready + 1, len(self._ranges))):
            for start, end in self._ranges[window]:
                self._beton.release(start, end - start)
