"""The interface of all sources of images; checksums of their files."""

import hashlib
import io
import os
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .faults import naming

MAX_INT64 = 2**63 - 1
ALGORITHMS = {32: "md5", 64: "sha256"}  # by the digits of the checksum


class ImageState(NamedTuple):
    """What is cheap to know of an image's file: whether its content may be another one than before.

    `content` differs only if the content does: the size in bytes, or in a zip the checksum. The others may differ of
    the same content, as in a copied folder: times in ns, and the inode, by which swapped files and folders are noticed.
    """

    content: int
    modified: int = 0
    changed: int = 0  # also by what keeps `modified`, such as mv and touch --reference
    inode: int = 0


class Source(ABC):
    """A raw data set by index. Sources are sent to worker processes, so they must pickle.

    `classes` names the labels: label k means classes[k]. `multi_labels`, if not None, holds all labels that are right
    for each image, such as ReaL's: (N, K) int64 with -1 after the last. `left_out` counts what was found beside the
    images, by the reason why it is left out; `notices` are lines about what was found. Writers print both.
    """

    classes: tuple[str, ...]
    multi_labels: np.ndarray | None = None
    left_out: Counter[str] = Counter()
    notices: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Return the image, (height, width, 3) uint8 in RGB, and its label. Raises ValueError naming a bad image."""

    def get_batch(self, indices: np.ndarray, res: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return images (B, res, res, 3) uint8 and labels (B,), or None if they are not in memory at that size."""
        return None

    def location(self, index: int) -> str:
        """Return the name of an image for messages."""
        return f"image {index}"

    def file_state(self, index: int) -> ImageState | None:
        """Return the state of the file that holds an image, None if none does.

        It tells whether a file has changed; the fingerprint need not, so that listing a source reads no file.
        """
        return None

    def fingerprint(self) -> str:
        """Return a text that differs between sources, so that an interrupted writer resumes only with its own."""
        multi_labels = "" if self.multi_labels is None else f" {crc(self.multi_labels)}"
        return f"{type(self).__name__} {len(self)} {zlib.crc32(repr(self.classes).encode())}{multi_labels}"


class ArraySource(Source):
    """A source with its images in memory: (N, height, width, 3), or grey (N, height, width), uint8."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]):
        self.images, self.labels, self.classes = images, labels, classes

    def __len__(self) -> int:
        return len(self.images)

    def get_batch(self, indices: np.ndarray, res: int) -> tuple[np.ndarray, np.ndarray] | None:
        if self.images.shape[1:3] != (res, res):
            return None
        images = self.images[indices]
        return (images if images.ndim == 4 else images[..., None].repeat(3, 3)), self.labels[indices]

    def fingerprint(self) -> str:
        return f"{super().fingerprint()} {crc(self.images)} {crc(self.labels)}"

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        image = self.images[index]
        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3, axis=2)
        return image, int(self.labels[index])


class Subset(Source):
    """Some of a source's images, by index."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices, self.classes = source, indices, source.classes
        self.left_out, self.notices = source.left_out, source.notices
        self.multi_labels = None if source.multi_labels is None else source.multi_labels[indices]

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels[self.indices]  # type: ignore[attr-defined]  # AttributeError if it has none

    def __len__(self) -> int:
        return len(self.indices)

    def get_batch(self, indices: np.ndarray, res: int) -> tuple[np.ndarray, np.ndarray] | None:
        return self.source.get_batch(self.indices[indices], res)

    def location(self, index: int) -> str:
        return self.source.location(int(self.indices[index]))

    def file_state(self, index: int) -> ImageState | None:
        return self.source.file_state(int(self.indices[index]))

    def fingerprint(self) -> str:
        return f"{self.source.fingerprint()} {crc(self.indices)}"

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.source[int(self.indices[index])]


def state_of(path: str | bytes | Path) -> ImageState:
    """Return the state of a file; of no file, what no file has."""
    try:
        status = os.stat(path)
    except OSError:  # reading it says why
        return ImageState(-1, -1, -1, -1)
    return ImageState(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & MAX_INT64)


def crc(numbers: np.ndarray) -> int:
    """Return the CRC-32 of an array's bytes in C order."""
    return zlib.crc32(np.ascontiguousarray(numbers).data)


def train_val_split(source: Source, holdout: float, seed: int) -> dict[str, Subset]:
    """Return `train` and `val` of a data set that has no splits: a share `holdout` of its images, at random, is val.

    Of a class whose images would all be in val, one is exchanged for one of the largest class.
    """
    if not 0 < holdout < 1:
        raise ValueError(f"--holdout {holdout}: expected a share between 0 and 1")
    if len(source) < 2:
        raise ValueError(f"only {len(source)} image found, expected at least two: one to train, one to validate")
    order = np.random.default_rng(seed).permutation(len(source))
    cut = min(max(1, round(holdout * len(source))), len(source) - 1)
    if (labels := getattr(source, "labels", None)) is not None:
        _exchange_untrained(order, cut, labels[order])
    return {"train": Subset(source, order[cut:]), "val": Subset(source, order[:cut])}


def _exchange_untrained(
    order: np.ndarray,  # (N,) indices, the first `cut` of them for val; changed in place
    cut: int,
    labels: np.ndarray,  # (N,) in this order
) -> None:
    """Give each class a training image that would have none, for one of the largest class, while this has several."""
    counts = np.bincount(labels[cut:], minlength=labels.max() + 1)
    present, firsts = np.unique(labels[:cut], return_index=True)
    untrained = firsts[counts[present] == 0]
    spare = cut + np.flatnonzero(labels[cut:] == counts.argmax())[: len(untrained)]
    if len(untrained) and counts.max() > len(spare) == len(untrained):
        order[np.concatenate([untrained, spare])] = order[np.concatenate([spare, untrained])]


def digest_of(content: bytes | Path, algorithm: str) -> str:
    """Return the hexadecimal digest of the content itself or of a file that holds it."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        while part := file.read(1 << 20):  # an archive can be larger than memory
            digest.update(part)
    return digest.hexdigest()


def check_digest(
    content: bytes | Path,  # the content itself, or the file that holds it
    expected: str,  # hexadecimal: MD5 if of 32 digits, SHA-256 if of 64
    name: str | Path,
) -> None:
    """Raise ValueError if the content is not what the data set's authors published."""
    algorithm = ALGORITHMS[len(expected)]
    with naming(name):
        found = digest_of(content, algorithm)
    if found != expected:
        raise ValueError(
            f"{name}: checksum differs ({algorithm} {found}, expected {expected}): the file is damaged or "
            "of another version. Delete it and run the writer again to download it"
        )
