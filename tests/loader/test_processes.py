"""Loaders in several threads and processes: memory, forks, pickling."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import torch
from loading import (
    QUASI_RANDOM,
    RANDOM,
    SAMPLES,
    beton_fixture,  # noqa: F401
    drain,
    make,
    pages_fixture,  # noqa: F401
)
from numbered_images import index_of

from fastmlp.loader.row_threads import RowThreads
from fastmlp.transforms.augment_params import Augment
from fastmlp.transforms.cpu_decoder import AugmentedRGBImageDecoder

BATCHES = int(os.environ.get("FASTMLP_BATCHES", 300))  # scripts/torture.sh: 5,000
AUGMENTED = {"image": [AugmentedRGBImageDecoder(Augment("random_resized"), 8, mean=[1] * 3, std=[2] * 3)]}


def in_a_child(work, seconds=60):
    """Return the exit status of a forked child that runs work(): 0 if it returned, 1 if it raised, -9 if it hung."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("rows, min_rows", [(0, 9), (1, 1), (7, 0), (1000, 30), (64, 1000)])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_parts_cover_the_rows_once(rows, min_rows, count):
    times = np.zeros(rows, int)

    def work(first, last):
        times[first:last] += 1

    with RowThreads(count) as threads:
        for _ in range(20):
            threads.run(work, rows, min_rows)
    assert (times == 20).all() and threading.active_count() < 5 + count


def test_an_error_in_a_part_is_raised_after_all_parts_have_ended():
    ended = []

    def work(first, last):
        if first == 0:
            raise ValueError("first part")
        time.sleep(0.05)
        ended.append(first)

    with RowThreads(8) as threads:
        for _ in range(3):
            ended.clear()
            with pytest.raises(ValueError, match="first part"):
                threads.run(work, 8, 1)
            assert sorted(ended) == [*range(1, 8)]


GROWTH = """if True:
    import sys
    import psutil
    from fastmlp import Loader
    from fastmlp.loader import loader as module
    from fastmlp.transforms.augment_params import Augment
    from fastmlp.transforms.cpu_decoder import AugmentedRGBImageDecoder
    module.num_cores = module.cores_per_process = lambda: 3
    loader = Loader(sys.argv[1], 50, 3, pipelines={"image": [AugmentedRGBImageDecoder(Augment(), 32)]})
    received, batches, before = 0, int(sys.argv[2]), 0
    while received < 200 + batches:
        for _ in loader:
            received += 1
        before = before or (received >= 200 and psutil.Process().memory_info().rss)
    print(psutil.Process().memory_info().rss - before)
    from numba.np.ufunc import parallel
    assert not parallel._is_initialized, "numba's threads have been started"
"""


def test_memory_stays_flat_and_no_thread_of_numba_is_started(beton):
    """Numba's TBB layer leaks in each parallel loop: 3.7 MB in 5,000 of these batches, 0.2 MB without it."""
    ended = subprocess.run(
        [sys.executable, "-c", GROWTH, str(beton), str(BATCHES)], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 1 << 20


@pytest.mark.serial
def test_two_loaders_at_once(beton):
    """Numba's workqueue layer ends the process here."""
    counts = []

    def epochs():
        with make(beton, 100, num_workers=2, pipelines={"image": AUGMENTED["image"], "label": None}) as loader:
            counts.append(sum(1 for _ in range(20) for _ in loader))

    threads = [threading.Thread(target=epochs) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [100] * 3


@pytest.mark.serial
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: it has threads
def test_a_forked_child_opens_its_own_loader(beton):
    """GNU OpenMP ends the child here. One is forked while the parent loads, and may be compiling."""
    parent = iter(make(beton, 100, num_workers=2, order=RANDOM))

    def child():
        for options in ({}, {"pipelines": {**AUGMENTED, "label": None}}):
            with make(beton, 100, num_workers=2, **options) as loader:
                assert sum(len(batch[0]) for batch in loader) == SAMPLES

    assert in_a_child(child) == 0
    next(parent)
    assert in_a_child(child) == 0


class Batches(torch.utils.data.IterableDataset):
    """Indices of a loader that each DataLoader worker opens for itself."""

    def __init__(self, path):
        self.path = path

    def __iter__(self):
        yield from drain(make(self.path, 100, num_workers=2))


@pytest.mark.serial
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_dataloader_s_workers_open_their_own_loaders(beton):
    drain(make(beton, 100, num_workers=2))
    found = [batch for batch in torch.utils.data.DataLoader(Batches(beton), batch_size=None, num_workers=1)]
    np.testing.assert_array_equal(np.concatenate(found), np.arange(SAMPLES))


@pytest.mark.serial
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("order", [RANDOM, QUASI_RANDOM])
def test_a_forked_child_cannot_use_its_parent_s_iterator(pages, order):
    loader = make(pages, 100, order=order, window_bytes=16 << 20)
    batches = iter(loader)
    next(batches)

    def child():
        with pytest.raises(ValueError, match="forked from"):
            next(batches)
        with loader:  # closes both iterators
            assert sum(len(indices) for indices in drain(loader)) == 1500

    assert in_a_child(child) == 0
    assert sum(1 for _ in batches) == 14  # the parent's own is as it was


def test_what_cannot_be_pickled_says_so(beton):
    with make(beton) as loader:
        with pytest.raises(TypeError, match="loader of .*n.beton cannot be pickled"):
            pickle.dumps(loader)
        with pytest.raises(TypeError, match="iterator cannot be pickled"):
            pickle.dumps(iter(loader))
        with pytest.raises(TypeError, match="n.beton cannot be pickled"):
            pickle.dumps(loader.traversal_order)


def test_a_plain_loop_holds_one_batch(beton):
    """What tells a caller who holds more from one who does not: the process's threads keep no batch."""
    with make(beton, 100, num_workers=2, batches_ahead=0) as loader:
        for _ in range(20):
            for images, labels in loader:
                np.testing.assert_array_equal(labels.numpy(), index_of(images.numpy()) % 7)
    assert psutil.Process().num_threads() < 64
