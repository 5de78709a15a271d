"""How many images each arm sees until it ends at the same loss: the speed of learning of optimisers, free of rates.

A study with several lengths has, for each seed, a curve of the loss at the end of the schedule over the images seen.
The target of a pair is the higher of their two lowest losses, so that both reach it inside of what was run; between
two lengths the curve is straight in the logarithms of both. An arm that ends below the target already at its shortest
length needs at most that: its ratio is a bound, and is named one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .study_file import Study
from .verdicts import Verdict, paired

Curve = Sequence[tuple[float, float]]  # (images seen, loss), by images


@dataclass(frozen=True)
class Ratio:
    """Images that the second arm of a claim needs, in units of those of the first."""

    pair: str  # "A > B"
    where: str  # what varies besides the length
    by_seed: dict[int, float]
    is_bound: bool  # an arm ended below the target at its shortest length

    @property
    def claim(self) -> str:
        return f"{self.pair}{', ' * bool(self.where)}{self.where}: fewer images"

    @property
    def arms(self) -> list[str]:
        return self.pair.split(" > ")

    def verdict(self) -> Verdict:
        """Test whether the mean logarithm of the ratio differs from 0: over 0 the first arm needs fewer images."""
        logs = {seed: math.log10(ratio) for seed, ratio in self.by_seed.items()}
        note = "; a bound: an arm is below the loss at its shortest length" if self.is_bound else ""
        return paired(self.claim, logs, dict.fromkeys(logs, 0.0), unit="decades", note=note)


def images_to(loss: float, curve: Curve) -> tuple[float, bool]:
    """Return the images after which a curve reaches the loss, and whether it did so before its first point.

    Raises ValueError if no point is at or below the loss.
    """
    for n, (images, reached) in enumerate(curve):
        if reached <= loss:
            if n == 0:
                return images, reached < loss
            before, above = curve[n - 1]
            share = math.log(above / loss) / math.log(above / reached)
            return before * (images / before) ** share, False
    raise ValueError(f"no length reaches the loss {loss:g}: the lowest is {min(reached for _, reached in curve):g}")


def compare_images(pair: str, where: str, first: Mapping[int, Curve], second: Mapping[int, Curve]) -> Ratio:
    """Return the ratio of images of second to first at equal loss, for each seed that both have."""
    ratios, is_bound = {}, False
    for seed in sorted({*first} & {*second}):
        target = max(min(loss for _, loss in curve) for curve in (first[seed], second[seed]))
        (mine, early), (theirs, also_early) = images_to(target, first[seed]), images_to(target, second[seed])
        ratios[seed], is_bound = theirs / mine, is_bound or early or also_early
    return Ratio(pair, where, ratios, is_bound)


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[int, Curve]]:
    """Return the curves of finished runs by (what varies besides the length, arm) and seed; diverged runs have none."""
    found: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = {}
    for row in rows:
        if row.get("eval_loss") is not None:
            by_seed = found.setdefault((row["where"], row["of_arm"]), {})
            by_seed.setdefault(row["seed"], []).append((row["images_seen"], max(row["eval_loss"], 1e-12)))
    return {key: {seed: sorted(points) for seed, points in by_seed.items()} for key, by_seed in found.items()}


def ratios(study: Study, rows: Sequence[Mapping[str, Any]]) -> list[Ratio]:
    """Return the ratio of each claim of `fewer_images` in each combination of what varies besides the length."""
    found = curves(rows)
    return [
        compare_images(pair, where, *(found.get((where, arm), {}) for arm in pair.split(" > ")))
        for where in dict.fromkeys(where for where, _ in found)
        for pair in study.fewer_images
    ]
