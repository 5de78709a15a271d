"""Images/sec of writing betons: fastmlp, FFCV's DatasetWriter, and the bare decode and resize, their limit.

    python benchmarks/writer.py [--images 1200] [--rounds 3] [--folder /tmp]

jpeg: photographs of scikit-image (pip install scikit-image), cut to 500 x 375 JPEG, to 64 px. FFCV's writer gets them
decoded in full and scales them itself (max_resolution): as in the paper's code, and as in FFCV's ImageNet example,
which stores half of them as JPEG of quality 90. The limit is a loop of scaled decode, square and resize in as many
processes, which writes nothing. raw: arrays of 32 px from memory.
A table goes to stderr, one JSON line per case to stdout.
"""

import argparse
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fastmlp import cli
from fastmlp.beton.writer import write_beton
from fastmlp.sources.base import ArraySource
from fastmlp.sources.fit import fit_image
from fastmlp.sources.folder import ImageFolder
from fastmlp.worker_pool import num_cores

WORKERS = num_cores()
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "retina", "hubble_deep_field")  # those in its wheel


class Whole:
    """What FFCV's writer needs of torchvision's ImageFolder."""

    def __init__(self, source: ImageFolder):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        with Image.open(self.source.path(index)) as image:
            return image.convert("RGB"), int(self.source.labels[index])


def make_photographs(folder: Path, count: int) -> Path:
    """Write crops of the photographs as JPEG; return the folder."""
    try:
        from skimage import data
    except ModuleNotFoundError as error:
        raise SystemExit("benchmarks/writer.py needs photographs: pip install scikit-image") from error
    originals = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in PHOTOGRAPHS]
    rng = np.random.default_rng(0)
    (folder / "photographs").mkdir(parents=True)
    for number in range(count):
        original = originals[number % len(originals)]
        side = rng.uniform(0.6, 1.0)
        width, height = int(original.width * side), int(original.height * side)
        left, top = rng.integers(0, original.width - width + 1), rng.integers(0, original.height - height + 1)
        part = original.resize((500, 375), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        part.save(folder / "photographs" / f"{number}.jpg", quality=90)
    return folder


def decode_part(source: ImageFolder, indices: np.ndarray) -> int:
    """Decode and resize the images at the indices; return the sum of their heights."""
    return sum(len(fit_image(source[int(index)][0], 64)) for index in indices)


def write_anew(path: Path, source: object, res: int) -> None:
    for old in path.parent.glob(f"{path.stem}.*"):  # write_beton would leave a finished beton as it is
        old.unlink()
    write_beton(path, source, res, num_workers=WORKERS)


def ffcv_write(path: Path, dataset: object, **image: object) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(**{"write_mode": "raw", **image}), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=WORKERS).from_indexed_dataset(dataset, chunksize=100)


def jpeg_candidates(folder: Path, scaled: ImageFolder, whole: Whole) -> dict[str, Callable[[], object]]:
    """Return the ways to write the photographs at 64 px, as functions; the last is the one to compare with."""

    def bound() -> None:
        with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
            parts = np.array_split(np.arange(len(scaled)), 4 * WORKERS)
            pool.starmap(decode_part, [(scaled, part) for part in parts])

    return {
        "bare decode and resize": bound,
        "fastmlp": lambda: write_anew(folder / "x.beton", scaled, 64),
        "ffcv, its example": lambda: ffcv_write(
            folder / "z.beton",
            whole,
            write_mode="proportion",
            max_resolution=64,
            compress_probability=0.5,
            jpeg_quality=90,
        ),
        "ffcv, as the paper": lambda: ffcv_write(folder / "y.beton", whole, max_resolution=64),
    }


def main() -> None:
    import measure  # here: the worker processes import this file, and would wait for torch, which writers do not need

    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    parser.add_argument("--images", type=int, default=6000, help="photographs (default: %(default)s)")
    parser.add_argument("--arrays", type=int, default=100_000, help="arrays of 32 px (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each candidate that count (default: 3)")
    parser.add_argument("--folder", type=cli.path, help="for the temporary files (default: the system's)")
    arguments = measure.parse(parser)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        photographs = make_photographs(folder / "jpeg", arguments.images)
        scaled = ImageFolder(photographs, res=64)
        size = np.mean([Path(scaled.path(i)).stat().st_size for i in range(len(scaled))])
        rng = np.random.default_rng(0)
        arrays = rng.integers(0, 256, (arguments.arrays, 32, 32, 3), dtype=np.uint8)
        raw = ArraySource(arrays, np.zeros(len(arrays), np.int64), ("one",))
        cases = {
            "jpeg": (len(scaled), jpeg_candidates(folder, scaled, Whole(ImageFolder(photographs)))),
            "raw": (
                len(raw),
                {
                    "fastmlp": lambda: write_anew(folder / "x.beton", raw, 32),
                    "ffcv": lambda: ffcv_write(folder / "y.beton", raw),
                },
            ),
        }
        for name, (count, candidates) in cases.items():
            results = measure.rates(candidates, count, arguments.rounds)
            last = list(results)[-1]
            measure.add_shares(results, "against_ffcv", results[last]["images_per_s"])
            title = f"{name}, {count:,} images, {WORKERS} processes"
            title += f", {size / 1e3:.0f} kB each" if name == "jpeg" else ""
            measure.print_rates(title, results, "against_ffcv", "FFCV")
            measure.emit("writer", {"case": name, "images": count, "jpeg_bytes": size}, results)


if __name__ == "__main__":
    cli.run(main)
