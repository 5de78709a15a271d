"""Who stands where in each epoch, and what is refused."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_beton import index_of, numbered

from fastmlp import Loader, OrderOption
from fastmlp.beton.writer import write_beton
from fastmlp.loader.loader import clamp_workers, raw_pipelines
from fastmlp.loader.order import shuffled


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    return write_beton(tmp_path_factory.mktemp("beton") / "n.beton", numbered(500), 8, seed=None)


def epochs(beton, count, **keywords):
    loader = Loader(beton, 64, 1, pipelines=raw_pipelines(), **keywords)
    for _ in range(count):
        seen = [(index_of(images.numpy()), labels.numpy().copy()) for images, labels in loader]
        yield np.concatenate([x for x, _ in seen]), np.concatenate([y for _, y in seen])


def test_random_epochs_are_permutations_and_differ(beton):
    runs = {seed: [x for x, _ in epochs(beton, 3, order=OrderOption.RANDOM, seed=seed, drop_last=False)]
            for seed in range(3)}  # fmt: skip
    every = [tuple(order) for orders in runs.values() for order in orders]
    assert len(set(every)) == len(every)  # FFCV's seed + epoch would repeat
    for seed, orders in runs.items():
        for epoch, order in enumerate(orders):
            np.testing.assert_array_equal(order, shuffled(np.arange(500), seed, epoch))
            assert sorted(order) == list(range(500))


def test_sequential_and_partial_batches(beton):
    (order, labels), = epochs(beton, 1, drop_last=False)  # fmt: skip
    np.testing.assert_array_equal(order, np.arange(500))
    np.testing.assert_array_equal(labels, np.arange(500) % 7)
    (order, _), = epochs(beton, 1, drop_last=True)  # fmt: skip
    np.testing.assert_array_equal(order, np.arange(448))


def test_labels_stay_with_their_images(beton):
    ((order, labels),) = epochs(beton, 1, order=OrderOption.RANDOM, seed=1)
    np.testing.assert_array_equal(labels, order % 7)


def test_workers_are_clamped_with_a_notice():
    with pytest.warns(UserWarning, match="num_workers=999 is more than"):
        assert clamp_workers(999) == clamp_workers(0) == clamp_workers(-1) >= 1
    assert clamp_workers(1) == 1


def test_importing_leaves_torch_s_threads_alone():
    code = "import torch; n = torch.get_num_threads(); import fastmlp.pipelines; assert torch.get_num_threads() == n"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "3"})


def test_torch_keeps_its_threads(beton):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    Loader(beton, 64, 1)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        Loader(tmp_path / "none.beton", 64)
    (tmp_path / "text.beton").write_text("hello" * 100)
    with pytest.raises(ValueError, match="not a beton"):
        Loader(tmp_path / "text.beton", 64)
