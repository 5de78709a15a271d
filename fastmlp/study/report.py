"""Report of a study: a row for each run, a table with intervals, a verdict on each claim of the paper, pictures."""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..atomic import write_atomic
from ..training.run_log import read_log
from . import figures
from .plan import PlannedRun, Study
from .scaling_laws import (
    ComputeOptimal,
    Curve,
    PowerLaw,
    check_falls,
    compute_optimal,
    fit_curve,
    fit_error_law,
    mean_interval,
    pareto_front,
)

T = TypeVar("T")


def difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Return mean(a) - mean(b) and its 95 % interval by Welch's t-test, which assumes that the two are independent."""
    from scipy.stats import ttest_ind

    low, high = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return statistics.mean(a) - statistics.mean(b), float(low), float(high)


def rows(study: Study, runs: Sequence[PlannedRun]) -> list[dict[str, Any]]:
    """Return a row for each finished run: its metadata, top-1 and error (0-1), seconds of training, folder."""
    found = []
    for run in runs:
        if (top1 := run.top1(study.probe)) is not None:
            ends = read_log(run.folder, "end") if (run.folder / "log.jsonl").exists() else []
            train_s = ends[-1]["train_s"] if ends else None  # None: it diverged
            found.append(
                {**run.metadata(), "top1": top1, "error": 1 - top1, "train_s": train_s, "run": run.folder.name}
            )
    return found


def by_arm(found: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each arm, in the order of the rows."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        arms.setdefault(row["arm"], []).append(row)
    return arms


def verdict(
    pair: str,  # "A > B": the paper's order of two arms
    arms: dict[str, list[dict[str, Any]]],
) -> str:
    """Return whether the runs agree with the paper, differ from it, or cannot tell, at 95 %."""
    better, worse = pair.split(" > ")
    scores = [[100 * row["top1"] for row in arms.get(arm, [])] for arm in (better, worse)]
    if min(map(len, scores)) < 2:
        return f"{pair}: cannot tell, fewer than 2 seeds"
    mean, low, high = difference(*scores)
    word = "agrees" if low > 0 else "differs" if high < 0 else "cannot tell"
    return f"{pair}: {word} ({mean:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f})"


def table(study: Study, found: Sequence[dict[str, Any]], searches: Sequence[PlannedRun] = ()) -> str:
    """Return the Markdown table of the arms: mean top-1 with its interval, the choice of the search, a run's cost."""
    arms, at_edge = by_arm(found), _at_the_edge(found, searches)
    lines = [
        f"| {study.title} | top-1 [%] | seeds | chosen | parameters | FLOP of a run |",
        "|---|---|---|---|---|---|",
    ]
    searched = {name for run in searches for name in run.searched}
    for arm, of_arm in arms.items():
        mean, half = mean_interval([100 * row["top1"] for row in of_arm])
        spread = "" if math.isnan(half) else f" ± {half:.2f}"
        chosen = ", ".join(f"{name} {of_arm[0][name]}" for name in sorted(searched & set(of_arm[0])))
        lines.append(
            f"| {arm} | {mean:.2f}{spread} | {len(of_arm)} | {chosen}{' (edge)' if arm in at_edge else ''} | "
            f"{of_arm[0]['parameters']:,} | {of_arm[0]['flop']:.2g} |"
        )
    lines += ["", f"The paper: {study.paper}"] * bool(study.paper)
    lines += ["", *(f"- {verdict(pair, arms)}" for pair in study.compare)] * bool(study.compare)
    return "\n".join(lines) + "\n"


def _at_the_edge(found: Sequence[dict[str, Any]], searches: Sequence[PlannedRun]) -> set[str]:
    """Return the arms whose search chose its smallest or largest number, beyond which there may be a better one."""
    tried: dict[tuple[str, str], list[float]] = {}
    for run in searches:
        for name, value in run.searched.items():
            if isinstance(value, int | float):
                tried.setdefault((run.arm, name), []).append(value)
    return {
        row["arm"]
        for row in found
        for (arm, name), values in tried.items()
        if arm == row["arm"] and row[name] in (min(values), max(values))
    }


def over_seeds(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each arm with the mean error of its seeds; the best of several seeds is only the luckiest."""
    return [
        {**of_arm[0], "error": statistics.mean(row["error"] for row in of_arm)} for of_arm in by_arm(found).values()
    ]


@dataclass(frozen=True)
class ScalingFits:
    """The paper's fits on a study's means over seeds; where a fit is not possible, its ValueError is stored instead."""

    means: list[dict[str, Any]]  # a row for each arm
    front: np.ndarray  # (front,) int, indices of the means
    curve: Curve | ValueError
    optimal: ComputeOptimal | ValueError
    longest: str  # length of the runs of the error laws
    error_laws: dict[str, PowerLaw | ValueError]  # by "parameters" and by "samples"


def fit_scaling(found: Sequence[dict[str, Any]]) -> ScalingFits:
    """Fit E(C), P*, N* and the error laws to the rows of finished runs."""
    means = over_seeds(found)
    compute, error = [mean["flop"] for mean in means], [mean["error"] for mean in means]
    front = pareto_front(compute, error)

    def fit_front() -> Curve:
        check_falls(compute, error)
        return fit_curve([compute[i] for i in front], [error[i] for i in front])

    def fit_optimal() -> ComputeOptimal:
        check_falls(compute, error)
        return compute_optimal(means)

    longest = max((mean["epochs"], mean["length"]) for mean in means)[1]
    laws: dict[str, PowerLaw | ValueError] = {}
    for along, other in (("parameters", "samples"), ("samples", "parameters")):
        largest = max(mean[other] for mean in means)
        rows_at_largest = [mean for mean in means if mean["length"] == longest and mean[other] == largest]
        laws[along] = _result_or_reason(partial(fit_error_law, rows_at_largest, along))
    return ScalingFits(means, front, _result_or_reason(fit_front), _result_or_reason(fit_optimal), longest, laws)


def _result_or_reason(function: Callable[[], T]) -> T | ValueError:
    """Return the function's result, or the ValueError that it raises."""
    try:
        return function()
    except ValueError as reason:
        return reason


def draw_scaling(fits: ScalingFits, out: Path) -> dict[str, ValueError]:
    """Draw compute-optimal and error-compute in `out`. Return the reasons of those that cannot be drawn."""
    curve = None if isinstance(fits.curve, ValueError) else fits.curve
    drawings: dict[str, Callable[[], object]] = {
        "error-compute": partial(figures.error_against_compute, fits.means, out / "error-compute", curve)
    }
    if not isinstance(fits.optimal, ValueError):
        drawings["compute-optimal"] = partial(figures.compute_optimal_sizes, fits.optimal, out / "compute-optimal")
    results = {name: _result_or_reason(draw) for name, draw in drawings.items()}
    return {name: result for name, result in results.items() if isinstance(result, ValueError)}


def describe_scaling(fits: ScalingFits, not_drawn: dict[str, ValueError]) -> str:
    """Return the fits, or the reasons why there are none, as a list in Markdown."""
    lines = [f"Pareto front: {len(fits.front)} of {len(fits.means)} (means over seeds)"]
    if isinstance(fits.curve, ValueError):
        lines.append(f"E(C): no fit: {fits.curve}")
    else:
        lines.append("E(C) = a (b + C)^-alpha + e_inf on the front: " + "; ".join(fits.curve.describe().splitlines()))
    if isinstance(fits.optimal, ValueError):
        lines.append(f"P* and N*: no fit: {fits.optimal}")
    else:
        laws = ", ".join(
            f"{name}* ~ C^{law.exponent:.2f} (95 % interval {law.interval[0]:.2f} to {law.interval[1]:.2f})"
            for name, law in (("P", fits.optimal.p), ("N", fits.optimal.n))
        )
        lines.append(f"compute-optimal {laws}; the paper: 0.35 and 0.65")
    for along, other, letter in (("parameters", "samples", "P"), ("samples", "parameters", "N")):
        law = fits.error_laws[along]
        if isinstance(law, ValueError):
            lines.append(f"error by {along}: no fit: {law}")
        else:
            lines.append(
                f"error ~ {letter}^{law.exponent:.2f} ({law.interval[0]:.2f} to {law.interval[1]:.2f}) at the "
                f"most {other}, {fits.longest}, nothing subtracted"
            )
    lines += [f"{name}: not drawn: {reason}" for name, reason in not_drawn.items()]
    return "\n".join(f"- {line}" for line in lines) + "\n"


def report_scaling(found: Sequence[dict[str, Any]], out: Path) -> str:
    """Fit the scaling laws, draw them in `out` and return their description in Markdown."""
    fits = fit_scaling(found)
    return describe_scaling(fits, draw_scaling(fits, out))


def _draw_comparison(found: Sequence[dict[str, Any]], out: Path) -> None:
    """Draw top-1 by arm and, if the arms differ in their batch size, error by batch size."""
    figures.ablation_bars(found, out / "top1")
    arms, batches = by_arm(found), {(row["arch"], row["batch_size"]) for row in found}
    if len(batches) == len(arms) and len({batch for _, batch in batches}) > 1:
        figures.error_against_batch_size(found, out / "batch-size", by="arch")


def write_report(study: Study, runs: Sequence[PlannedRun], searches: Sequence[PlannedRun], out: Path) -> str:
    """Write results.jsonl, table.md and the pictures of the finished runs to `out`, and return the table."""
    found = rows(study, runs)
    if not found:
        return f"{study.title}: no run is finished yet\n"
    write_atomic(out / "results.jsonl", "".join(json.dumps(row) + "\n" for row in found))
    text = table(study, found, searches)
    if study.fit:
        text += "\n" + report_scaling(found, out)
    write_atomic(out / "table.md", text)
    if not study.fit:
        _draw_comparison(found, out)
    return f"{text}\n{len(found)} of {len(runs)} runs\n"
