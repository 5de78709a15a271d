"""Images/sec of training end to end: fastmlp against a loop like that of the paper's code, on Fashion-MNIST.

    python writers/fashion_mnist.py
    python benchmarks/paper_training.py [--rounds 3] [--data-dir ./data]

B_6-Wi_256, 32 px, batch 1024, LION 5e-5, label smoothing 0.3, with and without random resized crop, flip and MixUp
0.8. The other side is written after the authors' training loop: stock FFCV Loader and operations, eager forward pass, a
LION that goes from tensor to tensor, the loss and the accuracy read out (.item()) at every step. Each side has a
process of its own, so that neither has the other's threads and memory; they take turns, an epoch each. A table goes
to stderr, one JSON line per case to stdout.
"""

import argparse
import itertools
import os
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
import torch.nn.functional as F
from peers import ffcv_loader
from transforms import stock_pipelines
from updates import lion_loop

import fastmlp
from fastmlp import cli
from fastmlp.config import PretrainConfig
from fastmlp.data.split import Split
from fastmlp.datasets import beton_path, get_dataset
from fastmlp.models.weights import build_model
from fastmlp.training.trainer import Trainer
from fastmlp.transforms.augment_params import Augment

ARCH, RES, BATCH = "B_6-Wi_256", 32, 1024


class PaperLoop:
    """Training as in the paper's code; each call is an epoch."""

    def __init__(self, beton: Path, augment: bool):
        self.loader = ffcv_loader(
            beton,
            batch_size=BATCH,
            order=fastmlp.OrderOption.RANDOM,
            seed=0,
            drop_last=True,
            pipelines=stock_pipelines("crop" if augment else "flip", RES, RES, augment),
        )
        self.augment = augment
        self.model = build_model(ARCH, RES, 10)
        self.momenta = [torch.zeros_like(p) for p in self.model.parameters()]

    def __call__(self) -> None:
        params = list(self.model.parameters())
        for images, labels in self.loader:
            logits = self.model(images.reshape(len(images), -1))
            loss = F.cross_entropy(logits, labels, label_smoothing=0.3)
            if self.augment:  # FFCV mixes each image with the previous one
                weight = float(np.random.beta(0.8, 0.8))
                other = F.cross_entropy(logits, labels.roll(1), label_smoothing=0.3)
                loss = weight * loss + (1 - weight) * other
            for p in params:
                p.grad = None
            loss.backward()
            with torch.no_grad():
                lion_loop(params, self.momenta, [p.grad for p in params])
            loss.item()
            (logits.argmax(1) == labels).float().mean().item()


class Ours:
    """Training by fastmlp; each call is an epoch."""

    def __init__(self, data_dir: str, augment: bool):
        spec = get_dataset("fashion_mnist", data_dir, RES)
        config = PretrainConfig(
            dataset="fashion_mnist",
            res=RES,
            arch=ARCH,
            batch_size=BATCH,
            epochs="100",
            mixup_alpha=0.8 if augment else 0.0,
        )
        how = Augment("random_resized", flip=True) if augment else Augment(flip=True)
        self.split = Split(spec, "train", "train", data_dir=data_dir, res=RES, batch_size=BATCH, augment=how)
        self.trainer = Trainer(build_model(ARCH, RES, 10), config, self.split.batches_per_epoch)
        self.epochs = itertools.count()

    def __call__(self) -> None:
        for images, labels in self.split.batches(next(self.epochs)):
            self.trainer.step(images, labels)
        self.trainer.check_finite()


def serve(pipe: Any, side: type, *arguments: object) -> None:
    """Run an epoch for each message that comes."""
    epoch = side(*arguments)
    try:
        while pipe.recv():
            epoch()
            pipe.send("done")
    except EOFError:  # the parent has ended
        return


def start(side: type, *arguments: object) -> Callable[[], None]:
    """Start a process for one side; return a function that has it run an epoch and waits."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=serve, args=(theirs, side, *arguments), daemon=True).start()

    def epoch() -> None:
        ours.send("go")
        ours.recv()

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each that count (default: 3)")
    parser.add_argument(
        "--data-dir", type=cli.path, default=Path("data"), help="folder of Fashion-MNIST's betons (default: ./data)"
    )
    arguments = measure.parse(parser)
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # for both sides: the idle threads of one must not slow the other
    for augment in (False, True):
        beton = beton_path(arguments.data_dir, "fashion_mnist", "train", RES)
        sides = {
            "fastmlp": start(Ours, arguments.data_dir, augment),
            "as the paper": start(PaperLoop, beton, augment),
        }
        images = 60_000 // BATCH * BATCH
        results = measure.rates(sides, images, arguments.rounds)
        ratio = results["fastmlp"]["images_per_s"] / results["as the paper"]["images_per_s"]
        what = "random resized crop, flip, MixUp" if augment else "flip"
        measure.print_rates(f"{ARCH}, batch {BATCH}, {what}: fastmlp is {ratio:.2f} times as fast", results)
        measure.emit("paper_training", {"arch": ARCH, "batch": BATCH, "augment": augment}, results)


if __name__ == "__main__":
    cli.run(main)
