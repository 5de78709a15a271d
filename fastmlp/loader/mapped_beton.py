"""A beton mapped into memory: its records without copies, its pages by address, and the windows that pass through."""

import functools
import mmap
import os
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ..beton import layout
from ..device import free_bytes
from ..ffcv_import import Compiler, Field, Reader


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
        return self.file_bytes > free_bytes(torch.device("cpu")) // 2

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
