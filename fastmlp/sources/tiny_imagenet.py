"""TinyImageNet (Stanford CS231n): 200 classes of ImageNet at 64 px, 100,000 training and 10,000 validation images."""

import itertools
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .base import ImageState
from .encoded import EncodedImages
from .faults import naming
from .fit import Fit
from .folder import ImageFiles
from .listing import HIDDEN, is_image, is_litter, why_not
from .names import PackedNames

FOLDER, ANNOTATIONS = "tiny-imagenet-200", "val/val_annotations.txt"
ADVICE = (
    "TinyImageNet comes from http://cs231n.stanford.edu/tiny-imagenet-200.zip (248 MB); name the archive, its unpacked "
    "folder, or a folder that holds either"
)
DEPTH = 3  # of folders: train/WNID/images
MAX_BYTES = 1 << 28  # of a file in the zip: what claims more is no image of 64 px, but would fill the memory
_TEXTS = re.compile(r"wnids\.txt|words\.txt|val/val_annotations\.txt|train/[^/]+/[^/]+_boxes\.txt")
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
            return _read_member(archive, os.fsdecode(self.names[index]))

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
    left_out: Counter[str] = Counter()
    with naming(location, "not a zip archive, or a damaged archive"):
        try:
            read = _read_folder if location.is_dir() else _read_zip
            wnids, annotations, files = read(location)
        except (KeyError, FileNotFoundError) as error:
            raise FileNotFoundError(f"{location} is not the complete TinyImageNet ({error}). {ADVICE}") from error
        classes = _classes(wnids)
        wnid_of = _val_wnids(annotations)
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    labelled = []
    for name, match in _of_split(files, split, left_out):
        wnid = match["wnid"] if split == "train" else wnid_of.get(match["file"])
        if wnid not in label_of:
            raise ValueError(f"{location}: {name} is in no class of wnids.txt ({wnid or f'not in {ANNOTATIONS}'})")
        labelled.append((label_of[wnid], name))
    if not labelled:
        raise FileNotFoundError(f"{location} holds no images of the split {split!r}. {ADVICE}")
    labelled.sort()
    labels = np.array([label for label, _ in labelled], np.int32)
    prefix = "" if location.is_dir() else _prefix(location)
    names = PackedNames(os.fsencode(prefix + name) for _, name in labelled)
    images: EncodedImages
    if location.is_dir():
        images = ImageFiles(location, (b"",) * len(classes), names, labels, classes, res, fit)
    else:
        images = ZipImages(location, names, labels, classes, res, fit)
    images.left_out = left_out
    return images


def _classes(wnids: str) -> tuple[str, ...]:
    """Return the sorted wnids of wnids.txt. Raises ValueError if one is there twice."""
    classes = sorted(wnids.split())
    if repeated := [wnid for wnid, following in itertools.pairwise(classes) if wnid == following]:
        raise ValueError(f"wnids.txt names {repeated[0]} more than once")
    return tuple(classes)


def _val_wnids(annotations: str) -> dict[str, str]:
    """Return the class of each validation image. Raises ValueError if one has two."""
    wnid_of: dict[str, str] = {}
    for line in annotations.splitlines():
        if "\t" in line:
            name, wnid = line.split("\t")[:2]
            if wnid_of.setdefault(name, wnid) != wnid:
                raise ValueError(f"{ANNOTATIONS} gives {name} the classes {wnid_of[name]} and {wnid}")
    return wnid_of


def _read_folder(location: Path) -> tuple[str, str, list[str]]:
    """Return the texts of wnids.txt and of the annotations, and the names of all files."""
    files = []
    for folder, below, names in os.walk(location, onerror=_raise, followlinks=True):
        if len(Path(folder).relative_to(location).parts) >= DEPTH:
            below.clear()  # a link may lead back
        files += [f"{Path(folder).relative_to(location).as_posix()}/{name}".removeprefix("./") for name in names]
    texts = []
    for name in ("wnids.txt", ANNOTATIONS):
        with naming(location / name, "cannot be read"):
            texts.append((location / name).read_text(encoding="utf-8"))
    return texts[0], texts[1], files


def _raise(error: OSError) -> None:
    raise error


def _read_zip(location: Path) -> tuple[str, str, list[str]]:
    prefix = _prefix(location)
    with zipfile.ZipFile(location) as archive:
        files = [name.removeprefix(prefix) for name in dict.fromkeys(archive.namelist()) if not name.endswith("/")]
        wnids, annotations = (_read_member(archive, prefix + name).decode() for name in ("wnids.txt", ANNOTATIONS))
    return wnids, annotations, files


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the content of a file. Raises ValueError if it would fill the memory."""
    if (size := archive.getinfo(name).file_size) > MAX_BYTES:
        raise ValueError(f"{name} has {size:,} bytes, more than {MAX_BYTES:,}")
    return archive.read(name)


def _of_split(files: list[str], split: str, left_out: Counter[str]) -> Iterator[tuple[str, re.Match[str]]]:
    """Yield the images of the split; count what belongs to no split with `train`."""
    pattern = _TRAIN if split == "train" else _VAL
    for name in files:
        parts = name.split("/")
        if any(is_litter(part) for part in parts):
            if split == "train":
                left_out[HIDDEN] += 1
        elif match := pattern.fullmatch(name):
            yield name, match
        elif split == "train" and not _TEXTS.fullmatch(name) and not _VAL.fullmatch(name):
            of_test = parts[0] == "test" and is_image(name)
            left_out["images of the split test, which has no labels" if of_test else _why_not(name)] += 1


def _why_not(name: str) -> str:
    return "images that are not at train/WNID/images/*.JPEG or val/images/*.JPEG" if is_image(name) else why_not(name)


def _prefix(location: Path) -> str:
    """Return the prefix of all names in the archive: "tiny-imagenet-200/", as published, or ""."""
    with zipfile.ZipFile(location) as archive:
        names = (
            name
            for name in archive.namelist()
            if f"/{name}".endswith("/wnids.txt") and not any(is_litter(part) for part in name.split("/"))
        )
        return next((name.removesuffix("wnids.txt") for name in names), "")
