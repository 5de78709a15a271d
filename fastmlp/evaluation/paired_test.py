"""Comparison of two models on the same images: McNemar's exact test, and an interval of the difference."""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class PairedTest:
    """Two models' top-1 on the same images. Only those that one of them has right tell which is better."""

    only_first: int  # images that only the first model has right
    only_second: int
    images: int

    @property
    def difference(self) -> float:
        """Top-1 of the second model minus that of the first, -1 to 1."""
        return (self.only_second - self.only_first) / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference."""
        return paired_interval(self.only_first, self.only_second, self.images)

    @property
    def p_value(self) -> float:
        return mcnemar_exact(self.only_first, self.only_second)


def compare_pairs(
    first: np.ndarray,  # (N,) bool, whether the first model is right
    second: np.ndarray,  # (N,) bool
) -> PairedTest:
    """Count the images that only one of the models has right."""
    return PairedTest(int((first & ~second).sum()), int((second & ~first).sum()), len(first))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Return the two-sided p value of McNemar's exact test.

    It is the probability that fair coins, one for each image that only one model has right, fall as unevenly or more.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    k = np.arange(1, fewer + 1)
    logs = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k))]) - n * np.log(2.0)  # of binomial(n, 1/2)
    return float(min(1.0, 2.0 * np.exp(logs - logs.max()).sum() * np.exp(logs.max())))


def paired_interval(only_first: int, only_second: int, images: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of the difference of two shares of the same images, (low, high) (Agresti and Min 2005).

    It is Wald's, with half an image added to each of the four cells of the table of right and wrong.
    """
    first, second, n = only_first + 0.5, only_second + 0.5, images + 2
    middle = (second - first) / n
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * (first + second - (second - first) ** 2 / n) ** 0.5 / n
    return max(-1.0, middle - half), min(1.0, middle + half)
