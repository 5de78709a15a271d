"""What the folder of a run tells: settings, log, environment, scores and predictions; of earlier versions, too."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config import FinetuneConfig, PretrainConfig, ProbeConfig, translate_fields
from ..evaluation.predictions import StoredPredictions, read_predictions
from .run_folder import stored_settings
from .run_log import read_lines

# What each line of an event has in every version.
NUMBERS = {
    "epoch": ("epoch", "step", "train_loss", "images_per_s"),
    "step": ("step", "loss", "images_per_s"),
    "end": ("train_s",),
}
# Settings that a logistic probe uses: it has no steps (transfer.fit_head). Its config.yaml has the others too.
LOGISTIC = {"weights", "arch", "dataset", "data_dir", "res", "train_fraction", "normalization", "method", "l2", "seed"}
LOGISTIC |= {"num_workers", "device", "run_dir", "resume"}
LARGEST = 1e18  # of any number in a log: times, steps and rates are far below


@dataclass(frozen=True)
class RunRecord:
    """A run, finished or not. Lines of the log are those that read_log returns."""

    folder: Path
    settings: dict[str, Any]  # under today's names
    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]
    end: dict[str, Any] | None  # None if the run is not finished
    environments: list[dict[str, Any]]  # of each start, from the first one on
    predictions: StoredPredictions | None

    @property
    def defaults(self) -> dict[str, Any]:
        """Today's default of each setting that the run's recipe has."""
        kind = PretrainConfig
        if "weights" in self.settings:
            kind = ProbeConfig if "method" in self.settings else FinetuneConfig
        return {field.name: field.default for field in fields(kind)}

    @property
    def environment(self) -> dict[str, Any]:
        """That of the last start, {} if it is missing."""
        return self.environments[-1] if self.environments else {}

    @cached_property
    def epochs_per_step(self) -> float | None:
        """None if no epoch line tells it."""
        last = self.epochs[-1] if self.epochs else {}
        return last["epoch"] / last["step"] if last.get("step") else None

    @property
    def evaluated_on(self) -> tuple[str, str]:
        """What the scores of epoch lines are of: the prefix of their keys, and the word for it."""
        return ("val", "validation") if any("val_top1" in line for line in self.epochs) else ("eval", "test")

    @property
    def progress(self) -> str:
        """How far the run came."""
        if self.end is not None:
            return "finished"
        done = max((line["step"] for line in [*self.steps, *self.epochs]), default=0)
        return f"unfinished, at step {done:,}"

    def curve(self, event: str, key: str) -> list[tuple[float, float]]:
        """Return (epoch, value) of each line "step" or "epoch" that has the value."""
        if event == "epoch":
            return [(line["epoch"], value) for line in self.epochs if (value := number(line.get(key))) is not None]
        if self.epochs_per_step is None:
            return []
        scale = self.epochs_per_step
        return [(scale * line["step"], value) for line in self.steps if (value := number(line.get(key))) is not None]

    def mean(self, key: str) -> float | None:
        """Return the mean of a value in the lines "step", weighted by their steps; None if no line has it."""
        total, weight, before = 0.0, 0, 0
        for line in self.steps:
            if (value := number(line.get(key))) is not None:
                total, weight = total + value * (line["step"] - before), weight + line["step"] - before
            before = line["step"]
        return total / weight if weight else None


def number(value: Any) -> float | None:
    """Return a finite number of a log line, None for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def duration_text(seconds: float) -> str:
    """Return a duration with its two largest units: 12.3 s, 4 min 5 s, 3 h 20 min, 2 d 4 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def read_run(folder: Path) -> RunRecord:
    """Read the folder of a run.

    Raises FileNotFoundError if it is none, ValueError or OSError naming the file if its settings, its log or its
    predictions are damaged. The last line of a log may be cut short, and other files may be missing.
    """
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} is no run: it has no config.yaml, expected a folder such as runs/...")
    lines = _checked_lines(folder) if (folder / "log.jsonl").exists() else []
    of_event = {event: [line for line in lines if line.get("event") == event] for event in NUMBERS}
    settings = translate_fields(stored_settings(folder))
    if settings.get("method") == "logistic":
        settings = {name: value for name, value in settings.items() if name in LOGISTIC}
    return RunRecord(
        folder,
        settings,
        of_event["step"],
        of_event["epoch"],
        of_event["end"][-1] if of_event["end"] else None,
        _environments(folder),
        read_predictions(folder),
    )


def _checked_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of the log; raise ValueError for damage that the log does not tell of itself ("lost")."""
    lines, path = read_lines(folder), folder / "log.jsonl"
    if lines and lines[-1] is None:  # a crash cut it short
        lines.pop()
    good = [line for line in lines if line is not None]
    told = sum(int(number(line.get("unreadable_lines")) or 0) for line in good if line.get("event") == "lost")
    if (damaged := len(lines) - len(good) - told) > 0:
        raise ValueError(f"{path} is damaged: {damaged} of its {len(lines)} lines cannot be read")
    for line in good:
        wanted: Sequence[str] = NUMBERS.get(str(line.get("event")), ())
        if wrong := [key for key in wanted if type(line.get(key)) not in (int, float)]:
            raise ValueError(f"{path} is damaged: a line {line['event']!r} has no {' and no '.join(wrong)}")
        for key, value in line.items():
            if type(value) not in (int, float):
                continue
            is_share = key.endswith(("top1", "top5"))
            if (is_share and (value < 0 or value > 1)) or (abs(value) > LARGEST and abs(value) != math.inf):
                raise ValueError(f"{path} is damaged: {key} of a line {line['event']!r} cannot be {str(value)[:20]}")
    return good


def _environments(folder: Path) -> list[dict[str, Any]]:
    """Return the starts' environments in order, without damaged ones: nothing else depends on them."""
    numbered = []
    for path in folder.glob("environment*.json"):
        if found := re.fullmatch(r"environment(\d*)", path.stem):
            numbered.append((int(found[1] or 0), path))
    environments = []
    for _, path in sorted(numbered):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            environments.append(content)
    return environments
