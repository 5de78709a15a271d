"""Image files in folders: a folder per class as torchvision's ImageFolder labels them, or all in one."""

import errno
import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .decode import read_file
from .encoded import EncodedImages
from .fit import Fit
from .names import PackedNames

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_BYTES_EXTENSIONS = tuple(extension.encode() for extension in EXTENSIONS)


class ImageFiles(EncodedImages):
    """Files at root/folders[label]/name. Reading a bad one raises ValueError naming it."""

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

    where = path

    def encoded(self, index: int) -> bytes:
        return read_file(self._path(index))


class ImageFolder(ImageFiles):
    """`root/class/**/image`: labels by the sorted names of the folders directly below root.

    Symbolic links are followed, but not round in circles. 1.28 million files in 1,000 folders take 2 s (4 s where the
    system has not seen them before) and 48 MB. Raises FileNotFoundError where there is no folder or no image in it.
    """

    def __init__(
        self,
        root: str | Path,
        classes: tuple[str, ...] | None = None,  # in the order of the labels; None: the folders' names
        res: int | None = None,
        fit: Fit = "square",
        ignore_others: bool = False,  # folders that are not in `classes`; else they are an error
    ):
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"{root} is not a folder: --source must hold one folder of images per class")
        found = class_folders(root)
        own, classes = classes is None, classes or found
        if (extra := set(found) - set(classes)) and not ignore_others:
            raise ValueError(f"{root} has classes that the training images have not: {', '.join(sorted(extra))}")
        names, counts = PackedNames(), []
        # The bar appears after a second: small folders need none.
        with tqdm(desc=f"listing {root}", unit=" files", unit_scale=True, delay=1, leave=False) as progress:
            for name in classes:
                if not (root / name).is_dir():
                    raise FileNotFoundError(f"{root} has no folder for the class {name!r}")
                paths = sorted(image_files(os.fsencode(root / name), (identity(root),)))
                if not paths and own:
                    raise ValueError(f"{root / name} holds no images ({', '.join(EXTENSIONS)}): remove it, or fill it")
                names.extend(paths)
                counts.append(len(paths))
                progress.update(len(paths))
        if not len(names):
            raise FileNotFoundError(f"{root}: no images found ({', '.join(EXTENSIONS)}) in a folder per class")
        labels = np.repeat(np.arange(len(classes), dtype=np.int32), counts)
        super().__init__(root, tuple(os.fsencode(name) for name in classes), names, labels, classes, res, fit)


def class_folders(root: Path) -> tuple[str, ...]:
    """The sorted names of the folders in `root`, hidden ones left out."""
    with os.scandir(root) as entries:
        return tuple(sorted(entry.name for entry in entries if _is_folder(entry) and entry.name[0] != "."))


def image_files(folder: bytes, above: Collection[tuple[int, int]] = ()) -> list[bytes]:
    """All images below a folder, relative to it, in no order. Raises OSError where one cannot be listed.

    `above`: the folders that this one lies in, by device and inode.
    """
    if (own := identity(folder)) in above:
        return []  # a link has led back: these images are counted already
    found: list[bytes] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _is_folder(entry):
                below = image_files(entry.path, (*above, own))
                found += [os.path.join(entry.name, name) for name in below]
            elif entry.name.lower().endswith(_BYTES_EXTENSIONS):
                found.append(entry.name)
    return found


def identity(path: bytes | Path) -> tuple[int, int]:
    """The device and inode behind a path."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself: no folder, and reading it will say so
            return False
        raise
