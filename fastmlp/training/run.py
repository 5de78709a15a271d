"""One training run, from its settings to a finished folder: what pre-training, fine-tuning and probes share."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

import torch

from .. import device as devices
from .. import plots
from ..arch import parse_arch
from ..atomic import load_torch
from ..config import FinetuneConfig, PretrainConfig, crop_ratios
from ..cost.budget import Host, TrainingJob, explain, predict
from ..cost.hardware import this_machine
from ..data.beton_metadata import metadata_of
from ..data.preview import before_and_after
from ..data.split import SINGLE_PROCESS, Split
from ..datasets import DatasetSpec
from ..distributed import DistributedContext, init_distributed
from ..duration import Duration
from ..evaluation.evaluate import Scores, evaluation_batch_size
from ..evaluation.features import CachedFeatures, fits_in_memory
from ..messages import logger
from ..models.mlp import MLP
from ..models.weights import export_safetensors, load_weights
from ..transforms.augment_params import Augment
from .checkpoints import Checkpoints
from .head_init import begin_with_probe, choose_head_init
from .loop import Interrupted, Result, fit
from .parametrization import scale_initial_weights
from .report_page import finish_with_page
from .run_folder import open_run
from .run_log import NoLog, RunLog, read_log
from .trainer import Backbone, Trainer, check_memory, choose_micro_batch

Settings = TypeVar("Settings", bound=FinetuneConfig)
SMALLER = "start with a smaller --cfg.micro_batch_size, or take a narrower model"
SHEET = (4, 16)  # rows and columns of the contact sheet; below each row are the same images after augmentation


@dataclass(frozen=True)
class TrainedRun:
    """A finished run: its folder, with final.pt, best.pt and log.jsonl, and what it reached.

    scores: top1 and top5 (0-1), loss (cross-entropy in nats) and the number of images, of final.pt on the test images,
    or on the held-out ones if it did not look at them. best_top1: of best.pt (0-1), on what it was chosen by.
    images_per_s: training images per second, 0 if no step was left to take. train_s: seconds of training only, without
    evaluation. Of a head that was fitted to its optimum images_per_s is 0 and train_s all of the time.
    """

    folder: Path
    scores: Scores  # of final.pt on the test images, or on the held-out ones if it did not look at them
    best_top1: float  # of best.pt, on what it was chosen by
    images_per_s: float
    train_s: float

    @property
    def top1(self) -> float:
        """Top-1 of final.pt on the test images (0-1)."""
        return self.scores.top1

    @property
    def weights(self) -> Path:
        """The weights after the last step, as load_model, evaluate, predict and finetune take them."""
        return self.folder / "final.pt"

    def log(self, event: str = "epoch") -> list[dict[str, Any]]:
        """Return the lines of one event of log.jsonl, "step", "epoch" or "end", each as what it holds by name."""
        return read_log(self.folder, event)


def run_training(
    config: PretrainConfig,
    spec: DatasetSpec,
    make_model: Callable[[], MLP],  # on the CPU; called after the seed is set
    stem: str,  # of a new run folder's name
    backbone: Backbone = "trained",
    *,
    look_at_test: bool = True,
    only_weights: bool = False,
) -> TrainedRun | None:
    """Train on config.res images of the data set, scaled to the model's size, and write the run folder.

    Without look_at_test, which needs held-out images, no test image is read, and the run's scores are those of the
    held-out ones. only_weights leaves out what people look at, pictures and page, and the second format of the weights.

    An unfinished run of the same settings is resumed (open_run). With config.budget, say what it is predicted to cost
    instead, and return None. A "frozen" backbone becomes "cached" if nothing about the images is random and their
    features fit into memory. Raises the ValueError and OSError of its parts, FloatingPointError if the loss is not
    finite, and Interrupted, after a checkpoint, on SIGINT, SIGTERM and SIGHUP.
    """
    started = time.perf_counter()
    device = devices.select(config.device)
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())  # which a resumed run sets
        context = stack.enter_context(init_distributed(device))
        say: Callable[[str], None] = logger.info if context.is_main else lambda _: None
        if context.is_main:  # it may ask nvidia-smi
            logger.info(devices.explain_choice(config.device, device))
        trainer: Trainer | None = None
        stack.enter_context(devices.memory_errors(device, lambda: trainer.memory_advice if trainer else SMALLER))
        torch.manual_seed(config.seed)
        if device.type == "cpu" and not isinstance(config, FinetuneConfig) and not config.budget:
            check_memory(config, parse_arch(config.arch), config.res, spec.num_classes)
        model = make_model()
        scale_initial_weights(model, config)
        model.to(device)
        splits = _Splits(config, spec, model, device)
        eval_split: Any = splits.evaluation()
        validation: Any = splits.validation() if config.validation else None
        if config.budget:
            say(_predict_cost(config, model, splits.training(context), context.world_size))
            return None
        # Opened before the run folder: settings that the data set does not allow must not leave a folder.
        train_split: Any = splits.training(context)
        folder, checkpoint = _open_or_resume(config, stem, context, stack)
        micro_batch_size = _restore_rounding(checkpoint, device, context.world_size) if checkpoint else 0
        if backbone == "frozen":
            images = sum(split.num_samples for split in (train_split, eval_split, validation) if split is not None)
            backbone = _choose_backbone(config, model, images, checkpoint, context)
            if backbone == "frozen" and not _is_random(config):
                say(f"features of {train_split.num_samples:,} images do not fit into memory: computed in each epoch")
        if checkpoint:  # config.weights may hold another model by now
            given = model.resampling
            _restore_model(model, checkpoint["trainer"], folder)
            if model.resampling != given:
                train_split, eval_split = splits.training(context), splits.evaluation()
                validation = splits.validation() if config.validation else None
        if backbone == "cached":
            train_split = CachedFeatures(model, splits.training_in_order(), config.batch_size, config.seed, context)
            eval_split = CachedFeatures(model, eval_split, context=context)
            validation = validation and CachedFeatures(model, validation, context=context)
        head_init = None
        if isinstance(config, FinetuneConfig) and backbone == "trained" and not checkpoint:
            steps = config.step_counts(train_split.batches_per_epoch).total
            head_init = choose_head_init(config, model, train_split.num_samples, steps, folder, context)
        log_bytes = checkpoint["log_bytes"] if checkpoint else 0
        run_log = RunLog(folder, config, devices.describe(device), log_bytes) if context.is_main else NoLog(folder)
        log = stack.enter_context(run_log)
        if isinstance(config, FinetuneConfig) and head_init:
            log.write("start", head_init=head_init)  # so that it is begun again in the same way
            if head_init == "probe":
                begin_with_probe(model, splits.training_in_order(), config, context)
        trainer = Trainer(model, config, train_split.batches_per_epoch, context, micro_batch_size, backbone)
        say(_describe_run(trainer, train_split.num_samples, folder))
        if checkpoint:
            say(_describe_resumption(trainer, checkpoint["trainer"]))
        elif context.is_main and not only_weights:
            _draw_sheet(train_split.path, config, model, folder / "augmented.png")
        try:
            metadata = metadata_of(spec, train_split.path)
            test = eval_split if look_at_test else None
            result = fit(trainer, train_split, test, log, metadata, checkpoint, validation, head_init == "probe")
        except Interrupted as stop:
            say(f"\nstopped after step {trainer.steps_done}; run the same command to resume from {stop.checkpoint}")
            raise
        if context.is_main:
            _finish(folder, log, result, time.perf_counter() - started, only_weights)
    return TrainedRun(folder, result.scores, result.best_top1, result.images_per_s, result.train_s)


def _draw_sheet(beton: Path, config: PretrainConfig, model: MLP, to: Path) -> None:
    """Draw images before and after augmentation."""
    sheet = before_and_after(beton, augment_of(config), model.res, config.seed, *SHEET, resampling=model.resampling)
    plots.contact_sheet(sheet, to)


def augment_of(config: PretrainConfig) -> Augment:
    """Return the augmentation that the settings ask for."""
    scale, ratio = (config.min_crop_scale, 1.0), crop_ratios(config)
    return Augment(config.crop, scale, ratio, config.crop_padding, config.flip)


@dataclass(frozen=True)
class _Splits:
    """The data set's splits as a run reads them."""

    config: PretrainConfig
    spec: DatasetSpec
    model: MLP  # whose size and resampling the images get
    device: torch.device

    def training(self, context: DistributedContext = SINGLE_PROCESS) -> Split:
        """Return this process's shard of shuffled, augmented batches."""
        return Split(
            self.spec,
            self.spec.train_split,
            "train",
            batch_size=self.config.batch_size,
            augment=augment_of(self.config),
            context=context,
            fraction=self.config.train_fraction,
            **self._shared,
            **self._held_out,
        )

    def training_in_order(self) -> Split:
        """Return the same training images in the beton's order, without augmentation, to compute features of."""
        return Split(
            self.spec,
            self.spec.train_split,
            "evaluate",
            batch_size=evaluation_batch_size(self.device),
            fraction=self.config.train_fraction,
            **self._shared,
            **self._held_out,
        )

    def validation(self) -> Split:
        """Return the training images that are held out."""
        batch_size = evaluation_batch_size(self.device)
        shared = {**self._shared, **self._held_out}
        return Split(self.spec, self.spec.train_split, "validate", batch_size=batch_size, **shared)

    def evaluation(self) -> Split:
        batch_size = evaluation_batch_size(self.device)
        return Split(self.spec, self.spec.eval_split, "evaluate", batch_size=batch_size, **self._shared)

    @property
    def _held_out(self) -> dict[str, Any]:
        return {"seed": self.config.seed, "validation": self.config.validation}

    @property
    def _shared(self) -> dict[str, Any]:
        return {
            "data_dir": self.config.data_dir,
            "res": self.config.res,
            "image_res": self.model.res,
            "resampling": self.model.resampling,
            "device": self.device,
            "num_workers": self.config.num_workers or devices.default_num_workers(self.device),
        }


def _open_or_resume(
    config: PretrainConfig, stem: str, context: DistributedContext, stack: ExitStack
) -> tuple[Path, dict[str, Any] | None]:
    """Return the main process's run folder and checkpoint, in every process; only the main process locks the folder."""
    run = stack.enter_context(open_run(config, stem)) if context.is_main else None
    folder, step = context.broadcast(run and (run.folder, run.checkpoint and run.checkpoint["trainer"]["steps_done"]))
    return folder, run.checkpoint if run else load_torch(Checkpoints(folder).path(step)) if step else None


def _restore_model(model: MLP, stored: dict[str, Any], folder: Path) -> None:
    """Give the model the weights and the resampling of a trainer's state; version 0.1 knew only bilinear."""
    load_weights(model, stored["model"], Checkpoints(folder).path(stored["steps_done"]))
    model.resampling = stored.get("resampling", "bilinear")


def _began_on(stored: dict[str, Any]) -> str:
    """Return the device of a trainer's state; version 0.1, which did not note it, has run on CPUs."""
    return stored.get("device", "CPU")


def _restore_rounding(checkpoint: dict[str, Any], device: torch.device, world_size: int) -> int:
    """Set the threads that the run began with, and return its micro-batch size: the last bits of sums depend on both.

    On another device neither holds: the threads stay, and 0 is returned.
    """
    stored = checkpoint["trainer"]
    if _began_on(stored) != devices.describe(device):
        return 0
    if world_size == stored["processes"] == 1:
        torch.set_num_threads(stored["threads"])
    return stored["micro_batch"]


def _is_random(config: PretrainConfig) -> bool:
    """Return whether the images that the model sees differ between epochs."""
    return bool(config.crop != "none" or config.flip or config.mixup_alpha)


def _choose_backbone(
    config: PretrainConfig,
    model: MLP,
    images: int,  # to keep features of
    checkpoint: dict[str, Any] | None,
    context: DistributedContext,
) -> Backbone:
    """Return "cached" if a frozen backbone's features can be kept in memory, else "frozen".

    A resumed run keeps what it began with, and all processes do what the main process does.
    """
    if _is_random(config):
        return "frozen"
    fits = fits_in_memory(model, images, context.world_size)
    cached = context.broadcast(checkpoint["trainer"]["body"] == "cached" if checkpoint else fits)
    return "cached" if cached else "frozen"


def _describe_resumption(trainer: Trainer, stored: dict[str, Any]) -> str:
    """Return the line on the state that a run goes on from, and a notice if that was saved on another device."""
    line = f"resuming after step {stored['steps_done']} of {trainer.total_steps}"
    if _began_on(stored) == devices.describe(trainer.device):
        return line
    return (
        f"{line}\nnotice: it began on {_began_on(stored)}, so rounding differs from here on; the micro-batch is chosen "
        f"anew, {trainer.max_micro_batch_size} instead of {stored['micro_batch']}"
    )


def _describe_run(trainer: Trainer, images: int, folder: Path) -> str:
    """Return the lines that a run begins with: parameters, data, batches, devices, folder and compile time."""
    config = trainer.config
    trained = sum(p.numel() for p in trainer.trained)
    parameters = {
        "trained": "",
        "frozen": f", {trained:,} of them trained",
        "cached": f", {trained:,} of them trained, on features kept in memory",
    }[trainer.backbone]
    line = (
        f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters{parameters}; {images:,} training images, "
        f"{config.epochs} of {trainer.batches_per_epoch} batches of {config.batch_size} in micro-batches of at most "
        f"{trainer.max_micro_batch_size}, on {trainer.context.world_size} x {devices.describe(trainer.device)}; "
        f"run folder {folder}"
    )
    return line + (f"\ncompiled in {trainer.compile_s:.1f} s" if trainer.compile_s else "")


def _predict_cost(config: PretrainConfig, model: MLP, split: Split, num_devices: int) -> str:
    """Return the predicted cost of the run on this machine, from the loader's speed measured for a second.

    Of several processes, each measures its own loader at the same time.
    """
    images = 0
    batches = chain.from_iterable(split.batches(epoch) for epoch in count())
    next(batches)  # compiles
    started = time.perf_counter()
    while time.perf_counter() - started < 1:
        images += len(next(batches)[0])
    devices.synchronize(split.device)
    images_per_s = num_devices * images / (time.perf_counter() - started)
    epochs = Duration.parse(config.epochs).steps(config.batch_size, split.batches_per_epoch) / split.batches_per_epoch
    chosen = choose_micro_batch(model, config, num_devices)
    job = TrainingJob(
        model.arch,
        model.res,
        model.num_classes,
        split.num_samples,
        config.batch_size,
        epochs,
        config.optimizer,
        min(config.micro_batch_size or chosen, -(-config.batch_size // num_devices)),
        config.res,
        ema=config.ema_decay > 0,
        num_devices=num_devices,
    )
    return explain(predict(job, this_machine(split.device), Host(images_per_s)))


def _finish(folder: Path, log: RunLog, result: Result, seconds: float, only_weights: bool) -> None:
    """Write the run's last log line, learning curve, exported weights and page, and print the result."""
    rate = f"{result.images_per_s:,.0f}" if result.images_per_s else "not measured: no step was left to take"
    names = "final.pt", "best.pt", "log.jsonl", "augmented.png", "predictions.csv"  # a full disk leaves the last out
    written = [name for name in names if (folder / name).is_file()]
    writers: tuple[Callable[[], Path], ...] = (
        lambda: export_safetensors(folder / "final.pt"),
        lambda: export_safetensors(folder / "best.pt"),
        lambda: plots.learning_curve(read_log(folder, "epoch"), folder.name, folder / "curve.png"),
    )
    for write in () if only_weights else writers:
        try:
            written.append(write().name)
        except ModuleNotFoundError as error:
            logger.warning(str(error))
    log.write("end", **_final_scores(result), images_per_s=result.images_per_s, train_s=result.train_s)
    if not only_weights:
        written += finish_with_page(folder)  # after the last line, which the page reads
    logger.info(
        f"\n{_describe_scores(result)}\nimages/sec   {rate}\n"
        f"seconds      {result.train_s:.1f} training, {seconds:.1f} in all since the start\n"
        f"run folder   {folder}: {', '.join(written)}"
    )


def _final_scores(result: Result) -> dict[str, float]:
    """Return what the run's last log line says of its models."""
    values = {"best_top1": result.best_top1}
    if result.test:
        scores = result.test
        values = {"eval_top1": scores.top1, "eval_top5": scores.top5, "eval_loss": scores.loss, **values}
    if result.validation:
        values |= {"val_top1": result.validation.top1, "val_loss": result.validation.loss}
    if result.best_scores:
        values["best_eval_top1"] = result.best_scores.top1
    return values


def _describe_scores(result: Result) -> str:
    """Return the lines on the scores of final.pt and best.pt, and what best.pt was chosen by."""
    scores = result.scores
    if not result.test:
        return f"validation   {scores.top1:.2%} of {scores.images:,} held-out training images; no test image was read"
    line = f"test top-1   {scores.top1:.2%}  (top-5 {scores.top5:.2%}, {scores.images:,} images)\nbest.pt      "
    if result.validation and result.best_scores:
        return (
            f"{line}test top-1 {result.best_scores.top1:.2%}, chosen by its {result.best_top1:.2%} of "
            f"{result.validation.images:,} held-out training images"
        )
    return f"{line}{result.best_top1:.2%}, chosen on the evaluation split (--cfg.validation=0.1 holds out others)"
