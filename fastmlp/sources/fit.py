"""Scaling an image of any shape to a beton's resolution."""

from typing import Literal, get_args

import numpy as np
from PIL import Image

Fit = Literal["square", "longest"]
FITS: tuple[Fit, ...] = get_args(Fit)


def fit_image(
    image: np.ndarray,  # (height, width, 3) uint8
    res: int,
    fit: Fit = "square",
) -> np.ndarray:
    """Scale an image with antialiasing (Pillow, bicubic).

    "square": the centre square as (res, res, 3); "longest": the whole image, its longer side scaled to res (500 x 375
    px become 64 x 48), as the paper writes ImageNet.
    """
    shape = fitted(image.shape[0], image.shape[1], res, fit)
    return image if image.shape[:2] == shape else np.asarray(fit_picture(Image.fromarray(image), shape, fit))


def fit_picture(picture: Image.Image, shape: tuple[int, int], fit: Fit) -> Image.Image:
    """Do the same for Pillow's images, to a height and width computed before a JPEG is drafted (see decode)."""
    height, width = shape
    if fit == "square":
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop(
            (left, top, left + side, top + side)
        )  # resize(box=) would mix in pixels from outside of the square
    return picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.BICUBIC)


def fitted(height: int, width: int, res: int, fit: Fit) -> tuple[int, int]:
    """Return the (height, width) that fit_image gives."""
    if fit == "square":
        return res, res
    longer = max(height, width)
    return max(1, round(height * res / longer)), max(1, round(width * res / longer))
