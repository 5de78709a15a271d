"""How every benchmark measures and prints: candidates take turns, the first round does not count, medians and ranges.

The command of each benchmark prints tables to stderr. One JSON line per case goes to stdout if that is no terminal, or
with --json. In the JSON lines, "least" and "most" are the slowest and the fastest run that count, and "noise" is how
much the runs of a candidate scatter.

On an accelerator, runs are timed by its events, and a run ends when the device has finished what was queued.
"""

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fastmlp import device as devices
from fastmlp.worker_pool import num_cores

CPU = torch.device("cpu")
PAUSE_S = 0.02  # before each run: the OpenMP threads of the previous run still spin on the cores for some milliseconds


_json_lines = False  # whether --json was given


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add the option that all benchmarks have, --json, and return the others of the command line.

    Raises ValueError for a count below 1.
    """
    global _json_lines
    parser.add_argument(
        "--json", action="store_true", help="print the JSON lines to a terminal, too (elsewhere they always are)"
    )
    options = parser.parse_args()
    for name in ("rounds", "images", "samples", "views", "classes", "res", "points"):
        number = getattr(options, name, None)
        if isinstance(number, int) and number < 1:
            raise ValueError(f"--{name} {number}: expected at least 1")
    _json_lines = options.json
    del options.json
    return options


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device", default="auto", metavar="DEVICE", help="auto, cpu or cuda; auto is the GPU if there is one"
    )


def select_device(name: str) -> torch.device:
    """Return the device of --device, and print to stderr which one it is and why. Raises ValueError as `select`."""
    device = devices.select(name)
    print(devices.explain_choice(name, device), file=sys.stderr)
    return device


def device_settings(device: torch.device) -> dict[str, str]:
    """Return what a JSON line says about the device: nothing for the CPU, so that it compares with earlier lines."""
    if device.type == "cpu":
        return {}
    return {"device": devices.describe(device), "precision": devices.precision(device)}


def sizes(option: str, text: str, form: str) -> list[int]:
    """Return the numbers of an option such as "64:2048", whose form is "RES:BATCH".

    Raises ValueError if there are fewer or more, or one is not a positive integer.
    """
    parts = text.split(":")
    if len(parts) != len(form.split(":")) or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"{option} {text}: expected {form}, of positive integers")
    return [int(part) for part in parts]


def alternate(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int = 7,
    device: torch.device = CPU,  # that the candidates work on
) -> dict[str, list[float]]:
    """Return the seconds of each candidate's runs: `rounds` of them, after one that does not count.

    Raises ValueError if there is no round.
    """
    if rounds < 1:
        raise ValueError(f"--rounds {rounds}: expected at least 1")
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    stopwatch = devices.Stopwatch(device)
    for number in range(rounds + 1):
        for name, run in candidates.items():
            time.sleep(PAUSE_S)
            stopwatch.start()
            run()
            taken = stopwatch.stop()
            if number:
                seconds[name].append(taken)
    return seconds


def summary(seconds: list[float], images: int) -> dict[str, Any]:
    """Return the median images/sec, the slowest and the fastest run, and every run's seconds."""
    rates = [images / max(s, 1e-9) for s in seconds]
    return {
        "images_per_s": statistics.median(rates),
        "least": min(rates),
        "most": max(rates),
        "seconds": seconds,
    }


def rates(
    candidates: Mapping[str, Callable[[], object]],
    images: int,  # of a run
    rounds: int,
    device: torch.device = CPU,  # that the candidates work on
) -> dict[str, dict[str, Any]]:
    """Return each candidate's summary, after running them in turns."""
    return {name: summary(s, images) for name, s in alternate(candidates, rounds, device).items()}


def noise(runs: Iterable[Sequence[float]]) -> float | None:
    """Return the pooled standard deviation of the candidates' rates, each as a share of its median.

    None if no candidate has two runs. Rates, and not seconds: a run that took three times as long would count 200 %.
    """
    repeated = [seconds for seconds in runs if len(seconds) > 1]
    squares = [(statistics.median(seconds) / max(s, 1e-9) - 1) ** 2 for seconds in repeated for s in seconds]
    return math.sqrt(sum(squares) / (len(squares) - len(repeated))) if repeated else None


def runs_of(results: Mapping[str, Any]) -> list[Sequence[float]]:
    """Return the seconds of every candidate of a JSON line that has them."""
    return [r["seconds"] for r in results.values() if isinstance(r, Mapping) and isinstance(r.get("seconds"), list)]


def add_shares(results: Mapping[str, dict[str, Any]], key: str, images_per_s: float) -> None:
    """Set `key` of each result to its share of the rate of a limit or a peer."""
    for result in results.values():
        result[key] = result["images_per_s"] / images_per_s


def drain(batches: Iterable[object]) -> None:
    """Read one epoch and do nothing with it."""
    for _ in batches:
        pass


def memory_bytes(*fields: str) -> int:
    """Return the sum of these fields of /proc/self/status, such as RssAnon."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(status[name].split()[0]) for name in fields) * 1024


class PeakMemory:
    """Context manager: a thread samples this process's memory; `bytes` is the peak beyond what it was at entry."""

    def __init__(self, *fields: str, every_s: float):
        self.fields, self.every_s, self.bytes = fields, every_s, 0

    def __enter__(self) -> "PeakMemory":
        self._before, self._done = memory_bytes(*self.fields), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(self.every_s):
            self.bytes = max(self.bytes, memory_bytes(*self.fields) - self._before)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def print_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print to stderr a title, if there is one, and rows of cells; the first column is aligned left, the rest right."""
    if title:
        print(f"\n{title}", file=sys.stderr)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        aligned = [name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))]
        print("  " + "  ".join(aligned).rstrip(), file=sys.stderr)


def print_rates(
    title: str,
    results: Mapping[str, Mapping[str, Any]],
    share: str = "",  # the results' key of their share, e.g. "share_of_gather"
    of: str = "",  # and what it is a share of, e.g. "the gather"
    more: Callable[[Mapping[str, Any]], str] | None = None,  # a last cell, made of a result
) -> None:
    """Print the results of `rates` as a table on stderr."""
    rows = []
    for name, r in results.items():
        row = [name, f"{r['images_per_s']:,.0f} images/sec", f"({r['least']:,.0f} to {r['most']:,.0f})"]
        row += [f"{r[share]:.3f} of {of}"] if share else []
        rows.append(row + ([more(r)] if more else []))
    print_table(title, rows)


def machine() -> dict[str, Any]:
    """Return what a figure depends on: processor, cores, threads, versions, commit, date."""
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
    """Print one JSON line to stdout, unless that is a terminal and --json is not given."""
    if _json_lines or not sys.stdout.isatty():
        line = {"benchmark": benchmark, "noise": noise(runs_of(results)), **settings, "results": results}
        print(json.dumps({**line, "machine": machine()}))
