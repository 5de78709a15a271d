"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their binary archives; the pickled ones could run code."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .archive import PublishedArchive
from .base import ArraySource

IMAGE_BYTES = 3 * 32 * 32


@dataclass(frozen=True, kw_only=True)
class CIFARFormat(PublishedArchive):
    """Format of one of the two binary archives (https://www.cs.toronto.edu/~kriz/cifar.html)."""

    files: dict[str, tuple[str, ...]]  # split -> files
    images_per_file: dict[str, int]
    num_classes: int
    label_bytes: int  # before each image; the last one is the (fine) label


FORMATS = {
    "cifar10": CIFARFormat(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        folder="cifar-10-batches-bin",
        names_file="batches.meta.txt",
        files={"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
        images_per_file={"train": 10_000, "test": 10_000},
        num_classes=10,
        label_bytes=1,
    ),
    "cifar100": CIFARFormat(
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        folder="cifar-100-binary",
        names_file="fine_label_names.txt",
        files={"train": ("train.bin",), "test": ("test.bin",)},
        images_per_file={"train": 50_000, "test": 10_000},
        num_classes=100,
        label_bytes=2,
    ),
}


class CIFAR(ArraySource):
    """One split of CIFAR-10 or CIFAR-100 (fine labels), (N, 32, 32, 3).

    `source` is the published .tar.gz, its unpacked folder, or a folder that holds either; if it is None, the
    archive is downloaded into `cache`. An archive must have the published checksum unless `any_checksum`.
    Raises FileNotFoundError or ValueError naming the file and what is wrong.
    """

    def __init__(
        self,
        dataset: str,
        split: str,
        source: str | Path | None = None,
        cache: str | Path = "data/downloads",
        any_checksum: bool = False,
    ):
        form = FORMATS[dataset]
        location = form.locate(source, cache)
        contents = form.read_files(location, (*form.files[split], form.names_file), any_checksum)
        parts = [
            _parse(contents[name], form, form.images_per_file[split], f"{location}: {name}")
            for name in form.files[split]
        ]
        classes = tuple(contents[form.names_file].decode("ascii", "replace").split())
        if len(classes) != form.num_classes:
            raise ValueError(f"{location}: {form.names_file} names {len(classes)} classes, expected {form.num_classes}")
        super().__init__(
            np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts]), classes
        )


def _parse(content: bytes, form: CIFARFormat, count: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (count, 32, 32, 3) uint8 and labels (count,) uint8 of one binary file."""
    record = form.label_bytes + IMAGE_BYTES
    if len(content) != count * record:
        raise ValueError(f"{name}: {len(content)} bytes, expected {count * record} ({count} images of {record})")
    records = np.frombuffer(content, np.uint8).reshape(count, record)
    labels = records[:, form.label_bytes - 1]
    if labels.max() >= form.num_classes:
        raise ValueError(f"{name}: label {labels.max()} outside 0..{form.num_classes - 1}")
    planes = records[:, form.label_bytes :].reshape(count, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels
