"""Find the splits and the folder of classes in a folder of your own images, and open them."""

import os
from collections import Counter
from pathlib import Path

from .fit import Fit
from .folder import ImageFolder, class_folders, identity, image_files, refuse_dead_links
from .listing import DEAD_LINKS, OUTSIDE
from .split_names import THIRD_SPLIT, split_of, splits_among

SPLITS = ("train", "val", "test")


def open_folder(root: Path, res: int | None, fit: Fit) -> dict[str, ImageFolder]:
    """Return those of `train`, `val` and `test` that are there, or all images as "" if the folder has no splits.

    A folder that holds nothing but the folder of splits or classes is entered. What is passed over is counted in the
    left_out of the first source, what was decided is in its notices. Raises ValueError or FileNotFoundError naming the
    folder and what to do if it cannot be told what is meant.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder: --source must hold one folder of images per class")
    left_out: Counter[str] = Counter()
    notices: list[str] = []
    top = _inner_folder(root, left_out, notices, within_split=False)
    if parts := _split_folders(top, left_out, notices):
        sources = _open_splits(parts, res, fit, left_out, notices)
    else:
        _check_inside_of_classes(top, notices)
        sources = {"": ImageFolder(top, None, res, fit)}
    first = next(iter(sources.values()))
    first.left_out += left_out
    first.notices = (*notices, *_linked_classes(first))
    return sources


def _open_splits(
    parts: dict[str, Path], res: int | None, fit: Fit, left_out: Counter[str], notices: list[str]
) -> dict[str, ImageFolder]:
    folders = {split: _inner_folder(parts[split], left_out, notices) for split in SPLITS if split in parts}
    _refuse_shared_folders(folders)
    train = ImageFolder(folders.pop("train"), None, res, fit)
    sources = {"train": train}
    for split, folder in folders.items():
        if len(sources) == 2 and (others := set(class_folders(folder)) ^ set(train.classes)):
            why = f"a third split, of other classes: {min(others)} is not in both {parts['train'].name} and {split}"
            _pass_over(parts[split], why, left_out)
            continue
        sources[split] = ImageFolder(folder, train.classes, res, fit)
    if len(sources) == 3:
        notices.append(THIRD_SPLIT)
    return sources


def _inner_folder(root: Path, left_out: Counter[str], notices: list[str], within_split: bool = True) -> Path:
    """Return the folder within `root`, if it holds nothing else and that one holds folders itself; and so on."""
    top, seen = root, {identity(root)}
    while True:
        beside: Counter[str] = Counter()
        inner = _only_folder(top, beside)
        if not inner or identity(inner) in seen or not _holds_only_folders(inner):
            break
        if split_of(inner.name) and not within_split:
            break  # to train on "test" because it is alone cannot be meant
        left_out += beside
        top = inner
        seen.add(identity(top))
    if top != root:
        notices.append(f"{root} holds only one folder: taking {top}")
    return top


def _only_folder(root: Path, beside: Counter[str]) -> Path | None:
    names = class_folders(root, beside)
    return root / names[0] if len(names) == 1 and OUTSIDE not in beside and DEAD_LINKS not in beside else None


def _holds_only_folders(root: Path) -> bool:
    """Return whether the folder holds folders, and no image beside them."""
    files: Counter[str] = Counter()
    return bool(class_folders(root, files)) and OUTSIDE not in files


def _split_folders(root: Path, left_out: Counter[str], notices: list[str]) -> dict[str, Path]:
    """Return the folders of `train` and of what evaluates it; none if the folders of `root` are classes."""
    outside: Counter[str] = Counter()
    names = class_folders(root, outside)
    refuse_dead_links(root, outside)
    named = splits_among(names)
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
    if len(parts) == 1:
        flat = "".join(f" ({name} has no folder per class, so no labels)" for name in named if name not in with_classes)
        raise FileNotFoundError(
            f"{root} holds {parts['train'].name}, but neither val nor test{flat}: add one of them, or use "
            f"--source {parts['train']}"
        )
    for name in names:
        if name not in with_classes:
            why = "named like a split, but without a folder per class" if name in named else "it is no split"
            if not _pass_over(root / name, why, left_out):
                notices.append(f"the folder {name} is empty")
    left_out += outside
    notices += [f"{path.name} is taken as the split {split}" for split, path in parts.items() if path.name != split]
    return parts


def _pass_over(folder: Path, why: str, left_out: Counter[str]) -> int:
    """Count the files of a folder as left out; return how many there are."""
    others: Counter[str] = Counter()
    count = len(image_files(os.fsencode(folder), (), others)) + sum(others.values())
    left_out[f"files in the folder {folder.name} ({why})"] += count
    return count


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


def _refuse_shared_folders(folders: dict[str, Path]) -> None:
    """Raise ValueError if two splits have a folder in common, by a link."""
    seen: dict[tuple[int, int], tuple[str, Path]] = {}
    for split, folder in folders.items():
        for path in (folder, *(folder / name for name in class_folders(folder))):
            other, first = seen.setdefault(identity(path), (split, path))
            if other != split:
                raise ValueError(f"{path} and {first} are one folder, in two splits: remove one")


def _linked_classes(source: ImageFolder) -> list[str]:
    """Return notices about classes that are one folder, by a link."""
    seen: dict[tuple[int, int], str] = {}
    root = Path(os.fsdecode(source.root))
    pairs = [(seen.setdefault(identity(root / name), name), name) for name in source.classes]
    return [f"the classes {first} and {name} are one folder: a link" for first, name in pairs if first != name]


def _check_inside_of_classes(root: Path, notices: list[str]) -> None:
    """Raise ValueError if a class holds splits; add a notice if all hold the same folders, which may be the classes."""
    inside = {name: class_folders(root / name) for name in class_folders(root)}
    for name, folders in inside.items():
        if len({*(named := splits_among(folders)).values()}) > 1:
            raise ValueError(
                f"{root / name} holds {' and '.join(named)}: splits must be above the classes, as in "
                f"{next(iter(named))}/{name}; if {name} is the data set, name it with --source {root / name}"
            )
    first = next(iter(inside.values()), ())
    if len(inside) > 1 and len(first) > 1 and all(folders == first for folders in inside.values()):
        shown = ", ".join(first[:3]) + (", ..." if len(first) > 3 else "")
        notices.append(
            f"each of {', '.join(list(inside)[:3])} holds the folders {shown}: if these are the classes, name with "
            "--source the folder that holds them"
        )
