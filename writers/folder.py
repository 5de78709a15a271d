"""Writes an own image folder into betons: one folder per class, scaled to squares.

    python writers/folder.py --name pets --source ~/pets --res 64

Where --source holds `train` and `val` (or `test`), each with a folder per class, these are the splits; else every
tenth image (--holdout 0.1), chosen at random by --seed, becomes the validation split.
"""

from pathlib import Path

import numpy as np

from fastmlp import cli
from fastmlp.beton import command
from fastmlp.datasets import SPECS
from fastmlp.sources.base import Subset
from fastmlp.sources.folder import ImageFolder


def main() -> None:
    parser = command.parser(__doc__.splitlines()[0], 64, "python writers/folder.py --name pets --source ~/pets")
    parser.add_argument("--name", required=True, help="what to call the data set: letters, digits and _")
    parser.add_argument("--source", type=Path, required=True, help="folder of the images")
    parser.add_argument(
        "--holdout", type=float, default=0.1, metavar="SHARE",
        help="share kept for validation where there is no folder for it (default: %(default)s)",
    )  # fmt: skip
    arguments = parser.parse_args()
    if not arguments.name.isidentifier():
        raise ValueError(f"--name {arguments.name!r}: use letters, digits and _ only")
    if arguments.name in (*SPECS, "auto"):
        raise ValueError(f"--name {arguments.name} means a known data set: choose another")
    if not 0 < arguments.holdout < 1:
        raise ValueError(f"--holdout {arguments.holdout}: expected a share between 0 and 1")
    to, root = command.options(arguments), arguments.source.expanduser()
    held = next((name for name in ("val", "test") if (root / "train").is_dir() and (root / name).is_dir()), None)
    if held:
        classes = ImageFolder(root / "train").classes
        command.write_splits(
            arguments.name, lambda split: ImageFolder(root / split, classes, to.res), ("train", held), to
        )
        return
    if (root / "train").is_dir():
        raise FileNotFoundError(f"{root} holds train, but neither val nor test: add one, or name {root / 'train'}")
    images = ImageFolder(root, res=to.res)
    if len(images) < 2:
        raise ValueError(f"{root} holds {len(images)} image: two at least are needed, to train and to validate")
    order = np.random.default_rng(to.seed).permutation(len(images))
    cut = max(1, round(arguments.holdout * len(images)))
    parts = {"train": Subset(images, order[cut:]), "val": Subset(images, order[:cut])}
    command.write_splits(arguments.name, parts.__getitem__, ("train", "val"), to)


if __name__ == "__main__":
    cli.run(main)
