"""What is in a beton, and whether it is whole.

    python -m fastmlp.beton.inspect data/cifar10_train_32.beton --contact-sheet sheet.png

Checks structure, sizes and, where a .sha256 file lies beside it, every byte; prints fields, image sizes, labels and
the mean and standard deviation of each channel (0-255 scale).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .. import cli
from ..datasets import sidecar_path
from ..plots import contact_sheet
from . import layout
from .checksum import verify_checksum

FIELDS = {0: "float", 1: "int", 2: "image", 3: "bytes", 4: "array", 5: "JSON", 6: "tensor", 255: "custom"}


class BetonReader:
    """The records of a beton, mapped; of images and labels where it is one of ours."""

    def __init__(self, beton: Path):
        layout.check(beton)
        self.header = np.fromfile(beton, layout.HEADER, 1)[0]
        descriptors = np.fromfile(
            beton, layout.DESCRIPTOR, int(self.header["num_fields"]), offset=layout.HEADER.itemsize
        )
        self.fields = [(d["name"].tobytes().rstrip(b"\0").decode(), FIELDS[int(d["type_id"])]) for d in descriptors]
        ours = [("image", "image"), ("label", "int"), ("multi_label", "array")]
        self.is_ours = self.fields in (ours[:2], ours)
        record = layout.METADATA if len(self.fields) == 2 else layout.MULTI_METADATA
        self.bytes = np.memmap(beton, np.uint8, "r")
        start, count = layout.HEADER.itemsize + descriptors.nbytes, int(self.header["num_samples"])
        end = start + count * record.itemsize
        self.records = np.frombuffer(self.bytes[start:end] if self.is_ours else b"", record)
        self._shape = descriptors["arguments"][-1][:8].view("<u8")[0]  # of the multi-labels

    @property
    def raw(self) -> np.ndarray:
        """(N,) the samples whose images are stored as pixels."""
        return np.flatnonzero(self.records["f0"]["mode"] == layout.RAW_MODE) if self.is_ours else np.empty(0, int)

    def image(self, sample: int) -> np.ndarray:
        """(height, width, 3) uint8, of a raw image."""
        record = self.records["f0"][sample]
        start, shape = int(record["data_ptr"]), (int(record["height"]), int(record["width"]), 3)
        return self.bytes[start : start + int(np.prod(shape))].reshape(shape)

    def multi_labels(self) -> np.ndarray | None:
        """(N, K) int64, -1 behind the last; None where there are none."""
        if len(self.fields) != 3 or not self.is_ours:
            return None
        size = 8 * int(self._shape)
        return np.stack([self.bytes[p : p + size].view("<i8") for p in self.records["f2"].astype(int).tolist()])

    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (population) of each channel over all raw pixels, (3,) each, 0-255 scale."""
        counts = np.zeros((3, 256), np.int64)
        for sample in tqdm(self.raw, desc="statistics", unit=" images", unit_scale=True, mininterval=0.5, leave=False):
            pixels = self.image(sample)
            for channel in range(3):
                counts[channel] += np.bincount(pixels[:, :, channel].ravel(), minlength=256)
        shares, values = counts / counts.sum(axis=1, keepdims=True), np.arange(256)
        mean = shares @ values
        return mean, np.sqrt(shares @ values**2 - mean**2)


def main() -> None:
    parser = argparse.ArgumentParser("python -m fastmlp.beton.inspect", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("beton", type=Path)
    parser.add_argument("--contact-sheet", type=Path, metavar="PNG", help="draw up to 64 images, evenly spaced")
    parser.add_argument("--no-statistics", action="store_true", help="do not read all pixels")
    options = parser.parse_args()
    contents = BetonReader(options.beton)
    whole = "every byte as written" if verify_checksum(options.beton) else "structure whole, no checksum beside it"
    described = sidecar_path(options.beton)
    metadata = json.loads(described.read_text(encoding="utf-8")) if described.exists() else {}
    print(f"{options.beton}: {whole}")
    print(
        f"  samples    {int(contents.header['num_samples']):,}, {options.beton.stat().st_size / 1e6:,.0f} MB, pages "
        f"of {int(contents.header['page_size']) >> 20} MiB"
    )
    print(f"  fields     {', '.join(f'{name} ({kind})' for name, kind in contents.fields)}")
    if not contents.is_ours:
        return
    images, labels, raw = contents.records["f0"], contents.records["f1"], contents.raw
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
    if (several := contents.multi_labels()) is not None:
        counts = (several >= 0).sum(1)
        mean = counts[counts > 0].mean() if counts.any() else 0
        print(
            f"  multi      {(counts == 0).sum():,} images without a label, the others have {mean:.2f} in the mean, "
            f"{counts.max()} at most"
        )
    if len(raw) and not options.no_statistics:
        for name, values in zip(("mean", "std"), contents.channel_statistics(), strict=True):
            print(f"  {name:10s} {', '.join(f'{value:.3f}' for value in values)}")
    if options.contact_sheet and len(raw):
        chosen = [contents.image(sample) for sample in raw[np.linspace(0, len(raw) - 1, min(64, len(raw))).astype(int)]]
        side, columns = max(max(image.shape) for image in chosen), min(16, len(chosen))
        sheet = np.full((-(-len(chosen) // columns), columns, side, side, 3), 128, np.uint8)
        for place, image in zip(np.ndindex(sheet.shape[:2]), chosen, strict=False):
            sheet[place][: image.shape[0], : image.shape[1]] = image
        print(f"  picture    {contact_sheet(sheet, options.contact_sheet)}")


if __name__ == "__main__":
    cli.run(main)
