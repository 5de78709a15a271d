"""Pre-training by the name of a data set: which one, with which settings, from Python or by recipes/pretrain.py."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import from_mapping, loading, read_settings
from ..config import PretrainConfig
from ..datasets import SPECS, beton_path, get_dataset
from ..messages import called_from_python, logger

if TYPE_CHECKING:
    from .run import TrainedRun

# In a checkout a file of your own goes before the one that is installed with the package.
SETTINGS_FOLDERS = (
    Path(__file__).resolve().parents[2] / "recipes" / "configs",
    Path(__file__).resolve().with_name("dataset_settings"),
)


def train(dataset: str = "auto", *, verbose: bool = False, **settings: Any) -> "TrainedRun":
    """Pre-train an MLP on a data set's betons and return the finished run.

    settings: any field of PretrainConfig, as `python recipes/pretrain.py --help` explains them: arch="B_6-Wi_512",
    epochs=30, batch_size=1024, run_dir="runs/mine". The others are the data set's own (see presets), else the paper's.
    Fashion-MNIST, which "auto" means if there is no ImageNet, is written if it is missing. An unfinished run of the
    same settings is resumed.

    verbose: print what the command line prints, with a progress bar (a widget in a notebook); otherwise nothing.

    Raises ValueError for wrong settings, FileNotFoundError for a missing beton, FloatingPointError if the loss is not
    finite, and KeyboardInterrupt, after a checkpoint, on Ctrl-C.
    """
    with called_from_python(verbose):
        asked = from_mapping(PretrainConfig, {"dataset": dataset, **settings})
        run = pretrain(from_mapping(PretrainConfig, {**presets(asked), "dataset": dataset, **settings}))
    if run is None:
        raise ValueError("budget=True trains nothing: use python recipes/pretrain.py --cfg.budget=1")
    return run


def pretrain(asked: PretrainConfig) -> "TrainedRun | None":
    """Train with these settings, whose data set may be "auto"; return None if config.budget asks for no training."""
    spec = get_dataset(resolve_dataset(asked), asked.data_dir, asked.res)
    config = dataclasses.replace(asked, dataset=spec.name, res=asked.res or spec.res)
    if os.environ.get("RANK", "0") == "0":  # set by torchrun
        logger.info(explain(asked, config))
    betons = [beton_path(config.data_dir, spec.name, split, config.res) for split in spec.splits]
    if asked.dataset == "auto" and spec.name == "fashion_mnist" and not all(beton.exists() for beton in betons):
        _write_fashion_mnist(config)
    with loading():  # torch takes seconds, which --help need not wait for
        from ..models.weights import build_model
        from .run import run_training

    stem = f"{spec.name}-{config.arch}-seed{config.seed}".lower().replace("/", "-")
    return run_training(config, spec, lambda: build_model(config.arch, config.res, spec.num_classes), stem)


def resolve_dataset(config: PretrainConfig) -> str:
    """Return the data set's name: for "auto", imagenet if its beton is in config.data_dir, else fashion_mnist."""
    if config.dataset != "auto":
        return config.dataset
    imagenet = SPECS["imagenet"]
    beton = beton_path(config.data_dir, imagenet.name, imagenet.train_split, config.res or imagenet.res)
    return imagenet.name if beton.is_file() else "fashion_mnist"


def presets(config: PretrainConfig) -> Mapping[str, Any]:
    """Return the data set's own settings, none if it has none.

    They are stored in fastmlp/training/dataset_settings/<dataset>.yaml; recipes/configs/<dataset>.yaml of a checkout,
    if there is one, takes its place.
    """
    name = resolve_dataset(config)
    get_dataset(name, config.data_dir, config.res)  # raises for an unknown name
    for folder in SETTINGS_FOLDERS:
        if (path := folder / f"{name}.yaml").is_file():
            return read_settings(path, PretrainConfig)
    return {}


def explain(asked: PretrainConfig, config: PretrainConfig) -> str:
    """Return the line that says which data set and model are used, and why this data set."""
    if asked.dataset != "auto":
        why = "as asked"
    elif config.dataset == "imagenet":
        why = f"its beton is in {config.data_dir}"
    else:
        why = f"no ImageNet beton of {asked.res or SPECS['imagenet'].res} px is in {asked.data_dir}"
    return f"data set {config.dataset} ({why}), model {config.arch}"


def _write_fashion_mnist(config: PretrainConfig) -> None:
    from ..beton.writer_cli import WriteOptions, write_splits
    from ..sources.fashion_mnist import FashionMNIST

    spec, data = SPECS["fashion_mnist"], Path(config.data_dir)
    options = WriteOptions(config.res, data, num_workers=1, limit=None, seed=0)
    write_splits(spec.name, lambda split: FashionMNIST(split, cache=data / "downloads"), spec.splits, options)
