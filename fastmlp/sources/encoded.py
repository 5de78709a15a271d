"""The base class of sources whose images are encoded, in files or in archives."""

from abc import abstractmethod

import numpy as np

from .base import Source, crc
from .decode import decode
from .fit import Fit
from .names import PackedNames


class EncodedImages(Source):
    """Encoded images by name; subclasses read their bytes.

    `names` are unique within a class, in the order of the indices; `labels` is (N,) int32. If `res` is given, images
    are scaled as `fit` says, which takes less time than to decode them at full size (see decode).
    """

    def __init__(self, names: PackedNames, labels: np.ndarray, classes: tuple[str, ...], res: int | None, fit: Fit):
        self.names, self.labels, self.classes, self.res, self.fit = names, labels, classes, res, fit

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def location(self, index: int) -> str:
        """Return the name of an image for error messages: its path, or its archive and its name in it."""

    @abstractmethod
    def read_bytes(self, index: int) -> bytes:
        """Return the bytes of an image file. Raises ValueError naming it."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return decode(self.read_bytes(index), self.location(index), self.res, self.fit), int(self.labels[index])

    def fingerprint(self) -> str:
        return f"{super().fingerprint()} {self.res} {self.fit} {self.names.crc()} {crc(self.labels)}"
