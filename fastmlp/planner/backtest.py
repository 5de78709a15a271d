"""Backtest of the planner on a study: its largest runs predicted from its smaller ones, and its choice among them.

It says how far predictions were off within the study. How far they are off beyond it no backtest can say.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .data_law import Cell, DataLaw, cells_of, fit_data_law
from .speeds import extrapolated_s

FACTOR = 4.0  # compute of a held-out cell over the largest of the fitted ones, about
TOLERANCE = 1.1  # sizes and lengths of a study are on no exact grid
SMALL = 0.1  # share of the largest compute below which the planner's choice is fitted
MAX_HELD_OUT = 10
SPLITS = 10
RESAMPLES = 60
ONE_POINT = 0.01

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class HeldOut:
    """A cell that was predicted from runs of a quarter of its compute or less. Errors 0-1, times in seconds."""

    cell: Cell
    factor: float  # its compute over the largest of the fitted ones
    predicted: float
    interval: tuple[float, float]
    seconds: float | None  # measured, mean over seeds
    predicted_seconds: float | None
    is_by_cost: bool  # its architecture was not among the fitted runs: the time is by fastmlp.cost

    @property
    def off(self) -> float:
        return abs(self.predicted - self.cell.error)

    @property
    def is_covered(self) -> bool:
        return self.interval[0] <= self.cell.error <= self.interval[1]


@dataclass(frozen=True)
class Choice:
    """What the planner chose among a study's runs, fitted to some seeds of those below a tenth of the compute."""

    chosen: Cell
    best: Cell
    interval: tuple[float, float]

    @property
    def regret(self) -> float:
        return self.chosen.error - self.best.error

    @property
    def is_covered(self) -> bool:
        return self.interval[0] <= self.chosen.error <= self.interval[1]


def _fit(cells: Sequence[Cell]) -> DataLaw | ValueError:
    try:
        return fit_data_law(cells, RESAMPLES)
    except ValueError as error:
        return error


def _predict(law: DataLaw, cell: Cell) -> tuple[float, tuple[float, float]]:
    sizes = (cell.parameters, cell.images_seen, cell.samples)
    low, high = law.interval(*sizes, seeds=len(cell.errors))
    return float(law.predict(*sizes)), (float(low[0]), float(high[0]))


def hold_out(
    rows: Rows,
    cost_s: Callable[[Mapping[str, Any], Rows], float | None],  # a row's seconds by cost, from the fitted rows
) -> tuple[list[HeldOut], str]:
    """Return up to 10 cells of the most compute, each predicted from those of a quarter of its compute or less.

    The text is the reason why there are none, or "".
    """
    cells, found, reason = cells_of(rows), list[HeldOut](), "no run has four times the compute of another"
    laws: dict[int, DataLaw | ValueError] = {}
    for cell in reversed(cells):
        fitted = [one for one in cells if one.flop <= cell.flop / FACTOR * TOLERANCE]
        if len(found) == MAX_HELD_OUT or not fitted:
            break
        law = laws.setdefault(len(fitted), _fit(fitted)) if len(fitted) not in laws else laws[len(fitted)]
        if isinstance(law, ValueError):
            reason = str(law)
            break
        own = [row for row in rows if _is_of(row, cell)]
        small = [row for row in rows if row["flop"] <= fitted[-1].flop]
        predicted_s = extrapolated_s(own[0], small)
        times = [row["train_s"] for row in own if row.get("train_s")]
        found.append(
            HeldOut(
                cell,
                cell.flop / fitted[-1].flop,
                *_predict(law, cell),
                statistics.mean(times) if times else None,
                predicted_s if predicted_s is not None else cost_s(own[0], small),
                predicted_s is None,
            )
        )
    return found, "" if found else reason


def _is_of(row: Mapping[str, Any], cell: Cell) -> bool:
    own = (row["arch"], row["images_seen"], row["samples"], row["flop"])
    return own == (cell.arch, cell.images_seen, cell.samples, cell.flop)


def choose(rows: Rows) -> tuple[list[Choice], str]:
    """Return the planner's choice for the study's largest compute in 10 splits by seed, and why there are none.

    Each split fits half of the seeds (at least one) of each cell below a tenth of the largest compute. The choice is
    among the cells above it, none of which was fitted. With one seed there is one split.
    """
    cells = cells_of(rows)
    limit = SMALL * max(cell.flop for cell in cells)
    small, large = [cell for cell in cells if cell.flop < limit], [cell for cell in cells if cell.flop >= limit]
    rng, found, reason = np.random.default_rng(0), list[Choice](), ""
    best = min(large, key=lambda cell: cell.error)
    seen = set[str]()
    for _ in range(5 * SPLITS):
        half = [sorted(rng.permutation(len(cell.errors))[: (len(cell.errors) + 1) // 2].tolist()) for cell in small]
        if len(seen) == SPLITS or str(half) in seen:
            continue
        seen.add(str(half))
        law = _fit(
            [
                Cell(cell.arch, cell.parameters, cell.images_seen, cell.samples, cell.flop, errors)
                for cell, which in zip(small, half, strict=True)
                for errors in [tuple(cell.errors[i] for i in which)]
            ]
        )
        if isinstance(law, ValueError):
            reason = f"below a tenth of the largest compute: {law}"
            continue
        predictions = {cell: _predict(law, cell) for cell in large}
        chosen = min(large, key=lambda cell: predictions[cell][0])
        found.append(Choice(chosen, best, predictions[chosen][1]))
    return found, "" if found else reason


def describe_held_out(found: Sequence[HeldOut]) -> str:
    """Return the table of the held-out cells and the medians below it."""
    lines = [
        "| held out | images seen (unique) | FLOP | times the fitted | error [%] | predicted, 95 % interval | "
        "off [points] | seconds | predicted |",
        "|---" * 9 + "|",
    ]
    for one in found:
        cell, (low, high) = one.cell, one.interval
        seconds = "-" if one.seconds is None else f"{one.seconds:.3g}"
        predicted_s = (
            "-" if one.predicted_seconds is None else f"{one.predicted_seconds:.3g}" + " (cost)" * one.is_by_cost
        )
        lines.append(
            f"| {cell.arch} | {cell.images_seen:,} ({cell.samples:,}) | {cell.flop:.2e} | {one.factor:.1f} | "
            f"{100 * cell.error:.2f} | {100 * one.predicted:.2f}, {100 * low:.2f} to {100 * high:.2f} | "
            f"{100 * one.off:.2f} | {seconds} | {predicted_s} |"
        )
    off = [100 * one.off for one in found]
    lines += [
        "",
        f"- errors of {len(found)} held-out cells (means over seeds): off by {statistics.median(off):.2f} points "
        f"(median), at most {max(off):.2f}; the interval contained "
        f"{sum(one.is_covered for one in found)} of {len(found)}",
    ]
    for is_by_cost, how in ((False, "the speed of smaller runs of the architecture"), (True, "fastmlp.cost")):
        times = [
            abs(one.predicted_seconds / one.seconds - 1)
            for one in found
            if one.seconds and one.predicted_seconds and one.is_by_cost == is_by_cost
        ]
        if times:
            lines.append(f"- times of {len(times)} of them, by {how}: off by {statistics.median(times):.0%} (median)")
    return "\n".join(lines)


def describe_choices(found: Sequence[Choice]) -> str:
    """Return the lines on the planner's choices."""
    good, covered = sum(one.regret <= ONE_POINT for one in found), sum(one.is_covered for one in found)
    worst = max(found, key=lambda one: one.regret)
    lines = [
        f"- fitted below a tenth of the largest compute, {len(found)} splits by seed: the choice is within 1 point of "
        f"the best run, {worst.best.arch} on {worst.best.samples:,} images ({100 * worst.best.error:.2f} %), in {good} "
        f"of {len(found)}; its interval contains the measured error in {covered} of {len(found)}",
        f"- the worst choice, {worst.chosen.arch} on {worst.chosen.samples:,} images, is "
        f"{100 * worst.regret:.2f} points behind the best",
    ]
    if len(found) == 1:
        lines.append("- there is one split only: the runs have one seed")
    return "\n".join(lines)
