"""Trains an MLP on a data set's betons.

    python recipes/pretrain.py --cfg.batch_size=16384
    python recipes/pretrain.py --cfg.dataset=cifar10 --cfg.epochs=20
    python recipes/pretrain.py --config-file mine.yaml

Without --cfg.dataset it trains on ImageNet if its beton is in ./data, else on Fashion-MNIST, which it writes if needed.
A data set's own settings come from recipes/configs/<dataset>.yaml if that exists; --config-file and flags override
them. The run folder has the settings, log, pictures and weights (final.pt, best.pt). After an interruption the same
command resumes from the last checkpoint. On several GPUs: torchrun --nproc-per-node=2 recipes/pretrain.py ...
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmlp import cli
from fastmlp.config import PretrainConfig
from fastmlp.datasets import SPECS, beton_path, get_dataset
from fastmlp.yaml_file import read_yaml

CONFIGS = Path(__file__).parent / "configs"


def resolve_dataset(config: PretrainConfig) -> str:
    """Return the data set's name: for "auto", imagenet if its beton is in config.data_dir, else fashion_mnist."""
    if config.dataset != "auto":
        return config.dataset
    imagenet = SPECS["imagenet"]
    beton = beton_path(config.data_dir, imagenet.name, imagenet.train_split, config.res or imagenet.res)
    return imagenet.name if beton.is_file() else "fashion_mnist"


def presets(config: PretrainConfig) -> Mapping[str, Any]:
    """Return the settings in recipes/configs/<dataset>.yaml, none if there is no such file."""
    get_dataset(resolve_dataset(config), config.data_dir, config.res)  # raises for an unknown name
    path = CONFIGS / f"{resolve_dataset(config)}.yaml"
    return read_yaml(path)["cfg"] if path.is_file() else {}


def explain(asked: PretrainConfig, config: PretrainConfig) -> str:
    """Return the line that says which data set and model are used, and why this data set."""
    if asked.dataset != "auto":
        why = "as asked"
    elif config.dataset == "imagenet":
        why = f"its beton is in {config.data_dir}"
    else:
        why = f"no ImageNet beton of {asked.res or SPECS['imagenet'].res} px is in {asked.data_dir}"
    return f"data set {config.dataset} ({why}), model {config.arch}"


def main() -> None:
    asked = cli.parse(PretrainConfig, cli.summary(__doc__), presets)
    spec = get_dataset(resolve_dataset(asked), asked.data_dir, asked.res)
    config = dataclasses.replace(asked, dataset=spec.name, res=asked.res or spec.res)
    if os.environ.get("RANK", "0") == "0":  # set by torchrun
        print(explain(asked, config))
    betons = [beton_path(config.data_dir, spec.name, split, config.res) for split in spec.splits]
    if asked.dataset == "auto" and spec.name == "fashion_mnist" and not all(beton.exists() for beton in betons):
        from fastmlp.beton.writer_cli import WriteOptions, write_splits
        from fastmlp.sources.fashion_mnist import FashionMNIST

        data = Path(config.data_dir)
        options = WriteOptions(config.res, data, num_workers=1, limit=None, seed=0)
        write_splits(spec.name, lambda split: FashionMNIST(split, cache=data / "downloads"), spec.splits, options)

    from fastmlp import build_model
    from fastmlp.training.run import train

    stem = f"{spec.name}-{config.arch}-seed{config.seed}".lower().replace("/", "-")
    train(config, spec, lambda: build_model(config.arch, config.res, spec.num_classes), stem)


if __name__ == "__main__":
    cli.run(main)
