"""Images/sec from a cold beton larger than the window: fastmlp.Loader's QUASI_RANDOM against sequential reads.

    python benchmarks/cold.py [--gigabytes 12] [--window-bytes 1073741824] [--rounds 3] [--folder /tmp]

The file, of 64 px and random bytes, is dropped from the page cache before each pass (posix_fadvise). The limit reads
its data from front to back, 8 MiB at a time, into one kept buffer. "resident" is the peak of the file's pages and the
anonymous memory in this process, beyond what they were before the loader. A table goes to stderr, a JSON line
to stdout.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import measure
import numpy as np
from tqdm import trange

import fastmlp
from fastmlp import cli
from fastmlp.beton.layout import Layout
from fastmlp.transforms.pipelines import raw_pipelines

BATCH_SIZE = 4096
READ_BYTES = 8 << 20


def write(path: Path, gigabytes: float) -> Layout:
    """Write a beton of random pixels: one random page again and again, each time with its number in it."""
    per_page = Layout(1, 64).slots_per_page
    layout = Layout(int(gigabytes * 1e9 / (8 << 20)) * per_page, 64)
    page = np.random.default_rng(0).integers(0, 256, layout.page_bytes, dtype=np.uint8)
    every, sizes = np.arange(layout.num_samples), np.full((layout.num_samples, 2), layout.res)
    with path.open("wb") as file:
        file.write(layout.head(len(every)) + layout.metadata(every % 1000, sizes, every))
        file.seek(layout.data_start)
        for number in trange(layout.num_samples // per_page, desc="writing", unit=" pages"):
            page[:8] = np.frombuffer(np.int64(number).tobytes(), np.uint8)
            file.write(page.data)
        file.write(layout.allocation_table(sizes, every))
        os.fsync(file.fileno())
    return layout


def seconds_of(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure_cold(path: Path, layout: Layout, rounds: int, window_bytes: int) -> tuple[dict[str, list[float]], int]:
    """Return the seconds of each candidate's passes, and the peak of resident bytes of the loader's."""
    fd, scratch = os.open(path, os.O_RDONLY), bytearray(READ_BYTES)

    def drop() -> None:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def sequential() -> None:
        for offset in range(layout.data_start, layout.allocation_start, READ_BYTES):
            os.preadv(fd, [scratch], offset)

    def load() -> None:
        with fastmlp.Loader(
            path,
            BATCH_SIZE,
            order=fastmlp.OrderOption.QUASI_RANDOM,
            seed=0,
            pipelines=raw_pipelines(),
            window_bytes=window_bytes,
        ) as loader:
            measure.drain(loader)

    peak, seconds = 0, {"sequential reads": [], "fastmlp": []}
    for _ in range(rounds):
        drop()
        seconds["sequential reads"].append(seconds_of(sequential))
        drop()
        with measure.PeakMemory("RssAnon", "RssFile", every_s=0.05) as resident:
            seconds["fastmlp"].append(seconds_of(load))
        peak = max(peak, resident.bytes)
    os.close(fd)
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    parser.add_argument("--gigabytes", type=float, default=12)
    parser.add_argument("--window-bytes", type=int, default=1 << 30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=cli.path, help="for the temporary beton (default: the system's)")
    arguments = measure.parse(parser)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "cold.beton"
        layout = write(path, arguments.gigabytes)
        seconds, peak = measure_cold(path, layout, arguments.rounds, arguments.window_bytes)
    results = {name: measure.summary(runs, layout.num_samples) for name, runs in seconds.items()}
    share = results["fastmlp"]["images_per_s"] / results["sequential reads"]["images_per_s"]
    title = f"share {share:.2f}; resident {peak / 1e9:.2f} GB for a window of {arguments.window_bytes / 1e9:.2f} GB"
    measure.print_rates(title, results, more=lambda r: f"{r['images_per_s'] * layout.image_bytes / 1e9:.2f} GB/s")
    settings = {"gigabytes": arguments.gigabytes, "window_bytes": arguments.window_bytes}
    measure.emit("cold", settings, {**results, "resident_bytes": peak})


if __name__ == "__main__":
    cli.run(main)
