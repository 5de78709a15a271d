"""Speed of a study's runs against what fastmlp.cost predicts: times of longer or other runs from both."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..arch import parse_arch
from ..cost.budget import TrainingJob, predict
from ..cost.hardware import Machine
from .candidates import CPU_MICRO_BATCH


def predicted_s(row: Mapping[str, Any], machine: Machine, num_classes: int, res: int, optimizer: str) -> float:
    """Return the seconds of training that fastmlp.cost predicts for a study's row, if it has the machine to itself."""
    micro_batch_size = min(CPU_MICRO_BATCH, row["batch_size"]) if machine.link_bytes_per_s is None else 0
    job = TrainingJob(
        parse_arch(row["arch"]), res, num_classes, row["samples"], row["batch_size"], 1.0, optimizer, micro_batch_size
    )
    return row["images_seen"] / predict(job, machine).images_per_s


def slowdown(
    rows: Sequence[Mapping[str, Any]], machine: Machine, num_classes: int, res: int, optimizer: str
) -> float | None:
    """Return the median of measured over predicted seconds of the rows that have a time, None if none has."""
    timed = [row for row in rows if row.get("train_s")]
    ratios = [row["train_s"] / predicted_s(row, machine, num_classes, res, optimizer) for row in timed]
    return statistics.median(ratios) if ratios else None


def extrapolated_s(row: Mapping[str, Any], fitted: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the seconds of a row's training by the median images/sec of fitted rows of its architecture and batch.

    None if there is none.
    """
    rates = [
        one["images_seen"] / one["train_s"]
        for one in fitted
        if one.get("train_s") and (one["arch"], one["batch_size"]) == (row["arch"], row["batch_size"])
    ]
    return row["images_seen"] / statistics.median(rates) if rates else None


def ran_here(run: Path, device: str, cores: int) -> bool:
    """Return whether a run's environment.json names this device and number of cores, all of which were the run's."""
    try:
        environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
        on_all_cores = device != "CPU" or environment["threads"] == cores
        return (environment["device"], environment["cores"]) == (device, cores) and on_all_cores
    except (OSError, ValueError, KeyError, TypeError):
        return False
