"""Image files in folders: one folder per class, labelled as by torchvision's ImageFolder, or all in one folder."""

import errno
import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np

from ..messages import progress_bar
from .base import ImageState, state_of
from .class_names import refuse_look_alikes
from .decode import read_file
from .encoded import EncodedImages
from .fit import Fit
from .listing import DEAD_LINKS, EXTENSIONS, HIDDEN, OUTSIDE, is_image, is_litter, is_packed, told, why_not
from .names import PackedNames

MAX_DEPTH = 100  # of folders: Python's recursion ends at 1,000


class ImageFiles(EncodedImages):
    """Image files at root/folders[label]/name. Reading a bad one raises ValueError naming it."""

    def __init__(
        self,
        root: str | Path,
        folders: tuple[bytes, ...],
        names: PackedNames,
        labels: np.ndarray,
        classes: tuple[str, ...],
        res: int | None = None,
        fit: Fit = "square",
    ):
        super().__init__(names, labels, classes, res, fit)
        self.root, self.folders = os.fsencode(root), folders

    def path(self, index: int) -> str:
        return os.fsdecode(self._path(index))

    def _path(self, index: int) -> bytes:
        return os.path.join(self.root, self.folders[self.labels[index]], self.names[index])

    location = path

    def file_state(self, index: int) -> ImageState:
        return state_of(self._path(index))

    def read_bytes(self, index: int) -> bytes:
        return read_file(self._path(index))


class ImageFolder(ImageFiles):
    """`root/class/**/image`: labels by the sorted names of the folders directly below root.

    Symbolic links are followed, but not in cycles. 1.28 million files in 1,000 folders take 2 s (4 s if not in the
    page cache) and 48 MB. Raises FileNotFoundError if there is no folder or no image in it.
    """

    def __init__(
        self,
        root: str | Path,
        classes: tuple[str, ...] | None = None,  # in the order of the labels; None: the folders' names
        res: int | None = None,
        fit: Fit = "square",
        ignore_others: bool = False,  # ignore folders that are not in `classes`; otherwise they are an error
    ):
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is not a folder: --source must hold one folder of images per class")
        left_out: Counter[str] = Counter()
        found = class_folders(root, left_out)
        refuse_dead_links(root, left_out)
        _refuse_packed_classes(root, found)
        refuse_look_alikes(found, str(root))
        from_folders, classes = classes is None, classes or found
        if (extra := set(found) - set(classes)) and not ignore_others:
            raise ValueError(f"{root} has classes that the training images do not have: {', '.join(sorted(extra))}")
        names, counts = PackedNames(), []
        # The bar appears after one second: small folders need none.
        with progress_bar(desc=f"listing {root}", unit=" files", unit_scale=True, delay=1, leave=False) as progress:
            for name in classes:
                if not (root / name).is_dir():
                    raise FileNotFoundError(
                        f"{root} has no folder for the class {name!r}: add it, an empty one if it has no images there"
                    )
                of_class: Counter[str] = Counter()
                paths = sorted(image_files(os.fsencode(root / name), (identity(root),), of_class))
                if not paths and from_folders:
                    only = f", only {told(of_class)}" if of_class else ""
                    raise ValueError(
                        f"{root / name} holds no images ({', '.join(EXTENSIONS)}){only}: remove it or add images"
                    )
                left_out += of_class
                names.extend(paths)
                counts.append(len(paths))
                progress.update(len(paths))
        if not len(names):
            only = f", only {told(left_out)}" if left_out else ""
            raise FileNotFoundError(f"{root}: no images found ({', '.join(EXTENSIONS)}) in a folder per class{only}")
        labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
        super().__init__(root, tuple(os.fsencode(name) for name in classes), names, labels, classes, res, fit)
        self.left_out = left_out


def class_folders(root: Path, left_out: Counter[str] | None = None) -> tuple[str, ...]:
    """Return the sorted names of the folders in `root`, without litter; count the rest in `left_out`."""
    left_out = Counter() if left_out is None else left_out
    found = []
    with os.scandir(root) as entries:
        for entry in entries:
            if is_litter(entry.name):
                left_out[HIDDEN] += 1
            elif _is_folder(entry):
                found.append(entry.name)
            elif is_image(entry.name):
                left_out[OUTSIDE] += 1
            else:
                left_out[_why_not(entry)] += 1
    return tuple(sorted(found))


def image_files(
    folder: bytes, above: Collection[tuple[int, int]] = (), left_out: Counter[str] | None = None
) -> list[bytes]:
    """Return all images below a folder, relative to it, in no order. Raises OSError if a folder cannot be listed.

    `above`: the folders that this one is in, by device and inode. What is no image is counted in `left_out`.
    """
    left_out = Counter() if left_out is None else left_out
    if (own := identity(folder)) in above:
        return []  # a link has led back: these images are listed already
    if len(above) > MAX_DEPTH:
        raise ValueError(f"{os.fsdecode(folder)} is more than {MAX_DEPTH} folders deep: move it elsewhere")
    found: list[bytes] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_litter(entry.name):
                left_out[HIDDEN] += 1
            elif _is_folder(entry):
                below = image_files(entry.path, (*above, own), left_out)
                found += [os.path.join(entry.name, name) for name in below]
            elif is_image(entry.name):
                found.append(entry.name)
            else:
                left_out[_why_not(entry)] += 1
    return found


def refuse_dead_links(folder: Path, left_out: Counter[str]) -> None:
    """Raise ValueError if class_folders found a link to nothing: it may stand for a class."""
    if left_out[DEAD_LINKS]:
        dead = min(name for name in os.listdir(folder) if not os.path.exists(folder / name))
        raise ValueError(f"{folder / dead} is a link to nothing, in the place of a folder: mend it, or remove it")


def _refuse_packed_classes(root: Path, folders: tuple[str, ...]) -> None:
    """Raise ValueError if an archive lies beside folders of classes, unless it is one of these or of `root`, packed."""
    unpacked = {root.resolve().name, *folders}
    for name in sorted(os.listdir(root)) if folders else ():
        if (
            is_packed(name)
            and not is_litter(name)
            and name.split(".")[0] not in unpacked
            and not (root / name).is_dir()
        ):
            raise ValueError(
                f"{root / name} is packed, beside folders of classes: unpack it if it is a class, or move it elsewhere"
            )


def identity(path: bytes | Path) -> tuple[int, int]:
    """Return the device and inode of a path, links followed."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _why_not(entry: os.DirEntry) -> str:
    if entry.is_symlink() and not os.path.exists(entry.path):
        return DEAD_LINKS
    return why_not(os.fsdecode(entry.name))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself: not a folder, and reading it will raise an error
            return False
        raise
