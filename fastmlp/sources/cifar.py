"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from their binary archives; the pickled ones could run code."""

import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .base import ArraySource, check_digest, download

IMAGE_BYTES = 3 * 32 * 32


@dataclass(frozen=True)
class CIFARFormat:
    """How one of the two binary archives lies (https://www.cs.toronto.edu/~kriz/cifar.html)."""

    url: str
    md5: str
    folder: str
    files: dict[str, tuple[str, ...]]  # split -> files
    images_per_file: dict[str, int]
    names_file: str
    num_classes: int
    label_bytes: int  # before each image; the last one is the (fine) label


FORMATS = {
    "cifar10": CIFARFormat(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-batches-bin",
        {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
        {"train": 10_000, "test": 10_000},
        "batches.meta.txt",
        10,
        1,
    ),
    "cifar100": CIFARFormat(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-binary",
        {"train": ("train.bin",), "test": ("test.bin",)},
        {"train": 50_000, "test": 10_000},
        "fine_label_names.txt",
        100,
        2,
    ),
}


class CIFAR(ArraySource):
    """One split of CIFAR-10 or CIFAR-100 (fine labels), (N, 32, 32, 3).

    `source` is the published .tar.gz, its unpacked folder, or a folder that holds either; without it the
    archive is downloaded into `cache`. An archive must carry the published checksum unless `any_checksum`.
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
        wanted = (*form.files[split], form.names_file)
        location = _locate(form, source, cache)
        if location.is_dir():
            contents = {name: _read_file(location / name) for name in wanted}
        else:
            contents = _read_archive(location, form, wanted, any_checksum)
        parts = [
            _parse(contents[name], form, form.images_per_file[split], f"{location}: {name}")
            for name in form.files[split]
        ]
        classes = tuple(contents[form.names_file].decode("ascii", "replace").split())
        if len(classes) != form.num_classes:
            raise ValueError(f"{location}: {form.names_file} names {len(classes)} classes, not {form.num_classes}")
        super().__init__(
            np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts]), classes
        )


def _locate(form: CIFARFormat, source: str | Path | None, cache: str | Path) -> Path:
    if source is None:
        return download(form.url, form.md5, cache)
    source, archive = Path(source), form.url.rsplit("/", 1)[-1]
    if source.is_file() or (source / form.names_file).is_file():
        return source
    for inside in (source / form.folder, source / archive):
        if inside.exists():
            return inside
    raise FileNotFoundError(
        f"{source}: neither {archive} nor the folder {form.folder} is there. Get the archive from {form.url} "
        "(the binary version) and name it, or the folder it lies in, with --source"
    )


def _read_file(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: unpack the whole binary archive there")
    return path.read_bytes()


def _read_archive(path: Path, form: CIFARFormat, wanted: tuple[str, ...], any_checksum: bool) -> dict[str, bytes]:
    if not any_checksum:
        check_digest(path.read_bytes(), form.md5, path)
    contents = {}
    try:
        with tarfile.open(path) as archive:
            for name in wanted:
                member = archive.extractfile(f"{form.folder}/{name}")  # read into memory, nothing is unpacked
                if member is None:
                    raise KeyError(f"{name} is not a file")
                contents[name] = member.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: damaged archive ({error})") from error
    except KeyError as error:
        raise ValueError(f"{path}: not the binary archive of {form.folder} ({error.args[0]})") from error
    return contents


def _parse(content: bytes, form: CIFARFormat, count: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    record = form.label_bytes + IMAGE_BYTES
    if len(content) != count * record:
        raise ValueError(f"{name}: {len(content)} bytes, expected {count * record} ({count} images of {record})")
    records = np.frombuffer(content, np.uint8).reshape(count, record)
    labels = records[:, form.label_bytes - 1]
    if labels.max() >= form.num_classes:
        raise ValueError(f"{name}: label {labels.max()} outside 0..{form.num_classes - 1}")
    planes = records[:, form.label_bytes :].reshape(count, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels
