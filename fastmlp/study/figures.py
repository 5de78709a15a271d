"""Figures of "Scaling MLPs" from a study's rows, as PNG and SVG, with shapes and hatches besides colours.

A row is one run: "arm" str, "seed" int, "arch" str, "parameters" int, "samples" int (distinct training images),
"epochs", "images_seen" int, "flop" (scaling_laws.flop), "error" 0-1, "batch_size" int; other keys are ignored. All
functions take the files' path without its suffix, return (PNG, SVG), and raise ValueError if there are no rows and
ModuleNotFoundError without matplotlib or SciPy.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..plots import new_figure, save_figure
from .scaling_laws import ComputeOptimal, Curve, PowerLaw, mean_interval, pareto_front

Rows = Sequence[Mapping[str, Any]]
MARKERS = "osD^vP*X<>ph"
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "|||", "ooo", "---")


def save(figure: Any, stem: Path) -> tuple[Path, Path]:
    """Save the figure as PNG and SVG and return their paths.

    The SVG keeps its text as text, which can be searched, and has no date and fixed ids: equal rows give equal files.
    """
    from matplotlib import rc_context

    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastmlp"}):
        save_figure(figure, png, dpi=150)
        save_figure(figure, svg, metadata={"Date": None})
    return png, svg


def _check(rows: Rows) -> None:
    """Raise ValueError if there are no rows."""
    if not rows:
        raise ValueError("there are no rows to draw: expected one for each run")


def colours(count: int) -> Any:  # (count, 4)
    """Return colours from dark to light, in greyscale as well; the palest would not be visible on white."""
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0, 0.85, count))


def log_axis(axis: Any, values: Iterable[float], form: Any, wide: float = 1e4) -> None:
    """Set the ticks of a log axis: powers of ten over more than a factor of `wide`, 1-2-5 over less, evenly spaced
    ones below a factor of 4."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    values = list(values)
    factor = max(values) / min(values)
    subs = (1.0,) if factor > wide else (1.0, 2.0, 5.0) if factor > 30 else (1.0, 2.0, 3.0, 5.0, 7.0)
    axis.set_major_locator(MaxNLocator(5) if factor < 4 else LogLocator(subs=subs, numticks=12))
    if factor < 4:
        axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(form) if callable(form) else form)
    axis.set_minor_formatter(NullFormatter())


def _percent(value: float, _: object = None) -> str:
    """Return a share of 0-1 as the number of percent."""
    return f"{100 * value:.3g}"


def short(value: float, _: object = None) -> str:
    """Return a count as 1.2k or 30M."""
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def _flop_axis(axes: Any, compute: Iterable[float]) -> None:
    from matplotlib.ticker import LogFormatterSciNotation

    form = (
        LogFormatterSciNotation()
        if max(compute) > 30 * min(compute)
        else lambda value, _: f"{value:.2g}".replace("e+", "e")
    )
    log_axis(axes.xaxis, compute, form, wide=30)  # the labels are long
    axes.set_xlabel("compute [FLOP], 2 for each multiply-accumulate")


def _show_plain_text(legend: Any) -> None:
    """Turn off the math mode of a legend: an arm may be called $."""
    for text in legend.get_texts():
        text.set_parse_math(False)


def error_against_compute(rows: Rows, stem: Path, curve: Curve | None = None) -> tuple[Path, Path]:
    """Draw each run's error against its compute, both logarithmic, with the front as steps.

    Colour and shape show the architecture, size the number of distinct training images. A fitted curve is drawn with
    its band, continued by a factor of 3 on both sides.
    """
    _check(rows)
    figure = new_figure(8.5, 5)
    axes = figure.subplots()
    compute, error = [row["flop"] for row in rows], [row["error"] for row in rows]
    if min(error) <= 0:
        raise ValueError(f"a run has error {min(error):g}: a log axis cannot show it")
    axes.set_xscale("log")
    axes.set_yscale("log")
    samples = sorted({row["samples"] for row in rows})
    areas = dict(zip(samples, np.linspace(25, 140, len(samples)) if len(samples) > 1 else [60], strict=True))
    handles = _scatter_runs(axes, rows, areas)
    front = pareto_front(compute, error)
    handles += axes.step(
        [compute[i] for i in front],
        [error[i] for i in front],
        color="black",
        where="post",
        linewidth=1.1,
        label="Pareto front",
        zorder=2,
    )
    if curve:
        handles += _draw_curve(axes, curve, np.geomspace(min(compute) / 3, 3 * max(compute), 300))
    handles += _size_handles(areas)
    _flop_axis(axes, compute)
    axes.set_ylim(min(error) / 1.3, 1.2 * max(error))  # a band may become far wider
    log_axis(axes.yaxis, axes.get_ylim(), _percent)
    axes.set_ylabel("test error [%]")
    axes.grid(alpha=0.3)
    _show_plain_text(figure.legend(handles=handles, loc="outside right upper", fontsize=9))
    return save(figure, stem)


def _scatter_runs(axes: Any, rows: Rows, areas: Mapping[int, float]) -> list[Any]:
    """Draw the runs of each architecture, in an area by their number of images, and return the legend's handles."""
    from matplotlib.lines import Line2D

    parameters = {row["arch"]: row["parameters"] for row in rows}
    archs = sorted(parameters, key=lambda arch: (parameters[arch], arch))
    handles = []
    for n, (arch, colour) in enumerate(zip(archs, colours(len(archs)), strict=True)):
        own = [row for row in rows if row["arch"] == arch]
        marker = MARKERS[n % len(MARKERS)]
        axes.scatter(
            [row["flop"] for row in own],
            [row["error"] for row in own],
            s=[areas[row["samples"]] for row in own],
            color=[colour],
            marker=marker,
            edgecolors="white",
            linewidths=0.6,
            zorder=3,
        )
        label = f"{arch}, {short(parameters[arch])} parameters"
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", label=label))
    return handles


def _draw_curve(axes: Any, curve: Curve, compute: np.ndarray) -> list[Any]:
    """Draw a fitted curve with its band at the points `compute` (n,), and return the legend's handles."""
    low, high = curve.band(compute)
    band = axes.fill_between(compute, low, high, color="0.85", label=f"{100 * curve.level:g} % band", zorder=0)
    undetermined = " (undetermined)" if "alpha" in curve.undetermined else ""
    label = f"a (b + C)^-{curve.alpha:.2f}{undetermined} + {curve.e_inf:.3f}"
    return [band, *axes.plot(compute, curve.predict(compute), "--", color="0.35", zorder=1, label=label)]


def _size_handles(areas: Mapping[int, float]) -> list[Any]:
    """Return the legend's handles of the numbers of images, at most 6 of them."""
    from matplotlib.lines import Line2D

    samples = list(areas)
    if len(samples) > 6:
        samples = [samples[i] for i in np.linspace(0, len(samples) - 1, 6).round().astype(int)]
    return [
        Line2D([], [], color="0.5", marker="o", linestyle="", markersize=areas[n] ** 0.5, label=f"{short(n)} images")
        for n in samples
    ]


def compute_optimal_sizes(optimal: ComputeOptimal, stem: Path) -> tuple[Path, Path]:
    """Draw P* and N* of the front against compute with their power laws, side by side."""
    figure = new_figure(9, 4)
    for axes, values, law, name, letter in zip(
        figure.subplots(1, 2),
        (optimal.parameters, optimal.images),
        (optimal.p, optimal.n),
        ("P*, parameters", "N*, images seen"),
        "PN",
        strict=True,
    ):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.plot(optimal.compute, values, "o", color="black", markersize=5, label="front", zorder=3)
        axes.plot(optimal.compute, law.predict(optimal.compute), "--", color="tab:red", label=_exponent(law, letter))
        _flop_axis(axes, optimal.compute)
        log_axis(axes.yaxis, values, short)
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    return save(figure, stem)


def _exponent(law: PowerLaw, letter: str) -> str:
    """Return the label of a power law, with half the width of the exponent's interval."""
    half = (law.interval[1] - law.interval[0]) / 2
    return f"{letter}* ~ C^({law.exponent:.2f} ± {half:.2f})"


def error_against_batch_size(rows: Rows, stem: Path, by: str = "arm") -> tuple[Path, Path]:
    """Draw the mean error with 95 % t-intervals over seeds against batch size, a line for each value of the key `by`.

    If each batch size is an arm of its own, pass by="arch". A point of a single seed has no interval.
    """
    _check(rows)
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    lines = list(dict.fromkeys(str(row[by]) for row in rows))
    batches = sorted({row["batch_size"] for row in rows})
    handles = []
    for n, (line, colour) in enumerate(zip(lines, colours(len(lines)), strict=True)):
        own = [row for row in rows if str(row[by]) == line]
        x = sorted({row["batch_size"] for row in own})
        stats = [mean_interval([100 * row["error"] for row in own if row["batch_size"] == size]) for size in x]
        shift = 2 ** (0.08 * (n - (len(lines) - 1) / 2))  # so that the intervals do not overlap
        handles.append(
            axes.errorbar(
                [size * shift for size in x],
                [mean for mean, _ in stats],
                [0 if np.isnan(half) else half for _, half in stats],
                color=colour,
                marker=MARKERS[n % len(MARKERS)],
                capsize=3,
                linewidth=1.2,
                markersize=6,
                linestyle=("-", "--", "-.", ":")[n % 4],
                label=line,
            )
        )
    axes.set_xticks(batches, [f"{size:,}" for size in batches], rotation=45 if len(batches) > 8 else 0)
    axes.minorticks_off()
    axes.set_xlabel("batch size")
    axes.set_ylabel("test error [%], mean and 95 % interval over seeds")
    axes.grid(alpha=0.3)
    _show_plain_text(figure.legend(handles=handles, loc="outside upper left", ncols=3, fontsize=9))
    return save(figure, stem)


def ablation_bars(rows: Rows, stem: Path) -> tuple[Path, Path]:
    """Draw the mean top-1 of each arm, in the rows' order, with 95 % t-intervals over seeds; each seed is a dot.

    The bars start at 0; the printed numbers show small differences.
    """
    _check(rows)
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    figure = new_figure(8, 1.2 + 0.5 * len(arms))
    axes = figure.subplots()
    for place, arm in enumerate(arms):
        top1 = [100 * (1 - row["error"]) for row in rows if row["arm"] == arm]
        mean, half = mean_interval(top1)
        axes.barh(place, mean, 0.66, color="0.88", edgecolor="0.35", hatch=HATCHES[place % len(HATCHES)], zorder=1)
        if half == half:
            axes.errorbar(mean, place, xerr=half, color="black", capsize=5, linewidth=1.6, zorder=3)
        axes.plot(
            top1,
            place + np.linspace(-0.15, 0.15, len(top1)) if len(top1) > 1 else [place],
            "o",
            color="white",
            markeredgecolor="black",
            markersize=4.5,
            linestyle="",
            zorder=4,
        )
        edge = max([mean + half if half == half else mean, *top1])
        label = f"{mean:.1f}" + (f" ± {half:.1f}" if half == half else "") + f" ({len(top1)})"
        axes.annotate(label, (edge, place), (8, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(arms)), arms, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.28 * axes.dataLim.x1)
    axes.set_xlabel("test top-1 [%]: mean ± 95 % interval (seeds)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    return save(figure, stem)
