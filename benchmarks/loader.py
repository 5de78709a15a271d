"""Images/sec of uint8 batches in random order: fastmlp.Loader, FFCV's Loader, and the bare gather that bounds both.

    python benchmarks/loader.py [--case 64:16384:4 ...] [--rounds 7] [--folder /tmp]

A case is resolution:batch size:batches per epoch. The candidates take turns, an epoch each, on one beton whose pages
are warm; the bare gather is torch.index_select from an array in RAM into a kept buffer, its order made beforehand.
A table goes to stderr, one JSON line per case to stdout.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import measure
import numpy as np
import torch

import fastmlp
from fastmlp.loader.loader import raw_pipelines
from fastmlp.sources.base import ArraySource

CASES = ("64:16384:4", "64:16384:32", "64:2048:32", "32:16384:4", "32:16384:32", "32:2048:24")


def candidates(path: Path, pixels: torch.Tensor, batch_size: int, batches: int) -> dict:
    """One epoch of each, as functions."""
    import ffcv.loader

    samples = len(pixels)
    indices = np.resize(np.arange(samples), batch_size * batches)  # long epochs go over the file several times
    shared = {"batch_size": batch_size, "order": fastmlp.OrderOption.RANDOM, "seed": 0, "indices": indices}
    ours = fastmlp.Loader(path, pipelines=raw_pipelines(), **shared)
    threads = torch.get_num_threads()
    stock = ffcv.loader.Loader(str(path), pipelines=raw_pipelines(), **shared)
    ahead_1 = ffcv.loader.Loader(str(path), pipelines=raw_pipelines(), batches_ahead=1, **shared)
    torch.set_num_threads(threads)  # FFCV's Loader sets them
    kept = torch.zeros(batch_size, pixels.shape[1], dtype=torch.uint8)
    order = torch.from_numpy(np.random.default_rng(0).permutation(indices)).view(batches, batch_size)

    def gather() -> None:
        for rows in order:
            torch.index_select(pixels, 0, rows, out=kept)

    def drain(loader: object) -> None:
        for _ in loader:
            pass

    return {
        "bare gather": gather,
        "fastmlp": lambda: drain(ours),
        "ffcv": lambda: drain(stock),
        "ffcv, batches_ahead=1": lambda: drain(ahead_1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", default=CASES, metavar="RES:BATCH:BATCHES", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="epochs of each candidate that count (default: 7)")
    parser.add_argument("--folder", default=None, help="where the betons go meanwhile (default: the system's)")
    arguments = parser.parse_args()
    for case in arguments.case:
        res, batch_size, batches = map(int, case.split(":"))
        samples = {64: 65_536}.get(res, 50_000)
        images = np.random.default_rng(0).integers(0, 256, (samples, res, res, 3), dtype=np.uint8)
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            source = ArraySource(images, np.zeros(samples, np.int64), ("one",))
            path = fastmlp.write_beton(Path(folder) / "random.beton", source, res)
            pixels = torch.from_numpy(images.reshape(samples, -1))
            seconds = measure.alternate(candidates(path, pixels, batch_size, batches), arguments.rounds)
        results = {name: measure.summary(runs, batch_size * batches) for name, runs in seconds.items()}
        bound = results["bare gather"]["images_per_s"]
        print(f"\n{res} px, batch {batch_size}, {batches} batches an epoch", file=sys.stderr)
        for name, result in results.items():
            result["share_of_gather"] = result["images_per_s"] / bound
            spread = f"({result['least']:,.0f} to {result['most']:,.0f})"
            print(f"  {name:24s}{result['images_per_s']:12,.0f} images/sec {spread:26s} "
                  f"{result['share_of_gather']:5.2f} of the gather", file=sys.stderr)  # fmt: skip
        measure.emit("loader", {"res": res, "batch_size": batch_size, "batches": batches}, results)


if __name__ == "__main__":
    main()
