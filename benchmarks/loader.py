"""Images/sec of uint8 batches in random order: fastmlp.Loader, FFCV's, other loaders, and the bare gather, their limit.

    python benchmarks/loader.py [--device auto] [--case 64:16384:4 ...] [--peers 64:2048 ...] [--rounds 7]

A case is resolution:batch size:batches per epoch. The candidates take turns, an epoch each, on one beton whose pages
are warm; the bare gather is torch.index_select from an array in RAM into a kept buffer, its order made beforehand.
With a GPU, "fastmlp" ends with the batches in its memory. Then the limit is the slower of the gather and "bare send",
copies of a page-locked batch to the GPU, and the other loaders stay "on the host".
--peers is resolution:batch size; there other loaders (peers.py) take turns with the gather, fastmlp and FFCV, on the
host, each with as many images as take about 1 s, in fewer rounds. Those that are not installed or fail are named.
`--peers` without a value leaves them out.
A table goes to stderr, one JSON line per case to stdout.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import limits
import measure
import numpy as np
import peers
import torch

import fastmlp
from fastmlp import cli
from fastmlp import device as devices
from fastmlp.sources.base import ArraySource
from fastmlp.transforms.pipelines import raw_pipelines

CASES = ("64:16384:4", "64:16384:32", "64:2048:32", "32:16384:4", "32:16384:32", "32:2048:24")
PEER_CASES = ("64:2048",)
PEER_ROUNDS = 5  # at most: the peers scatter by less than they differ
HOST = ", on the host"  # ends the names of those whose batches stay there, although there is a device


def candidates(
    path: Path, pixels: torch.Tensor, batch_size: int, batches: int, device: torch.device = measure.CPU
) -> dict[str, Callable[[], object]]:
    """Return one epoch of each, as functions."""
    indices = np.resize(np.arange(len(pixels)), batch_size * batches)  # long epochs go over the file several times
    shared = {"batch_size": batch_size, "order": fastmlp.OrderOption.RANDOM, "seed": 0, "indices": indices}

    def ours(device: torch.device) -> fastmlp.Loader:
        return fastmlp.Loader(path, pipelines=raw_pipelines(device), **shared)

    order = torch.from_numpy(np.random.default_rng(0).permutation(indices)).view(batches, batch_size)
    found = {"bare gather": limits.gather(pixels, order)}
    loaders = {
        "fastmlp": ours(measure.CPU),
        "ffcv": peers.ffcv_loader(path, pipelines=raw_pipelines(), **shared),
        "ffcv, batches_ahead=1": peers.ffcv_loader(path, pipelines=raw_pipelines(), batches_ahead=1, **shared),
    }
    if device.type != "cpu":
        found["bare send"] = limits.send(batch_size * pixels.shape[1], batches, device)
        loaders = {"fastmlp": ours(device), **{f"{name}{HOST}": loader for name, loader in loaders.items()}}
    return {**found, **{name: lambda loader=loader: measure.drain(loader) for name, loader in loaders.items()}}


def report(title: str, results: dict) -> str:
    """Print the table, set each candidate's share of the limit, and return the limit's name."""
    limit = limits.slowest(results, [name for name in results if name.startswith("bare")])
    what = limit.removeprefix("bare ")
    measure.add_shares(results, f"share_of_{what}", results[limit]["images_per_s"])
    measure.print_rates(title, results, f"share_of_{what}", f"the {what}")
    return limit


def prepare(res: int, folder: Path) -> tuple[Path, np.ndarray]:
    """Write a beton; return its path and its images, (N, res, res, 3) uint8."""
    samples = {64: 65_536}.get(res, 50_000)
    images = np.random.default_rng(0).integers(0, 256, (samples, res, res, 3), dtype=np.uint8)
    source = ArraySource(images, np.zeros(samples, np.int64), ("one",))
    return fastmlp.write_beton(folder / "random.beton", source, res), images


def run_peers(res: int, batch_size: int, rounds: int, folder: Path) -> None:
    path, images = prepare(res, folder)
    batch_size = min(batch_size, len(images))
    batches = len(images) // batch_size
    own = candidates(path, torch.from_numpy(images.reshape(len(images), -1)), batch_size, batches)
    own = {name: own[name] for name in ("bare gather", "fastmlp", "ffcv")}
    with peers.clean(folder):
        runs = peers.Runs(images, np.zeros(len(images), np.int64), folder, batch_size)
        try:
            seconds = measure.alternate({**own, **runs.candidates()}, rounds)
        finally:
            runs.close()
    counts = {**dict.fromkeys(own, batches * batch_size), **runs.images}
    results = {
        name: {**measure.summary(taken, counts[name]), "images": counts[name]}
        for name, taken in seconds.items()
        if name not in runs.failed
    }
    report(f"{res} px, batch {batch_size}, other loaders, on the host", results)
    left_out = {"absent": peers.absent(), "failed": runs.failed}
    for why, names in left_out.items():
        if names:
            text = ", ".join(names) if why == "absent" else "; ".join(f"{n}: {r}" for n, r in runs.failed.items())
            print(f"  {why}: {text}", file=sys.stderr)
    measure.emit(
        "loader, peers",
        {"res": res, "batch_size": batch_size},
        {**results, **{why: names for why, names in left_out.items() if names}},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    parser.add_argument("--case", nargs="+", default=CASES, metavar="RES:BATCH:BATCHES", help="(default: %(default)s)")
    parser.add_argument("--peers", nargs="*", default=PEER_CASES, metavar="RES:BATCH", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="epochs of each candidate that count (default: 7)")
    parser.add_argument("--folder", type=cli.path, help="for the temporary betons (default: the system's)")
    measure.add_device(parser)
    arguments = measure.parse(parser)
    device = measure.select_device(arguments.device)
    cases = [measure.sizes("--case", case, "RES:BATCH:BATCHES") for case in arguments.case]
    peer_cases = [measure.sizes("--peers", case, "RES:BATCH") for case in arguments.peers]
    for res, batch_size, batches in cases:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            path, images = prepare(res, Path(folder))
            pixels = torch.from_numpy(images.reshape(len(images), -1))
            runs = candidates(path, pixels, batch_size, batches, device)
            results = measure.rates(runs, batch_size * batches, arguments.rounds, device)
        title = f"{res} px, batch {batch_size}, {batches} batches an epoch, batches on {devices.describe(device)}"
        limit = report(title, results)
        settings = {"res": res, "batch_size": batch_size, "batches": batches, **measure.device_settings(device)}
        measure.emit("loader", {**settings, "limit": limit}, results)
    for res, batch_size in peer_cases:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            run_peers(res, batch_size, min(arguments.rounds, PEER_ROUNDS), Path(folder))


if __name__ == "__main__":
    cli.run(main)
