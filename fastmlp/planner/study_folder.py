"""Finished runs of a study's folder, for what is computed from them later. Needs no torch.

recipes/scaling.py writes results.jsonl, a line for each run, and a folder for each run with its settings and log.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import RENAMED_FIELDS
from ..yaml_file import read_yaml

KEYS = ("seed", "arch", "batch_size", "parameters", "samples", "images_seen", "flop", "error", "run")
# What the runs of one law may differ in: it knows these, or they follow from them.
OF_THE_LAW = {"arch", "train_fraction", "epochs", "seed", "run_dir", "data_dir", "cooldown", "warmup", "eval_every"}
OF_THE_MACHINE = {"num_workers", "micro_batch_size", "checkpoint_minutes", "checkpoint_every", "keep_checkpoints"}
OF_THE_MACHINE |= {"resume", "budget", "log_every", "device", "compile"}


@dataclass(frozen=True)
class StudyRuns:
    """Rows of a study's finished runs, all on one data set at one resolution; those that diverged are left out."""

    folder: Path
    dataset: str
    res: int
    rows: list[dict[str, Any]]
    diverged: int
    differing: dict[str, list[Any]]  # other settings that the runs differ in, with their values
    settings: dict[str, Any]  # of the run of the most compute

    def run_folder(self, row: Mapping[str, Any]) -> Path:
        return self.folder / row["run"]


def read_study_runs(folder: Path) -> StudyRuns:
    """Read the finished runs of a study.

    Raises FileNotFoundError for a folder without results, and ValueError for damaged ones, for runs on different data
    sets or resolutions, and if none is finished.
    """
    path = folder / "results.jsonl"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: expected the folder of a study, which python recipes/scaling.py STUDY.yaml writes"
        )
    rows = [_row(line, path, n + 1) for n, line in enumerate(path.read_text(encoding="utf-8").splitlines()) if line]
    finished = [row for row in rows if row["error"] < 1]
    if not finished:
        raise ValueError(f"{path} has no run that ended: run python recipes/scaling.py STUDY.yaml again")
    settings = {row["run"]: _settings(folder / row["run"]) for row in finished}
    sets = {(one["dataset"], one["res"]) for one in settings.values()}
    if len(sets) > 1:
        named = ", ".join(f"{name} at {res} px" for name, res in sorted(sets))
        raise ValueError(f"{folder} has runs on different data ({named}): a law needs runs on one data set")
    ((dataset, res),) = sets
    longest = max(finished, key=lambda row: row["flop"])
    return StudyRuns(
        folder, dataset, res, finished, len(rows) - len(finished), _differing(settings), settings[longest["run"]]
    )


def _row(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
        missing = [key for key in KEYS if key not in row or not _is_right(key, row[key])]
    except (ValueError, TypeError, RecursionError):
        row, missing = None, list(KEYS)
    if not isinstance(row, dict) or missing:
        raise ValueError(
            f"{path}, line {number} is no run (it lacks {', '.join(missing)}, or these are not numbers): "
            "write it again with python recipes/scaling.py STUDY.yaml --results"
        )
    if "/" in str(row["run"]) or str(row["run"]) in ("", ".", ".."):
        raise ValueError(f"{path}, line {number}: run {row['run']!r} is no folder of this study")
    return row


def _is_right(key: str, value: Any) -> bool:
    if key in ("arch", "run"):
        return isinstance(value, str)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _settings(run: Path) -> dict[str, Any]:
    """Return the settings of a run's config.yaml, by their names of today."""
    content = read_yaml(run / "config.yaml")
    settings = content.get("cfg") if isinstance(content, dict) else None
    if not isinstance(settings, dict) or not {"dataset", "res"} <= set(settings):
        raise ValueError(
            f"{run / 'config.yaml'} does not hold the settings of a run: expected dataset and res below cfg"
        )
    return {RENAMED_FIELDS.get(str(name), str(name)): value for name, value in settings.items()}


def _differing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the settings besides those of the law and of the machine that differ between runs."""
    names = {name for one in settings.values() for name in one} - OF_THE_LAW - OF_THE_MACHINE
    values = {name: sorted({str(one.get(name)) for one in settings.values()}) for name in sorted(names)}
    return {name: found for name, found in values.items() if len(found) > 1}
