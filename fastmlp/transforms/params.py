"""Random crop boxes and flips, each a pure function of (seed, epoch, sample index).

The same sample in the same epoch is augmented the same way whatever the batch size, worker count, device or
order. The generator is a counter hashed by SplitMix64's finaliser (Steele, Lea, Flood 2014).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
CROP_TRIES = 10  # of torchvision's RandomResizedCrop, before it falls back to the centre
# Draw numbers: which use of randomness a counter belongs to.
_FLIP, _SHIFT, _CROP = 0, 1, 16


@dataclass(frozen=True)
class Augment:
    """What is done to an image.

    crop: "resized" takes a random part of `scale` of the area and `ratio` of width to height (torchvision's
    RandomResizedCrop), "shift" moves the image by up to `shift` pixels over black (pad and crop), "none" keeps it.
    """

    crop: str = "none"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    shift: int = 4
    flip: bool = False


def _mix(x: Any) -> Any:  # uint64, array or scalar
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniforms(
    seed: int,
    epoch: int,
    samples: np.ndarray,  # (B,) sample indices
    draw: int,  # number of the first draw
    count: int = 1,
) -> np.ndarray:
    """(count, B) float64 in [0, 1), each from (seed, epoch, sample, draw + row) alone."""
    key = np.uint64(0)
    with np.errstate(over="ignore"):
        for word in (seed, epoch):
            key = _mix((key ^ np.uint64(word)) + _GOLDEN)
        per_sample = _mix(key + _GOLDEN * (np.asarray(samples).astype(np.uint64) + np.uint64(1)))
        draws = np.arange(draw + 1, draw + count + 1, dtype=np.uint64)[:, None]
        bits = _mix(per_sample + _GOLDEN * draws)
    return (bits >> np.uint64(11)) * 2.0**-53


def draw_params(
    augment: Augment,
    res: int,  # side of the stored images
    seed: int,
    epoch: int,
    samples: np.ndarray,  # (B,) sample indices
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes, (B, 4) int32 as (top, left, height, width), and flips, (B,) bool.

    A box may reach outside of the image (shift): what lies there is black.
    """
    if augment.crop == "resized":
        boxes = _resized_crops(augment, res, seed, epoch, samples)
    else:
        boxes = np.zeros((len(samples), 4), np.int32)
        boxes[:, 2:] = res
        if augment.crop == "shift":
            span = 2 * augment.shift + 1
            boxes[:, :2] = (uniforms(seed, epoch, samples, _SHIFT, 2) * span).astype(np.int32).T - augment.shift
        elif augment.crop != "none":
            raise ValueError(f"unknown crop {augment.crop!r}: expected resized, shift or none")
    flips = uniforms(seed, epoch, samples, _FLIP)[0] < 0.5 if augment.flip else np.zeros(len(samples), bool)
    return boxes, flips


def _resized_crops(augment: Augment, res: int, seed: int, epoch: int, samples: np.ndarray) -> np.ndarray:
    """torchvision's RandomResizedCrop.get_params on square images: the first of ten tries that fits, else all of it."""
    u = uniforms(seed, epoch, samples, _CROP, 4 * CROP_TRIES).reshape(CROP_TRIES, 4, len(samples))
    area = res * res * (augment.scale[0] + u[:, 0] * (augment.scale[1] - augment.scale[0]))
    low, high = (math.log(r) for r in augment.ratio)
    ratio = np.exp(low + u[:, 1] * (high - low))
    width, height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))  # (tries, B)
    fits = (width > 0) & (width <= res) & (height > 0) & (height <= res)
    chosen = fits.argmax(axis=0), np.arange(len(samples))
    width, height = width[chosen], height[chosen]
    boxes = np.stack(
        [np.floor(u[:, 2][chosen] * (res - height + 1)), np.floor(u[:, 3][chosen] * (res - width + 1)), height, width],
        axis=1,
    )
    # Nothing fitted: torchvision's fallback, the greatest centre box within the ratios. A square image is within.
    if not augment.ratio[0] <= 1 <= augment.ratio[1]:
        raise ValueError(f"crop ratio {augment.ratio} must include 1, the images are square")
    boxes[~fits.any(axis=0)] = (0, 0, res, res)
    return boxes.astype(np.int32)
