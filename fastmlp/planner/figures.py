"""Pictures of the planner, as PNG and SVG: normalised learning curves."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..study import figures


def draw_collapse(
    curves: Mapping[str, np.ndarray],  # (seeds, bins) normalised losses of each size
    title: str,
    compared_from: float,  # share of the run before which curves are not compared
    stem: Path,  # of the files, without their suffix
) -> tuple[Path, Path]:
    """Draw each seed's normalised loss against the share of the run, a colour and a line style for each size."""
    from ..plots import new_figure

    figure = new_figure(7.5, 4.5)
    axes = figure.subplots()
    colours = figures.colours(len(curves))
    for n, (size, found) in enumerate(curves.items()):
        share = (np.arange(found.shape[1]) + 0.5) / found.shape[1]
        for seed, curve in enumerate(found):
            label = f"{size} ({len(found)} {'seed' if len(found) == 1 else 'seeds'})" if seed == 0 else None
            style = ("-", "--", "-.", ":")[n % 4]
            axes.plot(share, curve, style, color=colours[n], linewidth=1.1, label=label)
    axes.axvspan(0, compared_from, color="0.93", label="not compared", zorder=0)
    axes.set_yscale("log")
    figures.log_axis(axes.yaxis, axes.get_ylim(), "{x:.3g}")
    axes.set_xlabel("share of the run's steps")
    axes.set_ylabel("(L(t) - L0) / (L(end) - L0), training loss")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return figures.save(figure, stem)
