"""Images that lie encoded somewhere, in files or in archives: what all such sources share."""

from abc import abstractmethod

import numpy as np

from .base import Source, crc
from .decode import decode
from .fit import Fit
from .names import PackedNames


class EncodedImages(Source):
    """Images by name; subclasses say where the bytes come from.

    `names` tell images apart within their class, in the order of the indices; `labels` is (N,) int32. With `res`
    they come scaled as `fit` says, which takes less time than to decode them whole (see decode).
    """

    def __init__(self, names: PackedNames, labels: np.ndarray, classes: tuple[str, ...], res: int | None, fit: Fit):
        self.names, self.labels, self.classes, self.res, self.fit = names, labels, classes, res, fit

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def where(self, index: int) -> str:
        """Names an image for a reader of errors."""

    @abstractmethod
    def encoded(self, index: int) -> bytes:
        """An image file's bytes. Raises ValueError naming it."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return decode(self.encoded(index), self.where(index), self.res, self.fit), int(self.labels[index])

    def fingerprint(self) -> str:
        return f"{super().fingerprint()} {self.res} {self.fit} {self.names.crc()} {crc(self.labels)}"
