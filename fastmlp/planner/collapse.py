"""Whether the learning curves of a study's sizes collapse onto one another: go or no-go before extrapolating.

In compute-optimal runs the normalised training loss (L(t) - L0) / (L(end) - L0) against the share of the run's steps is
the same curve for every size, to within the noise of a seed, if the runs scale well; where it is not, a size is trained
with settings that do not suit it. "Scaling collapse reveals universal dynamics in compute-optimally trained neural
networks" (Qiu et al. 2025, arXiv 2507.02119). Here L0 is the value that makes the curves agree best, which is lenient:
a no-go does not depend on it. Training losses of data that is seen often also fall by memorising. Needs no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..study.scaling_laws import pareto_front
from ..training.run_log import read_log
from .figures import draw_collapse
from .study_folder import StudyRuns

BINS = 20  # of a run's steps; a bin's mean takes out the noise of single batches
FIRST_BIN = 4  # the warm-up, as long in short runs as in long ones, is not compared
MIN_STEPS = BINS  # logged
MIN_SIZES = 3
MAX_NOISE = 0.2  # seeds that differ by more than this share of the curve could hide any difference between sizes


@dataclass(frozen=True)
class Collapse:
    """The verdict and what it rests on. curves: (seeds, BINS) normalised losses of each size, by its name."""

    verdict: str  # "go", "no-go" or "cannot tell"
    reason: str
    l0: float = math.nan
    between: float = math.nan  # mean over the bins of the standard deviation between the sizes' mean curves
    max_between: float = math.nan  # largest, instead of mean
    within: float = math.nan  # mean over the bins of the standard deviation between the seeds of one size
    curves: Mapping[str, np.ndarray] | None = None

    def describe(self) -> str:
        """Return the line of a report."""
        if math.isnan(self.between):
            return f"collapse of the learning curves: {self.verdict}: {self.reason}"
        return (
            f"collapse of the learning curves: {self.verdict}: {self.reason}. Normalised losses differ between sizes "
            f"by {self.between:.3f} on average (at most {self.max_between:.3f}), between seeds of one size by "
            f"{self.within:.3f}; L0 {self.l0:.3f}"
        )


def binned_losses(steps: Sequence[Mapping[str, Any]]) -> np.ndarray | None:  # (BINS,)
    """Return the mean loss of each twentieth of a run, from its log lines "step"; None if they are too few."""
    points = [(line["step"], line["loss"]) for line in steps if "step" in line and "loss" in line]
    points = [(step, loss) for step, loss in points if isinstance(loss, int | float) and math.isfinite(loss)]
    if len(points) < MIN_STEPS:
        return None
    at, losses = np.array(points, np.float64).T
    which = np.minimum((BINS * (at - 0.5) / at.max()).astype(int), BINS - 1)
    counts = np.bincount(which, minlength=BINS)
    return np.bincount(which, losses, BINS) / counts if counts.all() else None


def judge(losses: Mapping[str, np.ndarray]) -> Collapse:
    """Return whether the curves of the sizes collapse. losses: (seeds, BINS) of each size.

    Go: the sizes' mean curves differ by no more than the seeds of one size do. Both are standard deviations of
    normalised losses, averaged over the bins after the warm-up and before the last, at which all curves are 1.
    """
    if len(losses) < MIN_SIZES:
        return Collapse("cannot tell", f"{len(losses)} sizes have curves, {MIN_SIZES} are needed")
    if all(len(curves) < 2 for curves in losses.values()):
        return Collapse("cannot tell", "no size has two seeds, so that the noise of a seed is not known")
    smallest = min(float(curves.min()) for curves in losses.values())
    grid = np.linspace(0, 0.98, 99) * smallest
    l0 = float(min(grid, key=lambda value: _spreads(losses, value)[0].mean()))
    between, within = _spreads(losses, l0)
    values = (l0, float(between.mean()), float(between.max()), float(within.mean()), _normalised(losses, l0))
    if within.mean() > MAX_NOISE:
        return Collapse("cannot tell", f"the seeds of one size differ by more than {MAX_NOISE:g}", *values)
    if between.mean() <= within.mean():
        return Collapse("go", "the sizes' curves agree within the noise of a seed", *values)
    return Collapse("no-go", "the sizes' curves differ by more than the noise of a seed", *values)


def _normalised(losses: Mapping[str, np.ndarray], l0: float) -> dict[str, np.ndarray]:
    return {size: (curves - l0) / (curves[:, -1:] - l0) for size, curves in losses.items()}


def _spreads(losses: Mapping[str, np.ndarray], l0: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the standard deviations between sizes and between seeds, relative to the mean curve, in each bin."""
    curves = {size: found[:, FIRST_BIN:-1] for size, found in _normalised(losses, l0).items()}
    means = np.stack([found.mean(0) for found in curves.values()])
    several = [found for found in curves.values() if len(found) > 1]
    freedom = sum(len(found) - 1 for found in several)
    variance = sum(((found - found.mean(0)) ** 2).sum(0) for found in several) / max(freedom, 1)
    return means.std(0, ddof=1) / means.mean(0), np.sqrt(variance) / means.mean(0)


def near_optimal(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return for each architecture its runs of the length that is nearest to compute-optimal, smallest first.

    The compute-optimal length of a size is a power law of P through the front of the study's means over seeds. Of equal
    lengths that with the most unique images is taken.
    """
    cells: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["parameters"], row["arch"], row["images_seen"], row["samples"]), []).append(row)
    keys = list(cells)
    means = [float(np.mean([row["error"] for row in own])) for own in cells.values()]
    front = [keys[i] for i in pareto_front([own[0]["flop"] for own in cells.values()], means)]
    log_p, log_d = (np.log([key[n] for key in front]) for n in (0, 2))
    slope = np.polyfit(log_p, log_d, 1)[0] if len(set(log_p)) > 1 else 1.0
    chosen = {}
    for parameters, arch in sorted({key[:2] for key in keys}):
        length = log_d.mean() + slope * (math.log(parameters) - log_p.mean())
        own = [key for key in keys if key[1] == arch]
        best = min(own, key=lambda key: (round(abs(math.log(key[2]) - length), 6), -key[3]))
        chosen[arch] = cells[best]
    return chosen


def collapse_of(study: StudyRuns) -> Collapse:
    """Return the verdict on a study's runs near compute-optimal length; "cannot tell" if logs or seeds are missing."""
    losses, lacking = dict[str, np.ndarray](), []
    for arch, runs in near_optimal(study.rows).items():
        found = [curve for run in runs if (curve := _curve(study.run_folder(run))) is not None]
        if found:
            losses[arch] = np.stack(found)
        else:
            lacking.append(arch)
    verdict = judge(losses)
    if lacking and len(losses) < MIN_SIZES:
        return Collapse(
            "cannot tell", f"{', '.join(lacking)} have no log of {MIN_STEPS} or more logged steps; {verdict.reason}"
        )
    return verdict


def _curve(run: Path) -> np.ndarray | None:
    try:
        return binned_losses(read_log(run, "step"))
    except OSError:
        return None


def collapse_report(study: StudyRuns, out: Path) -> str:
    """Return the verdict's line; if there are curves, draw them as `out`/collapse.png and .svg."""
    found = collapse_of(study)
    if found.curves is None:
        return found.describe()
    try:
        out.mkdir(parents=True, exist_ok=True)
        title = found.describe().replace(". ", "\n", 1).replace(", between seeds", ",\nbetween seeds")
        png, _ = draw_collapse(found.curves, title, FIRST_BIN / BINS, out / "collapse")
    except ModuleNotFoundError as error:  # matplotlib: the verdict does not need it
        return f"{found.describe()}; not drawn: {error}"
    return f"{found.describe()}; drawn in {png}"
