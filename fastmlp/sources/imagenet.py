"""ILSVRC 2012 (ImageNet-1k) as folders or as the original tars, its validation labels, and ReaL's."""

import csv
import io
import json
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np

from .base import Source
from .encoded import EncodedImages
from .faults import naming
from .fit import Fit
from .folder import ImageFiles, ImageFolder, class_folders, image_files
from .names import PackedNames
from .tar import TarImages

DEVKIT_LIST, DEVKIT_META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
KAGGLE = Path("ILSVRC/Data/CLS-LOC")  # holds train and val in Kaggle's archive
TRUTHS = (
    "ILSVRC2012_devkit_t12",
    "ILSVRC2012_devkit_t12.tar.gz",
    "LOC_val_solution.csv",
    "val.txt",
    "imagenet_2012_validation_synset_labels.txt",
    DEVKIT_LIST,
)
ADVICE = (
    "ILSVRC 2012 comes from https://image-net.org/download after registration. The folder must hold "
    "ILSVRC2012_img_train.tar or train/<wnid>/*.JPEG, and ILSVRC2012_img_val.tar, val/*.JPEG or val/<wnid>/*.JPEG"
)
MAX_BYTES = 1 << 28  # of a file in the devkit, which has 2 MB in all
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
_WNID = re.compile(r"n\d{8}")


def train(root: Path, res: int | None = None, fit: Fit = "square") -> EncodedImages:
    """Return the training images of the tree `train/` (any number of classes) or of ILSVRC2012_img_train.tar."""
    location = _find(root, "train")
    return ImageFolder(location, None, res, fit) if location.is_dir() else TarImages(location, None, res, fit)


def val(
    root: Path,
    classes: tuple[str, ...],  # of the training images
    res: int | None = None,
    fit: Fit = "square",
    truth: Path | None = None,  # the file or devkit with the labels; None: one of TRUTHS in root, if one is needed
    real: Path | None = None,  # ReaL's real.json
) -> Source:
    """Return the validation images: the tree `val/`, or the flat folder `val/` or ILSVRC2012_img_val.tar with a list.

    Raises FileNotFoundError or ValueError naming the file and what is wrong.
    """
    location = _find(root, "val")
    source: EncodedImages
    if location.is_dir() and class_folders(location):
        source = ImageFolder(location, classes, res, fit)
    else:
        source = _val_with_list(location, validation_labels(_find_truth(root, truth), classes), classes, res, fit)
    if real is not None:
        source.multi_labels = real_labels(real, source)
    return source


def _val_with_list(
    location: Path,  # a folder or a tar
    wnids: dict[int, str],  # of each image by its number
    classes: tuple[str, ...],
    res: int | None,
    fit: Fit,
) -> EncodedImages:
    """Return validation images that are not sorted into folders of classes."""

    def wnid_of(name: str) -> str:
        if (number := image_number(name, str(location))) not in wnids:
            raise ValueError(f"{location}: {name} has no label in the ground truth, which has {len(wnids):,}")
        return wnids[number]

    source: EncodedImages
    if location.is_dir():
        left_out: Counter[str] = Counter()
        files = sorted(image_files(bytes(location), (), left_out))
        if not files:
            raise FileNotFoundError(f"{location} holds no images")
        label_of = {wnid: label for label, wnid in enumerate(classes)}
        labels = np.array([label_of[wnid_of(file.decode(errors="replace"))] for file in files], np.int32)
        source = ImageFiles(location, (b"",) * len(classes), PackedNames(files), labels, classes, res, fit)
        source.left_out = left_out
    else:
        source = TarImages(location, classes, res, fit, wnid_of)
    if len(source) < len(wnids):
        raise ValueError(f"{location} holds only {len(source):,} of the {len(wnids):,} images of the ground truth")
    return source


def image_number(name: str, location: str) -> int:
    """Return the number in the lists of labels: 1 for ILSVRC2012_val_00000001.JPEG."""
    if not (match := _NUMBER.search(name)):
        raise ValueError(f"{location}: {name} is not named like ILSVRC2012_val_00000001.JPEG")
    return int(match[1])


def real_labels(path: Path, source: EncodedImages) -> np.ndarray:
    """Return all labels that Beyer et al. 2020 (arXiv:2006.07159) found right, (N, K) int64, -1 after the last."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: get real.json from https://github.com/google-research/reassessed-imagenet"
        )
    with naming(path, "not ReaL's real.json, a list of lists of labels"):
        lists = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(lists, list) or not all(isinstance(labels, list) for labels in lists):
            raise ValueError("not lists in a list")
        if others := [label for labels in lists for label in labels if type(label) is not int]:
            raise ValueError(f"{others[0]!r:.40} is no label")
        lengths = [len(labels) for labels in lists]
        flat = np.array([label for labels in lists for label in labels], np.int64)
    if max(lengths, default=0) > len(source.classes):
        raise ValueError(f"{path}: {max(lengths)} labels of one image, but there are {len(source.classes)} classes")
    if len(flat) and not 0 <= flat.min() <= flat.max() < len(source.classes):
        raise ValueError(f"{path}: labels {flat.min()} to {flat.max()}, but there are {len(source.classes)} classes")
    table = np.full((len(lists), max(1, max(lengths, default=0))), -1, np.int64)
    table[np.arange(table.shape[1]) < np.array(lengths)[:, None]] = flat
    numbers = np.array([image_number(source.names[i].decode(errors="replace"), str(path)) for i in range(len(source))])
    if numbers.max() > len(lists):
        raise ValueError(f"{path} has labels of {len(lists):,} images, but there is an image {numbers.max()}")
    return table[numbers - 1]


def validation_labels(path: Path, classes: tuple[str, ...]) -> dict[int, str]:
    """Return the class (wnid) of each validation image by its number, 1 to 50,000, from any file in circulation.

    A list of wnids, one a line in the order of the images; lines of "ILSVRC2012_val_00000001.JPEG" and a wnid or a
    label (an index into the sorted wnids); Kaggle's LOC_val_solution.csv; the devkit's list of its own numbers, read
    with the meta.mat beside it (needs SciPy); the devkit's folder or archive.
    """
    with naming(path, "cannot be read as labels"):
        text, meta = _read_devkit_archive(path) if path.is_file() and tarfile.is_tarfile(path) else _read_list(path)
        return _parse_labels(path, text, meta, classes)


def _parse_labels(path: Path, text: str, meta: bytes | None, classes: tuple[str, ...]) -> dict[int, str]:
    rows = [row for row in csv.reader(io.StringIO(text.replace("\t", " "))) if row]
    if rows and rows[0][0] == "ImageId":
        return _parse_named(path, _kaggle_pairs(rows), classes)
    lines = [fields for row in rows if (fields := " ".join(row).split())]
    if any(len(fields) != len(lines[0]) or len(fields) > 2 for fields in lines):
        raise ValueError(f"{path}: expected one or two columns: labels in the order of the images, or names and labels")
    if not lines or len(lines[0]) == 2:
        return _parse_named(path, [(name, label) for name, label in lines], classes)
    column = [label for (label,) in lines]
    return _parse_devkit(path, column, meta, classes) if column[0].isdecimal() else _parse_wnids(path, column, classes)


def _kaggle_pairs(rows: list[list[str]]) -> list[tuple[str, str]]:
    """Return the image and the first wnid of each line of LOC_val_solution.csv: "name,wnid x y x y wnid x ..."."""
    return [(row[0], (row[1].split() or [""])[0]) for row in rows[1:] if len(row) > 1]


def _parse_named(path: Path, pairs: list[tuple[str, str]], classes: tuple[str, ...]) -> dict[int, str]:
    """Parse pairs of an image's name and its wnid or label, in any order."""
    if not pairs:
        raise ValueError(f"{path} holds no labels")
    known, wnids = frozenset(classes), {}
    for line, (name, label) in enumerate(pairs, 1):
        if label.isdecimal() and int(label) < len(classes):
            label = classes[int(label)]
        wnids[image_number(name, str(path))] = _check_wnid(label, known, path, line)
    return wnids


def _parse_wnids(path: Path, column: list[str], classes: tuple[str, ...]) -> dict[int, str]:
    """Parse wnids in the order of the images."""
    known = frozenset(classes)
    return {number: _check_wnid(wnid, known, path, number) for number, wnid in enumerate(column, 1)}


def _parse_devkit(path: Path, column: list[str], meta: bytes | None, classes: tuple[str, ...]) -> dict[int, str]:
    """Parse the devkit's numbers in the order of the images."""
    wnid_of = _devkit_wnids(path, meta)
    return _parse_wnids(path, [wnid_of.get(number, number) for number in column], classes)


def _check_wnid(wnid: str, known: frozenset[str], path: Path, line: int) -> str:
    if wnid not in known:
        expected = "no class of the training images" if _WNID.fullmatch(wnid) else "expected a wnid such as n01440764"
        raise ValueError(f"{path}: label {line} is {wnid!r}: {expected}")
    return wnid


def _read_devkit_archive(path: Path) -> tuple[str, bytes | None]:
    """Return the list of labels and meta.mat."""
    names = (DEVKIT_LIST, DEVKIT_META)
    with tarfile.open(path) as archive:
        found = {Path(member.name).name: member for member in archive if member.isreg() and member.name.endswith(names)}
        if len(found) < 2:
            raise ValueError(f"{path} lacks {' or '.join(set(names) - set(found))}: it is not the devkit")
        if large := [member.name for member in found.values() if member.size > MAX_BYTES]:
            raise ValueError(f"{path}: {large[0]} has more than {MAX_BYTES:,} bytes")
        text, meta = (archive.extractfile(found[name]).read() for name in names)  # type: ignore[union-attr]
    return text.decode("ascii", "replace"), meta


def _read_list(path: Path) -> tuple[str, bytes | None]:
    """Return the list of labels, of the file or of the devkit's folder, and meta.mat if it is beside it."""
    file = path
    if path.is_dir():
        file = path / DEVKIT_LIST if (path / DEVKIT_LIST).is_file() else path / "data" / DEVKIT_LIST
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: --ground-truth must name the labels of the validation images")
    meta = file.with_name(DEVKIT_META)
    return file.read_text(encoding="utf-8", errors="replace"), meta.read_bytes() if meta.is_file() else None


def _devkit_wnids(path: Path, meta: bytes | None) -> dict[str, str]:
    """Return the wnid of each of the devkit's numbers "1" to "1000", which follow no order of the wnids."""
    if meta is None:
        raise ValueError(
            f"{path} holds the devkit's own numbers, which have no meaning without its meta.mat: "
            "name ILSVRC2012_devkit_t12.tar.gz or its folder with --ground-truth"
        )
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: reading the devkit's meta.mat needs SciPy: pip install scipy") from error
    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
        return {str(int(synset["ILSVRC2012_ID"])): str(synset["WNID"]) for synset in synsets}
    except Exception as error:  # SciPy raises many types for a damaged file
        raise ValueError(f"{path}: meta.mat cannot be read ({error})") from error


def _find(root: Path, split: str) -> Path:
    locations = (root / split, root / KAGGLE / split, root / f"ILSVRC2012_img_{split}.tar")
    if found := next((location for location in locations if location.exists()), None):
        return found
    raise FileNotFoundError(f"{root} holds neither {split}/ nor {locations[-1].name}. {ADVICE}")


def _find_truth(root: Path, given: Path | None) -> Path:
    if given is not None:
        return given
    if found := next((root / name for name in TRUTHS if (root / name).exists()), None):
        return found
    raise FileNotFoundError(
        f"{root} lacks the labels of its validation images: put {', '.join(TRUTHS[:-1])} or {TRUTHS[-1]} there, name a "
        "file with --ground-truth, or sort the images into val/<wnid>/"
    )
