"""How seconds and memory grow with samples, batch size, width, depth and loading threads: slopes on log-log axes.

    python benchmarks/growth.py [--device auto] [--of samples batch width depth threads] [--points 3] [--rounds 5]

Each point is a process of its own, so that its peak memory is its own. samples: the loader's constructor and first
batch, on sparse files of 64 px. batch, width and depth: one training step of B_2-Wi_256 (with another width or depth),
32 px, LION, batch 1024. threads: an epoch of 65,536 images of 64 px through the loader. Steps and epochs
end on the device; the memory of a step is the device's, any other is the process's. A slope above 1.1 is called worse
than linear. A table goes to stderr, one JSON line for each of them to stdout. It takes 3 minutes on 2 cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import startup
import torch

from fastmlp import cli
from fastmlp import device as devices
from fastmlp.worker_pool import num_cores

WORSE = 1.1
POINTS: dict[str, list[int]] = {
    "samples": [16_384, 131_072, 1_281_167, 11_801_680],
    "batch": [512, 1024, 2048, 4096, 8192, 16_384],
    "width": [64, 128, 256, 512, 1024],
    "depth": [1, 2, 4, 8, 16, 32],
    "threads": [count for count in (1, 2, 4, 8, 16) if count <= num_cores()],
}


def seconds_and_range(seconds: list[float]) -> dict[str, Any]:
    """Return the median, the fastest and the slowest run, and all runs, under the keys of the JSON line."""
    return {
        "seconds": statistics.median(seconds),
        "least_s": min(seconds),
        "most_s": max(seconds),
        "runs_s": seconds,
    }


def time_runs(run: Callable[[], object], rounds: int, device: torch.device) -> dict[str, Any]:
    """Return the seconds of a run; the first two runs do not count."""
    seconds, stopwatch = [], devices.Stopwatch(device)
    for _ in range(rounds + 2):
        stopwatch.start()
        run()
        seconds.append(stopwatch.stop())
    return seconds_and_range(seconds[2:])


def of_step(arch: str, batch: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Return the seconds of a training step, and the peak of its bytes beyond those of importing."""
    from fastmlp import build_model
    from fastmlp.config import PretrainConfig
    from fastmlp.training.trainer import Trainer

    before = devices.peak_memory_bytes(device)
    images, labels = torch.randn(batch, 3 * 32 * 32, device=device), torch.randint(0, 10, (batch,), device=device)
    config = PretrainConfig(arch=arch, res=32, batch_size=batch, epochs="1000")
    trainer = Trainer(build_model(arch, 32, 10).to(device), config, 100)
    found = time_runs(lambda: trainer.step(images, labels), rounds, device)
    return {**found, "memory_bytes": devices.peak_memory_bytes(device) - before}


def of_threads(threads: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Return the seconds of an epoch through the loader, and the peak of the process's bytes."""
    from fastmlp import Loader, OrderOption
    from fastmlp.transforms.pipelines import raw_pipelines

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.beton"
        startup.write_sparse(path, 65_536)
        os.posix_fallocate(os.open(path, os.O_RDWR), 0, path.stat().st_size)
        before = devices.peak_memory_bytes(measure.CPU)
        loader = Loader(path, 4096, threads, OrderOption.RANDOM, pipelines=raw_pipelines(device))
        found = time_runs(lambda: measure.drain(loader), rounds, device)
        return {**found, "memory_bytes": devices.peak_memory_bytes(measure.CPU) - before}


def of_samples(samples: int, rounds: int) -> dict[str, Any]:
    """Return the seconds from the loader's constructor to its first batch, and the peak of anonymous bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.beton"
        startup.write_sparse(path, samples)
        seconds, memory = [], 0.0
        for _ in range(rounds + 1):  # the first compiles, if nothing did before
            command = [sys.executable, startup.__file__, "--child", "fastmlp", str(path), "False"]
            ended = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(ended.stdout.splitlines()[-1])
            seconds.append(found["first_batch_s"])
            memory = max(memory, float(found["anonymous_bytes"]))
    return {**seconds_and_range(seconds[1:]), "memory_bytes": memory}


def point(of: str, x: int, rounds: int, device: torch.device) -> dict[str, Any]:
    if of == "samples":
        return of_samples(x, rounds)
    if of == "threads":
        return of_threads(x, rounds, device)
    arch = {"batch": "B_2-Wi_256", "width": f"B_2-Wi_{x}", "depth": f"B_{x}-Wi_256"}[of]
    return of_step(arch, x if of == "batch" else 1024, rounds, device)


def slope(x: list[int], y: list[float]) -> float:
    """Return the slope of log y over log x, by least squares."""
    return float(np.polyfit(np.log(x), np.log(np.maximum(y, 1e-9)), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    parser.add_argument("--of", nargs="+", choices=POINTS, default=list(POINTS), help="(default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="steps or epochs that count (default: %(default)s)")
    parser.add_argument("--points", type=int, default=99, help="maximum number of points of each (default: all)")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    measure.add_device(parser)
    options = measure.parse(parser)
    if options.point:
        device = devices.select(options.device)
        print(json.dumps(point(options.point[0], int(options.point[1]), options.rounds, device)))
        return
    device = measure.select_device(options.device)
    for of in options.of:
        found: list[dict[str, Any]] = []
        rows: list[list[str]] = []
        places = np.linspace(0, len(POINTS[of]) - 1, min(options.points, len(POINTS[of])))
        chosen = [POINTS[of][round(place)] for place in places]
        for x in chosen:
            command = [sys.executable, __file__, "--rounds", str(options.rounds), "--device", options.device]
            command += ["--point", of, str(x)]
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found.append({"x": x, **json.loads(ended.stdout.splitlines()[-1])})
            seconds, memory = found[-1]["seconds"], found[-1]["memory_bytes"]
            rows.append([of, f"{x:,d}", f"{seconds:.4f} s", f"{memory / 1e6:.0f} MB"])
        measure.print_table("", rows)
        slopes = {}
        for what in ("seconds", "memory_bytes") if len(found) > 1 else ():
            slopes[what] = slope(chosen, [one[what] for one in found])
            verdict = ": worse than linear" if slopes[what] > WORSE else ""
            print(f"  {what} grow as {of} ^ {slopes[what]:.2f}{verdict}", file=sys.stderr)
        settings = {"of": of, **(measure.device_settings(device) if of != "samples" else {})}
        settings["noise"] = measure.noise([one["runs_s"] for one in found])
        measure.emit("growth", settings, {"points": found, "slopes": slopes})


if __name__ == "__main__":
    cli.run(main)
