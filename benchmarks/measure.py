"""How every benchmark measures: candidates take turns, the first round does not count, medians come with ranges."""

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from fastmlp.worker_pool import num_cores

PAUSE_S = 0.02  # before each run: the last one's OpenMP threads still spin on the cores for some milliseconds


def alternate(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int = 7,
) -> dict[str, list[float]]:
    """Seconds of each candidate's runs, `rounds` of them after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            time.sleep(PAUSE_S)
            started = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def summary(seconds: list[float], images: int) -> dict[str, Any]:
    """Median images/sec, the slowest and the fastest run, and every run's seconds."""
    rates = [images / s for s in seconds]
    return {
        "images_per_s": statistics.median(rates),
        "least": min(rates),
        "most": max(rates),
        "seconds": seconds,
    }


def machine() -> dict[str, Any]:
    """What a figure depends on."""
    import torch

    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    versions = {name: metadata.version(name) for name in ("torch", "ffcv", "numba", "numpy")}
    return {
        "cpu": cpu,
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "commit": commit,
        **versions,
        "date": time.strftime("%Y-%m-%d"),
    }


def emit(benchmark: str, settings: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """One JSON line on stdout."""
    print(json.dumps({"benchmark": benchmark, **settings, "results": results, "machine": machine()}))
