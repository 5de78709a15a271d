"""STL-10 (Coates, Ng, Lee 2011) from its binary version: 96 px colour, 5,000 training and 8,000 test images."""

import tarfile
import zlib
from pathlib import Path

import numpy as np

from .base import ArraySource, check_digest, download

URL, MD5 = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb"
FOLDER, NAMES_FILE = "stl10_binary", "class_names.txt"
COUNTS = {"train": 5_000, "test": 8_000}
SIDE = 96
IMAGE_BYTES = 3 * SIDE * SIDE


class STL10(ArraySource):
    """One labelled split, (N, 96, 96, 3).

    `source` is stl10_binary.tar.gz, its unpacked folder, or a folder that holds either; without it the archive (2.6 GB,
    of which the unlabelled images are most) is downloaded into `cache`. An archive must carry the published checksum
    unless `any_checksum`. Raises FileNotFoundError or ValueError naming the file and what is wrong.
    """

    def __init__(
        self,
        split: str,
        source: str | Path | None = None,
        cache: str | Path = "data/downloads",
        any_checksum: bool = False,
    ):
        wanted = (f"{split}_X.bin", f"{split}_y.bin", NAMES_FILE)
        place = _locate(source, cache)
        contents = _read_folder(place, wanted) if place.is_dir() else _read_archive(place, wanted, any_checksum)
        for name, expected in zip(wanted, (COUNTS[split] * IMAGE_BYTES, COUNTS[split]), strict=False):
            if len(contents[name]) != expected:
                raise ValueError(f"{place}: {name} has {len(contents[name])} bytes, expected {expected}")
        planes = contents[wanted[0]].reshape(-1, 3, SIDE, SIDE)  # each plane column after column
        labels, classes = contents[wanted[1]], tuple(contents[NAMES_FILE].tobytes().decode("ascii", "replace").split())
        if len(classes) != 10 or not 1 <= labels.min() <= labels.max() <= 10:
            raise ValueError(f"{place}: {len(classes)} classes, labels {labels.min()} to {labels.max()}, not 1 to 10")
        super().__init__(np.ascontiguousarray(planes.transpose(0, 3, 2, 1)), labels - 1, classes)


def _locate(source: str | Path | None, cache: str | Path) -> Path:
    if source is None:
        return download(URL, MD5, cache)
    source, archive = Path(source), URL.rsplit("/", 1)[-1]
    for place in (source, source / FOLDER, source / archive):
        if place.is_file() or (place / NAMES_FILE).is_file():
            return place
    raise FileNotFoundError(
        f"{source}: neither {archive} nor the folder {FOLDER} is there. Get the archive from {URL} and name it, or the "
        "folder it lies in, with --source"
    )


def _read_folder(place: Path, wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    if missing := [name for name in wanted if not (place / name).is_file()]:
        raise FileNotFoundError(f"{place} lacks {', '.join(missing)}: unpack the whole binary archive there")
    return {name: np.fromfile(place / name, np.uint8) for name in wanted}


def _read_archive(place: Path, wanted: tuple[str, ...], any_checksum: bool) -> dict[str, np.ndarray]:
    if not any_checksum:
        check_digest(place, MD5, place)
    contents: dict[str, np.ndarray] = {}
    try:
        with tarfile.open(place) as archive:
            for member in archive:  # as they come: to look one up would unpack all 2.6 GB first
                name = Path(member.name).name
                if name in wanted and (file := archive.extractfile(member)):
                    contents[name] = np.frombuffer(file.read(), np.uint8)
                if len(contents) == len(wanted):
                    return contents
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{place}: damaged archive ({error})") from error
    raise ValueError(f"{place}: not the binary archive of STL-10 (without {', '.join(set(wanted) - set(contents))})")
