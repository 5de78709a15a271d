"""Byte layout of a beton file.

A beton (FFCV 1.0.2, `ffcv/types.py`, format version 2) is: header, one descriptor per field, one metadata
record per sample, then pages of data from the next page boundary, then the allocation table (sample, address, size).
Raw images in slots of one size have closed-form addresses, so they can be written in any order.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VERSION = 2
PAGE_BYTES = 8 << 20  # the default of FFCV's writer; no image crosses a page, as FFCV's ProcessCacheManager needs

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ],
    align=True,
)
DESCRIPTOR = np.dtype([("type_id", "<u1"), ("name", ("<u1", 16)), ("arguments", ("<u1", (1024,)))], align=True)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
FLOAT_FIELD, INT_FIELD, RGB_IMAGE_FIELD, BYTES_FIELD, ARRAY_FIELD, JSON_FIELD, TENSOR_FIELD = range(7)  # type ids
CUSTOM_FIELD = 255
JPEG_MODE, RAW_MODE = 0, 1  # of an image
# One sample of our betons: an image, an integer and, if it may have several labels, the address of an array. The
# image's record is packed, so it needs its own dtype: align=True would also align a nested list of fields.
IMAGE = np.dtype([("mode", "<u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
METADATA = np.dtype([("f0", IMAGE), ("f1", "<i8")], align=True)
MULTI_METADATA = np.dtype([("f0", IMAGE), ("f1", "<i8"), ("f2", "<u8")], align=True)
ARRAY_ARGUMENTS = np.dtype([("shape", "<u8", 32), ("type_length", "<u8")])  # then the type, as JSON


@dataclass(frozen=True)
class Layout:
    """The layout of `num_samples` raw images (field "image") with a label (field "label").

    Each has a slot of res x res x 3 bytes, which a smaller image does not fill. `multi_labels` is the number of int64
    that follow in the slot: all labels that are right for the image (field "multi_label", -1 after the last).
    """

    num_samples: int
    res: int
    multi_labels: int = 0
    page_bytes: int = PAGE_BYTES

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError("there are no images to write")
        if not 1 <= self.res <= 65535 or self.slot_bytes > self.page_bytes:
            largest = int((self.page_bytes / 3) ** 0.5)
            raise ValueError(f"images of {self.res} x {self.res} px do not fit a page: --res can be 1 to {largest}")

    @property
    def image_bytes(self) -> int:
        """Bytes of the largest image."""
        return 3 * self.res * self.res

    @property
    def slot_bytes(self) -> int:
        return self.image_bytes + 8 * self.multi_labels

    @property
    def slots_per_page(self) -> int:
        return self.page_bytes // self.slot_bytes

    @property
    def record(self) -> np.dtype:
        return MULTI_METADATA if self.multi_labels else METADATA

    @property
    def num_fields(self) -> int:
        return 3 if self.multi_labels else 2

    @property
    def metadata_start(self) -> int:
        return HEADER.itemsize + self.num_fields * DESCRIPTOR.itemsize

    @property
    def data_start(self) -> int:
        """The first page boundary after the metadata, as in ffcv.utils.align_to_page."""
        end = self.metadata_start + self.num_samples * self.record.itemsize
        return -(-end // self.page_bytes) * self.page_bytes

    def addresses(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Return the byte offsets of images first..last-1 in the file, (last - first,) uint64."""
        page, place = np.divmod(
            np.arange(first, self.num_samples if last is None else last, dtype=np.uint64),
            np.uint64(self.slots_per_page),
        )
        return np.uint64(self.data_start) + page * np.uint64(self.page_bytes) + place * np.uint64(self.slot_bytes)

    def runs(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yield the byte offset and the number of the slots first..last-1 that lie together, page by page."""
        while first < last:
            count = min(last - first, self.slots_per_page - first % self.slots_per_page)
            yield int(self.addresses(first, first + 1)[0]), count
            first += count

    @property
    def allocation_start(self) -> int:
        return self.data_start + -(-self.num_samples // self.slots_per_page) * self.page_bytes

    @property
    def file_bytes(self) -> int:
        return self.allocation_start + self.num_samples * (self.num_fields - 1) * ALLOCATION.itemsize

    def head(self, num_written: int) -> bytes:
        """Return the header and the field descriptors."""
        header = np.zeros((), HEADER)
        header["version"], header["num_fields"], header["page_size"] = VERSION, self.num_fields, self.page_bytes
        header["num_samples"], header["alloc_table_ptr"] = num_written, self.allocation_start
        descriptors = np.zeros(self.num_fields, DESCRIPTOR)
        fields = ((RGB_IMAGE_FIELD, b"image"), (INT_FIELD, b"label"), (ARRAY_FIELD, b"multi_label"))
        for descriptor, (type_id, name) in zip(descriptors, fields, strict=False):
            descriptor["type_id"] = type_id
            descriptor["name"][: len(name)] = np.frombuffer(name, np.uint8)
        if self.multi_labels:
            arguments, kind = np.zeros((), ARRAY_ARGUMENTS), json.dumps(np.dtype("<i8").descr).encode()
            arguments["shape"][0], arguments["type_length"] = self.multi_labels, len(kind)
            packed = np.frombuffer(arguments.tobytes() + kind, np.uint8)
            descriptors[2]["arguments"][: len(packed)] = packed
        return header.tobytes() + descriptors.tobytes()

    def metadata(
        self,
        labels: np.ndarray,  # (M,) int
        sizes: np.ndarray,  # (M, 2) height and width
        written: np.ndarray,  # (M,) the slots that are filled; the others stay empty
    ) -> bytes:
        records = np.zeros(len(written), self.record)
        records["f0"]["mode"] = RAW_MODE
        records["f0"]["height"], records["f0"]["width"] = sizes.T
        records["f0"]["data_ptr"] = addresses = self.addresses()[written]
        records["f1"] = labels
        if self.multi_labels:
            records["f2"] = addresses + np.uint64(self.image_bytes)
        return records.tobytes()

    def allocation_table(
        self,
        sizes: np.ndarray,  # (M, 2)
        written: np.ndarray,  # (M,)
    ) -> bytes:
        table = np.zeros((len(written), self.num_fields - 1), ALLOCATION)
        table["sample_id"] = np.arange(len(written))[:, None]
        table["ptr"][:, 0] = addresses = self.addresses()[written]
        table["size"][:, 0] = 3 * sizes.prod(1)
        if self.multi_labels:
            table["ptr"][:, 1], table["size"][:, 1] = addresses + np.uint64(self.image_bytes), 8 * self.multi_labels
        return table.tobytes()


def check(
    path: str | os.PathLike[str],
    writer: str = "",  # the command that makes this beton, empty if it is not known
) -> None:
    """Raise FileNotFoundError or ValueError if `path` is missing, no beton, of another version or truncated."""
    path = Path(path)
    advice = f"Write it with: {writer}" if writer else "Write it with a script of writers/ or FFCV's DatasetWriter"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. {advice}")
    size = path.stat().st_size
    raw = np.fromfile(path, np.uint8, HEADER.itemsize).tobytes()
    if len(raw) < HEADER.itemsize:
        raise ValueError(f"{path} is not a beton: {size} bytes are fewer than a header has. {advice}")
    header = np.frombuffer(raw, HEADER)[0]
    version, fields, page = int(header["version"]), int(header["num_fields"]), int(header["page_size"])
    samples, table = int(header["num_samples"]), int(header["alloc_table_ptr"])
    if page < 1 << 21 or page & (page - 1) or not 1 <= fields <= 256:
        raise ValueError(f"{path} is not a beton: page size {page} and {fields} fields are not possible. {advice}")
    if version != VERSION:
        raise ValueError(f"{path} is a beton of format version {version}, expected {VERSION}. {advice}")
    head_bytes = HEADER.itemsize + fields * DESCRIPTOR.itemsize
    if samples == 0 or table < head_bytes:
        raise ValueError(f"{path} is an unfinished beton: {samples} samples, allocation table at {table}. {advice}")
    types = np.fromfile(path, DESCRIPTOR, fields, offset=HEADER.itemsize)["type_id"]
    if ((types > TENSOR_FIELD) & (types != CUSTOM_FIELD)).any():
        raise ValueError(f"{path} is not a beton: it has fields of unknown types {types.tolist()}. {advice}")
    may_be_empty = set(types.tolist()) <= {FLOAT_FIELD, INT_FIELD, CUSTOM_FIELD}  # scalars are stored in the metadata
    if size < table or (size - table) % ALLOCATION.itemsize or (size == table and not may_be_empty):
        where = f"its allocation table, at the end, starts at {table}"
        raise ValueError(f"{path} is truncated: {size} bytes, {where}{' and is cut' * (size > table)}. {advice}")
    if size > table:
        allocations = np.memmap(path, ALLOCATION, "r", offset=table)
        ends_early = (allocations["ptr"] <= table) & (allocations["size"] <= table - allocations["ptr"])  # no overflow
        if not ends_early.all() or allocations["sample_id"].max() >= samples:
            raise ValueError(f"{path} is corrupt: its allocation table points outside of the file. {advice}")
