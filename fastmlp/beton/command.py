"""The command line that all of `writers/` share."""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..datasets import beton_path, describe
from ..sources.base import Source, Subset
from . import layout
from .writer import skipped_list, write_beton


@dataclass(frozen=True)
class WriteOptions:
    """The flags that every writer has."""

    res: int
    out: Path
    num_workers: int
    limit: int | None
    seed: int
    on_error: Literal["stop", "skip"] = "stop"


def parser(description: str, res: int | None, example: str) -> argparse.ArgumentParser:
    """A parser with the shared flags; `res` is the default resolution."""
    result = argparse.ArgumentParser(description=description, epilog=f"example: {example}", allow_abbrev=False)

    cores = len(os.sched_getaffinity(0))

    def add(flag: str, text: str, **keywords: Any) -> None:
        result.add_argument(flag, help=text, **keywords)

    add("--res", "side of the written images [pixels] (default: %(default)s)", type=positive, default=res)
    add("--out", "folder of the betons (default: ./data)", type=Path, default=Path("data"))
    add("--num-workers", "processes (default: one per core, %(default)s)", type=positive, default=cores)
    add("--limit", "write N images of each split at most, chosen at random by --seed", type=positive, metavar="N")
    add("--seed", "of the order of the images in the beton (default: 0)", type=_seed, default=0)
    add("--on-error", "what a bad image does: stop the writing, naming it, or be left out and listed beside the beton "
        "(default: stop)", choices=("stop", "skip"), default="stop")  # fmt: skip
    return result


def options(arguments: argparse.Namespace) -> WriteOptions:
    workers, cores = arguments.num_workers, len(os.sched_getaffinity(0))
    if workers > cores:
        print(f"notice: --num-workers {workers} is more than the {cores} cores here: {cores} are used")
    return WriteOptions(arguments.res, arguments.out, min(workers, cores), arguments.limit, arguments.seed,
                        arguments.on_error)  # fmt: skip


def write_splits(
    dataset: str,
    open_split: Callable[[str], Source],
    splits: tuple[str, ...],
    to: WriteOptions,
) -> None:
    """Writes each split's beton and says where it is."""
    for split in splits:
        path = beton_path(to.out, dataset, split, to.res)
        source = open_split(split)
        if to.limit is not None and to.limit < len(source):
            source = Subset(source, np.random.default_rng(to.seed).permutation(len(source))[: to.limit])
        described = {"dataset": dataset, "split": split, "splits": list(splits), "seed": to.seed}
        write_beton(path, source, to.res, facts=described, seed=to.seed, num_workers=to.num_workers,
                    on_error=to.on_error)  # fmt: skip
        layout.check(path)
        written = json.loads(describe(path).read_text(encoding="utf-8"))
        print(f"{path}: {written['num_samples']:,} images of {to.res} x {to.res} px, {len(source.classes)} classes, "
              f"{path.stat().st_size / 1e6:,.0f} MB")  # fmt: skip
        if written["skipped"]:
            print(f"{written['skipped']:,} bad images were left out, see {skipped_list(path)}")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return number


def _seed(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return number
