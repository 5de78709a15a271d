"""Writes ImageNet-21k into betons: a folder or a tar per class, the cleaned classes, all images or a fraction.

    python writers/imagenet21k.py --source /data/imagenet21k --classes classes.txt [--fraction 0.1]

ImageNet-21k comes from https://image-net.org/download after registration. --source holds <wnid>/*.JPEG or <wnid>.tar
(as in the release of fall 2011; the tars are read without unpacking). --classes names the classes to keep, a wnid per
line, such as the 11,230 of Ridnik et al. 2021 (https://github.com/Alibaba-MIIL/ImageNet21K); without it all are
kept. No validation split is published: --holdout sets a share of the images apart, by chance, the same for any
--fraction, which then keeps that share of every class's training images.
"""

from pathlib import Path

from fastmlp import cli
from fastmlp.beton import writer_cli as command
from fastmlp.datasets import SPECS
from fastmlp.sources.base import proportional, train_val_split
from fastmlp.sources.encoded import EncodedImages
from fastmlp.sources.folder import ImageFolder
from fastmlp.sources.tar import TarImages

ADVICE = "It comes from https://image-net.org/download; the folder must hold <wnid>/*.JPEG or <wnid>.tar"


def read_classes(path: Path) -> tuple[str, ...]:
    """The first word of every line, sorted."""
    names = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{path}: expected a class per line, each once, found {len(names)} lines")
    return tuple(sorted(names))


def open_images(root: Path, classes: tuple[str, ...] | None, to: command.WriteOptions) -> EncodedImages:
    tars = {path.stem: path for path in sorted(root.glob("*.tar"))}
    if not tars:
        return ImageFolder(root, classes, to.res, to.fit, ignore_others=True)
    if missing := set(classes or ()) - set(tars):
        raise FileNotFoundError(f"{root} has no tar for {len(missing):,} of the classes, such as {min(missing)}.tar")
    return TarImages([tars[name] for name in classes or sorted(tars)], classes, to.res, to.fit)


def main() -> None:
    spec = SPECS["imagenet21k"]
    parser = command.parser(__doc__.splitlines()[0], spec.res, f"{spec.writer} --source /data/imagenet21k")
    parser.add_argument("--source", type=Path, help="the folder (default: $IMAGENET21K)")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="a text file of the wnids to keep, one per line")
    parser.add_argument("--fraction", type=float, default=1.0, metavar="SHARE", help="of each class (default: all)")
    parser.add_argument("--holdout", type=float, default=0.01, metavar="SHARE", help="for val (default: %(default)s)")
    arguments = parser.parse_args()
    to = command.options(arguments)
    root = command.resolve_source(arguments.source, "IMAGENET21K", "ImageNet-21k", ADVICE)
    images = open_images(root, read_classes(arguments.classes) if arguments.classes else None, to)
    parts = train_val_split(images, arguments.holdout, to.seed)
    labels = images.labels[parts["train"].indices]
    parts["train"] = proportional(parts["train"], labels, arguments.fraction, to.seed)
    command.write_splits(spec.name, parts.__getitem__, spec.splits, to)


if __name__ == "__main__":
    cli.run(main)
