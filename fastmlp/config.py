"""The settings of a training run: the one place for each field's name, default, range and help text.

The defaults are the paper's pre-training run (Scaling MLPs, section 4.3 and the released code's crop);
`recipes/configs/<dataset>.yaml`, where there is one, holds what differs for a data set.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from .arch import parse_arch
from .cli import Checker, Choice, Real, Switch, Text, Whole, setting
from .duration import Duration


class ArchName(Checker):
    def check(self, value: Any) -> str:
        parse_arch(value)
        return value

    def help(self) -> str:
        return (
            "B_<blocks>-Wi_<width>[-E_<expansion>], such as B_12-Wi_1024, or S_<blocks>-Wi_<width> for an S-MLP; "
            "both with -N_batch or -N_none for another norm than LayerNorm"
        )


class Lasting(Checker):
    """A duration, kept as text: 30 means 30 epochs."""

    def __init__(self, above: bool = False):
        self.above = above

    def check(self, value: Any) -> str:
        duration = Duration.parse(value)
        if self.above and not duration.amount:
            raise ValueError
        return str(duration)

    def help(self) -> str:
        return f"a number of epochs{' above 0' * self.above}, or such as '5000 steps', '1e6 images'"


class Phases(NamedTuple):
    """A run's optimiser steps: all, and those of them that belong to warm-up and to cool-down."""

    total: int
    warmup: int
    cooldown: int

    @property
    def before_cooldown(self) -> int:
        return self.total - self.cooldown


@dataclass(frozen=True)
class PretrainConfig:
    # data
    dataset: str = setting(
        "auto",
        Text(),
        "data set; auto takes ImageNet's beton of this resolution where one lies in the data folder, "
        "else the embedded Fashion-MNIST",
    )
    data_dir: str = setting("./data", Text(), "folder of the betons")
    res: int = setting(0, Whole(), "side of the images in the beton [pixels], 0 for the data set's own")
    fraction: float = setting(
        1.0, Real(0, 1, above=True), "share of the training images to train on, the same share of each class"
    )
    num_workers: int = setting(
        0, Whole(), "threads that load and augment, 0 for one per core, half of them where training is on the CPU"
    )
    # model
    arch: str = setting("B_12-Wi_1024", ArchName(), "architecture")
    # augmentation
    crop: str = setting(
        "resized",
        Choice("resized", "shift", "none"),
        "random crop: resized (random resized crop), shift (pad and crop), none",
    )
    crop_scale: float = setting(0.08, Real(0, 1, above=True), "least area of a resized crop [share of the image]")
    crop_ratio: float = setting(0.75, Real(0, 1, above=True), "least aspect ratio of a resized crop, 1/x the greatest")
    shift: int = setting(4, Whole(most=4096), "greatest shift of a shift crop, in each direction [pixels]")
    flip: bool = setting(True, Switch(), "flip half of the images left to right")
    mixup: float = setting(0.8, Real(), "alpha of MixUp's Beta distribution, 0 for off")
    # optimisation
    optimizer: str = setting("lion", Choice("lion", "adamw", "sgd", "muon"), "optimiser")
    lr: float = setting(5e-5, Real(above=True), "peak learning rate")
    body_lr: float = setting(1.0, Real(), "learning rate of all but the head [share of lr]")
    weight_decay: float = setting(0.0, Real(), "decoupled (SGD: L2) weight decay of the weight matrices")
    decay_all: bool = setting(False, Switch(), "weight decay of biases and norms, too")
    clip_norm: float = setting(0.0, Real(), "greatest norm of a step's gradient, 0 for no clipping")
    ema: float = setting(
        0.0,
        Real(0, 0.999999),
        "decay per step of a moving average of the weights, which is evaluated and saved, 0 for none",
    )
    label_smoothing: float = setting(0.3, Real(0, 1), "label smoothing")
    schedule: str = setting("constant", Choice("constant", "cosine", "linear"), "learning rate after the warm-up")
    warmup: str = setting("0 epochs", Lasting(), "linear warm-up, at most half of the run")
    cooldown: str = setting(
        "0 epochs", Lasting(), "linear fall to 0 at the end of a constant schedule; the checkpoint before it stays"
    )
    batch_size: int = setting(
        16384, Whole(1), "effective batch size [images per optimiser step]; an epoch's remainder is left out"
    )
    micro_batch: int = setting(
        0,
        Whole(),
        "images per forward and backward pass at most, even, 0 for automatic; changes nothing but rounding, and with "
        "-N_batch what a norm is taken over",
    )
    epochs: str = setting("800 epochs", Lasting(above=True), "length of the training")
    seed: int = setting(0, Whole(), "of initialisation, order and augmentation; same seed, same machine: same weights")
    # run
    eval_every: str = setting("1 epochs", Lasting(above=True), "between evaluations; there is always one at the end")
    checkpoint_minutes: float = setting(10.0, Real(), "minutes between checkpoints, 0 for none by the clock")
    checkpoint_every: str = setting("0 epochs", Lasting(), "between checkpoints, in addition; 0 for none")
    keep_checkpoints: int = setting(2, Whole(1), "how many of the newest checkpoints to keep")
    resume: str = setting(
        "auto",
        Choice("auto", "never"),
        "auto goes on with the unfinished run of these very settings (of run_dir, else the newest below ./runs)",
    )
    budget: bool = setting(False, Switch(), "tell what the run is predicted to cost on this device, and end")
    log_every: int = setting(10, Whole(1), "optimiser steps between log lines of the training loss")
    run_dir: str = setting("", Text(), "folder of this run (default: a new one below ./runs)")
    device: str = setting("auto", Choice("auto", "cpu", "cuda"), "where to train")
    compile: str = setting(
        "auto",
        Choice("auto", "0", "1"),
        "torch.compile blocks and LION, of models with LayerNorm alone: auto does so on CUDA; on a CPU LION gains, "
        "blocks lose, 3 to 10 % in all",
    )

    def __post_init__(self) -> None:
        if self.micro_batch % 2:
            raise ValueError(
                f"--cfg.micro_batch={self.micro_batch} is odd: MixUp pairs neighbours, use {self.micro_batch + 1}"
            )

    def phases(self, batches_per_epoch: int) -> Phases:
        total, warmup, cooldown = (
            Duration.parse(text).steps(self.batch_size, batches_per_epoch)
            for text in (self.epochs, self.warmup, self.cooldown)
        )
        return Phases(total, min(warmup, total // 2), cooldown)


@dataclass(frozen=True)
class FinetuneConfig(PretrainConfig):
    """The paper's fine-tuning (section 4.3): SGD, head at 0.01, body at a tenth of it, 50 epochs."""

    weights: str = setting("", Text(), "trained model to start from: .pt or .safetensors of ours, or a released one")
    arch: str = setting("", Text(), "architecture that the weights must be of, none for any")
    res: int = setting(
        0, Whole(), "side of the images in the beton [pixels], 0 for the data set's own; scaled to the model's"
    )
    crop_scale: float = setting(0.4, Real(0, 1, above=True), "least area of a resized crop [share of the image]")
    crop_ratio: float = setting(1.0, Real(0, 1, above=True), "least aspect ratio of a resized crop, 1/x the greatest")
    mixup: float = setting(0.0, Real(), "alpha of MixUp's Beta distribution, 0 for off")
    optimizer: str = setting("sgd", Choice("lion", "adamw", "sgd", "muon"), "optimiser")
    lr: float = setting(0.01, Real(above=True), "peak learning rate, of the head")
    body_lr: float = setting(0.1, Real(), "learning rate of all but the head [share of lr]")
    weight_decay: float = setting(1e-4, Real(), "decoupled (SGD: L2) weight decay of the weight matrices")
    batch_size: int = setting(
        2048, Whole(1), "effective batch size [images per optimiser step]; an epoch's remainder is left out"
    )
    epochs: str = setting("50 epochs", Lasting(above=True), "length of the training")


@dataclass(frozen=True)
class ProbeConfig(FinetuneConfig):
    """A head on a frozen body."""

    method: str = setting(
        "gradient",
        Choice("gradient", "logistic"),
        "gradient: the optimiser below; logistic: L2-regularised logistic regression to its optimum (L-BFGS)",
    )
    l2: float = setting(0.0, Real(), "strength of logistic's L2 penalty, 0 to choose it on a tenth of the training set")
    crop: str = setting(
        "none",
        Choice("resized", "shift", "none"),
        "random crop; without crop, flip and MixUp features are computed once and kept",
    )
    flip: bool = setting(False, Switch(), "flip half of the images left to right")
    optimizer: str = setting("adamw", Choice("lion", "adamw", "sgd"), "optimiser")
    lr: float = setting(1e-3, Real(above=True), "peak learning rate")
    label_smoothing: float = setting(0.0, Real(0, 1), "label smoothing")


@dataclass(frozen=True)
class EvaluateConfig:
    weights: str = setting("", Text(), "trained model: .pt or .safetensors of ours, or a released one")
    dataset: str = setting("", Text(), "data set, none for the one that the model was trained on")
    data_dir: str = setting("./data", Text(), "folder of the betons")
    split: str = setting("", Text(), "split of it, none for the one that evaluates")
    res: int = setting(
        0, Whole(), "side of the images in the beton [pixels], 0 for the data set's own; scaled to the model's"
    )
    images: str = setting("", Text(), "a folder of images to classify, in the place of a data set")
    fit: str = setting(
        "auto",
        Choice("auto", "square", "longest"),
        "images: square crops to the centre square and scales, longest scales before; auto as the model was trained",
    )
    tta: int = setting(0, Whole(), "crops of each image whose predictions are averaged (the paper: 100), 0 for none")
    average: str = setting("logits", Choice("logits", "softmax"), "what of the crops is averaged")
    crop_scale: float = setting(0.4, Real(0, 1, above=True), "least area of such a crop [share of the image]")
    crop_ratio: float = setting(1.0, Real(0, 1, above=True), "its least aspect ratio, 1/x the greatest")
    flip: bool = setting(True, Switch(), "flip half of the crops left to right")
    seed: int = setting(0, Whole(), "of the crops; same seed, same crops")
    batch_size: int = setting(2048, Whole(1), "images per batch")
    num_workers: int = setting(0, Whole(), "threads that load and augment, 0 for one per core")
    out: str = setting("", Text(), "folder of the results (default: evaluation-<data set> beside the weights)")
    device: str = setting("auto", Choice("auto", "cpu", "cuda"), "where to compute")


# Fields that may change when a run goes on: its weights do not depend on them.
FREE_FIELDS = frozenset(
    (
        "data_dir",
        "num_workers",
        "eval_every",
        "log_every",
        "checkpoint_minutes",
        "checkpoint_every",
        "keep_checkpoints",
        "resume",
        "run_dir",
        "device",
        "budget",
    )
)
