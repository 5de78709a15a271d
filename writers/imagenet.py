"""Writes ImageNet (or any tree with train/<class>/ and val/<class>/) into betons, scaled to squares.

    python writers/imagenet.py --source /data/imagenet --res 64

ILSVRC 2012 comes from https://image-net.org/download after registration. Unpack the training images into
train/<wnid>/ and sort the validation images into val/<wnid>/.
"""

import os
from pathlib import Path

from fastmlp import cli
from fastmlp.beton import command
from fastmlp.datasets import SPECS
from fastmlp.sources.folder import ImageFolder


def main() -> None:
    spec = SPECS["imagenet"]
    parser = command.parser(__doc__.splitlines()[0], spec.res, f"{spec.writer} --source /data/imagenet --res 64")
    parser.add_argument(
        "--source", type=Path, default=os.environ.get("IMAGENET"),
        help="folder that holds train/ and val/ (default: the environment variable IMAGENET)",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.source is None or not (arguments.source / "train").is_dir():
        raise FileNotFoundError(
            f"no ImageNet at {arguments.source or '--source'}: name the folder that holds train/<wnid>/*.JPEG and "
            "val/<wnid>/*.JPEG with --source or the environment variable IMAGENET. The images come from "
            "https://image-net.org/download after registration"
        )
    classes, to = ImageFolder(arguments.source / "train").classes, command.options(arguments)
    command.write_splits(
        spec.name, lambda split: ImageFolder(arguments.source / split, classes, to.res), spec.splits, to
    )


if __name__ == "__main__":
    cli.run(main)
