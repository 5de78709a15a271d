"""Random crop boxes and flips, each a pure function of (seed, epoch, sample index).

The same sample in the same epoch is augmented in the same way for every batch size, number of workers, device and
order. The generator is a counter hashed by SplitMix64's finaliser (Steele, Lea, Flood 2014).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .numba_cache import numba as nb

CROPS = ("none", "random_resized", "pad_and_crop", "center")
MAX_PADDING = 65_535  # the maximum side of an image in a beton
CROP_TRIES = 10  # of torchvision's RandomResizedCrop, before it falls back to the centre
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
# The first draw number of each use: the flip (one draw), the shift (two), the crop (four for each try).
_FLIP, _SHIFT, _CROP = 0, 1, 16


@dataclass(frozen=True)
class Augment:
    """The augmentation of an image.

    crop: "random_resized" takes a box at random, its area within `scale` of the image's and its ratio of width to
    height within `ratio` (torchvision's RandomResizedCrop); "pad_and_crop" moves the image by up to `padding` pixels
    over black; "center" takes the centre square of `center` times the shorter side (evaluation, nothing random);
    "none" takes the whole image.

    Raises ValueError for an unknown crop or a number outside of its range.
    """

    crop: str = "none"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    padding: int = 4  # [pixels]
    flip: bool = False
    center: float = 1.0

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ValueError(f"unknown crop {self.crop!r}: expected one of {', '.join(CROPS)}")
        if not (0 < self.scale[0] <= self.scale[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1]):
            raise ValueError(f"crop scale {self.scale} or ratio {self.ratio}: expected 0 < min <= max, scale up to 1")
        if not (isinstance(self.padding, int) and 0 <= self.padding <= MAX_PADDING) or not 0 < self.center <= 1:
            raise ValueError(
                f"padding {self.padding}, center {self.center}: expected a whole number from 0 to {MAX_PADDING}, and a "
                "number above 0, at most 1"
            )


def check_res_and_seed(res: int, seed: int) -> None:
    """Raise ValueError if `res` or `seed` is not a whole number within its range."""
    if not isinstance(res, (int, np.integer)) or not 1 <= res <= 65_535:
        raise ValueError(f"res={res!r}: expected a whole number of pixels from 1 to 65535")
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r}: expected a whole number from 0 to 2**32 - 1")


def normalisation(
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """Return both as (3,) float32. Raises ValueError unless each is three finite numbers, std above 0."""
    numbers = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    if any(n.shape != (3,) or not np.isfinite(n).all() for n in numbers) or (numbers[1] <= 0).any():
        raise ValueError(f"mean {mean}, std {std}: expected three finite numbers each, std above 0 (0-255 scale)")
    return numbers


class NumbaAugment(NamedTuple):
    """An Augment in the form that compiled code takes."""

    crop: int  # position in CROPS
    scale: tuple[float, float]
    ratio: tuple[float, float]
    padding: int
    flip: bool
    center: float


def to_numba(augment: Augment) -> NumbaAugment:
    scale, ratio = (tuple(map(float, pair)) for pair in (augment.scale, augment.ratio))
    flip, center = bool(augment.flip), float(augment.center)
    return NumbaAugment(CROPS.index(augment.crop), scale, ratio, int(augment.padding), flip, center)  # type: ignore[arg-type]


# The functions below turn fastmath off explicitly, for the reason in resample.py.
@nb.njit(nogil=True, inline="always")
def _mix(x: Any) -> Any:  # uint64
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@nb.njit(nogil=True, cache=True, fastmath=False)
def sample_key(seed, epoch, sample):
    """Return the state from which a sample's draws in an epoch are hashed, uint64."""
    key = _mix(np.uint64(seed) + _GOLDEN)
    key = _mix((key ^ np.uint64(epoch)) + _GOLDEN)
    return _mix(key + _GOLDEN * (np.uint64(sample) + np.uint64(1)))


@nb.njit(nogil=True, cache=True, fastmath=False)
def uniform(state, draw):
    """Return draw number `draw` of a sample's stream, float64 in [0, 1)."""
    return (_mix(state + _GOLDEN * (np.uint64(draw) + np.uint64(1))) >> np.uint64(11)) * 2.0**-53


@nb.njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def _resized_crop(state, height, width, scale, ratio):
    """Return the box of torchvision's RandomResizedCrop: the first of ten tries that fits, else a centre box."""
    low, high = np.log(ratio[0]), np.log(ratio[1])
    for attempt in range(CROP_TRIES):
        draw = _CROP + 4 * attempt
        area = height * width * (scale[0] + uniform(state, draw) * (scale[1] - scale[0]))
        aspect = np.exp(low + uniform(state, draw + 1) * (high - low))
        w, h = int(np.rint(np.sqrt(area * aspect))), int(np.rint(np.sqrt(area / aspect)))
        if 0 < w <= width and 0 < h <= height:
            top = int(uniform(state, draw + 2) * (height - h + 1))
            return top, int(uniform(state, draw + 3) * (width - w + 1)), h, w
    if width < ratio[0] * height:
        h, w = max(1, int(np.rint(width / ratio[0]))), width
    elif width > ratio[1] * height:
        h, w = height, max(1, int(np.rint(height * ratio[1])))
    else:
        h, w = height, width
    return (height - h) // 2, (width - w) // 2, h, w


@nb.njit(nogil=True, cache=True, fastmath=False, error_model="numpy")
def draw_into(settings, heights, widths, seed, epoch, samples, boxes, flips):
    """Write draw_params to boxes and flips, for compiled callers; the images' sides are (B,) arrays."""
    for b in range(len(samples)):
        state = sample_key(seed, epoch, samples[b])
        height, width = heights[b], widths[b]
        top, left, h, w = 0, 0, height, width
        if settings.crop == 1:
            top, left, h, w = _resized_crop(state, height, width, settings.scale, settings.ratio)
        elif settings.crop == 2:
            span = 2 * settings.padding + 1
            top = int(uniform(state, _SHIFT) * span) - settings.padding
            left = int(uniform(state, _SHIFT + 1) * span) - settings.padding
        elif settings.crop == 3:
            h = w = max(1, int(np.rint(settings.center * min(height, width))))
            top, left = (height - h) // 2, (width - w) // 2
        boxes[b, 0], boxes[b, 1], boxes[b, 2], boxes[b, 3] = top, left, h, w
        flips[b] = settings.flip and uniform(state, _FLIP) < 0.5


def draw_params(
    augment: Augment,
    height: int | np.ndarray,  # of the stored images, one or (B,)
    width: int | np.ndarray,
    seed: int,
    epoch: int,
    samples: np.ndarray,  # (B,) sample indices
) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes, (B, 4) int32 as (top, left, height, width), and flips, (B,) bool.

    A box may reach outside of the image (pad_and_crop), where pixels are black.
    """
    samples = np.ascontiguousarray(samples, np.int64)
    sides = [np.ascontiguousarray(np.broadcast_to(side, len(samples)), np.int64) for side in (height, width)]
    boxes, flips = np.empty((len(samples), 4), np.int32), np.empty(len(samples), np.bool_)
    draw_into(to_numba(augment), *sides, np.uint64(seed), np.uint64(epoch), samples, boxes, flips)
    return boxes, flips
