"""Pages of one HTML file that need neither network nor scripts: skeleton, tables, curves as SVG, images as PNG.

They are light or dark, as the browser asks for, and as narrow as 360 px. Arguments are text unless they say HTML.
"""

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..plots import printable

COLOURS = 8  # of curves
MAX_POINTS = 400  # of a curve
MAX_DOTS = 15  # a curve of fewer points shows each of them
WIDTH, HEIGHT = 360, 204  # of a chart; CSS scales it
LEFT, RIGHT, TOP, BOTTOM = 52, 352, 10, 170  # edges of its axes

LIGHT = """--text:#1f2328;--faint:#59636e;--page:#fff;--raised:#f3f5f7;--line:#d1d9e0;
--heat:96 165 250;--wrong:251 146 60;--worse:#fbd5d5;--better:#d9f2d9;
--c0:#2563eb;--c1:#d9480f;--c2:#2b8a3e;--c3:#9c36b5;--c4:#0b7285;--c5:#c2255c;--c6:#7d5a3c;--c7:#5c6370"""
DARK = """--text:#e6e8eb;--faint:#9aa4af;--page:#14171b;--raised:#1f242a;--line:#3a424b;
--heat:37 99 235;--wrong:194 65 12;--worse:#5c2526;--better:#1f4a2a;
--c0:#74a9ff;--c1:#ff9f5a;--c2:#6fd08c;--c3:#d78ff0;--c4:#5fd0e0;--c5:#ff8fb8;--c6:#d0ab8d;--c7:#b3bac4"""
RULES = """*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:0 auto;padding:1rem;color:var(--text);
background:var(--page)}
h1{font-size:1.5rem;line-height:1.25}
h2{font-size:1.15rem;margin:2rem 0 .5rem}
h1,h2,h3,p,li,code,figcaption,summary{overflow-wrap:anywhere}
.faint,figcaption{color:var(--faint)}
figcaption b{color:var(--text)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.15rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left;white-space:normal;min-width:9rem}
.left td,.left th{text-align:left;vertical-align:top;white-space:normal;overflow-wrap:anywhere;min-width:6rem}
.left td:first-child{min-width:8rem}
.wide{overflow-x:auto}
img{max-width:100%;height:auto}
pre{overflow-x:auto;background:var(--raised);padding:.6rem;font-size:12px}
details{margin:.5rem 0}
summary{cursor:pointer}
.slower{background:var(--worse)}
.faster{background:var(--better)}
.cards,.charts,.images{display:grid;gap:.75rem;margin:.75rem 0}
.cards{grid-template-columns:repeat(auto-fill,minmax(min(100%,9.5rem),1fr))}
.cards div{background:var(--raised);padding:.5rem .75rem;border-radius:.4rem}
.cards b{display:block;font-size:1.35rem;line-height:1.3;overflow-wrap:anywhere}
.cards span{font-size:.8rem;display:block}
.charts{grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr))}
.charts.four{grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr))}
.images{grid-template-columns:repeat(auto-fill,minmax(6rem,1fr))}
figure{margin:0;min-width:0}
.images img{width:100%}
.images figcaption{font-size:.75rem;line-height:1.3}
.pixels{image-rendering:pixelated;display:block}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--faint);font-size:12px}
svg path,svg polyline{fill:none;stroke-width:1.75;stroke-linejoin:round}
svg .grid{stroke:var(--line);stroke-width:1}
.key{display:inline-block;margin-left:.75rem}
.key i{display:inline-block;width:.8rem;height:.8rem;border-radius:.15rem;margin-right:.3rem;vertical-align:-.1rem}
td .key{margin:0}
.bar{display:flex;height:1.4rem;border-radius:.3rem;overflow:hidden;background:var(--raised)}
.heat td{text-align:center;padding:.15rem .35rem;min-width:1.9rem;background:rgb(var(--wrong)/var(--a,0))}
.heat td.right{background:rgb(var(--heat)/var(--a,0))}
.heat td:first-child{background:none;min-width:0;white-space:nowrap;text-align:left}
.heat th{vertical-align:bottom;font-weight:normal;padding:.15rem .35rem}
.heat th span{writing-mode:vertical-rl}
"""
CURVES = "".join(f".c{n}{{stroke:var(--c{n})}}.f{n}{{background:var(--c{n});fill:var(--c{n})}}" for n in range(COLOURS))
CSS = f":root{{color-scheme:light dark;{LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}\n{RULES}{CURVES}"


def escape(text: object) -> str:
    """Return a text as HTML, also for attributes in double quotes."""
    return html.escape(str(text))


def document(
    title: str,
    body: str,  # HTML
) -> str:
    """Return the whole page, which the browser keeps from loading or running anything."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return printable(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width,initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escape(title)}</title>'
        f"<style>{CSS}</style></head><body>{body}</body></html>\n"
    )


def section(
    title: str,
    body: str,  # HTML
) -> str:
    """Return the section, "" without a body."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def html_table(
    table: Sequence[Sequence[str]],  # HTML; the first row is the head
    row_classes: Sequence[str] = (),
    kind: str = "",
) -> str:
    """Return a table in a box of its own, inside of which it scrolls if it is wider than the page."""
    head, *rows = table
    classes = [f' class="{name}"' if name else "" for name in row_classes] or [""] * len(rows)
    body = "".join(
        f"<tr{style}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
        for style, row in zip(classes, rows, strict=True)
    )
    names = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="{f"wide {kind}".strip()}"><table><tr>{names}</tr>{body}</table></div>'


def cards(values: Sequence[tuple[str, str, str]]) -> str:
    """Return boxes of a name, a value and what explains it."""
    boxes = (
        f'<div><span class="faint">{escape(name)}</span><b>{escape(value)}</b><span class="faint">{escape(note)}</span>'
        "</div>"
        for name, value, note in values
    )
    return f'<div class="cards">{"".join(boxes)}</div>'


def details(
    title: str,
    body: str,  # HTML
    is_open: bool = False,
) -> str:
    return f"<details{' open' * is_open}><summary>{escape(title)}</summary>{body}</details>"


def embedded_png(png: bytes, text: str, kind: str = "", width: int = 0) -> str:
    """Return an <img> that holds the PNG itself; width [CSS pixels] is its largest."""
    size = f' style="width:{width}px"' if width else ""
    kind = f' class="{kind}"' if kind else ""
    return f'<img alt="{escape(text)}"{kind}{size} src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def to_png(pixels: np.ndarray | Image.Image) -> bytes:  # (H, W, 3) or (H, W) uint8
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


@dataclass(frozen=True)
class Series:
    """A curve; values that are not finite are left out."""

    name: str
    points: Sequence[tuple[float, float]]
    number: int = 0  # of its colour; from COLOURS on they come again, dashed

    @property
    def style(self) -> str:
        return f"c{self.number % COLOURS}"

    def finite(self) -> list[tuple[float, float]]:
        """Return at most MAX_POINTS of the points, with the first and the last."""
        points = [point for point in self.points if all(map(math.isfinite, point))]
        if len(points) <= MAX_POINTS:
            return points
        return [points[round(n)] for n in np.linspace(0, len(points) - 1, MAX_POINTS)]


def compact(value: float) -> str:
    """Return an axis's number: 0.25, 20k, 5e-05."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:.6g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(one for one in (1, 2, 5, 10) if one * power >= 0.999 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, last + 1)]


def line_chart(
    title: str,
    x_label: str,
    series: Sequence[Series],
    y_text: Callable[[float], str] = compact,  # of a value on the axis
    last_text: Callable[[float], str] | None = None,  # of a curve's last value; None: not shown
    from_zero: bool = False,
) -> str:
    """Return curves over common axes with a legend, "" if there is nothing to draw."""
    curves = [(one, points) for one in series if (points := one.finite())]
    if not curves:
        return ""
    x = _range([x for _, points in curves for x, _ in points] + [0.0], 0)
    y = _range([y for _, points in curves for _, y in points] + [0.0] * from_zero, 0.04)
    if from_zero:
        y = max(0.0, y[0]), y[1]

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return (
            LEFT + (RIGHT - LEFT) * (point[0] - x[0]) / (x[1] - x[0]),
            BOTTOM + (TOP - BOTTOM) * (point[1] - y[0]) / (y[1] - y[0]),
        )

    drawn = [_axes(x, y, place, x_label, y_text), *(_curve(one, list(map(place, points))) for one, points in curves)]
    legend = "".join(
        f'<span class="key"><i class="f{one.number % COLOURS}"></i>{escape(one.name)}'
        f"{f' {escape(last_text(points[-1][1]))}' if last_text else ''}</span>"
        for one, points in curves
        if one.name
    )
    return (
        f'<figure><figcaption><b>{escape(title)}</b>{legend}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-label="{escape(title)} by {escape(x_label)}">{"".join(drawn)}</svg></figure>'
    )


def _range(values: list[float], margin: float) -> tuple[float, float]:
    """Return the values' range with a share of it added on both sides; one of length above 0."""
    low, high = min(values), max(values)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        half = 0.05 * abs(low) or 0.5
        return low - half, high + half
    return low - margin * (high - low), high + margin * (high - low)


def _axes(
    x: tuple[float, float],
    y: tuple[float, float],
    place: Callable[[tuple[float, float]], tuple[float, float]],
    x_label: str,
    y_text: Callable[[float], str],
) -> str:
    parts = []
    for value in ticks(*y):
        at = place((x[0], value))[1]
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(y_text(value))}</text>')
    for value in ticks(*x):
        at = place((value, y[0]))[0]
        parts.append(f'<path class="grid" d="M{at:.1f} {BOTTOM}v4"/>')
        parts.append(f'<text x="{at:.1f}" y="{BOTTOM + 16}" text-anchor="middle">{escape(compact(value))}</text>')
    parts.append(f'<path class="grid" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>')
    parts.append(f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 2}" text-anchor="middle">{escape(x_label)}</text>')
    return "".join(parts)


def _curve(series: Series, points: list[tuple[float, float]]) -> str:
    dashes = ' stroke-dasharray="5 3"' if series.number >= COLOURS else ""
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    line = f'<polyline class="{series.style}"{dashes} points="{corners}"/>' if len(points) > 1 else ""
    dots = points if len(points) <= MAX_DOTS else []
    style = f"f{series.number % COLOURS}"
    return line + "".join(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in dots)
