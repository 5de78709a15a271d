"""Augmented pixels from a slow NumPy reference, and a beton of random images to compare with."""

import functools
import math
from pathlib import Path

import numpy as np

from fastmlp.beton.writer import write_beton
from fastmlp.sources.base import ArraySource
from fastmlp.transforms.augment_params import Augment, draw_params

MEAN, STD = np.array([120.0, 110.0, 100.0], np.float32), np.array([60.0, 50.0, 70.0], np.float32)
AUGMENT = Augment("random_resized", (0.2, 1.0), flip=True)
COUNT = 300


def write_noise_beton(path: Path):
    """Write COUNT random images of 16 px, each with its own number as its label; return the path and the images."""
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)
    source = ArraySource(images, np.arange(COUNT), tuple(map(str, range(COUNT))))
    return write_beton(path, source, 16, seed=None), images


def slow_crop(image, box, flip, res):
    """Return one image, (3 * res * res,) float64, computed pixel by pixel."""
    height, width = image.shape[:2]
    return _slow_crop(image.tobytes(), height, width, tuple(int(v) for v in box), bool(flip), res)


@functools.cache  # tests ask for the same crops again, and 100 take a second
def _slow_crop(content, height, width, box, flip, res):
    image, black = np.frombuffer(content, np.uint8).reshape(height, width, 3).astype(float), np.zeros(3)
    top, left, box_h, box_w = box

    def pixel(y, x):  # the border of the box is repeated; black outside of the image
        y, x = top + min(max(y, 0), box_h - 1), left + min(max(x, 0), box_w - 1)
        return image[y, x] if 0 <= y < height and 0 <= x < width else black

    out = np.empty((3, res, res))
    for y in range(res):
        for x in range(res):
            sy, sx = (y + 0.5) * box_h / res - 0.5, (x + 0.5) * box_w / res - 0.5
            y0, x0 = math.floor(sy), math.floor(sx)
            wy, wx = sy - y0, sx - x0
            value = (1 - wy) * ((1 - wx) * pixel(y0, x0) + wx * pixel(y0, x0 + 1)) + wy * (
                (1 - wx) * pixel(y0 + 1, x0) + wx * pixel(y0 + 1, x0 + 1)
            )
            out[:, y, res - 1 - x if flip else x] = (value - MEAN) / STD
    out.flags.writeable = False
    return out.ravel()


def augmented(images, samples, epoch, seed=5, res=24, augment=AUGMENT):
    boxes, flips = draw_params(augment, 16, 16, seed, epoch, samples)
    return np.stack([slow_crop(images[i], *params, res) for i, *params in zip(samples, boxes, flips, strict=True)])


def batches(loader, epoch):
    loader.next_epoch = epoch
    for images, labels in loader:
        yield images.numpy().copy(), labels.numpy().ravel().copy()
