"""The parts of a run's page that show images: what it was trained on, its filters, confusion and mistakes. As HTML."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.stored_images import stored_images
from ..evaluation.filters import filter_sheet
from ..evaluation.html_page import embedded_png, escape, html_table, to_png
from ..evaluation.predictions import StoredPredictions
from ..models.mlp import MLP

MAX_HEAT_CLASSES = 30  # of a confusion matrix that is shown whole
CONFUSED_PAIRS = 30  # shown of more classes
MISTAKES = 24
MAX_SIDE = 64  # of a mistake's image [pixels]
MAX_SHEET_BYTES = 400_000  # of the PNG of images before and after augmentation
MAX_FILTERS_SIDE = 270  # of the sheet of filters [pixels]
MAX_NAME = 60  # characters of a class's name


def augmented_sheet(path: Path, model: MLP) -> str:
    """Return the sheet that the run drew at its start, with fewer rows if it is large; "" if missing or damaged."""
    try:
        with Image.open(path) as stored:
            half = stored.width // 2, stored.height // 2  # undoes contact_sheet's scale
            sheet = stored.convert("RGB").resize(half, Image.Resampling.NEAREST)
    except OSError:
        return ""
    pairs = max(1, (sheet.height - 1) // (2 * (model.res + 1)))
    while len(png := to_png(sheet)) > MAX_SHEET_BYTES and pairs > 1:
        pairs = max(1, min(pairs - 1, int(pairs * MAX_SHEET_BYTES / len(png))))
        sheet = sheet.crop((0, 0, sheet.width, pairs * 2 * (model.res + 1) + 1))
    text = "Rows of training images, and below each row the same images augmented, as the model saw them first."
    return f"<p>{text}</p>{embedded_png(png, 'training images', 'pixels', 2 * sheet.width)}"


def filters(model: MLP) -> str:
    """Return the first layer's filters of the largest norm."""
    weights = model.linear_in.weight.detach().numpy()
    rows = min(8, math.isqrt(len(weights)), max(4, MAX_FILTERS_SIDE // (model.res + 1)))
    sheet = filter_sheet(weights, model.res, rows)[:, :, 0]
    text = f"The {rows * rows} of {len(weights):,} with the largest norm, by their maximum over the colours."
    scale = max(2, MAX_FILTERS_SIDE // len(sheet))
    return f"<p>{text}</p>{embedded_png(to_png(sheet), 'filters', 'pixels', scale * len(sheet))}"


def confusion(found: StoredPredictions) -> str:
    """Return the confusion matrix, of more than MAX_HEAT_CLASSES classes its most frequent mistakes."""
    known = found.predicted >= 0
    if len(found.classes) <= MAX_HEAT_CLASSES:
        counts = np.zeros((len(found.classes),) * 2, np.int64)
        np.add.at(counts, (found.labels[known], found.predicted[known]), 1)
        return _heat_table(counts, found.classes)
    wrong = known & ~found.right
    pairs, counts = np.unique(np.stack([found.labels[wrong], found.predicted[wrong]], 1), axis=0, return_counts=True)
    if not len(pairs):
        return ""
    of_label = np.bincount(found.labels, minlength=len(found.classes))
    order = np.argsort(-counts, kind="stable")[:CONFUSED_PAIRS]
    rows = [
        [name(found.classes[label]), name(found.classes[predicted]), f"{count:,}", f"{count / of_label[label]:.1%}"]
        for (label, predicted), count in zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
    ]
    table = html_table([["label", "predicted", "images", "of the label's images"], *rows])
    return f"<p>The most frequent mistakes among {len(found.classes):,} classes.</p>{table}"


def _heat_table(
    counts: np.ndarray,  # (num_classes, num_classes) int64: row label, column predicted
    classes: list[str],
) -> str:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    rows = []
    for row, label in enumerate(classes):
        cells = [name(label)]
        for column, (count, share) in enumerate(zip(counts[row].tolist(), shares[row].tolist(), strict=True)):
            kind = ' class="right"' if row == column else ""
            # The square root, so that rare mistakes are seen.
            cells.append(f'<td{kind} style="--a:{share**0.5:.2f}">{count:,}</td>' if count else "<td></td>")
        rows.append(f"<tr><td>{cells[0]}</td>{''.join(cells[1:])}<td>{shares[row, row]:.1%}</td></tr>")
    head = "".join(f"<th><span>{name(label)}</span></th>" for label in classes)
    table = f"<table><tr><th></th>{head}<th><span>top-1</span></th></tr>{''.join(rows)}</table>"
    text = "Images by label (rows) and prediction (columns); the last column is the class's top-1."
    return f'<p>{text}</p><div class="wide heat">{table}</div>'


def mistakes(found: StoredPredictions) -> str:
    """Return the wrong predictions of the highest probability, with their images if their beton is still there."""
    wrong = np.flatnonzero(~found.right & (found.predicted >= 0))
    samples = wrong[np.argsort(-found.probability[wrong], kind="stable")][:MISTAKES].tolist()
    if not samples:
        return ""
    try:
        images = stored_images(found.beton, samples, found.fingerprint) if found.fingerprint is not None else []
    except (OSError, ValueError):  # moved, or written anew
        images = []
    cells = []
    for n, sample in enumerate(samples):
        picture = embedded_png(_small_png(images[n]), f"sample {sample}", "pixels") if images else f"sample {sample}"
        label, predicted = (name(found.classes[place[sample]]) for place in (found.labels, found.predicted))
        caption = f"<b>{predicted}</b> {found.probability[sample]:.1%}<br>is {label}"
        cells.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    missing = "" if images else " Their beton is not there any more, hence no images."
    text = f"{len(wrong):,} of {len(found.labels):,} images are classified wrongly.{missing}"
    return f'<p>{text}</p><div class="images">{"".join(cells)}</div>'


def _small_png(image: np.ndarray) -> bytes:  # (H, W, 3) uint8
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return to_png(picture)


def name(text: str) -> str:
    """Return a class's name as HTML, cut if it is long."""
    return escape(text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - 1]}…")
