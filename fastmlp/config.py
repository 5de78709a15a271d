"""The settings of a training run: the one place for each field's name, default, range and help text.

The defaults are the paper's pre-training run (Scaling MLPs, section 4.3 and the released code's crop);
`recipes/configs/<dataset>.yaml`, where there is one, holds what differs for a data set.
"""

from dataclasses import dataclass
from typing import Any

from .arch import parse_arch
from .cli import Checker, Choice, Real, Switch, Text, Whole, setting


class ArchName(Checker):
    def check(self, value: Any) -> str:
        parse_arch(value)
        return value

    def help(self) -> str:
        return "B_<blocks>-Wi_<width>[-E_<expansion>], such as B_12-Wi_1024, or S_<blocks>-Wi_<width> for an S-MLP"


@dataclass(frozen=True)
class PretrainConfig:
    # data
    dataset: str = setting(
        "auto", Text(),
        "data set; auto takes ImageNet's beton of this resolution where one lies in the data folder, "
        "else the embedded Fashion-MNIST",
    )
    data_dir: str = setting("./data", Text(), "folder of the betons")
    res: int = setting(0, Whole(), "side of the images in the beton [pixels], 0 for the data set's own")
    num_workers: int = setting(0, Whole(), "threads that load and augment, 0 for one per core")
    # model
    arch: str = setting("B_12-Wi_1024", ArchName(), "architecture")
    # augmentation
    crop: str = setting(
        "resized", Choice("resized", "shift", "none"),
        "random crop: resized (random resized crop), shift (pad and crop), none",
    )
    crop_scale: float = setting(0.08, Real(0, 1, above=True), "least area of a resized crop [share of the image]")
    crop_ratio: float = setting(0.75, Real(0, 1, above=True), "least aspect ratio of a resized crop, 1/x the greatest")
    shift: int = setting(4, Whole(most=4096), "greatest shift of a shift crop, in each direction [pixels]")
    flip: bool = setting(True, Switch(), "flip half of the images left to right")
    mixup: float = setting(0.8, Real(), "alpha of MixUp's Beta distribution, 0 for off")
    # optimisation
    optimizer: str = setting("lion", Choice("lion", "adamw", "sgd"), "optimiser")
    lr: float = setting(5e-5, Real(above=True), "peak learning rate")
    weight_decay: float = setting(0.0, Real(), "decoupled (SGD: L2) weight decay of the weight matrices")
    label_smoothing: float = setting(0.3, Real(0, 1), "label smoothing")
    schedule: str = setting("constant", Choice("constant", "cosine", "linear"), "learning rate after the warm-up")
    warmup_epochs: float = setting(0.0, Real(), "linear warm-up, at most half of the run [epochs]")
    batch_size: int = setting(
        16384, Whole(1), "effective batch size [images per optimiser step]; an epoch's remainder is left out"
    )
    micro_batch: int = setting(
        0, Whole(), "images per forward and backward pass, even, 0 for automatic; changes nothing but rounding"
    )
    epochs: int = setting(800, Whole(1), "passes over the training images")
    seed: int = setting(0, Whole(), "of initialisation, order and augmentation; same seed, same machine: same weights")
    # run
    eval_every: int = setting(1, Whole(1), "epochs between evaluations; the last epoch is always evaluated")
    log_every: int = setting(10, Whole(1), "optimiser steps between log lines of the training loss")
    run_dir: str = setting("", Text(), "folder of this run, must not hold one yet (default: a new one below ./runs)")
    device: str = setting("auto", Choice("auto", "cpu", "cuda"), "where to train")
    compile: bool = setting(False, Switch(), "torch.compile the model: pays on long runs, costs its compile time first")

    def __post_init__(self) -> None:
        if self.micro_batch % 2:
            raise ValueError(
                f"--cfg.micro_batch={self.micro_batch} is odd: MixUp pairs neighbours, use {self.micro_batch + 1}"
            )
