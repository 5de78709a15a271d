"""The records of a beton: their fields, decoded strictly, and that each record points to data of its own size.

Compiled code trusts what is checked here: it copies as many bytes as the allocation table says into buffers of the size
that the records say.
"""

import json
import math
import os
import re
from dataclasses import dataclass

import numpy as np

from . import layout

BYTES = np.dtype([("ptr", "<u8"), ("size", "<u8")])
SCALARS = {layout.FLOAT_FIELD: np.dtype("<f8"), layout.INT_FIELD: np.dtype("<i8")}
BLOBS = {layout.BYTES_FIELD, layout.JSON_FIELD}
ARRAYS = {layout.ARRAY_FIELD, layout.TENSOR_FIELD}
NUMBER = re.compile(r"[<|][biufc]\d{1,2}")  # types that torch and numba read: no objects, no dates, no big-endian
NOBODY = 2**64 - 1  # no sample's number
PADDING = 4096, 1 << 14  # of the records where FFCV's writer stored them through shared memory: multiple and limit


@dataclass(frozen=True)
class FieldType:
    """What a field's descriptor says."""

    name: str
    type_id: int
    array_bytes: int = 0  # of each sample, if it is an array or a tensor
    array_type: str = ""  # of its numbers, such as "<f4"

    @property
    def record(self) -> np.dtype | None:
        """The type of its part of a record; None if only the custom field knows it."""
        if self.type_id in BLOBS:
            return BYTES
        if self.type_id in ARRAYS:
            return np.dtype("<u8")
        return layout.IMAGE if self.type_id == layout.RGB_IMAGE_FIELD else SCALARS.get(self.type_id)


def read_fields(path: str | os.PathLike[str]) -> list[FieldType]:
    """Return the fields of a file that has passed layout.check. Raises ValueError naming the field that is damaged."""
    count = int(np.fromfile(path, layout.HEADER, 1)[0]["num_fields"])
    fields: list[FieldType] = []
    for number, descriptor in enumerate(np.fromfile(path, layout.DESCRIPTOR, count, offset=layout.HEADER.itemsize)):
        where = f"{path} is corrupt: field {number} of {count}"
        name, _, rest = descriptor["name"].tobytes().partition(b"\0")
        if not name.isascii() or not name.decode("ascii").isprintable() or not name or rest.strip(b"\0"):
            raise ValueError(f"{where} has the name {descriptor['name'].tobytes()!r}, expected ASCII text")
        if name.decode() in [field.name for field in fields]:
            raise ValueError(f"{where} has the name {name.decode()!r}, as another one has")
        kind = int(descriptor["type_id"])
        array = _array(descriptor["arguments"], f"{where}, {name.decode()!r},") if kind in ARRAYS else ()
        fields.append(FieldType(name.decode(), kind, *array))
    return fields


def _array(descriptor: np.ndarray, where: str) -> tuple[int, str]:
    """Return the bytes of each array and the type of its numbers, from the arguments of its field."""
    arguments = descriptor[: layout.ARRAY_ARGUMENTS.itemsize].view(layout.ARRAY_ARGUMENTS)[0]
    length, rest = int(arguments["type_length"]), descriptor[layout.ARRAY_ARGUMENTS.itemsize :]
    text = rest[: min(length, len(rest))].tobytes()
    try:
        ((name, number),) = json.loads(text.decode("ascii"))
        if name or not NUMBER.fullmatch(number):
            raise ValueError
        itemsize = np.dtype(number).itemsize
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f'{where} has the type {text[:40]!r}, expected one such as [["", "<f4"]]') from None
    shape = np.trim_zeros(arguments["shape"], "b").tolist()
    if not shape or 0 in shape:
        raise ValueError(f"{where} has the impossible shape {shape}")
    return itemsize * math.prod(shape), number


def check_records(
    path: str | os.PathLike[str],
    fields: list[FieldType],
    records: np.ndarray,  # (N,), its parts named f0, f1, ...
    table: np.ndarray,  # (M,) layout.ALLOCATION, which has passed layout.check
    content: np.ndarray,  # (file_bytes,) uint8
) -> None:
    """Raise ValueError unless each record points to an allocation of its sample, of the size that its field has.

    Fields of custom types are checked by nobody but their own code.
    """
    pointing = [(f"f{number}", field) for number, field in enumerate(fields) if field.type_id not in SCALARS]
    custom = any(field.record is None for field in fields)
    data_start = layout.HEADER.itemsize + len(fields) * layout.DESCRIPTOR.itemsize + records.nbytes
    if not custom and len(table) != len(records) * len(pointing):
        raise ValueError(
            f"{path} is corrupt: {len(table):,} allocations for {len(records):,} samples with {len(pointing)} each"
        )
    if not custom and not pointing:
        padding = len(content) - data_start
        if padding and (padding >= PADDING[1] or (records.nbytes + padding) % PADDING[0]):
            raise ValueError(f"{path} is corrupt: {padding} bytes follow its {len(records):,} records")
    places = _Places(path, table, data_start)
    for number, field in pointing:
        if field.record is None:
            continue
        where = f"{path} is corrupt: field {field.name!r}"
        part = records[number]
        if field.type_id == layout.RGB_IMAGE_FIELD:
            raw, jpeg = part["mode"] == layout.RAW_MODE, part["mode"] == layout.JPEG_MODE
            good = (raw | jpeg) & (part["width"] > 0) & (part["height"] > 0)
            _require(good, where, "has an unknown mode or no pixels")
            found = places.sizes_of(part["data_ptr"], where)
            expected = 3 * part["width"].astype(np.uint64) * part["height"]
            _require(np.where(raw, found == expected, found > 0), where, "has data of another size than its pixels")
            _check_jpegs(part, np.flatnonzero(jpeg), found, content, where)
        elif field.type_id in BLOBS:
            empty = part["size"] == 0
            found = places.sizes_of(part["ptr"], where, empty)
            _require(found == part["size"], where, "has data of another size than its record says")
        else:
            found = places.sizes_of(part, where)
            _require(found == field.array_bytes, where, f"has not {field.array_bytes} bytes of data")


class _Places:
    """The allocations that are not empty, by address."""

    def __init__(self, path: str | os.PathLike[str], table: np.ndarray, data_start: int):
        addresses, sizes, samples = table["ptr"], table["size"], table["sample_id"]
        if not sizes.all():
            addresses, sizes, samples = (column[sizes > 0] for column in (addresses, sizes, samples))
        if (addresses[1:] < addresses[:-1]).any():
            order = np.argsort(addresses)
            addresses, sizes, samples = addresses[order], sizes[order], samples[order]
        if (addresses[1:] - addresses[:-1] < sizes[:-1]).any() or (len(addresses) and addresses[0] < data_start):
            raise ValueError(f"{path} is corrupt: allocations overlap each other or the records")
        # A last one that no sample owns, which every address beyond the others finds.
        self._addresses, self._sizes, self._samples = (
            np.append(column, np.uint64(last)) for column, last in ((addresses, 0), (sizes, 0), (samples, NOBODY))
        )

    def sizes_of(self, pointers: np.ndarray, where: str, empty: np.ndarray | bool = False) -> np.ndarray:
        """Return the size of the allocation that each sample points to, 0 for those that are `empty`."""
        found = np.searchsorted(self._addresses[:-1], pointers)
        own = (self._addresses[found] == pointers) & (self._samples[found] == np.arange(len(pointers), dtype=np.uint64))
        _require(own | empty, where, "points to no allocation of its own")
        return np.where(empty, 0, self._sizes[found])


def _require(good: np.ndarray, where: str, what: str) -> None:
    if not good.all():
        raise ValueError(f"{where} of sample {int(np.argmin(good)):,} {what}")


def _check_jpegs(images: np.ndarray, jpegs: np.ndarray, sizes: np.ndarray, content: np.ndarray, where: str) -> None:
    """Compare the smallest and largest sizes of JPEGs, by which buffers are made, with the files themselves.

    The others are compared when they are decoded: here that would take a page fault each.
    """
    if not len(jpegs):
        return
    for side in ("width", "height"):
        for sample in (jpegs[images[side][jpegs].argmin()], jpegs[images[side][jpegs].argmax()]):
            start, record = int(images["data_ptr"][sample]), images[sample]
            if jpeg_size(content, start, start + int(sizes[sample])) != (record["height"], record["width"]):
                raise ValueError(f"{where} of sample {sample:,} {other_size(record)}")


def other_size(record: np.void) -> str:
    """Return what is wrong with a JPEG whose size is not that of its record."""
    return f"is no JPEG of {record['width']} x {record['height']} px, as its record says"


def jpeg_size(
    content: np.ndarray,  # (N,) uint8
    start: int,  # of the JPEG file
    end: int,
) -> tuple[int, int]:
    """Return the height and width of a JPEG file, zeros if it has no such segment. (numba compiles this, too.)"""
    at = start + 2
    while at + 9 <= end and content[at] == 0xFF and content[start] == 0xFF and content[start + 1] == 0xD8:
        kind = content[at + 1]
        if 0xC0 <= kind <= 0xCF and kind != 0xC4 and kind != 0xC8 and kind != 0xCC:  # those are tables and an extension
            height = 256 * int(content[at + 5]) + int(content[at + 6])
            return height, 256 * int(content[at + 7]) + int(content[at + 8])
        if kind == 0xFF:  # a fill byte
            at += 1
        elif kind == 1 or 0xD0 <= kind <= 0xD7:  # segments without content
            at += 2
        else:
            at += 2 + 256 * int(content[at + 2]) + int(content[at + 3])
    return 0, 0
