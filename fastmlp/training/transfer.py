"""A trained model gets a head for another data set: fine-tuned, trained as a linear probe, or fitted to its optimum."""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import torch

from .. import device as devices
from ..config import ProbeConfig, to_stored
from ..data.beton_metadata import metadata_of
from ..data.split import Split
from ..datasets import DatasetSpec, get_dataset
from ..evaluation.evaluate import evaluate, evaluation_batch_size
from ..evaluation.features import CachedFeatures, fits_in_memory
from ..evaluation.logistic import choose_l2, fit_logistic
from ..models.mlp import MLP
from ..models.weights import load_backbone, save_model
from .run import Settings
from .run_folder import open_run
from .run_log import RunLog


def transfer(asked: Settings, kind: str) -> tuple[Settings, DatasetSpec, Callable[[], MLP], str]:
    """Return the arguments of `train` and `fit_head` for a trained model that gets a head for another data set."""
    if not asked.weights or asked.dataset == "auto":
        raise ValueError("name the trained model and the data set: --cfg.weights=runs/.../final.pt --cfg.dataset=NAME")
    spec = get_dataset(asked.dataset, asked.data_dir, asked.res)
    model = load_backbone(asked.weights, asked.arch)
    config = dataclasses.replace(asked, res=asked.res or spec.res, arch=str(model.arch))
    stem = f"{kind}-{spec.name}-{config.arch}-seed{config.seed}".lower()
    return config, spec, lambda: model.replace_head(spec.num_classes), stem


def fit_head(config: ProbeConfig, spec: DatasetSpec, make_model: Callable[[], MLP], stem: str) -> None:
    """Fit the head by L2-regularised logistic regression on the features, to its optimum, and write a run folder."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError("--cfg.method=logistic runs in one process: start it without torchrun")
    if config.crop != "none" or config.flip or config.mixup_alpha:
        raise ValueError(
            "--cfg.method=logistic fits features of whole images: use no --cfg.crop, --cfg.flip and --cfg.mixup_alpha"
        )
    started = time.perf_counter()
    device = devices.select(config.device)
    print(devices.explain_choice(config.device, device))
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
        l2 = config.l2
        if not l2:
            l2, tried = choose_l2(train.values, train.labels, spec.num_classes, seed=config.seed)
            print(
                f"l2 {l2:g} is best on a held-out tenth of the training set: "
                + ", ".join(f"{candidate:g} {top1:.2%}" for candidate, top1 in tried.items())
            )
        weight, bias = fit_logistic(train.values, train.labels, spec.num_classes, l2)
        with torch.no_grad():
            model.linear_out.weight.copy_(weight)
            model.linear_out.bias.copy_(bias)
        scores = evaluate(model.linear_out, test)
        seconds = time.perf_counter() - started
        stored = to_stored({"eval_top1": scores.top1, "eval_top5": scores.top5})
        metadata = {**metadata_of(spec, splits[0].path), **stored, "l2": l2}
        save_model(run.folder / "final.pt", model, metadata)
        log.write("end", eval_top1=scores.top1, eval_top5=scores.top5, eval_loss=scores.loss, l2=l2, train_s=seconds)
        print(
            f"test top-1   {scores.top1:.2%}  (top-5 {scores.top5:.2%}, {scores.images:,} images; l2 {l2:g})\n"
            f"seconds      {seconds:.1f} in all\nrun folder   {run.folder}: final.pt, log.jsonl"
        )
