"""Write your own images into betons: a folder per class, or a manifest.

    python writers/folder.py --name pets --source ~/pets --res 64
    python writers/folder.py --name pets --manifest ~/pets.csv --res 64

If --source holds `train` and `val` (or `test`), each with a folder per class, these are the splits (Train, valid,
test_set or pets_train will do). Of all three, val evaluates while training, and test is for recipes/evaluate.py
--cfg.split=test. Without splits, a tenth of the images (--holdout 0.1), chosen at random by --seed, becomes the
validation split. What was understood, and what is left out, is printed before anything is written.

A manifest is CSV with a header, or JSON lines: the fields `path` (relative to the manifest) and `label` (name or
number of a class), and optionally `split` (train, and val or test).
"""

from pathlib import Path

from fastmlp import cli
from fastmlp.beton import writer_cli as command
from fastmlp.datasets import SPECS
from fastmlp.sources.base import train_val_split
from fastmlp.sources.folder import ImageFolder
from fastmlp.sources.manifest import Manifest
from fastmlp.sources.splits import open_folder


def main() -> None:
    parser = command.parser(cli.summary(__doc__), 64, "python writers/folder.py --name pets --source ~/pets")
    parser.add_argument("--name", required=True, help="name of the data set: letters, digits and _")
    location = parser.add_mutually_exclusive_group(required=True)
    location.add_argument("--source", type=cli.path, help="folder of the images")
    location.add_argument("--manifest", type=cli.path, help="CSV (.csv) or JSON lines (.jsonl) that names the images")
    parser.add_argument(
        "--holdout",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share kept for validation if no split is given (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if not arguments.name.isidentifier():
        raise ValueError(f"--name {arguments.name!r}: use only letters, digits and _")
    if arguments.name in (*SPECS, "auto"):
        raise ValueError(f"--name {arguments.name} is the name of a known data set: choose another")
    if not 0 < arguments.holdout < 1:
        raise ValueError(f"--holdout {arguments.holdout}: expected a share between 0 and 1")
    to = command.options(arguments)
    if arguments.manifest:
        _write_manifest(arguments.name, arguments.manifest.expanduser(), arguments.holdout, to)
        return
    sources = open_folder(arguments.source.expanduser(), to.res, to.fit)
    if "" in sources:
        _write_with_holdout(arguments.name, sources[""], arguments.holdout, to)
    else:
        command.write_splits(arguments.name, sources.__getitem__, tuple(sources), to)


def _write_manifest(name: str, manifest: Path, holdout: float, to: command.WriteOptions) -> None:
    images = Manifest(manifest, None, to.res, to.fit)
    if not images.splits:
        _write_with_holdout(name, images, holdout, to)
        return
    command.write_splits(name, lambda split: Manifest(manifest, split, to.res, to.fit), images.splits, to)


def _write_with_holdout(name: str, images: ImageFolder | Manifest, holdout: float, to: command.WriteOptions) -> None:
    command.write_splits(name, train_val_split(images, holdout, to.seed).__getitem__, ("train", "val"), to)


if __name__ == "__main__":
    cli.run(main)
