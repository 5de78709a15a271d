"""Searches that bracket: which values of the searched settings are tried, until the best lies between two others.

All combinations of the lists are tried with one seed. Where the best has no neighbour in a list of numbers, the list is
continued at that end, by the factor between its last two values, 2 or 3, until the best lies inside or MAX_EXTENSIONS
values have been added. 0 and the smallest and largest value of the setting are ends of their own. Of equal values the
smallest is the best: if all rates of a list diverge, the search goes down. With several seeds, the best and its
neighbours are then run with all of them, and again those of a better neighbour, and their means decide.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import mean
from typing import Any

MAX_EXTENSIONS = 6  # values added at each end of a list: a factor of 64 or 729

Point = tuple[Any, ...]  # a value of each searched setting, in their order


@dataclass(frozen=True)
class Progress:
    """Where a search is."""

    trials: list[tuple[Point, int]]  # every trial so far and those to run next: values, and the number of the seed
    best: Point | None  # None while trials are missing
    unbracketed: tuple[str, ...] = ()  # settings whose best value is the last that the search may try


def progress(
    lists: Mapping[str, Sequence[Any]],  # the searched settings
    scores: Mapping[tuple[Point, int], float],  # of the finished trials; the highest is the best
    seeds: int,
    limits: Mapping[str, tuple[float, float]] | None = None,  # the smallest and largest value of a setting
    allowed: Callable[[Mapping[str, Any]], bool] = lambda values: True,  # whether a run can have these values
) -> Progress:
    """Return the trials that the search needs by what is known, and its choice once they are finished.

    A value that no run can have, within the limits of its setting, is where the search may not go: unbracketed.
    """
    grids = [_Grid(name, values, *(limits or {}).get(name, (-math.inf, math.inf))) for name, values in lists.items()]

    def rank(point: Point, count: int) -> tuple[float, tuple[float, ...]]:
        smallness = tuple(-grid.place(value) for grid, value in zip(grids, point, strict=True))
        return mean(scores[point, seed] for seed in range(count)), smallness

    points = [*product(*lists.values())]
    trials: dict[tuple[Point, int], None] = dict.fromkeys((point, 0) for point in points)
    if any(trial not in scores for trial in trials):
        return Progress([*trials], None)
    center = points[0]
    edges: tuple[str, ...] = ()
    for count in dict.fromkeys((1, seeds)):  # one seed finds the place, all of them confirm it
        while True:
            full = [point for point in points if all((point, seed) in scores for seed in range(count))]
            if full:
                center = max(full, key=partial(rank, count=count))
            neighbors, edges = _neighbors(center, grids, lambda point: allowed(dict(zip(lists, point, strict=True))))
            wanted = [center, *neighbors]
            trials |= dict.fromkeys((point, seed) for point in wanted for seed in range(count))
            if any(trial not in scores for trial in trials):
                return Progress([*trials], None)
            points += [point for point in neighbors if point not in points]
            if {*wanted} <= {*full}:
                break
    return Progress([*trials], center, edges)


def _neighbors(
    center: Point, grids: Sequence["_Grid"], allowed: Callable[[Point], bool]
) -> tuple[list[Point], tuple[str, ...]]:
    """Return the points beside the center along each ordered setting, and the settings where the search may not go."""
    found, edges = [], []
    for n, grid in enumerate(grids):
        for value in grid.beside(center[n]):
            point = (*center[:n], value, *center[n + 1 :])
            if value is None or not allowed(point):
                edges.append(grid.name)
            else:
                found.append(point)
    return found, tuple(dict.fromkeys(edges))


class _Grid:
    """The values that a search may try of one setting: its list, continued at both ends if they are numbers."""

    def __init__(self, name: str, values: Sequence[Any], low: float, high: float):
        self.name = name
        self.is_ordered = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        self._ends = (0, low), (high,)  # where the setting itself ends
        self.values = [*values]
        if self.is_ordered:
            inner = sorted({*values})
            below = [max(low, value) for value in _continued(inner[::-1], up=False)]
            above = [min(high, value) for value in _continued(inner, up=True)]
            self.values = sorted({*below, *inner, *above})

    def place(self, value: Any) -> int:
        return self.values.index(value)

    def beside(self, value: Any) -> list[Any]:
        """Return the values next to one, None at the search's limit; none where the setting has no order or ends."""
        if not self.is_ordered:
            return []
        place = self.place(value)
        below = [self.values[place - 1] if place else None] if value not in self._ends[0] else []
        above = [self.values[place + 1] if place + 1 < len(self.values) else None] if value not in self._ends[1] else []
        return below + above


def _continued(values: Sequence[float], up: bool) -> Iterator[float]:
    """Return the values that follow the last one, with two significant digits; none after 0."""
    value, before = values[-1], values[-2] if len(values) > 1 else 0
    if value <= 0:
        return
    factor = 2 if 0.4 <= before / value <= 2.5 else 3
    for _ in range(MAX_EXTENSIONS):
        step = value * factor if up else value / factor
        value = round(step) if isinstance(values[-1], int) and step >= 1 else float(f"{step:.2g}")
        yield value
