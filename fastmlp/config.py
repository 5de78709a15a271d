"""Every setting of a run: the one place for each field's name, default, range and help text.

The defaults are the paper's pre-training run (Scaling MLPs, section 4.3 and the released code's crop);
`training/dataset_settings/<dataset>.yaml`, if there is one, holds what differs for a data set.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from .arch import parse_arch
from .cli import BoolField, Checker, ChoiceField, FloatField, IntField, PathField, StrField, setting
from .duration import Duration

# What 0.1 called fields and values. On the command line and in a user's YAML an old name is an error that gives the new
# one; in a run folder or checkpoint it is translated.
RENAMED_FIELDS = {
    "body_lr": "backbone_lr_scale",
    "mixup": "mixup_alpha",
    "ema": "ema_decay",
    "shift": "crop_padding",
    "crop_scale": "min_crop_scale",
    "crop_ratio": "min_crop_ratio",
    "decay_all": "decay_norms_and_biases",
    "fraction": "train_fraction",
    "micro_batch": "micro_batch_size",
    "average": "tta_average",
    "tta": "tta_crops",
}
RENAMED_VALUES = {
    "crop": {"resized": "random_resized", "shift": "pad_and_crop"},
    "compile": {"0": "off", "1": "on"},
}


WEIGHTS = (
    ".pt or .safetensors of ours, a released file, or the name of one, such as B_12-Wi_1024_in21k_cifar10, or in21k "
    "with --cfg.arch=B_12-Wi_1024 (downloaded; not tried against the real host)"
)


class ArchField(Checker):
    def check(self, value: Any) -> str:
        parse_arch(value)
        return value

    def help(self) -> str:
        return (
            "B_<blocks>-Wi_<width>[-E_<expansion>], such as B_12-Wi_1024, or S_<blocks>-Wi_<width> for an S-MLP; "
            "both with -N_batch or -N_none for another norm than LayerNorm"
        )


class DurationField(Checker):
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


class StepCounts(NamedTuple):
    """A run's optimiser steps: all of them, those of the warm-up and those of the cool-down."""

    total: int
    warmup: int
    cooldown: int

    @property
    def before_cooldown(self) -> int:
        return self.total - self.cooldown


# What runs of earlier versions did by default where this one does otherwise.
EARLIER_DEFAULTS = {"normalization": "dataset", "head_init": "random", "clip_norm": 0.0}


def crop_ratios(config: Any) -> tuple[float, float]:
    """Return the smallest and the largest aspect ratio of settings' crops; raise ValueError if they are in disorder."""
    largest = config.max_crop_ratio or 1 / config.min_crop_ratio
    if largest < config.min_crop_ratio:
        raise ValueError(
            f"--cfg.max_crop_ratio={largest:g}: expected at least --cfg.min_crop_ratio={config.min_crop_ratio:g}, or 0"
        )
    return config.min_crop_ratio, largest


@dataclass(frozen=True)
class PretrainConfig:
    """The paper's pre-training on ImageNet-21k (section 4.3)."""

    renamed_fields: ClassVar = RENAMED_FIELDS
    renamed_values: ClassVar = RENAMED_VALUES

    # data
    dataset: str = setting(
        "auto",
        StrField(),
        "data set; auto takes ImageNet's beton of this resolution if the data folder has one, "
        "otherwise Fashion-MNIST, written if it is missing",
    )
    data_dir: str = setting("./data", PathField(), "folder of the betons")
    res: int = setting(0, IntField(), "side of the images in the beton [pixels], 0 for the data set's own")
    train_fraction: float = setting(
        1.0, FloatField(0, 1, above=True), "share of the training images to train on, the same share of each class"
    )
    validation: float = setting(
        0.0,
        FloatField(0, 0.9),
        "share of the training images to hold out, the same of each class and at least one: best.pt and searches go by "
        "them, and the test images are looked at once, at the end; 0: best.pt goes by the test images",
    )
    num_workers: int = setting(
        0,
        IntField(),
        "threads that load and augment, 0 for one per core, or one per two cores when training on the CPU",
    )
    # model
    arch: str = setting("B_12-Wi_1024", ArchField(), "architecture")
    parametrization: str = setting(
        "standard",
        ChoiceField("standard", "mup"),
        "mup (maximal update parametrization): initial weights and learning rates are scaled by width / base_width, "
        "so that the lr that is best at base_width is near the best at any width; not with SGD",
    )
    base_width: int = setting(64, IntField(1), "width at which mup is the standard parametrization; lr is tuned there")
    # augmentation
    crop: str = setting(
        "random_resized",
        ChoiceField("random_resized", "pad_and_crop", "none"),
        "random crop: random_resized, pad_and_crop (shifted over black), none",
    )
    min_crop_scale: float = setting(
        0.08, FloatField(0, 1, above=True), "smallest area of a random_resized crop [share of the image]"
    )
    min_crop_ratio: float = setting(
        0.75, FloatField(0, 1, above=True), "smallest aspect ratio of a random_resized crop, width to height"
    )
    max_crop_ratio: float = setting(0.0, FloatField(), "its largest aspect ratio, 0 for 1/min_crop_ratio")
    crop_padding: int = setting(4, IntField(max=4096), "largest shift of pad_and_crop, in each direction [pixels]")
    flip: bool = setting(True, BoolField(), "flip half of the images left to right")
    mixup_alpha: float = setting(0.8, FloatField(), "alpha of MixUp's Beta distribution, 0 for off")
    # optimisation
    optimizer: str = setting("lion", ChoiceField("lion", "adamw", "sgd", "muon"), "optimiser")
    lr: float = setting(5e-5, FloatField(above=True), "peak learning rate")
    backbone_lr_scale: float = setting(1.0, FloatField(), "learning rate of all but the head [share of lr]")
    weight_decay: float = setting(0.0, FloatField(), "decoupled (SGD: L2) weight decay of the weight matrices")
    decay_norms_and_biases: bool = setting(False, BoolField(), "also apply weight decay to biases and norms")
    clip_norm: float = setting(0.0, FloatField(), "largest norm of a step's gradient, 0 for no clipping")
    ema_decay: float = setting(
        0.0,
        FloatField(0, 0.999999),
        "decay per step of a moving average of the weights, which is evaluated and saved, 0 for none",
    )
    label_smoothing: float = setting(0.3, FloatField(0, 1), "label smoothing")
    schedule: str = setting("constant", ChoiceField("constant", "cosine", "linear"), "learning rate after the warm-up")
    warmup: str = setting("0 epochs", DurationField(), "linear warm-up, at most half of the run")
    cooldown: str = setting(
        "0 epochs",
        DurationField(),
        "linear decay to 0 at the end of a constant schedule; the checkpoint before it is kept",
    )
    batch_size: int = setting(
        16384, IntField(1), "effective batch size [images per optimiser step]; an epoch's remainder is dropped"
    )
    micro_batch_size: int = setting(
        0,
        IntField(),
        "largest number of images per forward and backward pass, even, 0 for automatic; changes only rounding, and "
        "with -N_batch the images that a norm is computed over",
    )
    epochs: str = setting("800 epochs", DurationField(above=True), "length of the training")
    seed: int = setting(
        0,
        IntField(),
        "seed of initialisation, order and augmentation; the same seed on the same machine gives the same weights",
    )
    # run
    eval_every: str = setting(
        "1 epochs", DurationField(above=True), "between evaluations; there is always one at the end"
    )
    checkpoint_minutes: float = setting(10.0, FloatField(), "minutes between checkpoints, 0 for no timed ones")
    checkpoint_every: str = setting("0 epochs", DurationField(), "between additional checkpoints; 0 for none")
    keep_checkpoints: int = setting(2, IntField(1), "number of newest checkpoints to keep")
    resume: str = setting(
        "auto",
        ChoiceField("auto", "never"),
        "auto resumes the unfinished run with the same settings (in run_dir, else the newest below ./runs)",
    )
    budget: bool = setting(False, BoolField(), "print what the run is predicted to cost on this device, and exit")
    log_every: int = setting(10, IntField(1), "optimiser steps between log lines of the training loss")
    run_dir: str = setting("", PathField(), "folder of this run (default: a new one below ./runs)")
    device: str = setting("auto", ChoiceField("auto", "cpu", "cuda"), "where to train")
    compile: str = setting(
        "auto",
        ChoiceField("auto", "off", "on"),
        "torch.compile for blocks and LION, only for models with LayerNorm; auto: on CUDA. On a CPU LION gains, "
        "blocks lose, 3 to 10 % in total",
    )

    def __post_init__(self) -> None:
        if self.micro_batch_size % 2:
            raise ValueError(
                f"--cfg.micro_batch_size={self.micro_batch_size} is odd: MixUp pairs neighbours, use "
                f"{self.micro_batch_size + 1}"
            )
        crop_ratios(self)
        if self.parametrization == "mup" and self.optimizer == "sgd":
            raise ValueError("--cfg.parametrization=mup takes --cfg.optimizer=lion, adamw or muon, not sgd")

    def step_counts(self, batches_per_epoch: int) -> StepCounts:
        total, warmup, cooldown = (
            Duration.parse(text).steps(self.batch_size, batches_per_epoch)
            for text in (self.epochs, self.warmup, self.cooldown)
        )
        return StepCounts(total, min(warmup, total // 2), cooldown)


@dataclass(frozen=True)
class FinetuneConfig(PretrainConfig):
    """The paper's fine-tuning (section 4.3), after a probe: SGD, head at 0.01, backbone at a tenth of it, 50 epochs.

    Gradients are clipped at 1, as the authors' code does.
    """

    weights: str = setting("", PathField(), f"trained model to start from: {WEIGHTS}")
    arch: str = setting("", StrField(), "architecture that the weights must have, empty for any")
    res: int = setting(
        0, IntField(), "side of the images in the beton [pixels], 0 for the data set's own; scaled to the model's"
    )
    head_init: str = setting(
        "auto",
        ChoiceField("auto", "probe", "random"),
        "the head to begin with: random, or that of a logistic probe (LP-FT); auto: a probe's where the training "
        "images' features fit into memory, there are 20 images or more, and it takes less than the training",
    )
    normalization: str = setting(
        "model",
        ChoiceField("model", "dataset", "authors"),
        "mean and std of the images: model those that the weights were trained with, dataset the data set's, authors "
        "as in the authors' code, CIFAR-10's for 10 and 100 classes, else ImageNet's",
    )
    min_crop_scale: float = setting(
        0.4, FloatField(0, 1, above=True), "smallest area of a random_resized crop [share of the image]"
    )
    min_crop_ratio: float = setting(
        1.0, FloatField(0, 1, above=True), "smallest aspect ratio of a random_resized crop, width to height"
    )
    mixup_alpha: float = setting(0.0, FloatField(), "alpha of MixUp's Beta distribution, 0 for off")
    optimizer: str = setting("sgd", ChoiceField("lion", "adamw", "sgd", "muon"), "optimiser")
    lr: float = setting(0.01, FloatField(above=True), "peak learning rate, of the head")
    backbone_lr_scale: float = setting(0.1, FloatField(), "learning rate of all but the head [share of lr]")
    clip_norm: float = setting(1.0, FloatField(), "largest norm of a step's gradient, 0 for no clipping")
    weight_decay: float = setting(1e-4, FloatField(), "decoupled (SGD: L2) weight decay of the weight matrices")
    batch_size: int = setting(
        2048, IntField(1), "effective batch size [images per optimiser step]; an epoch's remainder is dropped"
    )
    epochs: str = setting("50 epochs", DurationField(above=True), "length of the training")

    def __post_init__(self) -> None:
        if self.parametrization == "mup":
            raise ValueError("--cfg.parametrization=mup is for new weights: leave it out with --cfg.weights")
        super().__post_init__()


@dataclass(frozen=True)
class ProbeConfig(FinetuneConfig):
    """A head on a frozen backbone."""

    method: str = setting(
        "gradient",
        ChoiceField("gradient", "logistic"),
        "gradient: the optimiser below; logistic: L2-regularised logistic regression to its optimum (L-BFGS)",
    )
    l2: float = setting(
        0.0, FloatField(max=1e6), "strength of logistic's L2 penalty, 0 to choose it on a tenth of the training set"
    )
    head_init: str = setting("random", ChoiceField("random"), "the head to begin with")
    crop: str = setting(
        "none",
        ChoiceField("random_resized", "pad_and_crop", "none"),
        "random crop; without crop, flip and MixUp features are computed once and kept",
    )
    flip: bool = setting(False, BoolField(), "flip half of the images left to right")
    optimizer: str = setting("adamw", ChoiceField("lion", "adamw", "sgd"), "optimiser")
    lr: float = setting(1e-3, FloatField(above=True), "peak learning rate")
    clip_norm: float = setting(0.0, FloatField(), "largest norm of a step's gradient, 0 for no clipping")
    label_smoothing: float = setting(0.0, FloatField(0, 1), "label smoothing")


@dataclass(frozen=True)
class EvaluateConfig:
    """What recipes/evaluate.py evaluates, and how."""

    renamed_fields: ClassVar = RENAMED_FIELDS
    renamed_values: ClassVar = RENAMED_VALUES

    weights: str = setting("", PathField(), f"trained model: {WEIGHTS}")
    arch: str = setting("", StrField(), "architecture that the weights must have, empty for any")
    dataset: str = setting("", StrField(), "data set, empty for the one that the model was trained on")
    data_dir: str = setting("./data", PathField(), "folder of the betons")
    split: str = setting("", StrField(), "split, empty for the one that evaluates")
    res: int = setting(
        0,
        IntField(),
        "side of the images in the beton [pixels], 0 for that of the training, else the data set's own; scaled to the "
        "model's",
    )
    images: str = setting("", PathField(), "a folder of images to classify, instead of a data set")
    fit: str = setting(
        "auto",
        ChoiceField("auto", "square", "longest"),
        "images: square crops to the centre square and scales, longest scales before; auto as the model was trained",
    )
    tta_crops: int = setting(
        0, IntField(max=10_000), "crops of each image whose predictions are averaged (the paper: 100), 0 for none"
    )
    tta_average: str = setting("logits", ChoiceField("logits", "softmax"), "which output of the crops is averaged")
    min_crop_scale: float = setting(
        0.4, FloatField(0, 1, above=True), "smallest area of such a crop [share of the image]"
    )
    min_crop_ratio: float = setting(1.0, FloatField(0, 1, above=True), "its smallest aspect ratio, width to height")
    max_crop_ratio: float = setting(0.0, FloatField(), "its largest aspect ratio, 0 for 1/min_crop_ratio")
    flip: bool = setting(True, BoolField(), "flip half of the crops left to right")
    seed: int = setting(0, IntField(), "seed of the crops")
    batch_size: int = setting(0, IntField(), "images per batch; 0: 2,048 on the CPU, 8,192 on an accelerator")
    num_workers: int = setting(0, IntField(), "threads that load and augment, 0 for one per core")
    out: str = setting(
        "",
        PathField(),
        "folder of the results (default: evaluation-<data set>, with the split and the number of crops if they are "
        "given, beside the weights, in ./runs for a name)",
    )
    device: str = setting("auto", ChoiceField("auto", "cpu", "cuda"), "where to compute")

    def __post_init__(self) -> None:
        crop_ratios(self)
        if self.images and (self.tta_crops or self.split):
            raise ValueError("--cfg.tta_crops and --cfg.split are for data sets: --cfg.images takes each image whole")


# Fields that may differ when a run is resumed: its weights do not depend on them.
RESUME_SAFE_FIELDS = frozenset(
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


_STORED_FIELDS = {new: old for old, new in RENAMED_FIELDS.items()}


def translate_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a run of any version stored, under the names of this one."""
    named = {RENAMED_FIELDS.get(name, name): value for name, value in stored.items()}
    return {name: RENAMED_VALUES.get(name, {}).get(str(value), value) for name, value in named.items()}


def stored_setting(name: str, value: Any) -> tuple[str, Any]:
    """Return a setting in the words of 0.1, after which folders of studies are named."""
    old_values = {new: old for old, new in RENAMED_VALUES.get(name, {}).items()}
    return _STORED_FIELDS.get(name, name), old_values.get(str(value), value)


# Keys in logs that keep the names of 0.1, by the name that the code uses. ImageNet evaluates on its
# validation split, so "test" was never right.
STORED_KEYS = {
    "eval_top1": "test_top1",
    "eval_top5": "test_top5",
    "eval_loss": "test_loss",
    "best_eval_top1": "best_test_top1",
}
_LOADED_KEYS = {stored: name for name, stored in STORED_KEYS.items()}


def to_stored(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values under the keys that files have."""
    return {STORED_KEYS.get(name, name): value for name, value in values.items()}


def from_stored(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a file under the names that the code uses."""
    return {_LOADED_KEYS.get(name, name): value for name, value in values.items()}
