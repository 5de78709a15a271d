"""Seconds and memory from the constructor to the first batch and through the first epoch, in fresh processes.

    python benchmarks/startup.py [--samples 65536 11801680] [--skip-ffcv] [--folder /tmp]

The betons are of 64 px and random order; those of over a million samples are sparse files (their metadata is real,
their pixels are holes), and for them only the first batch is read. fastmlp runs twice: with numba's compiled code
on disk (cached) and without. "anonymous" is memory of the process's own beyond what it had before the constructor.
A table goes to stderr, one JSON line per size to stdout.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import measure
import numpy as np

from fastmlp.beton.layout import Layout

BATCH_SIZE = 16384
SPARSE_FROM = 1_000_000  # samples


def write_sparse(path: Path, samples: int) -> None:
    """A whole beton whose pixels are holes."""
    layout = Layout(samples, 64)
    with path.open("wb") as file:
        every, sizes = np.arange(samples), np.full((samples, 2), layout.res)
        file.write(layout.head(samples) + layout.metadata(every % 1000, sizes, every))
        file.seek(layout.allocation_start)
        file.write(layout.allocation_table(sizes, every))


def anonymous_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def child(kind: str, path: str, whole_epoch: bool) -> None:
    """Times one loader; prints a JSON line."""
    import torch  # noqa: F401

    import fastmlp
    from fastmlp.transforms.pipelines import raw_pipelines

    if kind == "ffcv":
        from ffcv.loader import Loader
    else:
        from fastmlp import Loader  # type: ignore[assignment]
    before = peak = anonymous_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.synchronize(0.02):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    loader = Loader(path, BATCH_SIZE, order=fastmlp.OrderOption.RANDOM, seed=0, pipelines=raw_pipelines())
    constructed_s = time.perf_counter() - started
    batches = iter(loader)
    next(batches)
    first_batch_s = time.perf_counter() - started
    for _ in batches if whole_epoch else ():
        pass
    epoch_s = time.perf_counter() - started
    done.set()
    watcher.join()
    slots = getattr(loader, "batches_ahead", 3) + 2
    buffers = slots * BATCH_SIZE * (3 * 64 * 64 + 8)
    print(
        json.dumps(
            {
                "constructed_s": constructed_s,
                "first_batch_s": first_batch_s,
                "first_epoch_s": epoch_s,
                "anonymous_bytes": peak - before,
                "batch_buffers_bytes": buffers,
            }
        )
    )
    sys.stdout.flush()
    os._exit(0)  # a half-read epoch of FFCV's keeps its thread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[65_536, 1_281_167, 11_801_680])
    parser.add_argument("--skip-ffcv", action="store_true", help="FFCV takes minutes and 8 GB for the largest")
    parser.add_argument("--folder", default=None, help="where the betons go meanwhile (default: the system's)")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], arguments.child[1], arguments.child[2] == "True")
        return
    for samples in arguments.samples:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            path = Path(folder) / "start.beton"
            write_sparse(path, samples)
            if samples < SPARSE_FROM:
                os.posix_fallocate(os.open(path, os.O_RDWR), 0, path.stat().st_size)
                path.read_bytes()  # warm
            compiled = str(Path(folder) / "compiled")  # empty at first
            runs = [("fastmlp", "fastmlp, not yet compiled"), ("fastmlp", "fastmlp, compiled"), ("ffcv", "ffcv")]
            results = {}
            for kind, name in runs[: 2 if arguments.skip_ffcv else 3]:
                command = [sys.executable, __file__, "--child", kind, str(path), str(samples < SPARSE_FROM)]
                ended = subprocess.run(
                    command, capture_output=True, text=True, check=True, env={**os.environ, "NUMBA_CACHE_DIR": compiled}
                )
                results[name] = json.loads(ended.stdout.splitlines()[-1])
        print(f"\n{samples:,} samples of 64 px, batch {BATCH_SIZE}", file=sys.stderr)
        for name, r in results.items():
            print(
                f"  {name:28s}constructor {r['constructed_s']:6.2f} s, first batch {r['first_batch_s']:6.2f} s, "
                f"epoch after {r['first_epoch_s']:6.2f} s; anonymous {r['anonymous_bytes'] / 1e9:.2f} GB, of which "
                f"batch buffers up to {r['batch_buffers_bytes'] / 1e9:.2f} GB",
                file=sys.stderr,
            )
        measure.emit("startup", {"samples": samples, "batch_size": BATCH_SIZE}, results)


if __name__ == "__main__":
    main()
