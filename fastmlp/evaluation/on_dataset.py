"""Evaluation of a trained model on a data set's betons, with the normalisation that it was trained with."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from .. import device as devices
from ..cli import from_mapping
from ..config import EvaluateConfig, crop_ratios
from ..data.beton_metadata import metadata_of
from ..data.split import MULTI_LABEL, Split
from ..datasets import DatasetSpec, get_dataset
from ..messages import called_from_python, logger
from ..models.mlp import MLP
from ..models.weights import class_names, complete_metadata, load_model
from ..transforms.augment_params import Augment
from .evaluate import Average, DetailedScores, evaluate_detailed, evaluation_batch_size, wilson_interval


@dataclass(frozen=True)
class Evaluation:
    """A model's scores on a split (shares, 0-1), with the label and the prediction of each image.

    seconds: what the evaluation took, without loading the model. found: what the properties below are made of.
    """

    found: DetailedScores
    classes: list[str]
    dataset: str
    path: Path  # of the beton
    fingerprint: int  # of the beton (Split.fingerprint)
    seconds: float  # that the evaluation took

    @property
    def split(self) -> str:
        """The beton's name."""
        return self.path.name

    @property
    def shares(self) -> dict[str, tuple[float, int]]:
        """The share of right predictions (0-1) and of how many images: "top-1", "top-5" and, with labels "ReaL"."""
        found = self.found
        shares = {"top-1": (found.scores.top1, found.scores.images), "top-5": (found.scores.top5, found.scores.images)}
        if found.real_top1 is not None and found.real_images:
            shares["ReaL"] = (found.real_top1, found.real_images)
        return shares

    @property
    def top1(self) -> float:
        """Share of the images whose label has the highest logit (0-1); of equal logits the lower class counts."""
        return self.found.scores.top1

    @property
    def top5(self) -> float:
        """Share of the images whose label is among the five highest logits (0-1)."""
        return self.found.scores.top5

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats, without label smoothing."""
        return self.found.scores.loss

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of top-1, its ends 0-1 (Wilson)."""
        return wilson_interval(*self.shares["top-1"])

    @property
    def per_class_top1(self) -> dict[str, float]:
        """Top-1 of each class by its name (0-1), NaN for a class without images."""
        return dict(zip(self.classes, self.found.per_class_top1.tolist(), strict=True))

    @property
    def labels(self) -> np.ndarray:
        """The label of each image, (N,) int64, in the order of the beton."""
        return self.found.labels

    @property
    def predicted(self) -> np.ndarray:
        """The class predicted for each image, (N,) int64, -1 where a logit is NaN."""
        return self.found.predicted

    @property
    def probability(self) -> np.ndarray:
        """The probability of the predicted class of each image (0-1), (N,) float32."""
        return self.found.probability

    @property
    def confusion(self) -> np.ndarray:
        """Numbers of images, (num_classes, num_classes) int64: row label, column predicted."""
        return self.found.confusion


def evaluate(model: MLP | str | Path, dataset: str = "", *, verbose: bool = False, **settings: Any) -> Evaluation:
    """Evaluate a model on every image of a data set's beton.

    model: a file of weights, a released name, or a model, whose `metadata` has its mean and std. dataset: empty for the
    one that it was trained on. settings: fields of EvaluateConfig, as `python recipes/evaluate.py --help` explains
    them, without images, out and fit: tta_crops=100, split="val", data_dir="data".

    Images are normalised by the mean and std of `metadata`, three numbers each (0-255).

    Raises ValueError for a wrong setting, and if the data set does not have the model's classes; FileNotFoundError if
    its beton or the weights are missing; ConnectionError if released weights cannot be downloaded.
    """
    with called_from_python(verbose):
        barred = {"images": "fastmlp.predict classifies images", "fit": "fastmlp.predict has it"}
        barred |= {"out": "values are returned", "weights": "they are the first argument"}
        if isinstance(model, MLP):
            barred |= dict.fromkeys(("arch", "device"), "the model has its own")
        if wrong := [f"{name} ({barred[name]})" for name in settings if name in barred]:
            raise ValueError(f"evaluate takes no {', '.join(wrong)}")
        given = {} if isinstance(model, MLP) else {"weights": os.fspath(model)}
        config = from_mapping(EvaluateConfig, {"dataset": dataset, **given, **settings})
        if isinstance(model, MLP):
            return evaluate_on_dataset(config, model)
        with torch.random.fork_rng(devices=[]):  # new weights are drawn before they are replaced
            loaded = load_model(model, config.arch)[0].to(devices.select(config.device))
        return evaluate_on_dataset(config, loaded)


def evaluate_on_dataset(config: EvaluateConfig, model: MLP) -> Evaluation:
    """Evaluate the model on a data set; images are normalised with the mean and std of model.metadata.

    Raises ValueError if the data set does not have the model's classes, and FileNotFoundError if its beton is missing.
    """
    origin = config.weights or "the model"
    metadata = complete_metadata(model, origin)
    spec = _dataset_of(config, model, metadata, origin)
    split = _open_split(config, spec, model)
    stored = metadata_of(spec, split.path)
    _compare_metadata(metadata, stored, split.path.name, origin)
    multi_labels = split.multi_labels() if MULTI_LABEL in split.loader.reader.handlers else None
    started = time.perf_counter()
    average = cast(Average, config.tta_average)
    found = evaluate_detailed(model, split, config.tta_crops or 1, average, multi_labels)
    classes = class_names(metadata["classes"] or stored["classes"], model.num_classes)
    seconds = time.perf_counter() - started
    return Evaluation(found, classes, spec.name, split.path, split.fingerprint, seconds)


def _dataset_of(config: EvaluateConfig, model: MLP, metadata: dict[str, Any], origin: str) -> DatasetSpec:
    """Return the data set to evaluate on, with the mean and std that the model was trained with.

    Its res is that of the betons: as asked, or those that the model was trained on, or the data set's own.
    """
    if not config.dataset and metadata["dataset"] == "unknown":
        raise ValueError(f"{origin} does not name its data set: add --cfg.dataset=NAME")
    name = config.dataset or metadata["dataset"]
    res = config.res or (metadata.get("beton_res", 0) if name == metadata["dataset"] else 0)
    spec = get_dataset(name, config.data_dir, res)
    if spec.num_classes != model.num_classes:
        raise ValueError(
            f"{origin} has {model.num_classes} classes, {spec.name} has {spec.num_classes}: give the model "
            "another head with recipes/finetune.py or recipes/linear_probe.py"
        )
    return replace(spec, mean=tuple(metadata["mean"]), std=tuple(metadata["std"]), res=res or spec.res)


def _open_split(config: EvaluateConfig, spec: DatasetSpec, model: MLP) -> Split:
    """Return the split to evaluate on; with config.tta_crops each of its epochs gives another crop of every image."""
    device = next(model.parameters()).device
    scale, ratio = (config.min_crop_scale, 1.0), crop_ratios(config)
    return Split(
        spec,
        config.split or spec.eval_split,
        "tta" if config.tta_crops else "evaluate",
        data_dir=config.data_dir,
        res=spec.res,
        image_res=model.res,
        batch_size=config.batch_size or evaluation_batch_size(device),
        seed=config.seed,
        num_workers=config.num_workers,
        augment=Augment("random_resized", scale, ratio, flip=config.flip) if config.tta_crops else None,
        device=device,
        resampling=model.resampling,
    )


def _compare_metadata(metadata: dict[str, Any], stored: dict[str, Any], beton: str, origin: str) -> None:
    """Print a notice if the beton's images are fitted otherwise than the model's were; raise for other classes."""
    if stored["fit"] != metadata["fit"]:
        logger.warning(
            f"the model was trained on images of --fit {metadata['fit']}, {beton} has --fit {stored['fit']}: "
            f"write it with --fit {metadata['fit']} for scores that compare"
        )
    if metadata["classes"] and stored["classes"] and metadata["classes"] != stored["classes"]:
        raise ValueError(
            f"{origin} has the classes {', '.join(metadata['classes'][:5])}, ..., but {beton} has "
            f"{', '.join(stored['classes'][:5])}, ...: name the data set of the same classes"
        )
