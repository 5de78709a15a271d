"""What every source offers, and how its raw files get here."""

import hashlib
import io
import zlib
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np


class Source(ABC):
    """A raw data set by index. Sources travel to worker processes, so they must pickle.

    `classes` names the labels: label k means classes[k]. `multi_labels`, where there are any: all labels that are
    right for an image, (N, K) int64 with -1 behind the last, such as ReaL's.
    """

    classes: tuple[str, ...]
    multi_labels: np.ndarray | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """The image as (height, width, 3) uint8 in RGB, and its label. Raises ValueError naming a bad image."""

    def get_batch(self, indices: np.ndarray, res: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Images (B, res, res, 3) uint8 and labels (B,) at once, where they lie in memory at that size; else None."""
        return None

    def fingerprint(self) -> str:
        """Tells sources apart, so that an interrupted writer goes on with its own alone."""
        several = "" if self.multi_labels is None else f" {crc(self.multi_labels)}"
        return f"{type(self).__name__} {len(self)} {zlib.crc32(repr(self.classes).encode())}{several}"


class ArraySource(Source):
    """A source whose images, (N, height, width, 3) or grey (N, height, width), lie in memory as uint8."""

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
        self.multi_labels = None if source.multi_labels is None else source.multi_labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def get_batch(self, indices: np.ndarray, res: int) -> tuple[np.ndarray, np.ndarray] | None:
        return self.source.get_batch(self.indices[indices], res)

    def fingerprint(self) -> str:
        return f"{self.source.fingerprint()} {crc(self.indices)}"

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.source[int(self.indices[index])]


def crc(numbers: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(numbers).data)


def train_val_split(source: Source, share: float, seed: int) -> dict[str, Subset]:
    """`train` and `val`, where the data set's authors split nothing off: `share` of the images, by chance, for val."""
    if not 0 < share < 1:
        raise ValueError(f"--holdout {share}: expected a share between 0 and 1")
    if len(source) < 2:
        raise ValueError(f"only {len(source)} image is there: two at least are needed, to train and to validate")
    order = np.random.default_rng(seed).permutation(len(source))
    cut = min(max(1, round(share * len(source))), len(source) - 1)
    return {"train": Subset(source, order[cut:]), "val": Subset(source, order[:cut])}


def proportional(
    source: Source,
    labels: np.ndarray,  # (N,) of all its images
    fraction: float,
    seed: int,
) -> Subset:
    """`fraction` of every class's images, by chance, one at least; a larger fraction keeps what a smaller has."""
    if not 0 < fraction <= 1:
        raise ValueError(f"--fraction {fraction}: expected a share above 0 and at most 1")
    order = np.random.default_rng(seed).permutation(len(source))
    order = order[np.argsort(labels[order], kind="stable")]  # class by class, by chance within each
    counts = np.bincount(labels, minlength=len(source.classes))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = np.where(counts > 0, np.maximum(1, np.round(fraction * counts)), 0)
    return Subset(source, np.sort(order[rank < np.repeat(kept, counts)]))


def check_digest(
    content: bytes | Path,  # itself, or the file that holds it
    expected: str,  # hexadecimal; MD5 by 32 digits, SHA-256 by 64
    name: str | Path,
) -> None:
    """Raises ValueError where the content is not what the data set's authors published."""
    algorithm = {32: "md5", 64: "sha256"}[len(expected)]
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        while part := file.read(1 << 20):  # an archive can be larger than memory
            digest.update(part)
    found = digest.hexdigest()
    if found != expected:
        raise ValueError(
            f"{name}: checksum differs ({algorithm} {found}, expected {expected}): the file is damaged or "
            "of another version. Delete it and run the writer again to download it anew"
        )


def download(
    url: str,
    md5: str,
    folder: str | Path,
) -> Path:
    """The file behind `url` in `folder`, downloaded with a progress bar and checked; kept where it is already right.

    Raises ConnectionError naming the file to bring by hand where the address cannot be reached.
    """
    import pooch
    import requests

    name = url.rsplit("/", 1)[-1]
    try:
        return Path(
            pooch.retrieve(
                url, known_hash=f"md5:{md5}", fname=name, path=folder, downloader=pooch.HTTPDownloader(progressbar=True)
            )
        )
    except requests.RequestException as error:
        raise ConnectionError(
            f"cannot download {url} ({type(error).__name__}). Bring {name} by hand and name its folder with --source"
        ) from error
