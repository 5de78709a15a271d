"""Recognise the splits and the folder of classes in a folder of your own images, and open them."""

import os
import re
from collections import Counter
from pathlib import Path

from .fit import Fit
from .folder import ImageFolder, class_folders, identity, image_files, refuse_dead_links
from .listing import DEAD_LINKS, OUTSIDE

SPELLINGS = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
_ROLES = {spelling: split for split, spellings in SPELLINGS.items() for spelling in spellings}
_FILLERS = {"", "set", "data", "dataset", "split", "images", "image", "imgs", "seg"}


def split_of(name: str) -> str | None:
    """Return the split that a name means, in any case: "Train", "valid", "test_set", "Training Images", "val2017"."""
    words = {re.sub(r"(?<=.)(set|data)$", "", word) for word in re.split(r"[\W_\d]+", name.lower())} - _FILLERS
    return _ROLES.get(words.pop()) if len(words) == 1 else None


def open_folder(root: Path, res: int | None, fit: Fit) -> dict[str, ImageFolder]:
    """Return `train` and the split to evaluate ("val", else "test"), or all images as "" if the folder has no splits.

    A folder that holds nothing but the folder of splits or classes is entered. What is passed over is counted in the
    left_out of the first source, what was decided is in its notices. Raises ValueError or FileNotFoundError naming the
    folder and what to do if it cannot be told what is meant.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder: --source must hold one folder of images per class")
    left_out: Counter[str] = Counter()
    notices: list[str] = []
    top = _inner_folder(root, notices, within_split=False)
    parts = _split_folders(top, left_out, notices)
    if not parts:
        _refuse_splits_in_classes(top)
        sources = {"": ImageFolder(top, None, res, fit)}
    else:
        train = ImageFolder(_inner_folder(parts["train"], notices), None, res, fit)
        name = "val" if "val" in parts else "test"
        sources = {"train": train, name: ImageFolder(_inner_folder(parts[name], notices), train.classes, res, fit)}
    first = next(iter(sources.values()))
    first.left_out += left_out
    first.notices = tuple(notices)
    return sources


def _inner_folder(root: Path, notices: list[str], within_split: bool = True) -> Path:
    """Return the folder within `root`, if it holds nothing else and that one holds folders itself; and so on."""
    top, seen = root, {identity(root)}
    while inner := _only_folder(top):
        if identity(inner) in seen or not _holds_only_folders(inner):
            break
        if split_of(inner.name) and not within_split:
            break  # to train on "test" because it is alone cannot be meant
        top = inner
        seen.add(identity(top))
    if top != root:
        notices.append(f"{root} holds only one folder: taking {top}")
    return top


def _only_folder(root: Path) -> Path | None:
    files: Counter[str] = Counter()
    names = class_folders(root, files)
    return root / names[0] if len(names) == 1 and OUTSIDE not in files and DEAD_LINKS not in files else None


def _holds_only_folders(root: Path) -> bool:
    """Return whether the folder holds folders, and no image beside them."""
    files: Counter[str] = Counter()
    return bool(class_folders(root, files)) and OUTSIDE not in files


def _split_folders(root: Path, left_out: Counter[str], notices: list[str]) -> dict[str, Path]:
    """Return the folders of `train` and of what evaluates it; none if the folders of `root` are classes."""
    outside: Counter[str] = Counter()
    names = class_folders(root, outside)
    refuse_dead_links(root, outside)
    named = {name: split for name in names if (split := split_of(name))}
    with_classes = [name for name in named if class_folders(root / name)]
    if not with_classes:
        _refuse_flat_splits(root, names, named, notices)
        return {}
    parts: dict[str, Path] = {}
    for name in with_classes:
        if named[name] in parts:
            raise ValueError(f"{root}: both {parts[named[name]].name} and {name} look like the split {named[name]!r}")
        parts[named[name]] = root / name
    if "train" not in parts:
        raise FileNotFoundError(f"{root} holds {with_classes[0]}, but no train: add it, or name a folder of classes")
    evaluated = "val" if "val" in parts else "test"
    if evaluated not in parts:
        flat = "".join(f" ({name} has no folder per class, so no labels)" for name in named if name not in with_classes)
        raise FileNotFoundError(
            f"{root} holds {parts['train'].name}, but neither val nor test{flat}: add one of them, or use "
            f"--source {parts['train']}"
        )
    for name in names:
        if name not in (parts["train"].name, parts[evaluated].name):
            others: Counter[str] = Counter()
            count = len(image_files(os.fsencode(root / name), (), others)) + sum(others.values())
            why = f"a data set has two splits, here train and {evaluated}" if name in named else "it is no split"
            left_out[f"files in the folder {name} ({why})"] += count
    left_out += outside
    for split in ("train", evaluated):
        if parts[split].name != split:
            notices.append(f"{parts[split].name} is taken as the split {split}")
    return {"train": parts["train"], evaluated: parts[evaluated]}


def _refuse_flat_splits(
    root: Path,
    names: tuple[str, ...],
    named: dict[str, str],  # those that are named like a split -> the split
    notices: list[str],
) -> None:
    """Raise ValueError if folders of images are named like splits; "train" alone may be a class, beside car and bus."""
    if not named or len(names) == 1:
        return
    name = next((name for name, split in named.items() if split != "train"), next(iter(named)))
    if len(named) > 1 or named[name] != "train":
        raise ValueError(
            f"{root / name} is named like a split, but holds no folder per class, so no labels: sort its images into "
            "folders of classes, or move it elsewhere (if it is a class, rename it)"
        )
    notices.append(f"{name} is taken as a class")


def _refuse_splits_in_classes(root: Path) -> None:
    """Raise ValueError if every class holds splits; listing the first class is enough where none does."""
    inner: list[str] = []
    for name in class_folders(root):
        inner = [folder for folder in class_folders(root / name) if split_of(folder)]
        if len({split_of(folder) for folder in inner}) < 2:
            return
    if inner:
        raise ValueError(
            f"{root / name} holds {' and '.join(inner)}: splits must be above the classes, as in {inner[0]}/{name}"
        )
