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
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
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


def picture_of_training(train: Any, augment: Any, config: PretrainConfig, folder: Path) -> None:
    from fastmlp import plots
    from fastmlp.preview import before_and_after

    sheet = before_and_after(train.path, augment, config.res, config.seed, *SHEET)
    plots.contact_sheet(sheet, folder / "augmented.png")


def finish(folder: Path, log: Any, result: Any, seconds: float) -> None:
    """The run's last line, its learning curve, its weights for others, and what to tell."""
    from fastmlp import plots
    from fastmlp.checkpoints import export_safetensors

    rate = f"{result.images_per_s:,.0f}" if result.images_per_s else "not measured: no step was left to take"
    scores, left = result.scores, ["final.pt", "best.pt", "log.jsonl", "augmented.png"]
    for make in (lambda: export_safetensors(folder / "final.pt"), lambda: export_safetensors(folder / "best.pt"),
                 lambda: plots.learning_curve(folder)):  # fmt: skip
        try:
            left.append(make().name)
        except ModuleNotFoundError as error:
            print(f"notice: {error}", file=sys.stderr)
    log.write("end", test_top1=scores.top1, test_top5=scores.top5, best_top1=result.best_top1,
              images_per_s=result.images_per_s, train_s=result.train_s)  # fmt: skip
    print(
        f"\ntest top-1   {scores.top1:.2%}  (top-5 {scores.top5:.2%}, {scores.images:,} images; best top-1 "
        f"{result.best_top1:.2%})\nimages/sec   {rate}\n"
        f"seconds      {result.train_s:.1f} training, {seconds:.1f} in all since the start\n"
        f"run folder   {folder}: {', '.join(left)}"
    )


def main() -> None:
    asked = cli.parse(PretrainConfig, __doc__.splitlines()[0], presets)
    spec = find(resolve_dataset(asked), asked.data_dir, asked.res)
    config = dataclasses.replace(asked, dataset=spec.name, res=asked.res or spec.res)
    if os.environ.get("RANK", "0") == "0":  # torchrun's, or alone
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
    from fastmlp.checkpoints import Checkpoints, read_checked
    from fastmlp.loop import Interrupted, fit
    from fastmlp.models import build_model
    from fastmlp.pipelines import Split
    from fastmlp.processes import launched
    from fastmlp.runlog import NoLog, RunLog
    from fastmlp.runs import open_run
    from fastmlp.training import Trainer
    from fastmlp.transforms.params import Augment

    started = time.perf_counter()
    device = devices.choose(config.device)
    augment = Augment(
        config.crop, (config.crop_scale, 1.0), (config.crop_ratio, 1 / config.crop_ratio), config.shift, config.flip
    )
    stem = f"{spec.name}-{config.arch}-seed{config.seed}".lower().replace("/", "-")
    with ExitStack() as stack:
        processes = stack.enter_context(launched(device))
        say = print if processes.is_first else lambda *_: None
        shared = {"data_dir": config.data_dir, "res": config.res, "num_workers": config.num_workers, "device": device}
        train = Split(spec, spec.train_split, "train", batch_size=config.batch_size, seed=config.seed, augment=augment,
                      processes=processes, **shared)  # fmt: skip
        test = Split(spec, spec.eval_split, "evaluate", batch_size=2048, **shared)
        run = stack.enter_context(open_run(config, stem)) if processes.is_first else None
        folder, step = processes.from_first(
            run and (run.folder, run.checkpoint and run.checkpoint["trainer"]["steps_done"])
        )
        checkpoint = run.checkpoint if run else step and read_checked(Checkpoints(folder).path(step))
        if checkpoint and processes.count == checkpoint["trainer"]["processes"] == 1:
            torch.set_num_threads(checkpoint["trainer"]["threads"])  # their number moves bits
        torch.manual_seed(config.seed)
        model = build_model(config.arch, config.res, spec.num_classes).to(device)
        trainer = Trainer(model, config, train.batches_per_epoch, processes,
                          checkpoint["trainer"]["micro_batch"] if checkpoint else 0)  # fmt: skip
        name = devices.describe(device)
        log = stack.enter_context(
            RunLog(folder, config, name, checkpoint["log_bytes"] if checkpoint else 0) if run else NoLog(folder)
        )
        say(f"{sum(p.numel() for p in model.parameters()):,} parameters, {train.num_samples:,} training images, "
            f"{config.epochs} of {train.batches_per_epoch} batches of {config.batch_size} in parts of "
            f"{trainer.micro_batch} at most, on {processes.count} x {name}; run folder {folder}")  # fmt: skip
        if trainer.compile_s:
            say(f"compiled in {trainer.compile_s:.1f} s")
        if checkpoint:
            say(f"goes on after step {step} of {trainer.total_steps}")
        elif run:
            picture_of_training(train, augment, config, folder)
        facts = {"dataset": spec.name, "mean": list(spec.mean), "std": list(spec.std)}
        try:
            result = fit(trainer, train, test, log, facts, checkpoint)
        except Interrupted as stop:
            say(f"\nstopped after step {trainer.steps_done}; the same command goes on from {stop.checkpoint}")
            raise SystemExit(128 + stop.number) from None
        if run:
            finish(folder, log, result, time.perf_counter() - started)


if __name__ == "__main__":
    cli.run(main)
