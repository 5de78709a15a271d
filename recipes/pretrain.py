"""Trains an MLP on a data set's betons.

    python recipes/pretrain.py --cfg.batch_size=16384
    python recipes/pretrain.py --cfg.dataset=cifar10 --cfg.epochs=20
    python recipes/pretrain.py --config-file mine.yaml

Without a data set named it takes ImageNet where its beton lies in ./data, else the embedded Fashion-MNIST.
A data set's own settings come from recipes/configs/<dataset>.yaml where there is one; --config-file and flags go
before them. The run leaves a folder with its settings, log, pictures and weights (final.pt).
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmlp import cli
from fastmlp.config import PretrainConfig
from fastmlp.datasets import SPECS, beton_path, find

CONFIGS = Path(__file__).parent / "configs"
SHEET = (4, 16)  # rows and columns of the contact sheet; below each row the same images as trained on


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

    find(resolve_dataset(config), config.data_dir, config.res)  # an unknown name ends here
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
    spec = find(resolve_dataset(asked), asked.data_dir, asked.res)
    config = dataclasses.replace(asked, dataset=spec.name, res=asked.res or spec.res)
    print(explain(asked, config))
    betons = [beton_path(config.data_dir, spec.name, split, config.res) for split in spec.splits]
    if asked.dataset == "auto" and spec.name == "fashion_mnist" and not all(beton.exists() for beton in betons):
        from fastmlp.beton.command import WriteOptions, write_splits
        from fastmlp.sources.fashion_mnist import FashionMNIST

        data = Path(config.data_dir)
        to = WriteOptions(config.res, data, num_workers=1, limit=None, seed=0)
        write_splits(spec.name, lambda split: FashionMNIST(split, cache=data / "downloads"), spec.splits, to)

    import torch

    from fastmlp import device as devices
    from fastmlp import plots
    from fastmlp.checkpoints import save_model
    from fastmlp.models import build_model
    from fastmlp.pipelines import Split
    from fastmlp.preview import before_and_after
    from fastmlp.runlog import RunLog, create_run_folder
    from fastmlp.training import fit
    from fastmlp.transforms.params import Augment

    started = time.perf_counter()
    device = devices.choose(config.device)
    shared = {"data_dir": config.data_dir, "res": config.res, "num_workers": config.num_workers, "device": device}
    augment = Augment(
        config.crop, (config.crop_scale, 1.0), (config.crop_ratio, 1 / config.crop_ratio), config.shift, config.flip
    )
    train = Split(
        spec, spec.train_split, "train", batch_size=config.batch_size, seed=config.seed, augment=augment, **shared
    )
    test = Split(spec, spec.eval_split, "evaluate", batch_size=2048, **shared)
    torch.manual_seed(config.seed)
    model = build_model(config.arch, config.res, spec.num_classes).to(device)
    folder = create_run_folder(config.run_dir, f"{spec.name}-{model.arch}-seed{config.seed}".lower())
    with RunLog(folder, config, devices.describe(device)) as log:
        print(
            f"{sum(p.numel() for p in model.parameters()):,} parameters, {train.num_samples:,} training images, "
            f"{config.epochs} epochs of {train.batches_per_epoch} batches of {config.batch_size} on "
            f"{devices.describe(device)}; run folder {folder}"
        )
        sheet = before_and_after(train.path, augment, config.res, config.seed, *SHEET)
        plots.contact_sheet(sheet, folder / "augmented.png")
        result = fit(model, train, test, config, log)
        scores = result.scores
        facts = {"dataset": spec.name, "mean": list(spec.mean), "std": list(spec.std), "test_top1": scores.top1}
        save_model(folder / "final.pt", model, facts)
        log.write("end", test_top1=scores.top1, test_top5=scores.top5, images_per_s=result.images_per_s,
                  train_s=result.train_s)  # fmt: skip
    try:
        pictures = f"{plots.learning_curve(folder).name}, augmented.png"
    except ModuleNotFoundError as error:
        pictures = f"augmented.png ({error})"
    print(
        f"\ntest top-1   {scores.top1:.2%}  (top-5 {scores.top5:.2%}, {scores.images:,} images)\n"
        f"images/sec   {result.images_per_s:,.0f}\n"
        f"seconds      {result.train_s:.1f} training, {time.perf_counter() - started:.1f} in all\n"
        f"run folder   {folder}: final.pt, log.jsonl, {pictures}"
    )


if __name__ == "__main__":
    cli.run(main)
