"""What the tests of the loader share: betons of numbered images, a loader on them, expected batches."""

import time

import numpy as np
import pytest
from numbered_images import index_of, numbered

from fastmlp import Loader, OrderOption
from fastmlp.beton.writer import write_beton
from fastmlp.transforms.pipelines import raw_pipelines

SAMPLES = 500
SEQUENTIAL, RANDOM, QUASI_RANDOM = OrderOption.SEQUENTIAL, OrderOption.RANDOM, OrderOption.QUASI_RANDOM


@pytest.fixture(scope="module", name="beton")
def beton_fixture(tmp_path_factory):
    return write_beton(tmp_path_factory.mktemp("beton") / "n.beton", numbered(SAMPLES), 8, seed=None)


@pytest.fixture(scope="module", name="pages")
def pages_fixture(tmp_path_factory):
    """1,500 images of 64 px on three pages."""
    return write_beton(tmp_path_factory.mktemp("beton") / "p.beton", numbered(1500, res=64), 64, seed=None)


def make(beton, batch_size=64, **keywords):
    """Return a loader of raw images and labels with one worker."""
    return Loader(beton, batch_size, **{"num_workers": 1, "pipelines": raw_pipelines(), **keywords})


def drain(batches):
    """Return the sample indices of each batch, after checking that labels and pixels belong together."""
    found = []
    for images, labels in batches:
        indices = index_of(images.numpy())
        np.testing.assert_array_equal(labels.numpy(), indices % 7)
        found.append(indices)
    return found


def wait_until(holds, seconds=5):
    """Wait until holds() is true; fail after a time."""
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert holds()


def cut(order, batch_size, drop_last):
    """Return the batches that an order gives."""
    whole = len(order) // batch_size * batch_size if drop_last else len(order)
    return [order[first : first + batch_size] for first in range(0, whole, batch_size)]


def assert_batches(got, expected):
    assert [len(batch) for batch in got] == [len(batch) for batch in expected]
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
