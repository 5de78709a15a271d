"""TinyImageNet (Stanford CS231n): 200 classes of ImageNet at 64 px, 100,000 training and 10,000 validation images."""

import os
import re
import zipfile
from pathlib import Path

import numpy as np

from .base import ImageState
from .encoded import EncodedImages
from .faults import naming
from .fit import Fit
from .folder import ImageFiles
from .listing import is_litter
from .names import PackedNames

FOLDER, ANNOTATIONS = "tiny-imagenet-200", "val/val_annotations.txt"
ADVICE = (
    "TinyImageNet comes from http://cs231n.stanford.edu/tiny-imagenet-200.zip (248 MB); name the archive, its unpacked "
    "folder, or a folder that holds either"
)
_TRAIN = re.compile(r"train/(?P<wnid>[^/]+)/images/[^/]+\.JPEG")
_VAL = re.compile(r"val/images/(?P<file>[^/]+\.JPEG)")


class ZipImages(EncodedImages):
    """Images in a zip, read from it without unpacking. `names` are the names in the archive."""

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
        self._open: zipfile.ZipFile | None = None  # valid only in this process

    def location(self, index: int) -> str:
        return f"{self.archive}: {os.fsdecode(self.names[index])}"

    def file_state(self, index: int) -> ImageState:
        """Return the checksum that the archive has of the image, which needs no times beside it."""
        try:
            return ImageState(self._archive().getinfo(os.fsdecode(self.names[index])).CRC)
        except (KeyError, ValueError):  # reading it says why
            return ImageState(-1)

    def read_bytes(self, index: int) -> bytes:
        archive = self._archive()
        with naming(self.location(index), "cannot be read"):
            return archive.read(os.fsdecode(self.names[index]))

    def _archive(self) -> zipfile.ZipFile:
        with naming(self.archive):
            if self._open is None:
                self._open = zipfile.ZipFile(self.archive)
        return self._open

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": None}

    def __del__(self) -> None:
        if archive := self.__dict__.get("_open"):
            archive.close()


def tiny_imagenet(split: str, source: Path, res: int | None = None, fit: Fit = "square") -> EncodedImages:
    """Return the split "train" or "val"; labels by the sorted wnids of wnids.txt, images sorted by class and name.

    Raises FileNotFoundError or ValueError naming the file and what is wrong.
    """
    location = next(
        (
            location
            for location in (source, source / FOLDER, source / f"{FOLDER}.zip")
            if location.is_file() or (location / "wnids.txt").is_file()
        ),
        None,
    )
    if location is None:
        raise FileNotFoundError(f"{source} does not hold TinyImageNet. {ADVICE}")
    with naming(location, "not a zip archive, or a damaged archive"):
        try:
            read = _read_folder if location.is_dir() else _read_zip
            wnids, annotations, files = read(location, split)
        except (KeyError, FileNotFoundError) as error:
            raise FileNotFoundError(f"{location} is not the complete TinyImageNet ({error}). {ADVICE}") from error
    classes = tuple(sorted(wnids.split()))
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    wnid_of = dict(line.split("\t")[:2] for line in annotations.splitlines() if "\t" in line)
    labelled = []
    for name in files:
        match = (_TRAIN if split == "train" else _VAL).fullmatch(name)
        assert match
        wnid = match["wnid"] if split == "train" else wnid_of.get(match["file"])
        if wnid not in label_of:
            raise ValueError(f"{location}: {name} is in no class of wnids.txt ({wnid or f'not in {ANNOTATIONS}'})")
        labelled.append((label_of[wnid], name))
    if not labelled:
        raise FileNotFoundError(f"{location} holds no images of the split {split!r}. {ADVICE}")
    labelled.sort()
    labels = np.array([label for label, _ in labelled], np.int32)
    if location.is_dir():
        names = PackedNames(os.fsencode(name) for _, name in labelled)
        return ImageFiles(location, (b"",) * len(classes), names, labels, classes, res, fit)
    prefix = _prefix(location)
    return ZipImages(
        location, PackedNames(os.fsencode(prefix + name) for _, name in labelled), labels, classes, res, fit
    )


def _read_folder(location: Path, split: str) -> tuple[str, str, list[str]]:
    """Return the texts of wnids.txt and of the annotations, and the names of the split's images."""
    folders = (location / "train").iterdir() if split == "train" else [location / "val"]
    images = [folder / "images" for folder in folders]
    files = [f"{at.relative_to(location).as_posix()}/{name}" for at in images if at.is_dir() for name in os.listdir(at)]
    texts = []
    for name in ("wnids.txt", ANNOTATIONS):
        with naming(location / name, "cannot be read"):
            texts.append((location / name).read_text(encoding="utf-8"))
    return texts[0], texts[1], _of_split(files, split)


def _read_zip(location: Path, split: str) -> tuple[str, str, list[str]]:
    prefix = _prefix(location)
    with zipfile.ZipFile(location) as archive:
        files = [name.removeprefix(prefix) for name in archive.namelist()]
        wnids, annotations = (archive.read(prefix + name).decode() for name in ("wnids.txt", ANNOTATIONS))
    return wnids, annotations, _of_split(files, split)


def _of_split(files: list[str], split: str) -> list[str]:
    pattern = _TRAIN if split == "train" else _VAL
    return [name for name in files if pattern.fullmatch(name) and not is_litter(name.rsplit("/")[-1])]


def _prefix(location: Path) -> str:
    """Return the prefix of all names in the archive: "tiny-imagenet-200/", as published, or ""."""
    with zipfile.ZipFile(location) as archive:
        names = (name for name in archive.namelist() if f"/{name}".endswith("/wnids.txt"))
        return next((name.removesuffix("wnids.txt") for name in names), "")
