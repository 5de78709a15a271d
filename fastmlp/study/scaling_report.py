"""The paper's scaling laws on a study's runs: fits of error by compute and by size, in words and as pictures."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from . import figures
from .scaling_laws import (
    ComputeOptimal,
    Curve,
    PowerLaw,
    check_falls,
    compute_optimal,
    fit_curve,
    fit_error_law,
    pareto_front,
)

T = TypeVar("T")
MIN_ROWS = 4  # of an error law, if any size has so many


def by_arm(found: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each arm, in the order of the rows."""
    arms: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        arms.setdefault(row["arm"], []).append(row)
    return arms


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
    held: dict[str, int]  # at which value of the other size each of them is


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
    held: dict[str, int] = {}
    long_rows = [mean for mean in means if mean["length"] == longest]
    for along, other in (("parameters", "samples"), ("samples", "parameters")):
        # A limit of compute leaves out the largest models on the most images: the largest size that has enough runs.
        counts = Counter(mean[other] for mean in long_rows)
        held[along] = max(size for size in counts if counts[size] >= min(MIN_ROWS, max(counts.values())))
        at_held = [mean for mean in long_rows if mean[other] == held[along]]
        laws[along] = _result_or_reason(partial(fit_error_law, at_held, along))
    curve, optimal = _result_or_reason(fit_front), _result_or_reason(fit_optimal)
    return ScalingFits(means, front, curve, optimal, longest, laws, held)


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
                f"error ~ {letter}^{law.exponent:.2f} ({law.interval[0]:.2f} to {law.interval[1]:.2f}) at "
                f"{fits.held[along]:,} {other}, {fits.longest}, nothing subtracted"
            )
    lines += [f"{name}: not drawn: {reason}" for name, reason in not_drawn.items()]
    return "\n".join(f"- {line}" for line in lines) + "\n"


def report_scaling(found: Sequence[dict[str, Any]], out: Path) -> str:
    """Fit the scaling laws, draw them in `out` and return their description in Markdown."""
    fits = fit_scaling(found)
    return describe_scaling(fits, draw_scaling(fits, out))
