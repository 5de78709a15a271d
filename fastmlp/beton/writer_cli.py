"""The command line shared by all scripts in `writers/`."""

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import cli
from ..datasets import SPECS, beton_path, sidecar_path
from ..messages import logger
from ..sources.base import Source, Subset
from ..sources.fit import FITS, Fit
from ..sources.summary import listed, summary, without_images
from ..worker_pool import num_cores
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
    fit: Fit = "square"
    shuffle: bool = True
    shard: tuple[int, int] | None = None
    finish: bool = False


def parser(description: str, res: int | None, example: str) -> argparse.ArgumentParser:
    """Return a parser with the shared flags; `res` is the default resolution."""
    result = argparse.ArgumentParser(description=description, epilog=f"example: {example}", allow_abbrev=False)

    cores = num_cores()

    def add(flag: str, text: str, **keywords: Any) -> None:
        result.add_argument(flag, help=text, **keywords)

    add("--res", "side of the written images [pixels] (default: %(default)s)", type=positive, default=res)
    add("--out", "folder of the betons (default: ./data)", type=cli.path, default=Path("data"))
    add("--num-workers", "processes (default: one per core, %(default)s)", type=positive, default=cores)
    add("--limit", "write at most N images of each split, chosen at random by --seed", type=positive, metavar="N")
    add("--seed", "of the order of the images in the beton (default: 0)", type=_seed, default=0)
    add(
        "--on-error",
        "stop: a bad image stops the writing with an error that names it; skip: it is left out and listed in a file "
        "beside the beton (default: stop)",
        choices=("stop", "skip"),
        default="stop",
    )
    add(
        "--fit",
        "square: the centre square of each image, all of one size; longest: the whole image, its longer side scaled to "
        "--res, as the paper writes ImageNet (default: square)",
        choices=FITS,
        default="square",
    )
    add(
        "--no-shuffle",
        "keep the source's order (files sorted by class make windowed reading less random)",
        action="store_true",
    )
    add(
        "--shard",
        "write only part I (0 to N-1) of N, on a file system that N machines share; then --finish",
        type=_shard,
        metavar="I/N",
    )
    add("--finish", "assemble and verify what --shard wrote", action="store_true")
    return result


def options(arguments: argparse.Namespace) -> WriteOptions:
    workers, cores = arguments.num_workers, num_cores()
    if workers > cores:
        logger.warning(f"--num-workers {workers} is more than the {cores} cores of this machine: using {cores}")
    if arguments.finish and arguments.shard:
        raise ValueError("--finish cannot be combined with --shard: run it once, after all shards are written")
    return WriteOptions(
        arguments.res,
        arguments.out,
        min(workers, cores),
        arguments.limit,
        arguments.seed,
        arguments.on_error,
        arguments.fit,
        not arguments.no_shuffle,
        arguments.shard,
        arguments.finish,
    )


def resolve_source(
    source: Path | None,  # --source
    variable: str,  # the environment variable used if it is None
    what: str,  # the data set's name
    advice: str,  # where to get it, and what the folder must hold
) -> Path:
    """Return the location of the raw data. Raises FileNotFoundError with the advice if it is not given or not there."""
    location = source or (Path(os.environ[variable]) if os.environ.get(variable) else None)
    if location is None or not location.expanduser().exists():
        why = (
            f"{location} does not exist"
            if location
            else f"neither --source nor the environment variable {variable} is set"
        )
        raise FileNotFoundError(f"{what} is missing: {why}. {advice}")
    return location.expanduser()


def write_splits(
    dataset: str,
    open_split: Callable[[str], Source],
    splits: tuple[str, ...],
    to: WriteOptions,
) -> None:
    """Print what was understood of the source, write the beton of each split and print where it is.

    The first split trains, the second evaluates; a third is only written.
    """
    sources = {split: _limited(open_split(split), to) for split in splits}
    logger.info("\n".join(summary(dataset, sources)))
    for path in _other_splits(dataset, splits, to):
        logger.info(f"notice: {path} is of an earlier source, and not written now: delete it, or --cfg.split finds it")
    for split, source in sources.items():
        path = beton_path(to.out, dataset, split, to.res)
        metadata = {"dataset": dataset, "split": split, "splits": list(splits[:2]), "seed": to.seed}
        beton = write_beton(
            path,
            source,
            to.res,
            metadata=metadata,
            seed=to.seed if to.shuffle else None,
            num_workers=to.num_workers,
            on_error=to.on_error,
            fit=to.fit,
            shard=to.shard,
            finish=to.finish,
            statistics=dataset not in SPECS and split == splits[0],  # the others' are published
        )
        if beton is None:
            number, count = to.shard or (0, 1)
            logger.info(
                f"{path}: shard {number}/{count} is written; after all shards are, run the same command with --finish"
            )
            continue
        layout.check(path)
        written = json.loads(sidecar_path(path).read_text(encoding="utf-8"))
        logger.info(
            f"{path}: {written['num_samples']:,} images of {to.res} x {to.res} px, {len(source.classes)} classes, "
            f"{path.stat().st_size / 1e6:,.0f} MB"
        )
        if written["skipped"]:
            logger.info(f"{written['skipped']:,} bad images were left out, see {skipped_list(path)}")
            before, left = without_images(source), zip(source.classes, written["images_per_class"], strict=True)
            if emptied := [name for name, images in left if not images and name not in before]:
                logger.info(f"notice: no {split} image of {len(emptied):,} classes is left: {listed(emptied)}")


def _other_splits(dataset: str, splits: tuple[str, ...], to: WriteOptions) -> list[Path]:
    """Return the data set's betons of this size of other splits than these; a "_" belongs to another one's name."""
    found = sorted(to.out.glob(beton_path("", dataset, "*", to.res).name))
    named = {path.name.removeprefix(f"{dataset}_").removesuffix(f"_{to.res}.beton"): path for path in found}
    return [path for split, path in named.items() if split not in splits and "_" not in split]


def _limited(source: Source, to: WriteOptions) -> Source:
    if to.limit is None or to.limit >= len(source):
        return source
    return Subset(source, np.random.default_rng(to.seed).permutation(len(source))[: to.limit])


def positive(text: str) -> int:
    number = int(text)
    if not 1 <= number < 2**31:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, at most {2**31 - 1:,}, got {text[:20]}")
    return number


def _seed(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return number


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N-1, got {text}")
    return int(number), int(count)
