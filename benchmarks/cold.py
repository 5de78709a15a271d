"""Images/sec from a cold beton larger than the window: fastmlp.Loader's QUASI_RANDOM against sequential reads.

    python benchmarks/cold.py [--gigabytes 12] [--window-bytes 1073741824] [--rounds 3] [--folder /tmp]

The file, of 64 px and random bytes, is dropped from the page cache before each pass (posix_fadvise). The bound reads
its data from front to back, 8 MiB at a time, into one kept buffer. "resident" is the most that the process had of the
file's pages and of its own memory beyond what it had before the loader. A table goes to stderr, a JSON line to stdout.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import measure
import numpy as np
from tqdm import trange

import fastmlp
from fastmlp.beton.layout import Layout
from fastmlp.transforms.pipelines import raw_pipelines

BATCH_SIZE = 4096
READ_BYTES = 8 << 20


def write(path: Path, gigabytes: float) -> Layout:
    """A beton of random pixels, made of one random page over and over, each with its number in it."""
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


def resident_bytes() -> int:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssFile")) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=12)
    parser.add_argument("--window-bytes", type=int, default=1 << 30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=None, help="where the beton goes meanwhile (default: the system's)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "cold.beton"
        layout = write(path, arguments.gigabytes)
        fd, scratch = os.open(path, os.O_RDONLY), bytearray(READ_BYTES)

        def drop() -> None:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

        def sequential() -> None:
            for offset in range(layout.data_start, layout.allocation_start, READ_BYTES):
                os.preadv(fd, [scratch], offset)

        peak, seconds = 0, {"sequential reads": [], "fastmlp": []}
        for _ in range(arguments.rounds):
            drop()
            started = time.perf_counter()
            sequential()
            seconds["sequential reads"].append(time.perf_counter() - started)
            drop()
            before = most = resident_bytes()
            done = threading.Event()

            def watch() -> None:
                nonlocal most
                while not done.synchronize(0.05):  # noqa: B023
                    most = max(most, resident_bytes())

            watcher = threading.Thread(target=watch)
            watcher.start()
            started = time.perf_counter()
            with fastmlp.Loader(
                path,
                BATCH_SIZE,
                order=fastmlp.OrderOption.QUASI_RANDOM,
                seed=0,
                pipelines=raw_pipelines(),
                window_bytes=arguments.window_bytes,
            ) as loader:
                for _ in loader:
                    pass
            seconds["fastmlp"].append(time.perf_counter() - started)
            done.set()
            watcher.join()
            peak = max(peak, most - before)
        os.close(fd)
    results = {name: measure.summary(runs, layout.num_samples) for name, runs in seconds.items()}
    results["resident_bytes"] = peak
    share = results["fastmlp"]["images_per_s"] / results["sequential reads"]["images_per_s"]
    for name in seconds:
        r = results[name]
        print(
            f"  {name:18s}{r['images_per_s']:10,.0f} images/sec ({r['least']:,.0f} to {r['most']:,.0f}), "
            f"{r['images_per_s'] * layout.image_bytes / 1e9:.2f} GB/s",
            file=sys.stderr,
        )
    print(
        f"  share {share:.2f}; resident {peak / 1e9:.2f} GB for a window of {arguments.window_bytes / 1e9:.2f} GB",
        file=sys.stderr,
    )
    measure.emit("cold", {"gigabytes": arguments.gigabytes, "window_bytes": arguments.window_bytes}, results)


if __name__ == "__main__":
    main()
