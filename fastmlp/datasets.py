"""Data set specs: classes, split sizes, statistics, native size, and the paths of betons."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)


Triple = tuple[float, float, float]


@dataclass(frozen=True)
class DatasetSpec:
    """One data set.

    mean and std are per channel (R, G, B) on the 0-255 scale. `split_sizes` maps a split's name to its
    number of images, as published; empty if any number is right. The first split trains, the last one evaluates.
    """

    name: str
    num_classes: int
    split_sizes: dict[str, int]
    mean: Triple
    std: Triple
    res: int  # native side in pixels, or the side the paper scales it to
    writer: str  # the command that makes its betons
    splits: tuple[str, str] = ("train", "test")

    @property
    def train_split(self) -> str:
        return self.splits[0]

    @property
    def eval_split(self) -> str:
        return self.splits[-1]


# Statistics: ImageNet's (for its relatives, too) and CIFAR-10's as the paper's released code uses them; CIFAR-100's and
# STL-10's the commonly quoted ones of their training images, though the released code took CIFAR-10's for both;
# Fashion-MNIST's computed over its training images padded to 32 px.
# fmt: off
SPECS = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            "fashion_mnist", 10, {"train": 60_000, "test": 10_000}, (55.845,) * 3, (84.612,) * 3, 32,
            "python writers/fashion_mnist.py",
        ),
        DatasetSpec(
            "cifar10", 10, {"train": 50_000, "test": 10_000},
            (0.4914 * 255, 0.4822 * 255, 0.4465 * 255), (0.2470 * 255, 0.2435 * 255, 0.2616 * 255), 32,
            "python writers/cifar.py --dataset cifar10",
        ),
        DatasetSpec(
            "cifar100", 100, {"train": 50_000, "test": 10_000},
            (0.5071 * 255, 0.4865 * 255, 0.4409 * 255), (0.2673 * 255, 0.2564 * 255, 0.2762 * 255), 32,
            "python writers/cifar.py --dataset cifar100",
        ),
        DatasetSpec(
            "imagenet", 1000, {}, IMAGENET_MEAN, IMAGENET_STD, 64,
            "python writers/imagenet.py", ("train", "val"),
        ),
        DatasetSpec(  # 11,230 classes are left of 21,841 by the cleaning of Ridnik et al. 2021
            "imagenet21k", 11_230, {}, IMAGENET_MEAN, IMAGENET_STD, 64,
            "python writers/imagenet21k.py", ("train", "val"),
        ),
        DatasetSpec(
            "tiny_imagenet", 200, {"train": 100_000, "val": 10_000}, IMAGENET_MEAN, IMAGENET_STD, 64,
            "python writers/tiny_imagenet.py", ("train", "val"),
        ),
        DatasetSpec(
            "stl10", 10, {"train": 5_000, "test": 8_000}, (0.4467 * 255, 0.4398 * 255, 0.4066 * 255),
            (0.2603 * 255, 0.2566 * 255, 0.2713 * 255), 64, "python writers/stl10.py",
        ),
        DatasetSpec("synthetic", 10, {}, (127.5,) * 3, (64.0,) * 3, 32, "python writers/synthetic.py"),
    )
}
# fmt: on


def beton_path(data_dir: str | Path, name: str, split: str, res: int) -> Path:
    """Return the path of the beton of one split at one resolution, for writers and recipes."""
    return Path(data_dir) / f"{name}_{split}_{res}.beton"


def sidecar_path(path: Path) -> Path:
    """Return the path of the JSON file next to a beton, which holds its class names, split, source and order."""
    return path.with_suffix(".json")


def get_dataset(name: str, data_dir: str | Path, res: int = 0) -> DatasetSpec:
    """Return the spec of a known data set, or of one that a writer described next to its betons.

    If there are several descriptions, that of the betons of `res` px is taken. The number of classes of the synthetic
    set and of your own images is read from that description; mean and std of your own images from that of the split
    that trains. Raises ValueError for a name that is neither.
    """
    known = SPECS.get(name)
    described = sorted(Path(data_dir).glob(f"{name}_*.json")) if _is_plain(name) else []
    for path in sorted(described, key=lambda path: not path.stem.endswith(f"_{res}")):
        metadata = _read_description(path)
        if metadata["dataset"] != name:
            continue
        train = sidecar_path(beton_path(data_dir, name, metadata["splits"][0], metadata["res"]))
        mean, std = (known.mean, known.std) if known else _statistics(train)
        return DatasetSpec(
            name=name,
            num_classes=len(metadata["classes"]),
            split_sizes=known.split_sizes if known else {},
            mean=mean,
            std=std,
            res=known.res if known else metadata["res"],
            writer=known.writer if known else f"python writers/folder.py --name {name} --source FOLDER",
            splits=tuple(metadata["splits"]),
        )
    if known:
        return known
    raise ValueError(
        f"unknown data set {name!r}: neither one of {', '.join(sorted(SPECS))} nor described by a "
        f"{name}_*.json in {data_dir}. For a folder of your own images run: "
        f"python writers/folder.py --name {name} --source FOLDER"
    )


def _is_plain(name: str) -> bool:
    return bool(name) and not set(name) & set("*?[]/\\")


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return the content of the JSON file `path` next to a beton. Raises ValueError naming it if it is damaged."""
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(metadata, dict) and _are_names(metadata.get("classes", [])):
            return metadata
    except (ValueError, RecursionError):
        pass
    raise ValueError(f"{path} is no description of a beton, but damaged: run the writer again")


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _statistics(sidecar: Path) -> tuple[Triple, Triple]:
    """Return mean and std of your own images as their writer stored them; ImageNet's, if that was 0.1."""
    metadata = read_sidecar(sidecar) if sidecar.is_file() else {}
    if "mean" not in metadata or "std" not in metadata:
        return IMAGENET_MEAN, IMAGENET_STD
    mean, std = metadata["mean"], metadata["std"]
    for values in (mean, std):
        is_triple = isinstance(values, list) and len(values) == 3
        if not is_triple or not all(type(value) in (int, float) and 0 <= value <= 255 for value in values):
            raise ValueError(f"{sidecar} is damaged: mean {mean}, std {std}. Run the writer again")
    return tuple(mean), tuple(max(1.0, value) for value in std)  # a channel may be constant


def _read_description(path: Path) -> dict:
    metadata = read_sidecar(path)
    splits, res = metadata.get("splits"), metadata.get("res")
    named = isinstance(metadata.get("dataset"), str) and metadata.get("classes")
    two = isinstance(splits, list) and _are_names(splits) and len(splits) == 2
    if not (named and two and type(res) is int and res > 0):
        raise ValueError(f"{path} is no description of a beton (dataset, classes, splits or res): run the writer again")
    return metadata
