"""A beton mapped into memory: its records without copies, its pages by address, and advice to the page cache."""

import functools
import mmap
import os
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..beton import layout
from ..beton.records import BLOBS, check_records, read_fields
from ..device import free_bytes
from ..transforms.ffcv_import import Compiler, Field, Reader


class MappedBeton(Reader):
    """An ffcv.reader.Reader whose metadata and allocation table are views of the mapping: nothing is copied or built.

    It is the memory manager too: FFCV's decoders receive `state` as storage_state and call the function of
    `compile_reader` with an address. Pages of the mapping are shared with the page cache. `check_size`, called before
    each batch, notices a file that was cut short. A cut in the middle of a batch raises SIGBUS, as with every mapping.
    """

    def __init__(self, fname: str | os.PathLike[str], custom_fields: Mapping[str, type[Field]] | None = None):
        layout.check(fname)
        self._fd = os.open(fname, os.O_RDONLY)
        self.file_bytes = os.fstat(self._fd).st_size
        self.mapping = mmap.mmap(self._fd, 0, prot=mmap.PROT_READ)
        self.bytes = np.frombuffer(self.mapping, np.uint8)
        self.in_ram = False
        self.fields = [
            replace(field, type_id=layout.CUSTOM_FIELD) if field.name in (custom_fields or {}) else field
            for field in read_fields(fname)
        ]
        if unknown := sorted(set(custom_fields or {}) - {field.name for field in self.fields}):
            names = ", ".join(field.name for field in self.fields)
            warnings.warn(f"custom_fields: {fname} has no field {', '.join(unknown)}, but {names}", stacklevel=3)
        super().__init__(str(fname), custom_fields or {})
        ends = self.metadata[:1000].tobytes() + self.metadata[-1000:].tobytes()
        head = self.header.tobytes() + self.field_descriptors.tobytes() + str(self.file_bytes).encode()
        # Distinguishes betons without reading them whole: by size, header, fields, first and last records.
        self.fingerprint = zlib.crc32(ends, zlib.crc32(head))
        self._move_empty()

    def read_field_descriptors(self) -> None:
        """Make the fields' handlers (Reader calls this)."""
        try:
            super().read_field_descriptors()
        except Exception as error:  # a custom field may raise anything
            raise ValueError(f"{self.file_name}: its fields {[f.name for f in self.fields]}: {error}") from error

    def read_metadata(self) -> None:
        """Map the samples' records (Reader calls this)."""
        start = layout.HEADER.itemsize + self.field_descriptors.nbytes
        self.records_end = start + int(self.num_samples) * self.metadata_type.itemsize
        if self.records_end > int(self.header["alloc_table_ptr"]):
            raise ValueError(
                f"{self.file_name} is corrupt: its {self.num_samples} records reach into other parts of the file"
            )
        self.metadata = self._view(self.metadata_type, start, int(self.num_samples))

    def read_allocation_table(self) -> None:
        """Map the allocation table (Reader calls this)."""
        start = int(self.header["alloc_table_ptr"])
        self.alloc_table = self._view(layout.ALLOCATION, start, (self.file_bytes - start) // layout.ALLOCATION.itemsize)
        check_records(self.file_name, self.fields, self.metadata, self.alloc_table, self.bytes)

    def _move_empty(self) -> None:
        """Let the empty strings of bytes and JSON fields point to the end of the file.

        FFCV stores them at the address of what follows, and its decoders would copy that, however long.
        """
        for number, field in enumerate(self.fields):
            if field.type_id in BLOBS and not (sizes := self.metadata[f"f{number}"]["size"]).all():
                self.metadata = self.metadata.copy()
                self.metadata[f"f{number}"]["ptr"][sizes == 0] = self.file_bytes

    def _view(self, dtype: np.dtype, start: int, count: int) -> np.ndarray:
        return np.frombuffer(self.mapping, dtype, count, start)

    @functools.cached_property
    def state(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The file's bytes, the addresses of all allocations in order and their sizes, as in FFCV's OSCacheContext."""
        table = self.alloc_table[self.alloc_table["size"] > 0]
        addresses, sizes = table["ptr"], table["size"]
        if (addresses[1:] < addresses[:-1]).any():
            order = np.argsort(addresses)
            addresses, sizes = addresses[order], sizes[order]
        end = np.uint64(self.file_bytes)  # where empty ones point
        return self.bytes, np.append(addresses, end), np.append(sizes, np.uint64(0))

    def compile_reader(self) -> Callable[..., Any]:
        """Return the function that decoders call: (address, storage_state) -> bytes. Its first call compiles it."""

        def read(address, mem_state):
            size = mem_state[2][np.searchsorted(mem_state[1], address)]
            return mem_state[0][address : address + size]

        return Compiler.compile(read)

    @functools.cached_property
    def pages(self) -> np.ndarray:
        """(num_samples,) uint32: the page of the file that each sample's data is stored in, 0 if it has none."""
        pages = np.zeros(int(self.num_samples), np.uint32)
        pages[self.alloc_table["sample_id"]] = self.alloc_table["ptr"] // int(self.page_size)
        return pages

    @functools.cached_property
    def page_to_samples(self) -> dict[int, set[int]]:
        """The samples of each page, which FFCV's QuasiRandom needs as Python sets."""
        by_page = np.argsort(self.pages, kind="stable")
        numbers, firsts = np.unique(self.pages[by_page], return_index=True)
        return {int(n): set(s.tolist()) for n, s in zip(numbers, np.split(by_page, firsts[1:]), strict=True)}

    def check_size(self) -> None:
        """Raise OSError if the file has been cut short since it was opened."""
        size = os.fstat(self._fd).st_size
        if size < self.file_bytes:
            raise OSError(f"{self.file_name} was cut short while open: it has {size} bytes, it had {self.file_bytes}")

    def load(self) -> None:
        """Copy the whole file to memory; decoders read from that copy afterwards."""
        self.bytes, self.in_ram = self.bytes.copy(), True

    @functools.cached_property
    def exceeds_memory(self) -> bool:
        """Whether the file is too large for the page cache. A smaller one is best read ahead and left in it."""
        return self.file_bytes > free_bytes(torch.device("cpu")) // 2

    def expect_random_reads(self) -> None:
        """Stop the kernel from reading ahead (it read 8 MiB around every page)."""
        self.mapping.madvise(mmap.MADV_RANDOM)

    def fetch(self, start: int, count: int) -> None:
        """Read a range of the file into the page cache."""
        os.preadv(self._fd, [bytearray(count)], start)

    def release(self, start: int, count: int) -> None:
        """Drop a range's whole pages from this process, and from the page cache if it cannot keep the file."""
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, (start + count) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            self.mapping.madvise(mmap.MADV_DONTNEED, first, last - first)
            if self.exceeds_memory:
                os.posix_fadvise(self._fd, first, last - first, os.POSIX_FADV_DONTNEED)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)  # the mapping stays as long as an array uses it
