"""How an image of any shape becomes one of a beton's resolution."""

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
    """Antialiased (Pillow, bicubic). "square": the centre square as (res, res, 3); "longest": the whole image, its
    longer side scaled to res (500 x 375 px become 64 x 48), as the paper writes ImageNet."""
    height, width = image.shape[:2]
    if fit == "square":
        side = min(height, width)
        left, top = (width - side) // 2, (height - side) // 2
        image = image[top : top + side, left : left + side]  # Pillow's box= lets neighbours in
    shape = fitted(height, width, res, fit)
    if image.shape[:2] == shape:
        return image
    whole = Image.fromarray(np.ascontiguousarray(image))
    return np.asarray(whole.resize(shape[::-1], Image.Resampling.BICUBIC))


def fitted(height: int, width: int, res: int, fit: Fit) -> tuple[int, int]:
    """Height and width of what fit_image gives."""
    if fit == "square":
        return res, res
    longer = max(height, width)
    return max(1, round(height * res / longer)), max(1, round(width * res / longer))
