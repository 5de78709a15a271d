"""What a study found: a row for each run, a table with intervals, verdicts on what the paper says, pictures."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..atomic import write_atomic
from ..training.run_log import read_log
from . import figures as scaling_plots
from . import scaling_laws as scaling
from .plan import PlannedRun, Study


def difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """mean(a) - mean(b) and its 95 % interval by Welch's t-test, which takes the two as independent."""
    from scipy.stats import ttest_ind

    low, high = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return statistics.mean(a) - statistics.mean(b), float(low), float(high)


def rows(study: Study, runs: Sequence[PlannedRun]) -> list[dict[str, Any]]:
    """Of each run that is done: its facts, top-1 and error (0-1), seconds of training, folder."""
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
    arms: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        arms.setdefault(row["arm"], []).append(row)
    return arms


def verdict(
    pair: str,  # "A > B": the paper's order of two arms
    arms: dict[str, list[dict[str, Any]]],
) -> str:
    """Whether the runs agree with the paper, differ, or cannot tell, at 95 %."""
    better, worse = pair.split(" > ")
    tops = [[100 * row["top1"] for row in arms.get(arm, [])] for arm in (better, worse)]
    if min(map(len, tops)) < 2:
        return f"{pair}: cannot tell, fewer than 2 seeds"
    mean, low, high = difference(*tops)
    word = "agrees" if low > 0 else "differs" if high < 0 else "cannot tell"
    return f"{pair}: {word} ({mean:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f})"


def table(study: Study, found: Sequence[dict[str, Any]], searches: Sequence[PlannedRun] = ()) -> str:
    """In Markdown: each arm's mean top-1 with its interval, what the search chose, what a run costs."""
    arms, edges = by_arm(found), _at_the_edge(found, searches)
    lines = [
        f"| {study.title} | top-1 [%] | seeds | chosen | parameters | FLOP of a run |",
        "|---|---|---|---|---|---|",
    ]
    searched = {name for run in searches for name in run.searched}
    for arm, of_arm in arms.items():
        mean, half = scaling.mean_interval([100 * row["top1"] for row in of_arm])
        spread = "" if math.isnan(half) else f" ± {half:.2f}"
        chosen = ", ".join(f"{name} {of_arm[0][name]}" for name in sorted(searched & set(of_arm[0])))
        lines.append(
            f"| {arm} | {mean:.2f}{spread} | {len(of_arm)} | {chosen}{' (edge)' if arm in edges else ''} | "
            f"{of_arm[0]['parameters']:,} | {of_arm[0]['flop']:.2g} |"
        )
    lines += ["", f"The paper: {study.paper}"] * bool(study.paper)
    lines += ["", *(f"- {verdict(pair, arms)}" for pair in study.compare)] * bool(study.compare)
    return "\n".join(lines) + "\n"


def _at_the_edge(found: Sequence[dict[str, Any]], searches: Sequence[PlannedRun]) -> set[str]:
    """Arms whose search chose its smallest or largest number: a better one may lie beyond."""
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
    """A row for each arm, with the mean error of its seeds: the best of several seeds would only be the luckiest."""
    return [
        {**of_arm[0], "error": statistics.mean(row["error"] for row in of_arm)} for of_arm in by_arm(found).values()
    ]


def fitted(found: Sequence[dict[str, Any]], out: Path) -> str:
    """What the paper fits, or why these runs do not tell; draws the pictures."""
    means, lines, curve = over_seeds(found), [], None
    compute, error = [mean["flop"] for mean in means], [mean["error"] for mean in means]
    front = scaling.pareto_front(compute, error)
    lines.append(f"Pareto front: {len(front)} of {len(means)} (means over seeds)")
    try:
        scaling.check_falls(compute, error)
        curve = scaling.fit_curve([compute[i] for i in front], [error[i] for i in front])
        lines.append("E(C) = a (b + C)^-alpha + e_inf on the front: " + "; ".join(curve.describe().splitlines()))
    except ValueError as reason:
        lines.append(f"E(C): no fit: {reason}")
    try:
        scaling.check_falls(compute, error)
        best = scaling.compute_optimal(means)
        lines.append(
            "compute-optimal "
            + ", ".join(
                f"{name}* ~ C^{law.exponent:.2f} (95 % interval {law.interval[0]:.2f} to {law.interval[1]:.2f})"
                for name, law in (("P", best.p), ("N", best.n))
            )
            + "; the paper: 0.35 and 0.65"
        )
        scaling_plots.compute_optimal_sizes(best, out / "compute-optimal")
    except ValueError as reason:
        lines.append(f"P* and N*: no fit: {reason}")
    longest = max((mean["epochs"], mean["length"]) for mean in means)[1]
    for along, other, letter in (("parameters", "samples", "P"), ("samples", "parameters", "N")):
        most = [m for m in means if m["length"] == longest and m[other] == max(m[other] for m in means)]
        try:
            law = scaling.fit_error_law(most, along)
            lines.append(
                f"error ~ {letter}^{law.exponent:.2f} ({law.interval[0]:.2f} to {law.interval[1]:.2f}) at the "
                f"most {other}, {longest}, nothing subtracted"
            )
        except ValueError as reason:
            lines.append(f"error by {along}: no fit: {reason}")
    try:
        scaling_plots.error_against_compute(means, out / "error-compute", curve)
    except ValueError as reason:
        lines.append(f"error-compute: not drawn: {reason}")
    return "\n".join(f"- {line}" for line in lines) + "\n"


def write_report(study: Study, runs: Sequence[PlannedRun], searches: Sequence[PlannedRun], out: Path) -> str:
    """results.jsonl, table.md and the pictures, from the runs that are done; the table."""
    found = rows(study, runs)
    if not found:
        return f"{study.title}: no run is done yet\n"
    write_atomic(out / "results.jsonl", "".join(json.dumps(row) + "\n" for row in found))
    text = table(study, found, searches)
    if study.fit:
        text += "\n" + fitted(found, out)
    write_atomic(out / "table.md", text)
    if not study.fit:
        scaling_plots.ablation_bars(found, out / "top1")
        arms, batches = by_arm(found), {(row["arch"], row["batch_size"]) for row in found}
        if len(batches) == len(arms) and len({batch for _, batch in batches}) > 1:
            scaling_plots.error_against_batch_size(found, out / "batch-size", by="arch")
    return f"{text}\n{len(found)} of {len(runs)} runs\n"
