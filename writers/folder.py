"""Writes own images into betons: a folder per class, or a manifest.

    python writers/folder.py --name pets --source ~/pets --res 64
    python writers/folder.py --name pets --manifest ~/pets.csv --res 64

Where --source holds `train` and `val` (or `test`), each with a folder per class, these are the splits; else every
tenth image (--holdout 0.1), chosen at random by --seed, becomes the validation split.

A manifest is CSV with a header, or JSON lines: the fields `path` (relative to the manifest) and `label` (a class's name
or number), and maybe `split` (train, and val or test).
"""

from pathlib import Path

from fastmlp import cli
from fastmlp.beton import writer_cli as command
from fastmlp.datasets import SPECS
from fastmlp.sources.base import train_val_split
from fastmlp.sources.folder import ImageFolder
from fastmlp.sources.manifest import Manifest


def main() -> None:
    parser = command.parser(__doc__.splitlines()[0], 64, "python writers/folder.py --name pets --source ~/pets")
    parser.add_argument("--name", required=True, help="what to call the data set: letters, digits and _")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--source", type=Path, help="folder of the images")
    place.add_argument("--manifest", type=Path, help="CSV (.csv) or JSON lines (.jsonl) that names the images")
    parser.add_argument(
        "--holdout",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="share kept for validation where no split is given (default: %(default)s)",
    )
    arguments = parser.parse_args()
    if not arguments.name.isidentifier():
        raise ValueError(f"--name {arguments.name!r}: use letters, digits and _ only")
    if arguments.name in (*SPECS, "auto"):
        raise ValueError(f"--name {arguments.name} means a known data set: choose another")
    if not 0 < arguments.holdout < 1:
        raise ValueError(f"--holdout {arguments.holdout}: expected a share between 0 and 1")
    to = command.options(arguments)
    if arguments.manifest:
        _write_manifest(arguments.name, arguments.manifest.expanduser(), arguments.holdout, to)
        return
    root = arguments.source.expanduser()
    held = next((name for name in ("val", "test") if (root / "train").is_dir() and (root / name).is_dir()), None)
    if held:
        train = ImageFolder(root / "train", None, to.res, to.fit)
        parts = {"train": train, held: ImageFolder(root / held, train.classes, to.res, to.fit)}
        command.write_splits(arguments.name, parts.__getitem__, ("train", held), to)
        return
    if (root / "train").is_dir():
        raise FileNotFoundError(f"{root} holds train, but neither val nor test: add one, or name {root / 'train'}")
    _write_held_out(arguments.name, ImageFolder(root, None, to.res, to.fit), arguments.holdout, to)


def _write_manifest(name: str, manifest: Path, holdout: float, to: command.WriteOptions) -> None:
    whole = Manifest(manifest, None, to.res, to.fit)
    if not whole.splits:
        _write_held_out(name, whole, holdout, to)
        return
    if whole.splits not in (("train", "val"), ("test", "train")):
        raise ValueError(f"{manifest}: expected the splits train and val (or test), found {', '.join(whole.splits)}")
    splits = tuple(sorted(whole.splits, key=lambda split: split != "train"))
    command.write_splits(name, lambda split: Manifest(manifest, split, to.res, to.fit), splits, to)


def _write_held_out(name: str, images: ImageFolder | Manifest, share: float, to: command.WriteOptions) -> None:
    command.write_splits(name, train_val_split(images, share, to.seed).__getitem__, ("train", "val"), to)


if __name__ == "__main__":
    cli.run(main)
