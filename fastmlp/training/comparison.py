"""Runs side by side: settings that differ, scores with intervals, speed, curves, tests on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluation.evaluate import wilson_interval
from ..evaluation.html_page import Series, document, escape, html_table, line_chart, section
from ..evaluation.paired_test import PairedTest, compare_pairs
from ..evaluation.predictions import StoredPredictions
from .run_record import RunRecord, duration_text, number, read_run

NOT_COMPARED = ("run_dir", "resume", "budget")  # settings that say nothing about a run
Table = list[list[str]]


@dataclass(frozen=True)
class Comparison:
    """Runs and their names, which are those of their folders as far as that tells them apart."""

    runs: list[RunRecord]
    names: list[str]

    def scores(self) -> Table:
        """Return a row for each run: its state, scores and speed."""
        rows = [["run", "test top-1", "95 % interval", "test top-5", "images/sec", "training time", "state"]]
        for name, run in zip(self.names, self.runs, strict=True):
            end = run.end or {}
            top1, top5, rate, seconds = (
                number(end.get(key)) for key in ("eval_top1", "eval_top5", "images_per_s", "train_s")
            )
            interval = ""
            if top1 is not None and run.predictions:
                low, high = wilson_interval(top1, len(run.predictions.labels))
                interval = f"{low:.2%} to {high:.2%}"
            rows.append(
                [
                    name,
                    "" if top1 is None else f"{top1:.2%}",
                    interval,
                    "" if top5 is None else f"{top5:.2%}",
                    f"{rate:,.0f}" if rate else "",
                    "" if seconds is None else duration_text(seconds),
                    run.progress,
                ]
            )
        return rows

    def settings(self) -> Table:
        """Return a row for each setting, and each part of the environment, that differs; "" where a run lacks it."""
        names = dict.fromkeys(name for run in self.runs for name in run.settings if name not in NOT_COMPARED)
        values = {name: [run.settings.get(name, "") for run in self.runs] for name in names}
        for key in ("device", "cores", "commit", "python"):
            values[key if key != "device" else "trained on"] = [run.environment.get(key, "") for run in self.runs]
        for package in dict.fromkeys(package for run in self.runs for package in _versions(run)):
            values[package] = [_versions(run).get(package, "") for run in self.runs]
        rows = [[name, *map(str, row)] for name, row in values.items()]
        return [["", *self.names], *(row for row in rows if len(set(row[1:])) > 1)]

    def pairs(self) -> tuple[Table, list[str]]:
        """Return a row for each two runs that a paired test can be made of, and why there is none of the others."""
        rows = [["runs", "images", "only first right", "only second right", "second - first", "95 % interval", "p"]]
        reasons: list[str] = []
        for (first, a), (second, b) in combinations(zip(self.names, self.runs, strict=True), 2):
            test = paired_test(first, a, second, b)
            if isinstance(test, str):
                reasons.append(test)
            else:
                rows.append([f"{first}, {second}", *pair_cells(test)])
        return rows, list(dict.fromkeys(reasons))

    def curves(self) -> str:
        """Return the runs' curves, as HTML."""
        words = [run.evaluated_on for run in self.runs]
        what = " or ".join(dict.fromkeys(word for _, word in words))
        top1 = [run.curve("epoch", f"{kind}_top1") for run, (kind, _) in zip(self.runs, words, strict=True)]
        charts = (
            line_chart(
                f"Top-1, {what}",
                "epoch",
                self._series(top1),
                lambda share: f"{100 * share:.6g} %",
                lambda share: f"{share:.2%}",
            ),
            line_chart(
                "Training loss",
                "epoch",
                self._series([run.curve("epoch", "train_loss") for run in self.runs]),
                last_text=lambda value: f"{value:.4f}",
            ),
            line_chart(
                "Learning rate",
                "epoch",
                self._series([run.curve("step", "lr") or run.curve("epoch", "lr") for run in self.runs]),
                from_zero=True,
            ),
            line_chart(
                "Images/sec",
                "epoch",
                self._series([run.curve("epoch", "images_per_s") for run in self.runs]),
                from_zero=True,
            ),
        )
        return f'<div class="charts four">{"".join(charts)}</div>' if any(charts) else ""

    def _series(self, curves: Sequence[list[tuple[float, float]]]) -> list[Series]:
        return [Series(name, curve, n) for n, (name, curve) in enumerate(zip(self.names, curves, strict=True))]

    def page(self) -> str:
        """Return the page."""
        test = (
            "McNemar's exact test on the same images: those that only one of the two runs has right. The difference is "
            "second minus first, in points. p is not corrected for the number of pairs."
        )
        pairs, reasons = self.pairs()
        told = f"<p>{test}</p>{html_table(_escaped(pairs))}" if pairs[1:] else ""
        told += "".join(f"<p>No test: {escape(reason)}.</p>" for reason in reasons)
        settings, folders = self.settings(), [["run", "folder"]]
        folders += [[name, str(run.folder)] for name, run in zip(self.names, self.runs, strict=True)]
        parts = [
            f"<h1>{len(self.runs)} runs compared</h1>",
            section("Scores", html_table(_escaped(self.scores()))),
            section("Curves", self.curves()),
            section("Pairs", told),
            section("Settings that differ", html_table(_escaped(settings), kind="left") if settings[1:] else "none"),
            section("Folders", html_table(_escaped(folders), kind="left")),
        ]
        return document(f"{', '.join(self.names)}: runs of fastmlp", "".join(parts))

    def text(self) -> str:
        """Return the tables for a terminal."""
        pairs, reasons = self.pairs()
        tables = {"": self.scores(), "settings that differ": self.settings(), "the same images": pairs}
        parts = [f"{title}\n{text_table(table)}".strip("\n") for title, table in tables.items() if table[1:]]
        return "\n\n".join([*parts, *(f"no test: {reason}" for reason in reasons)])


def read_comparison(folders: Sequence[Path]) -> Comparison:
    """Read the runs. Raises ValueError for fewer than two or one given twice, and what read_run raises."""
    if len(folders) < 2:
        raise ValueError(f"{folders[0] if folders else 'nothing'} alone: give two runs or more to compare")
    resolved = [folder.resolve() for folder in folders]
    if twice := [str(folder) for n, folder in enumerate(folders) if resolved[n] in resolved[:n]]:
        raise ValueError(f"{twice[0]} is given twice")
    runs = [read_run(folder) for folder in folders]
    names = [folder.name for folder in resolved]
    return Comparison(
        runs,
        [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)],
    )


def paired_test(first: str, a: RunRecord, second: str, b: RunRecord) -> PairedTest | str:
    """Return the test of two runs with these names, or the reason why there is none."""
    for name, run in ((first, a), (second, b)):
        if run.end is None:
            return f"{name} is {run.progress}"
        if run.predictions is None:
            fix = f"python recipes/evaluate.py --cfg.weights={run.folder / 'final.pt'} --cfg.out={run.folder}"
            return f"{name} has no predictions.csv, which this writes: {fix}"
    mine, theirs = a.predictions, b.predictions
    assert mine and theirs
    if len(mine.labels) != len(theirs.labels):
        return f"{first} was evaluated on {len(mine.labels):,} images, {second} on {len(theirs.labels):,}"
    fingerprints = {found.fingerprint for found in (mine, theirs)} - {None}
    if len(fingerprints) > 1 or not np.array_equal(_label_names(mine), _label_names(theirs)):
        words = [
            f"{name} was evaluated on {found.beton or 'a beton that it does not name'}"
            for name, found in ((first, mine), (second, theirs))
        ]
        return f"{', '.join(words)}: these betons differ"
    return compare_pairs(mine.right, theirs.right)


def _label_names(found: StoredPredictions) -> np.ndarray:
    return np.array(found.classes, object)[found.labels]


def pair_cells(test: PairedTest) -> list[str]:
    """Return what a row of pairs says of a test, the difference in points."""
    low, high = test.interval
    return [
        f"{test.images:,}",
        f"{test.only_first:,}",
        f"{test.only_second:,}",
        f"{100 * test.difference:+.2f}",
        f"{100 * low:+.2f} to {100 * high:+.2f}",
        f"{test.p_value:.2g}",
    ]


def _versions(run: RunRecord) -> dict[str, Any]:
    versions = run.environment.get("versions")
    return versions if isinstance(versions, dict) else {}


def _escaped(table: Table) -> Table:
    return [[escape(cell) for cell in row] for row in table]


def text_table(table: Table) -> str:
    """Return a table in columns, the first one aligned left."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *others in table:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
