"""What every source offers, and how its raw files get here."""

import hashlib
import zlib
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from PIL import Image


class Source(ABC):
    """A raw data set by index. Sources travel to worker processes, so they must pickle.

    `classes` names the labels: label k means classes[k].
    """

    classes: tuple[str, ...]

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """The image as (height, width, 3) uint8 in RGB, and its label. Raises ValueError naming a bad image."""

    def stacked(self, indices: np.ndarray, res: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Images (B, res, res, 3) uint8 and labels (B,) at once, where they lie in memory at that size; else None."""
        return None

    def fingerprint(self) -> str:
        """Tells sources apart, so that an interrupted writer goes on with its own alone."""
        return f"{type(self).__name__} {len(self)} {zlib.crc32(repr(self.classes).encode())}"


class ArraySource(Source):
    """A source whose images, (N, height, width, 3) or grey (N, height, width), lie in memory as uint8."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]):
        self.images, self.labels, self.classes = images, labels, classes

    def __len__(self) -> int:
        return len(self.images)

    def stacked(self, indices: np.ndarray, res: int) -> tuple[np.ndarray, np.ndarray] | None:
        if self.images.shape[1:3] != (res, res):
            return None
        images = self.images[indices]
        return (images if images.ndim == 4 else images[..., None].repeat(3, 3)), self.labels[indices]

    def fingerprint(self) -> str:
        return f"{super().fingerprint()} {_crc(self.images)} {_crc(self.labels)}"

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        image = self.images[index]
        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3, axis=2)
        return image, int(self.labels[index])


class Subset(Source):
    """Some of a source's images, by index."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.source, self.indices, self.classes = source, indices, source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def stacked(self, indices: np.ndarray, res: int) -> tuple[np.ndarray, np.ndarray] | None:
        return self.source.stacked(self.indices[indices], res)

    def fingerprint(self) -> str:
        return f"{self.source.fingerprint()} {_crc(self.indices)}"

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.source[int(self.indices[index])]


def _crc(numbers: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(numbers).data)


def fit_square(
    image: np.ndarray,  # (height, width, 3) uint8
    res: int,
) -> np.ndarray:
    """The centre square, resized to (res, res, 3) uint8 with antialiasing (Pillow, bicubic)."""
    height, width = image.shape[:2]
    if (height, width) == (res, res):
        return image
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    square = np.ascontiguousarray(image[top : top + side, left : left + side])  # Pillow's box= lets neighbours in
    return np.asarray(Image.fromarray(square).resize((res, res), Image.Resampling.BICUBIC))


def check_digest(
    content: bytes,
    expected: str,  # hexadecimal; MD5 by 32 digits, SHA-256 by 64
    name: str | Path,
) -> None:
    """Raises ValueError where the content is not what the data set's authors published."""
    algorithm = {32: "md5", 64: "sha256"}[len(expected)]
    found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
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
