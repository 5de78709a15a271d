"""Write ImageNet-21k into betons: a folder or a tar per class, the cleaned classes, all images or a fraction.

    python writers/imagenet21k.py --source /data/imagenet21k --classes classes.txt [--fraction 0.1]

ImageNet-21k comes from https://image-net.org/download after registration. --source holds <wnid>/*.JPEG or <wnid>.tar
(as in the release of fall 2011; the tars are read without unpacking). --classes names the classes to keep, a wnid per
line, such as the 11,230 of Ridnik et al. 2021 (https://github.com/Alibaba-MIIL/ImageNet21K); without it all are
kept. No validation split is published: --holdout keeps a share of the images, at random, for validation, the same for
any --fraction. --fraction then keeps that share of each class's training images: those that a run with
--cfg.train_fraction and the same seed takes from the beton of all images (if that has no bad images left out).
"""

import os
from collections import Counter
from pathlib import Path

import numpy as np

from fastmlp import cli
from fastmlp.beton import writer_cli as command
from fastmlp.beton.writer import sample_order
from fastmlp.data.subset import stratified_subset
from fastmlp.datasets import SPECS
from fastmlp.sources.base import Subset, train_val_split
from fastmlp.sources.encoded import EncodedImages
from fastmlp.sources.faults import naming
from fastmlp.sources.folder import ImageFolder, class_folders, image_files
from fastmlp.sources.listing import is_litter, is_packed, why_not
from fastmlp.sources.tar import TarImages

ADVICE = "It comes from https://image-net.org/download; the folder must hold <wnid>/*.JPEG or <wnid>.tar"


def read_classes(path: Path) -> tuple[str, ...]:
    """Return the first word of every line, sorted."""
    with naming(path, "not a text file"):
        names = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{path}: expected one class per line, each once, found {len(names)} lines")
    return tuple(sorted(names))


def open_images(root: Path, classes: tuple[str, ...] | None, to: command.WriteOptions) -> EncodedImages:
    """Return the images of a tar per class if `root` holds tars, else of a folder per class."""
    tars = {path.stem: path for path in sorted(root.glob("*.tar")) if not is_litter(path.name)}
    if packed := [name for name in os.listdir(root) if is_packed(name) and not is_litter(name) and name[-4:] != ".tar"]:
        raise ValueError(f"{root / min(packed)} is compressed: decompress it first (or move it elsewhere)")
    if not tars:
        return ImageFolder(root, classes, to.res, to.fit, ignore_others=True)
    beside: Counter[str] = Counter()
    if missing := set(classes or ()) - set(tars):
        raise FileNotFoundError(f"{root} has no tar for {len(missing):,} of the classes, such as {min(missing)}.tar")
    others = sorted(set(class_folders(root, beside)) - set(tars))
    if other := next((name for name in others if image_files(bytes(root / name))), None):
        raise ValueError(f"{root} holds tars and folders of images, such as {other}: expected one or the other")
    images = TarImages([tars[name] for name in classes or sorted(tars)], classes, to.res, to.fit)
    images.left_out.update({why: count for why, count in beside.items() if why != why_not("x.tar")})
    return images


def take_fraction(train: Subset, labels: np.ndarray, fraction: float, to: command.WriteOptions) -> Subset:
    """Return the training images that a run with this train_fraction and seed takes from the beton of all of them.

    `labels` are those of train.source. train_fraction goes by the labels in the order of the beton.
    """
    order = sample_order(len(train), to.seed if to.shuffle else None)
    kept = stratified_subset(labels[train.indices][order], fraction, to.seed)
    return Subset(train, np.sort(order[kept]))


def main() -> None:
    spec = SPECS["imagenet21k"]
    parser = command.parser(cli.summary(__doc__), spec.res, f"{spec.writer} --source /data/imagenet21k")
    parser.add_argument("--source", type=cli.path, help="the folder (default: $IMAGENET21K)")
    parser.add_argument("--classes", type=cli.path, metavar="FILE", help="text file of the wnids to keep, one per line")
    parser.add_argument(
        "--fraction",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="of the training images of each class (default: all)",
    )
    parser.add_argument("--holdout", type=float, default=0.01, metavar="SHARE", help="for val (default: %(default)s)")
    arguments = parser.parse_args()
    if not 0 < arguments.fraction <= 1:
        raise ValueError(f"--fraction {arguments.fraction}: expected a share above 0 and at most 1")
    to = command.options(arguments)
    root = command.resolve_source(arguments.source, "IMAGENET21K", "ImageNet-21k", ADVICE)
    images = open_images(root, read_classes(arguments.classes) if arguments.classes else None, to)
    parts = train_val_split(images, arguments.holdout, to.seed)
    parts["train"] = take_fraction(parts["train"], images.labels, arguments.fraction, to)
    command.write_splits(spec.name, parts.__getitem__, spec.splits, to)


if __name__ == "__main__":
    cli.run(main)
