"""Comparison of a report's figures with those of an earlier report, beyond the noise of both.

A table has its own noise: how much the runs of its candidates scatter. The machine's noise is how much the same matrix
products scatter that are timed between the benchmarks.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measure
from report_suite import SUITE

MIN_CHANGE = 0.05  # however low the noise
NOT_SETTINGS = {
    "results",
    "machine",
    "script",
    "command",
    "took_s",
    "noise",
    "machine_noise",
    "limit",
    "compile_s",
    "latency_s",
    "best_batch",
    "folder",
    "rounds",
    "micro_batch",
    "threads",
    "jpeg_bytes",
}

# What a benchmark prints for a case, with "script" (its name in SUITE), "command", "took_s" and
# "machine_noise" added. Reports of before 2026-11-28 have the machine's noise as "noise", and no other.
Line = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """A candidate's median against that of the baseline."""

    ratio: float  # above 1 if it is faster now
    verdict: str  # "slower", "faster", or "" if the difference is within the noise


Changes = dict[tuple[str, str], Change]  # (key of the line, name of the candidate)


def relative_spread(values: Sequence[float]) -> float:
    """Return the robust standard deviation (from the median absolute deviation) as a share of the median."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values) / middle


def measured(line: Line) -> dict[str, dict[str, Any]]:
    """Return the candidates of a line that were measured: name -> summary."""
    return {
        name: r for name, r in line["results"].items() if isinstance(r, dict) and {"images_per_s", "least"} <= set(r)
    }


def machine_noise(line: Line) -> float:
    """Return the noise of the machine while the report was made."""
    return line["machine_noise"] if "machine_noise" in line else line["noise"]


def table_noise(line: Line) -> float | None:
    """Return the noise of the line's own runs; None if nothing was repeated."""
    return line["noise"] if "machine_noise" in line else measure.noise(measure.runs_of(line["results"]))


def key(line: Line) -> str:
    """Return the benchmark and its settings in words: what makes lines of two reports the same case."""
    return ", ".join(f"{v}" if k == "benchmark" else f"{k} {v}" for k, v in line.items() if k not in NOT_SETTINGS)


def limit_of(line: Line) -> dict[str, Any] | None:
    """Return the best of the candidates that are the limit of the others; None if the benchmark has no limit."""
    if line.get("limit") in measured(line):  # the benchmark knows which of several binds
        return measured(line)[line["limit"]]
    bound = SUITE[line["script"]].limit
    limits = [r for name, r in measured(line).items() if bound and bound in name]
    return max(limits, key=lambda r: r["images_per_s"], default=None)


def apart(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Return whether the ranges of two candidates' repeats do not overlap."""
    return a["most"] < b["least"] or b["most"] < a["least"]


def compare(now: list[Line], before: list[Line]) -> Changes:
    """Return the change of each candidate that both reports have.

    A difference counts if the repeats of the two runs do not overlap, and the ratio of the medians is beyond three
    times the noise of both tables and of both machines. If the limit moved too, the ratio must also be beyond the
    noise as a share of the limit: a slower machine is no change.
    """
    lines_before = {key(line): line for line in before}
    changes: Changes = {}
    for line in now:
        if (line_before := lines_before.get(key(line))) is None:
            continue
        noises = [noise for one in (line, line_before) for noise in (table_noise(one) or 0.0, machine_noise(one))]
        threshold = max(MIN_CHANGE, 3 * max(noises))
        limit, limit_before = limit_of(line), limit_of(line_before)
        moved = 1.0
        if limit and limit_before and apart(limit, limit_before):
            moved = limit["images_per_s"] / limit_before["images_per_s"]
        for name, r in measured(line).items():
            if (r_before := measured(line_before).get(name)) is None:
                continue
            ratio = r["images_per_s"] / r_before["images_per_s"]
            slower, faster = max(ratio, ratio / moved) < 1 - threshold, min(ratio, ratio / moved) > 1 + threshold
            verdict = "" if not apart(r, r_before) else "slower" if slower else "faster" if faster else ""
            changes[key(line), name] = Change(ratio, verdict)
    return changes


def read(folder: Path) -> list[Line]:
    """Return the lines of an earlier report. Raises FileNotFoundError if the folder has no results.jsonl."""
    path = folder / "results.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: name the folder of another report")
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
