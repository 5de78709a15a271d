"""One training run from its settings to a finished folder: what pretrain.py, finetune.py and linear_probe.py share."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

import torch

from .. import device as devices
from .. import plots
from ..atomic import load_torch
from ..config import FinetuneConfig, PretrainConfig
from ..cost.budget import Host, TrainingJob, explain, predict
from ..cost.hardware import this_machine
from ..data.preview import before_and_after
from ..data.split import Split
from ..datasets import DatasetSpec, sidecar_path
from ..distributed import init_distributed
from ..duration import Duration
from ..evaluation.features import CachedFeatures, fits_in_memory
from ..models.mlp import MLP
from ..models.weights import export_safetensors
from ..transforms.augment_params import Augment
from .checkpoints import Checkpoints
from .loop import Interrupted, Result, fit
from .run_folder import open_run
from .run_log import NoLog, RunLog, read_log
from .trainer import Backbone, Trainer, choose_micro_batch

Settings = TypeVar("Settings", bound=FinetuneConfig)
SHEET = (4, 16)  # rows and columns of the contact sheet; below each row the same images as trained on


def train(
    config: PretrainConfig,
    spec: DatasetSpec,
    make_model: Callable[[], MLP],  # on the CPU; called with the seed set
    stem: str,  # of a new run folder's name
    backbone: Backbone = "trained",
) -> None:
    """Trains on config.res images of the data set, scaled to the model's size, and leaves the run's folder.

    body "frozen" turns to "cached" where nothing is random about the images and their features fit into memory. Ends
    the process with 128 + n after signal n. Raises ValueError and OSError as the parts do.
    """
    started = time.perf_counter()
    device = devices.select(config.device)
    augment = augmentation(config)
    with ExitStack() as stack:
        context = stack.enter_context(init_distributed(device))
        say = print if context.is_main else lambda *_: None
        torch.manual_seed(config.seed)
        model = make_model().to(device)
        shared: dict[str, Any] = {
            "data_dir": config.data_dir,
            "res": config.res,
            "image_res": model.res,
            "device": device,
            "num_workers": config.num_workers or devices.default_num_workers(device),
        }
        test: Any = Split(spec, spec.eval_split, "evaluate", batch_size=2048, **shared)
        if config.budget:
            say(_predicted(config, spec, model, augment, shared))
            return
        # Before there is a folder: what does not fit the data set ends here.
        subset: dict[str, Any] = {"seed": config.seed, "fraction": config.train_fraction}
        train: Any = Split(
            spec,
            spec.train_split,
            "train",
            batch_size=config.batch_size,
            augment=augment,
            context=context,
            **subset,
            **shared,
        )
        run = stack.enter_context(open_run(config, stem)) if context.is_main else None
        folder, step = context.broadcast(
            run and (run.folder, run.checkpoint and run.checkpoint["trainer"]["steps_done"])
        )
        checkpoint = run.checkpoint if run else step and load_torch(Checkpoints(folder).path(step))
        if checkpoint and context.world_size == checkpoint["trainer"]["processes"] == 1:
            torch.set_num_threads(checkpoint["trainer"]["threads"])  # their number moves bits
        if backbone == "frozen" and config.crop == "none" and not config.flip and not config.mixup_alpha:
            room = fits_in_memory(model, train.num_samples + test.num_samples, context.world_size)
            cached = context.broadcast(checkpoint["trainer"]["body"] == "cached" if checkpoint else room)
            backbone = "cached" if cached else "frozen"
            if not cached:
                say(f"features of {train.num_samples:,} images do not fit into memory: computed anew in each epoch")
        if checkpoint:
            model.load_state_dict(checkpoint["trainer"]["model"])  # the run's own body, whatever the file holds by now
        if backbone == "cached":
            whole = Split(spec, spec.train_split, "evaluate", batch_size=2048, **subset, **shared)
            train = CachedFeatures(model, whole, config.batch_size, config.seed, context)
            test = CachedFeatures(model, test, context=context)
        trainer = Trainer(
            model,
            config,
            train.batches_per_epoch,
            context,
            checkpoint["trainer"]["micro_batch"] if checkpoint else 0,
            backbone,
        )
        name = devices.describe(device)
        log = stack.enter_context(
            RunLog(folder, config, name, checkpoint["log_bytes"] if checkpoint else 0) if run else NoLog(folder)
        )
        trained = sum(p.numel() for p in trainer.trained)
        what = {
            "trained": "",
            "frozen": f", {trained:,} of them trained",
            "cached": f", {trained:,} of them trained, on features kept in memory",
        }[backbone]
        say(
            f"{sum(p.numel() for p in model.parameters()):,} parameters{what}; {train.num_samples:,} training images, "
            f"{config.epochs} of {train.batches_per_epoch} batches of {config.batch_size} in parts of "
            f"{trainer.max_micro_batch_size} at most, on {context.world_size} x {name}; run folder {folder}"
        )
        if trainer.compile_s:
            say(f"compiled in {trainer.compile_s:.1f} s")
        if checkpoint:
            say(f"goes on after step {step} of {trainer.total_steps}")
        elif run:
            sheet = before_and_after(train.path, augment, model.res, config.seed, *SHEET)
            plots.contact_sheet(sheet, folder / "augmented.png")
        try:
            result = fit(trainer, train, test, log, metadata_of(spec, train.path), checkpoint)
        except Interrupted as stop:
            say(f"\nstopped after step {trainer.steps_done}; the same command goes on from {stop.checkpoint}")
            raise SystemExit(128 + stop.number) from None
        if run:
            _finish(folder, log, result, time.perf_counter() - started)


def augmentation(config: PretrainConfig) -> Augment:
    scale, ratio = (config.min_crop_scale, 1.0), (config.min_crop_ratio, 1 / config.min_crop_ratio)
    return Augment(config.crop, scale, ratio, config.crop_padding, config.flip)


def metadata_of(spec: DatasetSpec, beton: Path) -> dict[str, Any]:
    """What whoever uses a model trained on this beton has to know: normalisation, fit, names of the classes."""
    described = json.loads(sidecar_path(beton).read_text(encoding="utf-8")) if sidecar_path(beton).is_file() else {}
    return {
        "dataset": spec.name,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "fit": described.get("fit", "square"),
        "classes": described.get("classes", []),
    }


def _predicted(config: PretrainConfig, spec: DatasetSpec, model: MLP, augment: Augment, shared: dict[str, Any]) -> str:
    """What the run will cost here, the loader measured for a second."""
    split = Split(
        spec,
        spec.train_split,
        "train",
        batch_size=config.batch_size,
        augment=augment,
        seed=config.seed,
        fraction=config.train_fraction,
        **shared,
    )
    device, images = shared["device"], 0
    batches = chain.from_iterable(split.batches(epoch) for epoch in count())
    next(batches)  # compiles
    started = time.perf_counter()
    while time.perf_counter() - started < 1:
        images += len(next(batches)[0])
    devices.synchronize(device)
    loader = images / (time.perf_counter() - started)
    epochs = Duration.parse(config.epochs).steps(config.batch_size, split.batches_per_epoch) / split.batches_per_epoch
    micro_batch_size = config.micro_batch_size or (choose_micro_batch(model) if device.type == "cpu" else 0)
    run = TrainingJob(
        model.arch,
        model.res,
        model.num_classes,
        split.num_samples,
        config.batch_size,
        epochs,
        config.optimizer,
        min(micro_batch_size, config.batch_size),
        config.res,
    )
    return explain(predict(run, this_machine(device), Host(loader)))


def _finish(folder: Path, log: RunLog, result: Result, seconds: float) -> None:
    """The run's last line, its learning curve, its weights for others, and what to tell."""
    rate = f"{result.images_per_s:,.0f}" if result.images_per_s else "not measured: no step was left to take"
    scores, left = result.scores, ["final.pt", "best.pt", "log.jsonl", "augmented.png"]
    for make in (
        lambda: export_safetensors(folder / "final.pt"),
        lambda: export_safetensors(folder / "best.pt"),
        lambda: plots.learning_curve(read_log(folder, "epoch"), folder.name, folder / "curve.png"),
    ):
        try:
            left.append(make().name)
        except ModuleNotFoundError as error:
            print(f"notice: {error}", file=sys.stderr)
    log.write(
        "end",
        eval_top1=scores.top1,
        eval_top5=scores.top5,
        best_top1=result.best_top1,
        images_per_s=result.images_per_s,
        train_s=result.train_s,
    )
    print(
        f"\ntest top-1   {scores.top1:.2%}  (top-5 {scores.top5:.2%}, {scores.images:,} images; best top-1 "
        f"{result.best_top1:.2%})\nimages/sec   {rate}\n"
        f"seconds      {result.train_s:.1f} training, {seconds:.1f} in all since the start\n"
        f"run folder   {folder}: {', '.join(left)}"
    )
