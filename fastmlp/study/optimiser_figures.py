"""Pictures of what optimisers do: the loss over the images seen, and the singular values of gradients."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import numpy as np

from ..plots import new_figure
from .figures import MARKERS, colours, save, short
from .gradient_spectra import effective_rank
from .images_to_loss import Curve

LINES = ("-", "--", ":", "-.")


def loss_by_images(curves: Mapping[tuple[str, str], Mapping[int, Curve]], stem: Path) -> tuple[Path, Path]:
    """Draw a panel for each combination of what varies: the loss at the end of each length, a line for each arm.

    Lines are means over the seeds, each seed is a dot. Returns (PNG, SVG).
    """
    places = list(dict.fromkeys(where for where, _ in curves))
    arms = list(dict.fromkeys(arm for _, arm in curves))
    if not places:
        raise ValueError("no run has a loss: nothing to draw")
    columns = min(3, len(places))
    rows = -(-len(places) // columns)
    figure = new_figure(0.8 + 3 * columns, 0.8 + 2.5 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(places) :]:
        axes.set_visible(False)
    for axes, where in zip(grid.flat, places, strict=False):
        for n, (arm, colour) in enumerate(zip(arms, colours(len(arms)), strict=True)):
            points = [point for curve in curves.get((where, arm), {}).values() for point in curve]
            lengths = sorted({images for images, _ in points})
            means = [mean(loss for images, loss in points if images == length) for length in lengths]
            axes.plot(lengths, means, LINES[n % 4], color=colour, label=arm)
            axes.plot(*zip(*points, strict=True), MARKERS[n], color=colour, markersize=3) if points else None
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(where, fontsize=8, parse_math=False)
        axes.minorticks_off()
        losses = [loss for line in axes.lines for loss in line.get_ydata()]
        images = sorted({count for line in axes.lines for count in line.get_xdata()})
        axes.set_xticks(images, [short(count) for count in images], fontsize=7)
        ticks = np.geomspace(min(losses), max(losses), 4)
        axes.set_yticks(ticks, [f"{tick:.3f}" for tick in ticks], fontsize=7)
        axes.grid(alpha=0.3)
    for row in grid:
        row[0].set_ylabel("held-out loss", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("images seen", fontsize=8)
    legend = figure.legend(
        *grid.flat[0].get_legend_handles_labels(), loc="outside upper left", ncols=min(3, len(arms)), fontsize=8
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return save(figure, stem)


def gradient_spectra(spectra: Mapping[str, Mapping[str, Sequence[float]]], stem: Path) -> tuple[Path, Path]:
    """Draw each arm's singular values by block, shares of the largest, with their effective rank in the legend.

    Only the matrices that lead back to the residual stream are drawn, "collapse" of B-MLPs and "weight" of S-MLPs.
    Returns (PNG, SVG).
    """
    columns = min(3, len(spectra))
    rows = -(-len(spectra) // columns)
    figure = new_figure(0.6 + 3 * columns, 0.4 + 2.4 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(spectra) :]:
        axes.set_visible(False)
    for axes, (arm, matrices) in zip(grid.flat, spectra.items(), strict=False):
        shown = {name: values for name, values in matrices.items() if not name.endswith("expand")}
        for n, ((name, values), colour) in enumerate(zip(shown.items(), colours(len(shown)), strict=True)):
            shares = np.asarray(values) / max(values[0], 1e-300)
            label = f"{name}: rank {effective_rank(values):.1f} of {len(values)}"
            axes.plot(np.arange(1, len(shares) + 1), shares, LINES[n % 4], color=colour, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(1e-5, 2)
        axes.set_title(arm, fontsize=8, parse_math=False)
        axes.legend(fontsize=6, loc="lower left")
        axes.grid(alpha=0.3)
    for row in grid:
        row[0].set_ylabel("singular value [largest]", fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("number", fontsize=8)
    return save(figure, stem)
