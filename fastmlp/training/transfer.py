"""A trained model gets a head for another data set: fine-tuned, trained as a linear probe, or fitted to its optimum."""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import device as devices
from ..cli import from_mapping
from ..config import FinetuneConfig, ProbeConfig, to_stored
from ..data.beton_metadata import metadata_of
from ..data.split import Split
from ..datasets import DatasetSpec, get_dataset
from ..evaluation.evaluate import evaluate_detailed, evaluation_batch_size
from ..evaluation.features import CachedFeatures, fits_in_memory
from ..evaluation.predictions import keep_predictions
from ..messages import called_from_python, logger
from ..models.mlp import MLP
from ..models.released import released_statistics
from ..models.weights import load_model, save_model
from .head_init import describe_l2, probe_head
from .report_page import finish_with_page
from .run import Settings, TrainedRun, run_training
from .run_folder import open_run
from .run_log import RunLog


def finetune(weights: str | Path, dataset: str, *, verbose: bool = False, **settings: Any) -> TrainedRun:
    """Fine-tune a trained model on a data set's betons, with a new head, and return the finished run.

    weights: a file of ours or a released one, or a released name (load_model). settings: any field of FinetuneConfig,
    as `python recipes/finetune.py --help` explains them. verbose: print what the command line prints, with a progress
    bar; otherwise nothing. An unfinished run of the same settings is resumed.

    Raises ValueError for wrong settings or damaged files, FileNotFoundError for missing weights or betons,
    ConnectionError if released weights cannot be downloaded, FloatingPointError if the loss is not finite, and
    KeyboardInterrupt, after a checkpoint, on Ctrl-C.
    """
    return _from_python(FinetuneConfig, weights, dataset, verbose, settings)


def linear_probe(weights: str | Path, dataset: str, *, verbose: bool = False, **settings: Any) -> TrainedRun:
    """Train a linear head on a trained model's frozen backbone, and return the finished run.

    method="logistic" fits it by L2-regularised logistic regression to its optimum. Otherwise as `finetune`, with the
    fields of ProbeConfig (`python recipes/linear_probe.py --help`); it raises ValueError, FileNotFoundError,
    ConnectionError, FloatingPointError and KeyboardInterrupt for the same reasons.
    """
    return _from_python(ProbeConfig, weights, dataset, verbose, settings)


def _from_python(
    kind: type[FinetuneConfig], weights: str | Path, dataset: str, verbose: bool, settings: dict[str, Any]
) -> TrainedRun:
    with called_from_python(verbose):
        if not isinstance(weights, str | os.PathLike):
            raise ValueError(
                f"weights: expected a file or the name of released weights, got {type(weights).__name__}: "
                "save_model(path, model, metadata) writes a file"
            )
        run = transfer(from_mapping(kind, {"weights": os.fspath(weights), "dataset": dataset, **settings}))
    if run is None:
        raise ValueError("budget=True trains nothing: use the command line's --cfg.budget=1")
    return run


def transfer(asked: FinetuneConfig) -> TrainedRun | None:
    """Give a trained model a head for another data set, as the settings ask; return None if they ask for the budget."""
    if not isinstance(asked, ProbeConfig):
        return run_training(*prepare(asked, "finetune"))
    if asked.method == "logistic":
        return fit_head(*prepare(asked, "probe"))
    return run_training(*prepare(asked, "probe"), backbone="frozen")


def prepare(asked: Settings, kind: str) -> tuple[Settings, DatasetSpec, Callable[[], MLP], str]:
    """Return the arguments of run_training and fit_head for a trained model that gets a head for another data set."""
    if not asked.weights or asked.dataset == "auto":
        raise ValueError("name the trained model and the data set: --cfg.weights=runs/.../final.pt --cfg.dataset=NAME")
    spec = get_dataset(asked.dataset, asked.data_dir, asked.res)
    model, metadata = load_model(asked.weights, asked.arch)
    spec = _normalized(asked, spec, metadata)
    if os.environ.get("RANK", "0") == "0":  # set by torchrun
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (spec.mean, spec.std))
        logger.info(
            f"{asked.weights}: {model.arch} of {model.res} px. Data set {spec.name}: {model.resampling} resizing, "
            f"mean {mean}, std {std}"
        )
    config = dataclasses.replace(asked, res=asked.res or spec.res, arch=str(model.arch))
    stem = f"{kind}-{spec.name}-{config.arch}-seed{config.seed}".lower()
    return config, spec, lambda: model.replace_head(spec.num_classes), stem


def _normalized(asked: FinetuneConfig, spec: DatasetSpec, metadata: dict[str, Any]) -> DatasetSpec:
    """Return the data set with the mean and std that config.normalization asks for."""
    if asked.normalization == "dataset":
        return spec
    if asked.normalization == "authors":
        mean, std = released_statistics(spec.num_classes)
    elif {"mean", "std"} <= set(metadata):
        mean, std = tuple(metadata["mean"]), tuple(metadata["std"])
    else:
        raise ValueError(
            f"{asked.weights} does not record the mean and std that it was trained with: use "
            "--cfg.normalization=dataset, or save it with save_model(path, model, metadata)"
        )
    return dataclasses.replace(spec, mean=mean, std=std)


def fit_head(config: ProbeConfig, spec: DatasetSpec, make_model: Callable[[], MLP], stem: str) -> TrainedRun:
    """Fit the head by L2-regularised logistic regression on the features, to its optimum, and write a run folder."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("--cfg.method=logistic runs in one process: start it without torchrun")
    if config.crop != "none" or config.flip or config.mixup_alpha:
        raise ValueError(
            "--cfg.method=logistic fits features of whole images: use no --cfg.crop, --cfg.flip and --cfg.mixup_alpha"
        )
    if config.budget:
        raise ValueError("--cfg.method=logistic has no steps of which --cfg.budget could tell the cost")
    if config.validation:
        raise ValueError(
            "--cfg.method=logistic holds out a tenth of the training images itself: leave --cfg.validation out"
        )
    started = time.perf_counter()
    device = devices.select(config.device)
    logger.info(devices.explain_choice(config.device, device))
    torch.manual_seed(config.seed)
    with devices.memory_errors(device, lambda: "take a narrower model"):
        model = make_model().to(device)
    shared: dict[str, Any] = {
        "data_dir": config.data_dir,
        "res": config.res,
        "image_res": model.res,
        "resampling": model.resampling,
        "num_workers": config.num_workers,
        "device": device,
        "batch_size": evaluation_batch_size(device),
    }
    splits = [
        Split(spec, spec.train_split, "evaluate", seed=config.seed, fraction=config.train_fraction, **shared),
        Split(spec, spec.eval_split, "evaluate", **shared),
    ]
    if not fits_in_memory(model, sum(split.num_samples for split in splits)):
        raise ValueError(
            f"features of {splits[0].num_samples:,} images do not fit into memory: use "
            "--cfg.method=gradient, which computes them again in each epoch"
        )
    with (
        devices.memory_errors(device, lambda: "use --cfg.method=gradient, which takes less"),
        open_run(config, stem) as run,
        RunLog(run.folder, config, devices.describe(device)) as log,
    ):
        train, test = (CachedFeatures(model, split) for split in splits)
        l2, tried = probe_head(model, train, config.l2, config.seed)
        if tried:
            logger.info(describe_l2(l2, tried))
        found = evaluate_detailed(model.linear_out, test)
        scores = found.scores
        seconds = time.perf_counter() - started
        stored = to_stored({"eval_top1": scores.top1, "eval_top5": scores.top5})
        metadata = {**metadata_of(spec, splits[0].path), **stored, "l2": l2}
        save_model(run.folder / "final.pt", model, metadata)
        written = ["final.pt", "log.jsonl", *keep_predictions(run.folder, found, metadata["classes"], test)]
        log.write("end", eval_top1=scores.top1, eval_top5=scores.top5, eval_loss=scores.loss, l2=l2, train_s=seconds)
        written += finish_with_page(run.folder)  # after the last line, which the page reads
        logger.info(
            f"test top-1   {scores.top1:.2%}  (top-5 {scores.top5:.2%}, {scores.images:,} images; l2 {l2:g})\n"
            f"seconds      {seconds:.1f} in all\nrun folder   {run.folder}: {', '.join(written)}"
        )
    return TrainedRun(run.folder, scores, scores.top1, 0.0, seconds)
