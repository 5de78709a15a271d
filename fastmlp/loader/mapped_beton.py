"""A beton mapped into memory: its records without copies, its pages by address, and the windows that pass through."""

import functools
import mmap
import os
import threading
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import psutil
from ffcv.fields.base import Field
from ffcv.pipeline.compiler import Compiler
from ffcv.reader import Reader

from ..beton import layout

READ_BYTES = 8 << 20  # of one read of the read-ahead


class MappedBeton(Reader):
    """ffcv.reader.Reader whose metadata and allocation table are views of the mapping: nothing is copied or built.

    It also is the memory manager: `state` is what FFCV's decoders receive as storage_state, `compile_reader` gives
    what they call with an address. Pages of the mapping are shared with the page cache; a file cut short under it is
    noticed by `check_size`, before each batch. A cut in the middle of a batch raises SIGBUS, as with every mapping.
    """

    def __init__(self, fname: str | os.PathLike[str], custom_fields: Mapping[str, type[Field]] | None = None):
        layout.check(fname)
        self._fd = os.open(fname, os.O_RDONLY)
        self.file_bytes = os.fstat(self._fd).st_size
        self.mapping = mmap.mmap(self._fd, 0, prot=mmap.PROT_READ)
        self.bytes = np.frombuffer(self.mapping, np.uint8)
        self.in_ram = False
        super().__init__(str(fname), custom_fields or {})
        ends = self.metadata[:1000].tobytes() + self.metadata[-1000:].tobytes()
        head = self.header.tobytes() + self.field_descriptors.tobytes() + str(self.file_bytes).encode()
        # Tells betons apart without reading them whole: size, header, fields, first and last records.
        self.fingerprint = zlib.crc32(ends, zlib.crc32(head))

    def read_metadata(self) -> None:
        start = layout.HEADER.itemsize + self.field_descriptors.nbytes
        self.records_end = start + int(self.num_samples) * self.metadata_type.itemsize
        if self.records_end > int(self.header["alloc_table_ptr"]):
            raise ValueError(f"{self.file_name} is corrupt: its {self.num_samples} records reach into other parts")
        self.metadata = self._view(self.metadata_type, start, int(self.num_samples))

    def read_allocation_table(self) -> None:
        start = int(self.header["alloc_table_ptr"])
        self.alloc_table = self._view(layout.ALLOCATION, start, (self.file_bytes - start) // layout.ALLOCATION.itemsize)

    def _view(self, dtype: np.dtype, start: int, count: int) -> np.ndarray:
        return np.frombuffer(self.mapping, dtype, count, start)

    @functools.cached_property
    def state(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(bytes of the file, addresses of all allocations in order, their sizes), as ffcv's OSCacheContext has it."""
        addresses, sizes = self.alloc_table["ptr"], self.alloc_table["size"]
        if (addresses[1:] < addresses[:-1]).any():
            order = np.argsort(addresses)
            addresses, sizes = addresses[order], sizes[order]
        return self.bytes, np.ascontiguousarray(addresses), np.ascontiguousarray(sizes)

    def compile_reader(self) -> Callable[..., Any]:
        """The function that decoders call: (address, storage_state) -> bytes. Compiled when first called."""

        def read(address, mem_state):
            size = mem_state[2][np.searchsorted(mem_state[1], address)]
            return mem_state[0][address : address + size]

        return Compiler.compile(read)

    @functools.cached_property
    def pages(self) -> np.ndarray:
        """(num_samples,) the page of the file that each sample's data lies in, 0 where it has none."""
        pages = np.zeros(int(self.num_samples), np.uint32)
        pages[self.alloc_table["sample_id"]] = self.alloc_table["ptr"] // int(self.page_size)
        return pages

    @functools.cached_property
    def page_to_samples(self) -> dict[int, set[int]]:
        """What FFCV's QuasiRandom is built on; Python sets of every sample, as there."""
        by_page = np.argsort(self.pages, kind="stable")
        numbers, firsts = np.unique(self.pages[by_page], return_index=True)
        return {int(n): set(s.tolist()) for n, s in zip(numbers, np.split(by_page, firsts[1:]), strict=True)}

    def check_size(self) -> None:
        """Raises OSError where the file has been cut short since it was opened."""
        size = os.fstat(self._fd).st_size
        if size < self.file_bytes:
            raise OSError(f"{self.file_name} was cut short while open: {size} bytes are left of {self.file_bytes}")

    def load(self) -> None:
        """Copies the whole file to memory of its own, from which decoders read then."""
        self.bytes, self.in_ram = self.bytes.copy(), True

    @functools.cached_property
    def exceeds_memory(self) -> bool:
        """Whether the page cache can hardly keep the file; one that it can is better read ahead and left there."""
        return self.file_bytes > psutil.virtual_memory().available // 2

    def expect_random_reads(self) -> None:
        """Keeps the kernel from reading ahead (8 MiB around every page here)."""
        self.mapping.madvise(mmap.MADV_RANDOM)

    def fetch(self, start: int, count: int) -> None:
        """Reads a range of the file into the page cache."""
        os.preadv(self._fd, [bytearray(count)], start)

    def release(self, start: int, count: int) -> None:
        """Drops whole pages of a range from this process, and from a page cache that cannot keep the file."""
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, (start + count) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            self.mapping.madvise(mmap.MADV_DONTNEED, first, last - first)
            if self.exceeds_memory:
                os.posix_fadvise(self._fd, first, last - first, os.POSIX_FADV_DONTNEED)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)  # the mapping lives as long as an array on it does


class Windows:
    """Reads the file's pages window by window ahead of the batches, and drops them behind.

    At most two windows are in memory: the one that batches come from and the one being read.
    """

    def __init__(
        self,
        beton: MappedBeton,
        pages: list[np.ndarray],  # page numbers of each window
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
        """Adjacent pages joined, as (first byte, last byte)."""
        pages, page_bytes = np.sort(pages), int(self._beton.page_size)
        end = int(self._beton.header["alloc_table_ptr"])
        runs = np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1)
        return [(int(run[0]) * page_bytes, min((int(run[-1]) + 1) * page_bytes, end)) for run in runs]

    def _read_ahead(self) -> None:
        try:
            for window in range(self._current, len(self._ranges)):
                with self._changed:
                    while not self._closed and window > self._current + 1:
                        self._changed.wait()
                    passed = window < self._current  # a batch that spans several windows has gone by
                for first, last in () if passed else self._ranges[window]:
                    for offset in range(first, last, READ_BYTES):
                        if self._closed:
                            return
                        self._beton.fetch(offset, min(READ_BYTES, last - offset))
                with self._changed:
                    self._ready = window + 1
                    self._changed.notify_all()
        except BaseException as error:  # whatever it is, `enter` raises it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def enter(self, batch: int) -> None:
        """Drops the windows that lie behind a batch and waits for those it needs.

        A batch that spans more than two windows goes on without the others: the kernel reads them page by page.
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
        """Ends the thread and drops what is in memory."""
        with self._changed:  # an RLock: the garbage collector may come by while this thread has it
            self._closed = True
            self._changed.notify_all()
        for window in range(self._current, min(self._ready + 1, len(self._ranges))):
            for start, end in self._ranges[window]:
                self._beton.release(start, end - start)
