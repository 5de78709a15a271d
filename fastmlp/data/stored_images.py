"""Some images of a beton as they are stored, to look at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..beton import layout
from ..loader.mapped_beton import MappedBeton


def stored_images(
    beton: str | Path,
    samples: Sequence[int],
    fingerprint: int | None = None,  # that the beton must have
) -> list[np.ndarray]:
    """Return the samples' images, each (H, W, 3) uint8.

    Raises OSError or ValueError if the beton is missing or another one, lacks a sample, or holds no raw images.
    """
    mapped = MappedBeton(beton)
    if fingerprint not in (None, mapped.fingerprint):
        raise ValueError(f"{beton} is another file than it was")
    if max(samples, default=0) >= len(mapped.metadata) or mapped.metadata_type not in (
        layout.METADATA,
        layout.MULTI_METADATA,
    ):
        raise ValueError(f"{beton} does not hold these images")
    images = []
    for record in mapped.metadata["f0"][list(samples)]:
        if record["mode"] != layout.RAW_MODE:
            raise ValueError(f"{beton} holds JPEG images")
        height, width, start = int(record["height"]), int(record["width"]), int(record["data_ptr"])
        images.append(mapped.bytes[start : start + 3 * height * width].reshape(height, width, 3).copy())
    return images
