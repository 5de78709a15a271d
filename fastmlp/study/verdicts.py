"""Verdicts on a study's claims, by tests that its file names before the first run.

A claim "A > B" of `compare` is tested by the paired t-test over the seeds that both arms have: runs of one seed share
their order of images and, if they have the same shapes, their first weights. The p values of a set of claims are
adjusted by Holm's method, so that the chance of any false verdict in the set is at most 5 %. An arm whose search ended
at its limit proves no order: its best value may lie outside.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..atomic import write_atomic
from .scaling_laws import mean_interval, scipy_module

MIN_SEEDS = 5
LEVEL = 0.05
CLAIMS = "claims.json"  # in a study's folder: its verdicts, not adjusted


@dataclass(frozen=True)
class Verdict:
    """A tested claim: mean difference with its 95 % interval, p value, and that of Holm's method in its set."""

    claim: str
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan  # NaN: not tested
    adjusted: float = math.nan
    unit: str = "points"  # or "decades": the logarithm, to base 10, of how many times fewer images are needed
    reason: str = ""  # why it is not tested
    note: str = ""  # on the difference

    @property
    def word(self) -> str:
        if not self.adjusted < LEVEL:
            return "cannot tell"
        return "agrees" if self.mean > 0 else "differs"

    @property
    def difference(self) -> str:
        """The difference with its 95 % interval, or why there is none."""
        if self.reason:
            return self.reason
        if self.unit == "decades":
            mean, low, high = (f"{10**value:.2f}" for value in (self.mean, self.low, self.high))
            return f"{mean} times fewer images, 95 % interval {low} to {high}{self.note}"
        return f"{self.mean:+.2f} {self.unit}, 95 % interval {self.low:+.2f} to {self.high:+.2f}{self.note}"

    def __str__(self) -> str:
        p = "" if self.reason else f", p {self.p:.2g}, {self.adjusted:.2g} by Holm"
        return f"{self.claim}: {self.word} ({self.difference}{p})"


def paired(
    claim: str,
    first: Mapping[int, float],  # seed -> score
    second: Mapping[int, float],
    unit: str = "points",
    note: str = "",
) -> Verdict:
    """Test whether first - second differs from 0 in the mean over the seeds that both have.

    Fewer than MIN_SEEDS common seeds are not tested.
    """
    seeds = sorted({*first} & {*second})
    if len(seeds) < MIN_SEEDS:
        return Verdict(claim, reason=f"{len(seeds)} seeds, the test needs {MIN_SEEDS}", unit=unit)
    differences = np.array([first[seed] - second[seed] for seed in seeds])
    mean, half = mean_interval(differences)
    if not np.ptp(differences):  # the test divides by their spread
        p = float(mean == 0)
    else:
        p = float(scipy_module("stats").ttest_1samp(differences, 0.0).pvalue)
    return Verdict(claim, mean, mean - half, mean + half, p, unit=unit, note=note)


def adjust(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the verdicts with the p values of Holm's method over those of them that were tested (Holm 1979)."""
    tested = sorted((one.p, n) for n, one in enumerate(verdicts) if not math.isnan(one.p))
    found, largest = list(verdicts), 0.0
    for rank, (p, n) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        found[n] = replace(found[n], adjusted=largest)
    return found


def write_claims(folder: Path, verdicts: Sequence[Verdict]) -> None:
    """Keep a study's verdicts, not yet adjusted, in its folder, for the table of a set of studies."""
    plain = [{name: value for name, value in asdict(one).items() if value == value} for one in verdicts]  # without NaN
    write_atomic(folder / CLAIMS, json.dumps(plain, indent=1) + "\n")


def read_claims(folder: Path) -> list[Verdict]:
    """Return the verdicts that write_claims kept. Raises ValueError that names the file if it is missing or damaged."""
    path = folder / CLAIMS
    try:
        found = [Verdict(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
        numbers = [getattr(one, name) for one in found for name in ("mean", "low", "high", "p", "adjusted")]
        if not all(isinstance(number, int | float) for number in numbers):
            raise ValueError("a claim has no numbers")
        return found
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: expected the claims of a study ({error}); run the study first") from error
