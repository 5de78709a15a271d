"""Evaluation of a trained model, written to a folder: scores, tables, predictions and pictures."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from .. import plots
from ..atomic import write_atomic
from ..config import EvaluateConfig
from ..messages import logger
from ..models.mlp import MLP
from ..models.weights import complete_metadata
from ..sources.listing import told
from .classify import choose_fit, classify_folder, thumbnails
from .evaluate import wilson_interval
from .on_dataset import evaluate_on_dataset
from .predictions import to_csv, write_predictions

SHEET_IMAGES = 32  # on the sheet of the most confident predictions, and on that of the least confident ones


def report_on_dataset(config: EvaluateConfig, model: MLP, out: Path) -> None:
    """Evaluate the model on a data set, print the table of scores and write the report into `out`.

    Writes results.json, results.md, predictions.csv, predictions.json and, if matplotlib is installed, confusion.png.
    Raises what evaluate_on_dataset raises.
    """
    out.mkdir(parents=True, exist_ok=True)  # now, so that a folder that cannot be made fails before the work
    done = evaluate_on_dataset(config, model)
    results = {
        **{
            name: {"share": share, "images": images, "interval_95": wilson_interval(share, images)}
            for name, (share, images) in done.shares.items()
        },
        "loss": done.loss,
        "per_class_top1": {name: None if np.isnan(share) else share for name, share in done.per_class_top1.items()},
        "dataset": done.dataset,
        "split": done.split,
        "arch": str(model.arch),
        "settings": asdict(config),
        "seconds": done.seconds,
    }
    crops = f", mean {config.tta_average} of {config.tta_crops} crops" if config.tta_crops else ""
    table = _score_table(f"{Path(config.weights).name}, {model.arch}, {done.split}{crops}", done.shares)
    # Before writing, which a full disk may prevent.
    logger.info(f"{table}\nloss {done.loss:.4f}; {done.seconds:.1f} s")
    written = _write_files(out, {"results.json": json.dumps(results, indent=1) + "\n", "results.md": table})
    written += write_predictions(out, done.found, done.classes, done)
    try:
        written.append(plots.confusion_matrix(done.confusion, done.classes, out / "confusion.png").name)
    except ModuleNotFoundError as error:
        logger.warning(str(error))
    logger.info(f"{out}: {', '.join(written)}")


def report_on_images(config: EvaluateConfig, model: MLP, out: Path) -> None:
    """Classify the image files below config.images and write predictions.csv and two sheets of images into `out`.

    The sheets surest.png and least_sure.png show the images with the highest and the lowest probability of their
    predicted class. Files that cannot be read are named on stderr.
    """
    folder = Path(config.images)
    found = classify_folder(model, folder, config.fit, config.num_workers)
    metadata = complete_metadata(model, config.weights)
    fit, classes, best = choose_fit(config.fit, metadata), found.classes, found.best
    if not metadata["classes"]:
        logger.info(f"{config.weights} names no classes: they are told by number")
    columns = [f"{column}{rank}" for rank in range(1, best.shape[1] + 1) for column in ("class", "probability")]
    rows: list[tuple] = [("file", *columns)]
    paths = [path for path in found.inputs if isinstance(path, Path)]
    rows += [
        (path.relative_to(folder), *(t for c in row for t in (classes[c] if c >= 0 else "", f"{probabilities[c]:.4f}")))
        for path, row, probabilities in zip(paths, best, found.probabilities, strict=True)
    ]
    written = _write_files(out, {"predictions.csv": to_csv(rows)})
    confidence = found.probabilities.max(1)
    order = np.argsort(-confidence, kind="stable")
    for name, samples in (("surest", order[:SHEET_IMAGES]), ("least sure", order[::-1][:SHEET_IMAGES])):
        captions = [f"{classes[best[sample, 0]]}\n{confidence[sample]:.0%}" for sample in samples]
        images = thumbnails([paths[sample] for sample in samples], model.res, fit, model.resampling)
        path = out / f"{name.replace(' ', '_')}.png"
        written.append(plots.captioned_sheet(images, captions, path, title=f"the {name} of {len(order):,}").name)
    if found.left_out:
        logger.info(f"left out: {told(found.left_out)}")
    for message in found.unreadable:
        logger.warning(message)
    logger.info(f"{len(order):,} images, {len(found.unreadable)} unreadable\n{out}: {', '.join(written)}")


def _score_table(title: str, shares: dict[str, tuple[float, int]]) -> str:
    lines = [f"| {title} | share | 95 % interval | images |", "|---|---|---|---|"]
    for name, (share, images) in shares.items():
        low, high = wilson_interval(share, images)
        lines.append(f"| {name} | {share:.2%} | {low:.2%} to {high:.2%} | {images:,} |")
    return "\n".join(lines) + "\n"


def _write_files(out: Path, files: dict[str, str]) -> list[str]:
    """Write the texts into `out`, which is made if it is missing, and return the file names."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_atomic(out / name, text)
    return list(files)
