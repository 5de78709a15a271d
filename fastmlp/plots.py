"""Pictures: learning curves, confusion matrices, contact sheets."""

import io
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .atomic import write_atomic

MAX_CLASSES, MAX_CONFUSED = 200, 50  # a confusion matrix of more than MAX_CLASSES shows only MAX_CONFUSED of them


def printable(text: str) -> str:
    """Return a text with the bytes of file names that are not UTF-8 escaped: \\udcff."""
    return text.encode("utf-8", "backslashreplace").decode()


def load_matplotlib() -> None:
    """Import matplotlib, which takes 0.5 s, for figures to come. Does nothing if it is not installed."""
    with suppress(ModuleNotFoundError):
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401


def new_figure(width: float, height: float) -> Any:
    """Return a figure made without pyplot, which would look for a screen.

    Raises ModuleNotFoundError, with the command that fixes it, if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("this picture needs matplotlib: pip install 'fastmlp[plots]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def learning_curve(
    epochs: Sequence[dict[str, Any]],  # a run's log lines "epoch"
    name: str,
    path: Path,
) -> Path:
    """Draw training loss and top-1 by epoch, of held-out images if the run had any, else of test images; return `path`.

    Raises ModuleNotFoundError if matplotlib is not installed.
    """
    figure = new_figure(7, 4)
    from matplotlib.ticker import MaxNLocator

    key, what = ("val_top1", "validation") if any("val_top1" in line for line in epochs) else ("eval_top1", "test")
    tested = [line for line in epochs if key in line]
    figure.set_layout_engine("none")  # the run waits, and finding the margins takes a third of the time
    losses = figure.subplots(gridspec_kw={"left": 0.1, "right": 0.9, "bottom": 0.12, "top": 0.92})
    losses.plot(
        [line["epoch"] for line in epochs],
        [line["train_loss"] for line in epochs],
        "o-",
        color="tab:blue",
        markersize=3,
    )
    losses.set_xlabel("epoch")
    losses.set_ylabel("training loss (with label smoothing, MixUp)", color="tab:blue")
    top1 = losses.twinx()
    top1.plot(
        [line["epoch"] for line in tested],
        [100 * line[key] for line in tested],
        "s--",
        color="tab:red",
        markersize=3,
    )
    top1.set_ylabel(f"{what} top-1 [%]", color="tab:red")
    last = tested[-1]
    losses.set_title(f"{printable(name)}: {last[key]:.2%} after {last['epoch']} epochs", fontsize=10)
    losses.xaxis.set_major_locator(MaxNLocator(integer=True))
    return save_figure(figure, path, dpi=120)


def confusion_matrix(
    counts: np.ndarray,  # (C, C) int: row label, column predicted
    classes: Sequence[str],
    path: Path,
) -> Path:
    """Draw each label's images by predicted class, in %; return `path`.

    Up to 20 classes with numbers, up to MAX_CLASSES as a heat map; of more classes, only the MAX_CONFUSED of the most
    frequent confusions, in the order of the labels. A label without images is a white row. Darkness grows with the
    square root of the share, so that confusions of 1 % are visible.
    """
    figure = new_figure(1, 1)
    from matplotlib.colors import PowerNorm

    order, which = np.arange(len(counts)), ""
    if len(counts) > MAX_CLASSES:
        pairs = np.argwhere(counts)  # at most as many as there are images
        often = np.where(pairs[:, 0] == pairs[:, 1], 0, counts[tuple(pairs.T)])
        mixed = pairs[np.argsort(-often, kind="stable")].ravel().tolist()
        order = np.sort(list(dict.fromkeys([*mixed, *range(MAX_CONFUSED)]))[:MAX_CONFUSED])
        which = f", the {len(order)} of {len(counts):,} classes that are most confused"
    shares = 100 * counts[np.ix_(order, order)] / np.maximum(counts[order].sum(1), 1)[:, None]
    few, every = len(order) <= 20, -(-len(order) // 50)
    names = [printable(classes[int(c)]) for c in order[::every]]
    names = [name if len(name) <= 20 else name[:19] + "…" for name in names]
    side = 2.2 + 0.42 * max(len(order), 8) if few else 11.5
    figure.set_size_inches(side if few else side + 1.3, side)  # with the scale beside a heat map
    axes = figure.subplots()
    heat = axes.imshow(shares, cmap="Greys", norm=PowerNorm(0.5, 0, 100))
    ticks = range(0, len(order), every)
    axes.set_xticks(ticks, names, rotation=90, fontsize=8, parse_math=False)  # a class may be called $
    axes.set_yticks(ticks, names, fontsize=8, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    for row, column in np.argwhere(shares) if few else ():
        share = shares[row, column]
        axes.text(
            column,
            row,
            f"{share:.0f}" if share >= 1 else "·",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if share > 25 else "black",
        )
    if not few:
        figure.colorbar(
            heat, ax=axes, label="% of the label's images", aspect=40, pad=0.01, ticks=[0, 1, 5, 10, 25, 50, 100]
        )
    axes.set_title(f"top-1 {np.trace(counts) / max(1, counts.sum()):.2%}; % of each label's images{which}", fontsize=9)
    return save_figure(figure, path, dpi=120)


def captioned_sheet(
    images: np.ndarray,  # (N, res, res, 3) uint8
    captions: Sequence[str],  # one for each, of one line or several
    path: Path,
    columns: int = 8,
    title: str = "",
    min_side: int = 96,  # of an image [screen pixels]
) -> Path:
    """Draw a grid of images, each with its caption below, cut to the image's width; return `path`."""
    font, margin, res = ImageFont.load_default(size=12), 6, images.shape[1]
    scale = -(-min_side // res)
    side, line = scale * res, 15
    lines = max(caption.count("\n") for caption in captions) + 1
    cell, top = (side + margin, side + lines * line + margin), margin + line * bool(title)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (margin + min(columns, len(images)) * cell[0], top + rows * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, 2), printable(title), "black", font)
    for n, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = margin + n % columns * cell[0], top + n // columns * cell[1]
        sheet.paste(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST), (x, y))
        for number, text in enumerate(printable(caption).split("\n")):
            while font.getlength(text) > side:
                text = text[:-2] + "…"
            draw.text((x, y + side + number * line), text, "black", font)
    return _save_picture(sheet, path)


def contact_sheet(
    images: np.ndarray,  # (rows, columns, res, res, 3) uint8
    path: Path,
    scale: int = 2,  # screen pixels per image pixel
) -> Path:
    """Draw a grid of images with thin gaps between them; return `path`."""
    rows, columns, res = images.shape[:3]
    gap = 1
    sheet = np.full((rows * (res + gap) + gap, columns * (res + gap) + gap, 3), 255, np.uint8)
    for r in range(rows):
        for c in range(columns):
            y, x = gap + r * (res + gap), gap + c * (res + gap)
            sheet[y : y + res, x : x + res] = images[r, c]
    picture = Image.fromarray(sheet)
    return _save_picture(
        picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST), path
    )


def save_figure(figure: Any, path: Path, **settings: Any) -> Path:
    """Save a figure of matplotlib, whole or not at all, in the format of the path's suffix; return `path`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], **settings)
    write_atomic(path, buffer.getbuffer())
    return path


def _save_picture(picture: Image.Image, path: Path) -> Path:
    buffer = io.BytesIO()
    buffer.name = str(path)  # its suffix gives the format
    picture.save(buffer)
    write_atomic(path, buffer.getbuffer())
    return path
