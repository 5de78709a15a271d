"""Trains an MLP on a data set's betons.

    python recipes/pretrain.py --cfg.batch_size=16384
    python recipes/pretrain.py --cfg.dataset=cifar10 --cfg.epochs=20
    python recipes/pretrain.py --config-file mine.yaml

Without a data set named it takes ImageNet where its beton lies in ./data, else the embedded Fashion-MNIST.
A data set's own settings come from recipes/configs/<dataset>.yaml where there is one; --config-file and flags go
before them. The run leaves a folder with its settings, log, pictures and weights (final.pt, best.pt). Interrupted, the
same command goes on from its last checkpoint. On several GPUs: torchrun --nproc-per-node=2 recipes/pretrain.py ...
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmlp import cli
from fastmlp.config import PretrainConfig
from fastmlp.datasets import SPECS, beton_path, get_dataset

CONFIGS = Path(__file__).parent / "configs"


def resolve_dataset(config: PretrainConfig) -> str:
    """What `--cfg.dataset=auto` means in this data folder."""
    if config.dataset != "auto":
        return config.dataset
    imagenet = SPECS["imagenet"]
    beton = beton_path(config.data_dir, imagenet.name, imagenet.train_split, config.res or imagenet.res)
    return imagenet.name if beton.is_file() else "fashion_mnist"


def presets(config: PretrainConfig) -> Mapping[str, Any]:
    """What recipes/configs says of the data set."""
    import yaml

    get_dataset(resolve_dataset(config), config.data_dir, config.res)  # an unknown name ends here
    path = CONFIGS / f"{resolve_dataset(config)}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))["cfg"] if path.is_file() else {}


def explain(asked: PretrainConfig, config: PretrainConfig) -> str:
    if asked.dataset != "auto":
        why = "as asked"
    elif config.dataset == "imagenet":
        why = f"its beton lies in {config.data_dir}"
    else:
        why = f"no ImageNet beton of {asked.res or SPECS['imagenet'].res} px lies in {asked.data_dir}"
    return f"data set {config.dataset} ({why}), model {config.arch}"


def main() -> None:
    asked = cli.parse(PretrainConfig, __doc__.splitlines()[0], presets)
    spec = get_dataset(resolve_dataset(asked), asked.data_dir, asked.res)
    config = dataclasses.replace(asked, dataset=spec.name, res=asked.res or spec.res)
    if os.environ.get("RANK", "0") == "0":  # torchrun's, or alone
        print(explain(asked, config))
    betons = [beton_path(config.data_dir, spec.name, split, config.res) for split in spec.splits]
    if asked.dataset == "auto" and spec.name == "fashion_mnist" and not all(beton.exists() for beton in betons):
        from fastmlp.beton.writer_cli import WriteOptions, write_splits
        from fastmlp.sources.fashion_mnist import FashionMNIST

        data = Path(config.data_dir)
        to = WriteOptions(config.res, data, num_workers=1, limit=None, seed=0)
        write_splits(spec.name, lambda split: FashionMNIST(split, cache=data / "downloads"), spec.splits, to)

    from fastmlp import build_model
    from fastmlp.training import run as session

    stem = f"{spec.name}-{config.arch}-seed{config.seed}".lower().replace("/", "-")
    session.train(config, spec, lambda: build_model(config.arch, config.res, spec.num_classes), stem)


if __name__ == "__main__":
    cli.run(main)
