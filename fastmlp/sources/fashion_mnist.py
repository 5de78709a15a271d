"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017): 28 px grey clothing, 60,000 training and 10,000 test images."""

import gzip
import math
import sys
from pathlib import Path

import numpy as np

from .base import ArraySource, check_digest
from .download import download
from .faults import naming

CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
# Of Debian's package dataset-fashion-mnist: where apt installs it, and where scripts/setup.sh unpacks it without root.
DEBIAN_FOLDERS = tuple(Path(root, "usr/share/datasets/fashion-mnist") for root in ("/", f"{sys.prefix}/system"))
MAX_BYTES = 1 << 26  # of a file; the largest has 47 MB
URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

# File -> (MD5 of the .gz as its authors publish it, SHA-256 of its content). Debian compresses the same content again.
FILES = {
    "train-images-idx3-ubyte": (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train-labels-idx1-ubyte": (
        "25c81989df183df01b3e8a0aad5dffbe",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "t10k-images-idx3-ubyte": (
        "bef4ecab320f06d8554ea6380940ec79",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "t10k-labels-idx1-ubyte": (
        "bb300cfdad3c16e7a12a480ee83cd310",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


class FashionMNIST(ArraySource):
    """Images padded with black from 28 to 32 px, so that they match CIFAR's shape.

    They come from `folder` (.gz files or unpacked), else from Debian's package if it is installed, else by
    download into `cache`. Raises FileNotFoundError or ValueError (checksum) naming the file.
    """

    def __init__(self, split: str, folder: str | Path | None = None, cache: str | Path = "data/downloads"):
        stem = {"train": "train", "test": "t10k"}[split]
        if folder is None:
            folder = next(filter(Path.is_dir, DEBIAN_FOLDERS), None)
        images, labels = (_read(f"{stem}-{kind}-ubyte", folder, cache) for kind in ("images-idx3", "labels-idx1"))
        super().__init__(np.pad(images, ((0, 0), (2, 2), (2, 2))), labels, CLASSES)


def parse_idx(
    content: bytes,
    name: str | Path,
) -> np.ndarray:
    """Parse an IDX file of unsigned bytes: two zeros, type 8, number of dimensions, their sizes (big-endian), data."""
    dims = content[3] if len(content) >= 4 else 0
    if content[:3] != b"\0\0\x08" or dims == 0:
        raise ValueError(f"{name}: not an IDX file of unsigned bytes")
    if dims > 3:
        raise ValueError(f"{name}: an IDX file of {dims} dimensions, expected at most 3")
    shape = np.frombuffer(content, ">u4", count=dims, offset=4).tolist() if len(content) >= 4 + 4 * dims else ()
    header_bytes = 4 + 4 * dims
    expected_bytes = header_bytes + math.prod(shape)
    if len(content) != expected_bytes:
        raise ValueError(f"{name}: truncated IDX file, {len(content)} bytes of {expected_bytes}")
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)


def _read(name: str, folder: str | Path | None, cache: str | Path) -> np.ndarray:
    md5, sha256 = FILES[name]
    if folder is None:
        path = download(URL + name + ".gz", md5, cache)
    else:
        candidates = [Path(folder) / f"{name}.gz", Path(folder) / name]
        path = next((c for c in candidates if c.is_file()), candidates[0])
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: --source must name a folder with the four files of Fashion-MNIST. "
                "On Debian and Ubuntu: apt install dataset-fashion-mnist"
            )
    with naming(path, "damaged gzip file"):
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(MAX_BYTES)  # what is longer has another checksum; all of it might fill the memory
    check_digest(content, sha256, path)
    return parse_idx(content, path)
