"""STL-10 (Coates, Ng, Lee 2011) from its binary version: 96 px colour, 5,000 training and 8,000 test images."""

from pathlib import Path

import numpy as np

from .archive import PublishedArchive
from .base import ArraySource

ARCHIVE = PublishedArchive(
    url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
    sha256="f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866",
    folder="stl10_binary",
    names_file="class_names.txt",
)
COUNTS = {"train": 5_000, "test": 8_000}
SIDE = 96
IMAGE_BYTES = 3 * SIDE * SIDE


class STL10(ArraySource):
    """One labelled split, (N, 96, 96, 3).

    `source` is stl10_binary.tar.gz, its unpacked folder, or a folder that holds either; if it is None, the archive
    (2.6 GB, most of it unlabelled images) is downloaded into `cache`. An archive must have the published checksum
    unless `any_checksum`. Raises FileNotFoundError or ValueError naming the file and what is wrong.
    """

    def __init__(
        self,
        split: str,
        source: str | Path | None = None,
        cache: str | Path = "data/downloads",
        any_checksum: bool = False,
    ):
        images_file, labels_file = f"{split}_X.bin", f"{split}_y.bin"
        location = ARCHIVE.locate(source, cache)
        contents = ARCHIVE.read_files(location, (images_file, labels_file, ARCHIVE.names_file), any_checksum)
        for name, expected in ((images_file, COUNTS[split] * IMAGE_BYTES), (labels_file, COUNTS[split])):
            if len(contents[name]) != expected:
                raise ValueError(f"{location}: {name} has {len(contents[name])} bytes, expected {expected}")
        planes = np.frombuffer(contents[images_file], np.uint8).reshape(-1, 3, SIDE, SIDE)  # column by column
        labels = np.frombuffer(contents[labels_file], np.uint8)
        classes = tuple(contents[ARCHIVE.names_file].decode("ascii", "replace").split())
        if len(classes) != 10 or not 1 <= labels.min() <= labels.max() <= 10:
            raise ValueError(
                f"{location}: {len(classes)} classes and labels {labels.min()} to {labels.max()}, expected 10 classes "
                "and labels 1 to 10"
            )
        super().__init__(np.ascontiguousarray(planes.transpose(0, 3, 2, 1)), labels - 1, classes)
