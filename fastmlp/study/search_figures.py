"""The curves of searches: top-1 of held-out images over the values that were tried."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ..plots import new_figure
from .figures import MARKERS, colours, save
from .plan import Search

COLUMNS = 3


def panels(searches: Sequence[Search]) -> dict[tuple[str, str], list[Search]]:
    """Return the searches with finished trials by arm and searched number."""
    found: dict[tuple[str, str], list[Search]] = {}
    for search in searches:
        for setting in search.trials[0].searched:
            values = [trial.searched[setting] for trial in search.trials]
            if search.curve and all(isinstance(one, int | float) and not isinstance(one, bool) for one in values):
                found.setdefault((search.combination.arm, setting), []).append(search)
    return found


def search_curves(searches: Sequence[Search], stem: Path) -> tuple[Path, Path]:
    """Draw a panel for each arm and searched number, with a line for each combination of what varies.

    A line is the mean of the seeds, each seed a dot, the choice a ring. With several searched settings it shows the
    best over the others. Returns (PNG, SVG). Raises ValueError if no number was searched.
    """
    by_panel = panels(searches)
    if not by_panel:
        raise ValueError("no numbers were searched: nothing to draw")
    columns = min(COLUMNS, len(by_panel))
    rows = -(-len(by_panel) // columns)
    figure = new_figure(0.6 + 3.2 * columns, 0.4 + 2.6 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(by_panel) :]:
        axes.set_visible(False)
    for axes, ((arm, setting), own) in zip(grid.flat, by_panel.items(), strict=False):
        for n, (search, colour) in enumerate(zip(own, colours(len(own)), strict=True)):
            label = ", ".join(f"{name} {value}" for name, value in search.combination.varied.items())
            _draw(axes, search, setting, colour, MARKERS[n % len(MARKERS)], label)
        axes.set_title(arm, fontsize=9, parse_math=False)
        axes.set_xlabel(setting, fontsize=8)
        tried = sorted({trial.searched[setting] for search in own for trial in search.trials})
        axes.minorticks_off()
        axes.set_xticks(tried, [f"{value:g}" for value in tried], rotation=45)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        if any(search.combination.varied for search in own):
            for text in axes.legend(fontsize=6, loc="lower center").get_texts():
                text.set_parse_math(False)
    curves = [[100 * mean(top1s) for top1s in search.curve.values()] for own in by_panel.values() for search in own]
    # Every curve's best is in the picture; diverged runs would press the rest.
    lowest = max(min(map(min, curves)) - 1, min(map(max, curves)) - 8)
    grid.flat[0].set_ylim(lowest, max(map(max, curves)) + 2)
    for row in grid:
        row[0].set_ylabel("held-out top-1 [%]", fontsize=8)
    return save(figure, stem)


def _draw(axes: Any, search: Search, setting: str, colour: Any, marker: str, label: str) -> None:
    place = [*search.trials[0].searched].index(setting)
    best: dict[float, list[float]] = {}  # the scores of the best point with each value; more seeds are better
    for point, top1s in search.curve.items():
        scores, value = [100 * top1 for top1 in top1s], point[place]
        if value not in best or (len(scores), mean(scores)) > (len(best[value]), mean(best[value])):
            best[value] = scores
    values = sorted(best)
    if values[0] > 0:
        axes.set_xscale("log")
    axes.plot(
        values, [mean(best[value]) for value in values], "-", color=colour, marker=marker, markersize=4, label=label
    )
    for value in values:
        axes.plot([value] * len(best[value]), best[value], ".", color=colour, markersize=3, alpha=0.6)
    if search.best is not None:
        chosen = search.best[setting]
        axes.plot([chosen], [mean(best[chosen])], "o", color="tab:red", markersize=11, fillstyle="none", zorder=4)
