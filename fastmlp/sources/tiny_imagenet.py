"""TinyImageNet (Stanford CS231n): 200 classes of ImageNet at 64 px, 100,000 training and 10,000 validation images."""

import os
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np

from .encoded import EncodedImages
from .fit import Fit
from .folder import ImageFiles
from .names import PackedNames

FOLDER, ANNOTATIONS = "tiny-imagenet-200", "val/val_annotations.txt"
ADVICE = (
    "TinyImageNet comes from http://cs231n.stanford.edu/tiny-imagenet-200.zip (248 MB); name the archive, its unpacked "
    "folder, or a folder that holds either"
)
_TRAIN = re.compile(r"train/(?P<wnid>[^/]+)/images/[^/]+\.JPEG")
_VAL = re.compile(r"val/images/(?P<file>[^/]+\.JPEG)")


class ZipImages(EncodedImages):
    """Images in a zip, read where they lie. `names` are those in the archive."""

    def __init__(
        self,
        archive: Path,
        names: PackedNames,
        labels: np.ndarray,
        classes: tuple[str, ...],
        res: int | None,
        fit: Fit,
    ):
        super().__init__(names, labels, classes, res, fit)
        self.archive = archive
        self._open: zipfile.ZipFile | None = None  # a process's own

    def where(self, index: int) -> str:
        return f"{self.archive}: {os.fsdecode(self.names[index])}"

    def encoded(self, index: int) -> bytes:
        try:
            if self._open is None:
                self._open = zipfile.ZipFile(self.archive)
            return self._open.read(os.fsdecode(self.names[index]))
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{self.where(index)}: cannot be read ({error})") from error

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": None}

    def __del__(self) -> None:
        if archive := self.__dict__.get("_open"):
            archive.close()


def tiny_imagenet(split: str, source: Path, res: int | None = None, fit: Fit = "square") -> EncodedImages:
    """The split "train" or "val"; labels by the sorted wnids of wnids.txt, images in the order of class and name.

    Raises FileNotFoundError or ValueError naming the file and what is wrong.
    """
    place = next(
        (
            place
            for place in (source, source / FOLDER, source / f"{FOLDER}.zip")
            if place.is_file() or (place / "wnids.txt").is_file()
        ),
        None,
    )
    if place is None:
        raise FileNotFoundError(f"{source} does not hold it. {ADVICE}")
    try:
        wnids, annotations, files = _read_folder(place, split) if place.is_dir() else _read_zip(place, split)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{place}: damaged archive, or none ({error})") from error
    except (KeyError, FileNotFoundError) as error:
        raise FileNotFoundError(f"{place} is not the whole of TinyImageNet ({error}). {ADVICE}") from error
    classes = tuple(sorted(wnids.split()))
    number = {wnid: label for label, wnid in enumerate(classes)}
    wnid_of = dict(line.split("\t")[:2] for line in annotations.splitlines() if "\t" in line)
    labelled = []
    for name in files:
        match = (_TRAIN if split == "train" else _VAL).fullmatch(name)
        assert match
        wnid = match["wnid"] if split == "train" else wnid_of.get(match["file"])
        if wnid not in number:
            raise ValueError(f"{place}: {name} is of no class of wnids.txt ({wnid or f'not in {ANNOTATIONS}'})")
        labelled.append((number[wnid], name))
    if not labelled:
        raise FileNotFoundError(f"{place} holds no images of the split {split!r}. {ADVICE}")
    labelled.sort()
    labels = np.array([label for label, _ in labelled], np.int32)
    if place.is_dir():
        names = PackedNames(os.fsencode(name) for _, name in labelled)
        return ImageFiles(place, (b"",) * len(classes), names, labels, classes, res, fit)
    prefix = _prefix(place)
    return ZipImages(place, PackedNames(os.fsencode(prefix + name) for _, name in labelled), labels, classes, res, fit)


def _read_folder(place: Path, split: str) -> tuple[str, str, list[str]]:
    """wnids.txt, the annotations, and the images' names."""
    folders = (place / "train").iterdir() if split == "train" else [place / "val"]
    images = [folder / "images" for folder in folders]
    files = [f"{at.relative_to(place).as_posix()}/{name}" for at in images if at.is_dir() for name in os.listdir(at)]
    return (place / "wnids.txt").read_text(), (place / ANNOTATIONS).read_text(), _of_split(files, split)


def _read_zip(place: Path, split: str) -> tuple[str, str, list[str]]:
    prefix = _prefix(place)
    with zipfile.ZipFile(place) as archive:
        files = [name.removeprefix(prefix) for name in archive.namelist()]
        wnids, annotations = (archive.read(prefix + name).decode() for name in ("wnids.txt", ANNOTATIONS))
    return wnids, annotations, _of_split(files, split)


def _of_split(files: list[str], split: str) -> list[str]:
    pattern = _TRAIN if split == "train" else _VAL
    return [name for name in files if pattern.fullmatch(name)]


def _prefix(place: Path) -> str:
    """Of all names in the archive: tiny-imagenet-200/, as published, or nothing."""
    with zipfile.ZipFile(place) as archive:
        return next((name.removesuffix("wnids.txt") for name in archive.namelist() if name.endswith("wnids.txt")), "")
