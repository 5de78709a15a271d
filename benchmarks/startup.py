"""Seconds and memory from the constructor to the first batch and through the first epoch, in fresh processes.

    python benchmarks/startup.py [--samples 65536 11801680] [--skip-ffcv] [--folder /tmp]

The betons are of 64 px and random order; those of over a million samples are sparse files (their metadata is real,
their pixels are holes), and for them only the first batch is read. fastmlp runs twice: without
numba's compiled code on disk, and with it. "anonymous" is the peak of the process's anonymous memory beyond what it was
before the constructor.
A table goes to stderr, one JSON line per size to stdout.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
import numpy as np

from fastmlp import cli
from fastmlp.beton.layout import Layout

BATCH_SIZE = 16384
SPARSE_FROM = 1_000_000  # samples


def write_sparse(path: Path, samples: int) -> None:
    """Write a complete beton whose pixels are holes of a sparse file."""
    layout = Layout(samples, 64)
    with path.open("wb") as file:
        every, sizes = np.arange(samples), np.full((samples, 2), layout.res)
        file.write(layout.head(samples) + layout.metadata(every % 1000, sizes, every))
        file.seek(layout.allocation_start)
        file.write(layout.allocation_table(sizes, every))


def child(kind: str, path: str, whole_epoch: bool) -> None:
    """Time one loader; print a JSON line."""
    import torch  # noqa: F401

    import fastmlp
    from fastmlp.transforms.pipelines import raw_pipelines

    if kind == "ffcv":
        from ffcv.loader import Loader
    else:
        from fastmlp import Loader  # type: ignore[assignment]
    with measure.PeakMemory("RssAnon", every_s=0.02) as anonymous:
        started = time.perf_counter()
        loader = Loader(path, BATCH_SIZE, order=fastmlp.OrderOption.RANDOM, seed=0, pipelines=raw_pipelines())
        constructed_s = time.perf_counter() - started
        batches = iter(loader)
        next(batches)
        first_batch_s = time.perf_counter() - started
        measure.drain(batches if whole_epoch else ())
        epoch_s = time.perf_counter() - started
    slots = getattr(loader, "batches_ahead", 3) + 2
    buffers = slots * BATCH_SIZE * (3 * 64 * 64 + 8)
    print(
        json.dumps(
            {
                "constructed_s": constructed_s,
                "first_batch_s": first_batch_s,
                "first_epoch_s": epoch_s,
                "anonymous_bytes": anonymous.bytes,
                "batch_buffers_bytes": buffers,
            }
        )
    )
    sys.stdout.flush()
    os._exit(0)  # FFCV keeps its thread if an epoch is not read to the end


def measure_size(samples: int, arguments: argparse.Namespace) -> dict[str, dict]:
    """Return what the child of each candidate printed."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "start.beton"
        write_sparse(path, samples)
        if samples < SPARSE_FROM:
            os.posix_fallocate(os.open(path, os.O_RDWR), 0, path.stat().st_size)
            path.read_bytes()  # warm the page cache
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(Path(folder) / "compiled")}  # empty at first
        runs = [("fastmlp", "fastmlp, not yet compiled"), ("fastmlp", "fastmlp, compiled"), ("ffcv", "ffcv")]
        results = {}
        for kind, name in runs[: 2 if arguments.skip_ffcv else 3]:
            command = [sys.executable, __file__, "--child", kind, str(path), str(samples < SPARSE_FROM)]
            ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            results[name] = json.loads(ended.stdout.splitlines()[-1])
    return results


def report(title: str, results: dict[str, dict]) -> None:
    head = ["", "constructor", "first batch", "epoch after", "anonymous", "of which batch buffers, up to"]
    rows = [
        [
            name,
            *(f"{r[key]:.2f} s" for key in ("constructed_s", "first_batch_s", "first_epoch_s")),
            *(f"{r[key] / 1e9:.2f} GB" for key in ("anonymous_bytes", "batch_buffers_bytes")),
        ]
        for name, r in results.items()
    ]
    measure.print_table(title, [head, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    parser.add_argument("--samples", type=int, nargs="+", default=[65_536, 1_281_167, 11_801_680])
    parser.add_argument("--skip-ffcv", action="store_true", help="FFCV takes minutes and 8 GB for the largest")
    parser.add_argument("--folder", type=cli.path, help="for the temporary betons (default: the system's)")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = measure.parse(parser)
    if arguments.child:
        child(arguments.child[0], arguments.child[1], arguments.child[2] == "True")
        return
    for samples in arguments.samples:
        results = measure_size(samples, arguments)
        report(f"{samples:,} samples of 64 px, batch {BATCH_SIZE}", results)
        measure.emit("startup", {"samples": samples, "batch_size": BATCH_SIZE}, results)


if __name__ == "__main__":
    cli.run(main)
