"""Pictures: learning curves, confusion matrices, contact sheets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .runlog import read_log

MOST_CLASSES = 50  # that a confusion matrix shows


def new_figure(width: float, height: float) -> Any:
    """Without pyplot, which would look for a screen. Raises ModuleNotFoundError with the command that mends it."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("this picture needs matplotlib: pip install 'fastmlp[plots]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def learning_curve(run_dir: Path) -> Path:
    """Draws training loss and test top-1 by epoch from a run's log into curve.png.

    Raises ModuleNotFoundError where matplotlib is not installed, as all here that need it.
    """
    figure = new_figure(7, 4)
    from matplotlib.ticker import MaxNLocator

    epochs = read_log(run_dir, "epoch")
    tested = [line for line in epochs if "test_top1" in line]
    losses = figure.subplots()
    losses.plot([line["epoch"] for line in epochs], [line["train_loss"] for line in epochs], "o-", color="tab:blue",
                markersize=3)  # fmt: skip
    losses.set_xlabel("epoch")
    losses.set_ylabel("training loss (with label smoothing, MixUp)", color="tab:blue")
    top1 = losses.twinx()
    top1.plot([line["epoch"] for line in tested], [100 * line["test_top1"] for line in tested], "s--",
              color="tab:red", markersize=3)  # fmt: skip
    top1.set_ylabel("test top-1 [%]", color="tab:red")
    last = tested[-1]
    losses.set_title(f"{run_dir.name}: {last['test_top1']:.2%} after {last['epoch']} epochs", fontsize=10)
    losses.xaxis.set_major_locator(MaxNLocator(integer=True))
    path = run_dir / "curve.png"
    figure.savefig(path, dpi=120)
    return path


def confusion_matrix(
    counts: np.ndarray,  # (C, C) int: row label, column predicted
    classes: Sequence[str],
    path: Path,
) -> Path:
    """Each label's images by what they were taken for. Of more than MOST_CLASSES classes, those with most errors."""
    order = np.arange(len(counts))
    errors = counts.sum(1) - np.diag(counts) + counts.sum(0) - np.diag(counts)
    if len(counts) > MOST_CLASSES:
        order = np.sort(np.argsort(-errors, kind="stable")[:MOST_CLASSES])
    images = np.maximum(counts.sum(1), 1)[order]
    shares = 100 * counts[np.ix_(order, order)] / images[:, None]
    names = [name if len(name) <= 16 else name[:15] + "…" for name in (classes[int(c)] for c in order)]
    side = 2.2 + 0.42 * max(len(order), 8) if len(order) <= 20 else 2.2 + 0.2 * len(order)
    figure = new_figure(side, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=100)
    axes.set_xticks(range(len(order)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(order)), names, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("label")
    for row, column in zip(*np.nonzero(counts[np.ix_(order, order)]), strict=True):
        if len(order) <= 20 or shares[row, column] >= 10:
            axes.text(column, row, f"{shares[row, column]:.0f}" if shares[row, column] >= 1 else "·", ha="center",
                      va="center", fontsize=7, color="white" if shares[row, column] > 50 else "black")  # fmt: skip
    which = "" if len(order) == len(counts) else f", the {len(order)} of {len(counts):,} classes with most errors"
    axes.set_title(f"top-1 {np.trace(counts) / max(1, counts.sum()):.2%}; % of each label's images{which}", fontsize=9)
    figure.savefig(path, dpi=120)
    return path


def captioned_sheet(
    images: np.ndarray,  # (N, res, res, 3) uint8
    captions: Sequence[str],  # one for each, of one line or several
    path: Path,
    columns: int = 8,
    title: str = "",
    least_side: int = 96,  # of an image [screen pixels]
) -> Path:
    """A grid of images, each with its caption below, cut to the image's width."""
    font, margin, res = ImageFont.load_default(size=12), 6, images.shape[1]
    scale = -(-least_side // res)
    side, line = scale * res, 15
    lines = max(caption.count("\n") for caption in captions) + 1
    cell, top = (side + margin, side + lines * line + margin), margin + line * bool(title)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (margin + min(columns, len(images)) * cell[0], top + rows * cell[1]), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, 2), title, "black", font)
    for n, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = margin + n % columns * cell[0], top + n // columns * cell[1]
        sheet.paste(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST), (x, y))
        for number, text in enumerate(caption.split("\n")):
            while font.getlength(text) > side:
                text = text[:-2] + "…"
            draw.text((x, y + side + number * line), text, "black", font)
    sheet.save(path)
    return path


def contact_sheet(
    images: np.ndarray,  # (rows, columns, res, res, 3) uint8
    path: Path,
    scale: int = 2,  # screen pixels per image pixel
) -> Path:
    """A grid of images with thin gaps between them."""
    rows, columns, res = images.shape[:3]
    gap = 1
    sheet = np.full((rows * (res + gap) + gap, columns * (res + gap) + gap, 3), 255, np.uint8)
    for r in range(rows):
        for c in range(columns):
            y, x = gap + r * (res + gap), gap + c * (res + gap)
            sheet[y : y + res, x : x + res] = images[r, c]
    picture = Image.fromarray(sheet)
    picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.NEAREST).save(path)
    return path
