"""ILSVRC 2012 (ImageNet-1k) as folders or as the original tars, its validation labels, and ReaL's."""

import csv
import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np

from .base import Source
from .encoded import EncodedImages
from .fit import Fit
from .folder import ImageFiles, ImageFolder, class_folders, image_files
from .names import PackedNames
from .tar import TarImages

KAGGLE = Path("ILSVRC/Data/CLS-LOC")  # where Kaggle's archive holds train and val
TRUTHS = (
    "ILSVRC2012_devkit_t12",
    "ILSVRC2012_devkit_t12.tar.gz",
    "LOC_val_solution.csv",
    "val.txt",
    "imagenet_2012_validation_synset_labels.txt",
    "ILSVRC2012_validation_ground_truth.txt",
)
ADVICE = (
    "ILSVRC 2012 comes from https://image-net.org/download after registration. The folder must hold "
    "ILSVRC2012_img_train.tar or train/<wnid>/*.JPEG, and ILSVRC2012_img_val.tar, val/*.JPEG or val/<wnid>/*.JPEG"
)
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")
_WNID = re.compile(r"n\d{8}")


def train(root: Path, res: int | None = None, fit: Fit = "square") -> EncodedImages:
    """The training images of the tree `train/` (of any number of classes) or of ILSVRC2012_img_train.tar."""
    place = _find(root, "train")
    return ImageFolder(place, None, res, fit) if place.is_dir() else TarImages(place, None, res, fit)


def val(
    root: Path,
    classes: tuple[str, ...],  # of the training images
    res: int | None = None,
    fit: Fit = "square",
    truth: Path | None = None,  # the file or devkit with the labels; None: one of TRUTHS in root, where they are needed
    real: Path | None = None,  # ReaL's real.json
) -> Source:
    """The validation images of the tree `val/`, or of the flat folder `val/` or ILSVRC2012_img_val.tar with a list.

    Raises FileNotFoundError or ValueError naming the file and what is wrong.
    """
    place = _find(root, "val")
    source: EncodedImages
    if place.is_dir() and class_folders(place):
        source = ImageFolder(place, classes, res, fit)
    else:
        wnids = validation_labels(_find_truth(root, truth), classes)

        def wnid_of(name: str) -> str:
            if (number := image_number(name, str(place))) not in wnids:
                raise ValueError(f"{place}: {name} has no label in the ground truth, which has {len(wnids):,}")
            return wnids[number]

        if place.is_dir():
            files = sorted(image_files(bytes(place)))
            if not files:
                raise FileNotFoundError(f"{place} holds no images")
            number_of = {wnid: label for label, wnid in enumerate(classes)}
            labels = np.array([number_of[wnid_of(file.decode(errors="replace"))] for file in files], np.int32)
            source = ImageFiles(place, (b"",) * len(classes), PackedNames(files), labels, classes, res, fit)
        else:
            source = TarImages(place, classes, res, fit, wnid_of)
        if len(source) < len(wnids):
            raise ValueError(f"{place} holds {len(source):,} of the {len(wnids):,} images of the ground truth")
    if real is not None:
        source.multi_labels = real_labels(real, source)
    return source


def image_number(name: str, place: str) -> int:
    """1 for ILSVRC2012_val_00000001.JPEG, as the lists of labels count."""
    if not (match := _NUMBER.search(name)):
        raise ValueError(f"{place}: {name} is not named as ILSVRC2012_val_00000001.JPEG is")
    return int(match[1])


def real_labels(path: Path, source: EncodedImages) -> np.ndarray:
    """All labels that Beyer et al. 2020 (arXiv:2006.07159) found right, (N, K) int64, -1 behind the last."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: get real.json from https://github.com/google-research/reassessed-imagenet"
        )
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(lists, list):
            raise TypeError("not a list")
        lengths = [len(labels) for labels in lists]
        flat = np.array([label for labels in lists for label in labels], np.int64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not ReaL's real.json, a list of lists of labels ({error})") from error
    if len(flat) and not 0 <= flat.min() <= flat.max() < len(source.classes):
        raise ValueError(f"{path}: labels {flat.min()} to {flat.max()}, but there are {len(source.classes)} classes")
    table = np.full((len(lists), max(1, max(lengths, default=0))), -1, np.int64)
    table[np.arange(table.shape[1]) < np.array(lengths)[:, None]] = flat
    numbers = np.array([image_number(source.names[i].decode(errors="replace"), str(path)) for i in range(len(source))])
    if numbers.max() > len(lists):
        raise ValueError(f"{path} has labels of {len(lists):,} images, but there is an image {numbers.max()}")
    return table[numbers - 1]


def validation_labels(path: Path, classes: tuple[str, ...]) -> dict[int, str]:
    """The class (wnid) of every validation image by its number, 1 to 50,000, out of any of the files in circulation.

    A list of wnids, one a line in the order of the images; lines of "ILSVRC2012_val_00000001.JPEG" and a wnid or a
    label (an index into the sorted wnids); Kaggle's LOC_val_solution.csv; the devkit's list of its own numbers, read
    with the meta.mat beside it (needs SciPy); the devkit's folder or archive.
    """
    (text, meta), known = _read_truth(path), frozenset(classes)
    rows = [row for row in csv.reader(io.StringIO(text.replace("\t", " "))) if row]
    if rows and rows[0][0] == "ImageId":
        pairs = [(row[0], (row[1].split() or [""])[0]) for row in rows[1:] if len(row) > 1]
    else:
        fields = [" ".join(row).split() for row in rows]
        fields = [field for field in fields if field]
        if any(len(field) != len(fields[0]) or len(field) > 2 for field in fields):
            raise ValueError(f"{path}: expected one or two columns: images in order, or their names, and labels")
        if len(fields) > 0 and len(fields[0]) == 1:
            of_devkit = _devkit_wnids(path, meta) if fields[0][0].isdecimal() else {}
            wnids = [of_devkit.get(field[0], field[0]) for field in fields]
            return {number: _known(wnid, known, path, number) for number, wnid in enumerate(wnids, 1)}
        pairs = [(field[0], field[1]) for field in fields]
    if not pairs:
        raise ValueError(f"{path} holds no labels")
    labels = {}
    for line, (name, label) in enumerate(pairs, 1):
        if label.isdecimal() and int(label) < len(classes):
            label = classes[int(label)]
        labels[image_number(name, str(path))] = _known(label, known, path, line)
    return labels


def _known(wnid: str, known: frozenset[str], path: Path, line: int) -> str:
    if wnid not in known:
        expected = "no class of the training images" if _WNID.fullmatch(wnid) else "expected a wnid such as n01440764"
        raise ValueError(f"{path}: label {line} is {wnid!r}: {expected}")
    return wnid


def _read_truth(path: Path) -> tuple[str, bytes | None]:
    """The list of labels, and meta.mat where it lies beside it."""
    names = ("ILSVRC2012_validation_ground_truth.txt", "meta.mat")
    if path.is_file() and tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            found = {Path(member.name).name: member for member in archive if Path(member.name).name in names}
            if len(found) < 2:
                raise ValueError(f"{path} lacks {' or '.join(set(names) - set(found))}: it is not the devkit")
            contents = [archive.extractfile(found[name]).read() for name in names]  # type: ignore[union-attr]
        return contents[0].decode("ascii", "replace"), contents[1]
    file = path
    if path.is_dir():
        file = path / names[0] if (path / names[0]).is_file() else path / "data" / names[0]
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: --ground-truth must name the labels of the validation images")
    meta = file.with_name(names[1])
    return file.read_text(encoding="utf-8", errors="replace"), meta.read_bytes() if meta.is_file() else None


def _devkit_wnids(path: Path, meta: bytes | None) -> dict[str, str]:
    """The devkit's numbers "1" to "1000", which follow no order of the wnids, as wnids."""
    if meta is None:
        raise ValueError(
            f"{path} holds the devkit's own numbers, which say nothing without its meta.mat: "
            "name ILSVRC2012_devkit_t12.tar.gz or its folder with --ground-truth"
        )
    try:
        from scipy.io import loadmat
    except ModuleNotFoundError as error:
        raise ValueError(f"{path}: the devkit's meta.mat takes SciPy to read: pip install scipy") from error
    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
        return {str(int(synset["ILSVRC2012_ID"])): str(synset["WNID"]) for synset in synsets}
    except Exception as error:  # SciPy raises whatever comes for a damaged file
        raise ValueError(f"{path}: meta.mat cannot be read ({error})") from error


def _find(root: Path, split: str) -> Path:
    places = (root / split, root / KAGGLE / split, root / f"ILSVRC2012_img_{split}.tar")
    if place := next((place for place in places if place.exists()), None):
        return place
    raise FileNotFoundError(f"{root} holds neither {split}/ nor {places[-1].name}. {ADVICE}")


def _find_truth(root: Path, given: Path | None) -> Path:
    if given is not None:
        return given
    if place := next((root / name for name in TRUTHS if (root / name).exists()), None):
        return place
    raise FileNotFoundError(
        f"{root} lacks the labels of its validation images: put {', '.join(TRUTHS[:-1])} or {TRUTHS[-1]} there, name a "
        "file with --ground-truth, or sort the images into val/<wnid>/"
    )
