"""The curve of each search: top-1 of held-out images over the values that were tried."""

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from ..plots import new_figure
from .figures import save
from .plan import Search

COLUMNS = 4


def search_curves(searches: Mapping[str, Search], stem: Path) -> tuple[Path, Path]:
    """Draw a panel for each arm and searched number: the mean of the seeds, each seed as a dot, the choice as a ring.

    With several searched settings, a panel shows the best over the others. Returns (PNG, SVG).
    """
    panels = [
        (name, setting, place)
        for name, search in searches.items()
        for place, setting in enumerate(search.trials[0].searched)
        if all(isinstance(trial.searched[setting], int | float) for trial in search.trials)
    ]
    if not panels:
        raise ValueError("no numbers were searched: nothing to draw")
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(0.6 + 2.6 * columns, 0.4 + 2.2 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, setting, place) in zip(grid.flat, panels, strict=False):
        _draw(axes, searches[name], place)
        axes.set_title(name, fontsize=8, parse_math=False)
        axes.set_xlabel(setting, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    lowest = min(100 * mean(top1s) for search in searches.values() for top1s in search.curve().values())
    highest = max(100 * max(top1s) for search in searches.values() for top1s in search.curve().values())
    # Rates that diverge would press the rest together.
    grid.flat[0].set_ylim(max(lowest - 1, highest - 30), highest + 1)
    for row in grid:
        row[0].set_ylabel("held-out top-1 [%]", fontsize=8)
    return save(figure, stem)


def _draw(axes: Any, search: Search, place: int) -> None:
    """Draw the curve over the setting at `place` of the search's points."""
    best: dict[float, list[float]] = {}  # the scores of the best point with each value
    for point, top1s in search.curve().items():
        scores = [100 * top1 for top1 in top1s]
        if point[place] not in best or (len(scores), mean(scores)) > (
            len(best[point[place]]),
            mean(best[point[place]]),
        ):
            best[point[place]] = scores
    values = sorted(best)
    if values[0] > 0:
        axes.set_xscale("log")
    axes.plot(values, [mean(best[value]) for value in values], "-", color="0.35", linewidth=1.2, zorder=2)
    for value in values:
        axes.plot([value] * len(best[value]), best[value], "o", color="black", markersize=3, zorder=3)
    if search.best is not None:
        chosen = [*search.best.values()][place]
        axes.plot([chosen], [mean(best[chosen])], "o", color="tab:red", markersize=11, fillstyle="none", zorder=4)
