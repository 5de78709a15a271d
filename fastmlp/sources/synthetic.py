"""Synthetic, learnable images: deterministic, of any number, size and class count."""

import numpy as np

from .base import Source

SPLITS = ("train", "test")
MAX_IMAGES, MAX_CLASSES = 100_000_000, 30_000  # more than any data set; each class's pattern is kept in memory


class Synthetic(Source):
    """Each class is a smooth random pattern; each image is that pattern plus noise.

    Image i of a split depends only on (seed, split, i, res, num_classes, noise); `noise` is the standard deviation of
    the noise on the 0-255 scale (that of patterns is about 40). Labels are round robin.
    """

    def __init__(
        self,
        num_images: int,
        num_classes: int = 10,
        res: int = 32,
        split: str = "train",
        seed: int = 0,
        noise: float = 60.0,
    ):
        if num_images > MAX_IMAGES or num_classes > MAX_CLASSES:
            raise ValueError(
                f"a synthetic set has at most {MAX_IMAGES:,} images and {MAX_CLASSES:,} classes, "
                f"not {num_images:,} and {num_classes:,}"
            )
        self.num_images, self.res, self.seed, self.noise = num_images, res, seed, noise
        self.stream = 1 + SPLITS.index(split)
        self.classes = tuple(f"class {k}" for k in range(num_classes))
        coarse = np.random.default_rng([seed, 0]).normal(128, 40, (num_classes, 4, 4, 3))
        cell = np.arange(res) * 4 // res
        self.patterns = coarse[:, cell][:, :, cell]  # (num_classes, res, res, 3)

    def fingerprint(self) -> str:
        return f"{super().fingerprint()} {self.res} {self.stream} {self.seed} {self.noise}"

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        label = index % len(self.classes)
        rng = np.random.default_rng([self.seed, self.stream, index])
        noise = rng.standard_normal((self.res, self.res, 3), dtype=np.float32) * self.noise
        return np.clip(self.patterns[label] + noise, 0, 255).astype(np.uint8), label
