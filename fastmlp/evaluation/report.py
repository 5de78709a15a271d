"""Evaluation of a trained model, written to a folder: scores, tables, predictions and pictures."""

import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from .. import plots
from ..atomic import write_atomic
from ..config import EvaluateConfig, crop_ratios
from ..data.beton_metadata import metadata_of
from ..data.split import MULTI_LABEL, Split
from ..datasets import DatasetSpec, get_dataset
from ..models.mlp import MLP
from ..sources.listing import told
from ..transforms.augment_params import Augment
from .classify import classify_folder, thumbnails
from .evaluate import Average, DetailedScores, evaluate_detailed, evaluation_batch_size, wilson_interval
from .predictions import class_names, to_csv, write_predictions

SHEET_IMAGES = 32  # on the sheet of the most confident predictions, and on that of the least confident ones


def report_on_dataset(config: EvaluateConfig, model: MLP, metadata: dict[str, Any], out: Path) -> None:
    """Evaluate the model on a data set, print the table of scores and write the report into `out`.

    Writes results.json, results.md, predictions.csv, predictions.json and, if matplotlib is installed, confusion.png.
    `metadata` is the model's (load_model), with "fit" and "classes"; images are normalised with its mean and std.
    Raises ValueError if the data set does not have the model's classes, and FileNotFoundError if its beton is missing.
    """
    spec = _dataset_of(config, model, metadata)
    split = _open_split(config, spec, model)
    stored = metadata_of(spec, split.path)
    _compare_metadata(config, metadata, stored, split.path.name)
    out.mkdir(parents=True, exist_ok=True)  # now, so that a folder that cannot be made fails before the work
    multi_labels = split.multi_labels() if MULTI_LABEL in split.loader.reader.handlers else None
    started = time.perf_counter()
    average = cast(Average, config.tta_average)
    found = evaluate_detailed(model, split, config.tta_crops or 1, average, multi_labels)
    seconds = time.perf_counter() - started
    classes = class_names(metadata["classes"] or stored["classes"], model.num_classes)
    shares = _shares(found)
    results = {
        **{
            name: {"share": share, "images": images, "interval_95": wilson_interval(share, images)}
            for name, (share, images) in shares.items()
        },
        "loss": found.scores.loss,
        "per_class_top1": {
            name: None if np.isnan(share) else share
            for name, share in zip(classes, found.per_class_top1.tolist(), strict=True)
        },
        "dataset": spec.name,
        "split": split.path.name,
        "arch": str(model.arch),
        "settings": asdict(config),
        "seconds": seconds,
    }
    crops = f", mean {config.tta_average} of {config.tta_crops} crops" if config.tta_crops else ""
    table = _score_table(f"{Path(config.weights).name}, {model.arch}, {split.path.name}{crops}", shares)
    print(f"{table}\nloss {found.scores.loss:.4f}; {seconds:.1f} s")  # before writing, which a full disk may prevent
    written = _write_files(out, {"results.json": json.dumps(results, indent=1) + "\n", "results.md": table})
    written += write_predictions(out, found, classes, split)
    try:
        written.append(plots.confusion_matrix(found.confusion, classes, out / "confusion.png").name)
    except ModuleNotFoundError as error:
        print(f"notice: {error}", file=sys.stderr)
    print(f"{out}: {', '.join(written)}")


def report_on_images(config: EvaluateConfig, model: MLP, metadata: dict[str, Any], out: Path) -> None:
    """Classify the image files below config.images and write predictions.csv and two sheets of images into `out`.

    The sheets surest.png and least_sure.png show the images with the highest and the lowest probability of their
    predicted class. Files that cannot be read are named on stderr.
    """
    fit: Any = metadata["fit"] if config.fit == "auto" else config.fit
    folder = Path(config.images).expanduser()
    found = classify_folder(model, folder, metadata["mean"], metadata["std"], fit, config.num_workers)
    classes = class_names(metadata["classes"], model.num_classes)
    best = found.best
    columns = [f"{column}{rank}" for rank in range(1, best.shape[1] + 1) for column in ("class", "probability")]
    rows: list[tuple] = [("file", *columns)]
    rows += [
        (path.relative_to(folder), *(text for c in row for text in (classes[c], f"{probabilities[c]:.4f}")))
        for path, row, probabilities in zip(found.paths, best, found.probabilities, strict=True)
    ]
    written = _write_files(out, {"predictions.csv": to_csv(rows)})
    confidence = found.probabilities.max(1)
    order = np.argsort(-confidence, kind="stable")
    for name, samples in (("surest", order[:SHEET_IMAGES]), ("least sure", order[::-1][:SHEET_IMAGES])):
        captions = [f"{classes[best[sample, 0]]}\n{confidence[sample]:.0%}" for sample in samples]
        images = thumbnails([found.paths[sample] for sample in samples], model.res, fit, model.resampling)
        path = out / f"{name.replace(' ', '_')}.png"
        written.append(plots.captioned_sheet(images, captions, path, title=f"the {name} of {len(order):,}").name)
    if found.left_out:
        print(f"left out: {told(found.left_out)}")
    for message in found.unreadable:
        print(f"notice: {message}", file=sys.stderr)
    print(f"{len(order):,} images, {len(found.unreadable)} unreadable\n{out}: {', '.join(written)}")


def _dataset_of(config: EvaluateConfig, model: MLP, metadata: dict[str, Any]) -> DatasetSpec:
    """Return the data set to evaluate on, with the mean and std that the model was trained with."""
    if not config.dataset and metadata["dataset"] == "unknown":
        raise ValueError(f"{config.weights} does not name its data set: add --cfg.dataset=NAME")
    spec = get_dataset(config.dataset or metadata["dataset"], config.data_dir, config.res)
    if spec.num_classes != model.num_classes:
        raise ValueError(
            f"{config.weights} has {model.num_classes} classes, {spec.name} has {spec.num_classes}: give the model "
            "another head with recipes/finetune.py or recipes/linear_probe.py"
        )
    return replace(spec, mean=tuple(metadata["mean"]), std=tuple(metadata["std"]))


def _open_split(config: EvaluateConfig, spec: DatasetSpec, model: MLP) -> Split:
    """Return the split to evaluate on; with config.tta_crops each of its epochs gives another crop of every image."""
    device = next(model.parameters()).device
    scale, ratio = (config.min_crop_scale, 1.0), crop_ratios(config)
    return Split(
        spec,
        config.split or spec.eval_split,
        "tta" if config.tta_crops else "evaluate",
        data_dir=config.data_dir,
        res=config.res or spec.res,
        image_res=model.res,
        batch_size=config.batch_size or evaluation_batch_size(device),
        seed=config.seed,
        num_workers=config.num_workers,
        augment=Augment("random_resized", scale, ratio, flip=config.flip) if config.tta_crops else None,
        device=device,
        resampling=model.resampling,
    )


def _compare_metadata(config: EvaluateConfig, metadata: dict[str, Any], stored: dict[str, Any], beton: str) -> None:
    """Print a notice if the beton's images are fitted otherwise than the model's were; raise for other classes."""
    if stored["fit"] != metadata["fit"]:
        print(
            f"notice: the model was trained on images of --fit {metadata['fit']}, {beton} has --fit {stored['fit']}: "
            f"write it with --fit {metadata['fit']} for scores that compare",
            file=sys.stderr,
        )
    if metadata["classes"] and stored["classes"] and metadata["classes"] != stored["classes"]:
        raise ValueError(
            f"{config.weights} has the classes {', '.join(metadata['classes'][:5])}, ..., but {beton} has "
            f"{', '.join(stored['classes'][:5])}, ...: name the data set of the same classes"
        )


def _shares(found: DetailedScores) -> dict[str, tuple[float, int]]:
    """Return each score's share of correct predictions and the number of images that it is of."""
    shares = {"top-1": (found.scores.top1, found.scores.images), "top-5": (found.scores.top5, found.scores.images)}
    if found.real_top1 is not None and found.real_images:
        shares["ReaL"] = (found.real_top1, found.real_images)
    return shares


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
