"""Open mutated betons in every way that compiled code reads them; the test runs this in child processes.

python tests/beton/mutated_betons.py FIRST LAST BETON... mutates the betons by turns, and writes a line for each
mutation from FIRST to LAST - 1: its number, then "good", "refused" or what was wrong. If a mutation kills the process,
its line is missing.
"""

import resource
import sys
import warnings
from pathlib import Path

import numpy as np

from fastmlp import Loader, OrderOption, device
from fastmlp.beton import layout
from fastmlp.beton.inspect import BetonReader, _draw_contact_sheet, _print_records
from fastmlp.transforms.ffcv_import import Compiler, ToTensor  # before ffcv, which would compile for seconds
from fastmlp.transforms.pipelines import raw_pipelines

MEMORY = 12 << 30  # bytes of addresses: a larger buffer is an error
GUARD = 1 << 16  # bytes after each buffer, which nothing may write
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 63, (1 << 64) - 1)


def mutate(content, number):
    """Return the content with one to three random changes, most of them where the structure is."""
    rng = np.random.default_rng([len(content), number])
    changed = bytearray(content)
    header = np.frombuffer(content, layout.HEADER, 1)[0]
    fields, table = int(header["num_fields"]), int(header["alloc_table_ptr"])
    start = layout.HEADER.itemsize + fields * layout.DESCRIPTOR.itemsize
    firsts = np.frombuffer(content, layout.ALLOCATION, offset=table)["ptr"]
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        descriptor = layout.HEADER.itemsize + int(rng.integers(fields)) * layout.DESCRIPTOR.itemsize
        regions = (
            (0, layout.HEADER.itemsize),
            (descriptor, descriptor + 17),  # type and name
            (descriptor + 17, descriptor + 320),  # shape and type of an array
            (start, start + 2000),  # records
            (table, len(content)),
            (int(rng.choice(firsts)), 200),  # the head of a JPEG
            (start, len(content)),
        )
        first, end = regions[rng.integers(len(regions))]
        end = first + end if end <= first else end
        at = min(int(rng.integers(first, end)), len(changed) - 1)  # it may be cut already
        kind = rng.integers(8)
        if kind < 3:
            changed[at] ^= 1 << rng.integers(8)
        elif kind == 3:
            changed[at] = rng.integers(256)
        elif kind == 4:
            size = int(rng.choice([2, 4, 8]))
            changed[at : at + size] = (EXTREMES[rng.integers(len(EXTREMES))] % (1 << 8 * size)).to_bytes(size, "little")
        elif kind == 5:
            changed[at : at + 8] = rng.bytes(8)
        elif kind == 6:  # swaps or repeats
            other = int(rng.integers(first, end))
            changed[at : at + 24] = changed[other : other + 24]
        else:
            cut = int(rng.choice([at, len(changed) - int(rng.integers(1, 100))]))
            changed[max(1, cut) :] = b"" if rng.integers(2) else bytes(int(rng.integers(1, 64)))
    return bytes(changed)


def read(path):
    """Read every field through fastmlp's loader in each of its ways, and through what inspects a beton."""
    from ffcv.fields.decoders import CenterCropRGBImageDecoder

    reader = BetonReader(path)
    if reader.is_ours and len(reader.raw):
        _print_records(reader, {})
        reader.channel_statistics()
        _draw_contact_sheet(reader, path.with_suffix(".png"))
    if reader.is_ours and (reader.records["f0"]["mode"] == layout.RAW_MODE).all():
        for order in (OrderOption.RANDOM, OrderOption.QUASI_RANDOM):
            drain(path, {**raw_pipelines(), "multi_label": None}, order=order)
    Compiler.set_enabled(False)  # FFCV's decoders would take seconds to compile, each time; they call the same library
    try:
        crop = CenterCropRGBImageDecoder((8, 8), 1.0)
        drain(path, {"image": [crop, ToTensor()]})
    finally:
        Compiler.set_enabled(True)


def drain(path, pipelines, **keywords):
    with Loader(path, 16, num_workers=1, drop_last=False, pipelines=pipelines, **keywords) as loader:
        for _ in loader:
            pass


def guarded(real, buffers):
    """Return device.host_buffer with a guard after each buffer."""

    def host_buffer(num_bytes, pinned=False):
        whole = real(num_bytes + GUARD, pinned)
        whole[num_bytes:] = 77
        buffers.append(whole)
        return whole[:num_bytes]

    return host_buffer


def main(first, last, *betons):
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    buffers, report = [], sys.stdout
    device.host_buffer = guarded(device.host_buffer, buffers)
    for number in range(int(first), int(last)):
        beton = Path(betons[number % len(betons)])
        content, path = beton.read_bytes(), beton.with_suffix(".mutated.beton")
        path.write_bytes(mutate(content, number) if number >= len(betons) else content)
        sys.stdout = sys.stderr
        try:
            read(path)
            outcome = "good"
        except Exception as error:
            named = isinstance(error, ValueError) and str(path) in str(error)
            outcome = "refused" if named else f"{type(error).__name__}: {error}"
        sys.stdout = report
        if any((buffer[-GUARD:] != 77).any() for buffer in buffers):
            outcome = "a buffer overflowed"
        buffers.clear()
        print(number, " ".join(outcome.split()), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
