"""Show what is in a beton, and check that it is complete.

    python -m fastmlp.beton.inspect data/cifar10_train_32.beton --contact-sheet sheet.png

Checks structure, sizes and, if a .sha256 file is beside it, every byte; prints fields, image sizes, labels and
the mean and standard deviation of each channel (0-255 scale).
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from .. import cli
from ..datasets import read_sidecar, sidecar_path
from ..messages import progress_bar
from ..plots import contact_sheet
from . import layout
from .checksum import verify_checksum
from .records import check_records, read_fields

FIELDS = {0: "float", 1: "int", 2: "image", 3: "bytes", 4: "array", 5: "JSON", 6: "tensor", 255: "custom"}

SHEET_SIDE = 256  # of the images in a contact sheet [pixels]: of larger ones every second or third pixel is shown


class BetonReader:
    """The records of a memory-mapped beton; images and labels if fastmlp wrote it."""

    def __init__(self, beton: Path):
        layout.check(beton)
        self.header = np.fromfile(beton, layout.HEADER, 1)[0]
        fields = read_fields(beton)
        self.fields = [(field.name, FIELDS[field.type_id]) for field in fields]
        ours = [("image", "image"), ("label", "int"), ("multi_label", "array")]
        self.is_ours = self.fields in (ours[:2], ours) and fields[-1].array_type in ("", "<i8")
        self.bytes = np.memmap(beton, np.uint8, "r")
        self.records = np.empty(0, layout.METADATA)
        if all(field.record is not None for field in fields):
            record = np.dtype([(f"f{number}", field.record) for number, field in enumerate(fields)], align=True)
            count, table = int(self.header["num_samples"]), int(self.header["alloc_table_ptr"])
            start = layout.HEADER.itemsize + len(fields) * layout.DESCRIPTOR.itemsize
            if start + count * record.itemsize > table:
                raise ValueError(f"{beton} is corrupt: its {count:,} records reach into other parts of the file")
            self.records = np.frombuffer(self.bytes, record, count, start)
            check_records(beton, fields, self.records, self.bytes[table:].view(layout.ALLOCATION), self.bytes)
        self._multi_label_bytes = fields[-1].array_bytes

    @property
    def raw(self) -> np.ndarray:
        """The samples whose images are stored as pixels, (n,) int64."""
        return np.flatnonzero(self.records["f0"]["mode"] == layout.RAW_MODE) if self.is_ours else np.empty(0, int)

    def image(self, sample: int) -> np.ndarray:
        """Return the pixels of a raw image, (height, width, 3) uint8."""
        record = self.records["f0"][sample]
        start, shape = int(record["data_ptr"]), (int(record["height"]), int(record["width"]), 3)
        return self.bytes[start : start + int(np.prod(shape))].reshape(shape)

    def multi_labels(self) -> np.ndarray | None:
        """Return the labels of each image, (N, K) int64, -1 after the last; None if the beton has none."""
        if len(self.fields) != 3 or not self.is_ours:
            return None
        size = self._multi_label_bytes
        return np.stack([self.bytes[p : p + size].view("<i8") for p in self.records["f2"].astype(int).tolist()])

    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and (population) standard deviation of each channel over all raw pixels, (3,), 0-255 scale."""
        counts = np.zeros((3, 256), np.int64)
        for sample in progress_bar(
            self.raw, desc="statistics", unit=" images", unit_scale=True, mininterval=0.5, leave=False
        ):
            pixels = self.image(sample)
            for channel in range(3):
                counts[channel] += np.bincount(pixels[:, :, channel].ravel(), minlength=256)
        shares, values = counts / counts.sum(axis=1, keepdims=True), np.arange(256)
        mean = shares @ values
        return mean, np.sqrt(shares @ values**2 - mean**2)


def main() -> None:
    parser = argparse.ArgumentParser("python -m fastmlp.beton.inspect", description=cli.summary(__doc__))
    parser.add_argument("beton", type=cli.path, help="a file that a writer, or FFCV, has written")
    parser.add_argument("--contact-sheet", type=cli.path, metavar="PNG", help="draw up to 64 images, evenly spaced")
    parser.add_argument("--no-statistics", action="store_true", help="do not read all pixels")
    options = parser.parse_args()
    beton = BetonReader(options.beton)
    state = "every byte as written" if verify_checksum(options.beton) else "structure complete, no checksum beside it"
    print(f"{options.beton}: {state}")
    print(
        f"  samples    {int(beton.header['num_samples']):,}, {options.beton.stat().st_size / 1e6:,.0f} MB, pages "
        f"of {int(beton.header['page_size']) >> 20} MiB"
    )
    print(f"  fields     {', '.join(f'{name} ({kind})' for name, kind in beton.fields)}")
    if not beton.is_ours:
        return
    sidecar = sidecar_path(options.beton)
    _print_records(beton, read_sidecar(sidecar) if sidecar.exists() else {})
    if len(beton.raw) and not options.no_statistics:
        for name, values in zip(("mean", "std"), beton.channel_statistics(), strict=True):
            print(f"  {name:10s} {', '.join(f'{value:.3f}' for value in values)}")
    if options.contact_sheet and len(beton.raw):
        print(f"  picture    {_draw_contact_sheet(beton, options.contact_sheet)}")


def _print_records(beton: BetonReader, metadata: dict[str, Any]) -> None:
    """Print image sizes, bad images, labels and multi-labels; `metadata` is the content of the sidecar."""
    images, labels, raw = beton.records["f0"], beton.records["f1"], beton.raw
    sizes = np.unique(np.stack([images["width"], images["height"]], 1), axis=0)
    listed = ", ".join(f"{w} x {h}" for w, h in sizes[:5]) + (f" and {len(sizes) - 5} more" if len(sizes) > 5 else "")
    print(f"  images     {listed} px, {len(raw):,} raw, {len(images) - len(raw):,} JPEG")
    if metadata.get("skipped"):
        print(f"  left out   {metadata['skipped']:,} bad images")
    numbers, counts = np.unique(labels, return_counts=True)
    print(
        f"  labels     {labels.min()} to {labels.max()}, {len(numbers):,} of them, {counts.min():,} to "
        f"{counts.max():,} images each"
    )
    names = metadata.get("classes", [])
    for number, count in list(zip(numbers, counts, strict=True))[:20]:
        print(f"    {number:5d} {count:10,d}  {names[number] if 0 <= number < len(names) else ''}")
    if len(numbers) > 20:
        print(f"    and {len(numbers) - 20:,} more")
    if (multi_labels := beton.multi_labels()) is not None:
        counts = (multi_labels >= 0).sum(1)
        mean = counts[counts > 0].mean() if counts.any() else 0
        print(
            f"  multi      {(counts == 0).sum():,} images without a label, the others have {mean:.2f} on average, "
            f"at most {counts.max()}"
        )


def _draw_contact_sheet(beton: BetonReader, path: Path) -> Path:
    """Draw up to 64 raw images, evenly spaced, into a PNG; return its path."""
    samples = beton.raw[np.linspace(0, len(beton.raw) - 1, min(64, len(beton.raw))).astype(int)]
    images = [beton.image(sample) for sample in samples]
    images = [image[:: (step := -(-max(image.shape) // SHEET_SIDE)), ::step] for image in images]
    side, columns = max(max(image.shape) for image in images), min(16, len(images))
    sheet = np.full((-(-len(images) // columns), columns, side, side, 3), 128, np.uint8)
    for place, image in zip(np.ndindex(sheet.shape[:2]), images, strict=False):
        sheet[place][: image.shape[0], : image.shape[1]] = image
    return contact_sheet(sheet, path)


if __name__ == "__main__":
    cli.run(main)
