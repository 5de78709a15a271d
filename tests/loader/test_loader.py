"""The loader against a plain NumPy model of it: batches, orders, windows, ranks."""

import os
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import (
    QUASI_RANDOM,
    RANDOM,
    SAMPLES,
    SEQUENTIAL,
    assert_batches,
    beton_fixture,  # noqa: F401
    cut,
    drain,
    make,
    pages_fixture,  # noqa: F401
)

from fastmlp.loader.order import random_order, shard, windowed_order
from fastmlp.loader.read_ahead import Windows


@pytest.mark.filterwarnings("ignore:an epoch of .* has fewer samples")
@settings(max_examples=25, deadline=None)
@given(
    order=st.sampled_from([SEQUENTIAL, RANDOM, QUASI_RANDOM]),
    batch_size=st.integers(1, 600),
    seed=st.integers(0, 9),
    drop_last=st.booleans(),
    ahead=st.integers(0, 4),
    workers=st.integers(1, 2),
    subset=st.none() | st.lists(st.integers(0, SAMPLES - 1), max_size=300),
    first_epoch=st.integers(0, 5),
)
def test_batches_equal_the_numpy_model(beton, order, batch_size, seed, drop_last, ahead, workers, subset, first_epoch):
    indices = np.arange(SAMPLES) if subset is None else np.array(subset, int)
    with make(
        beton,
        batch_size,
        order=order,
        seed=seed,
        drop_last=drop_last,
        batches_ahead=ahead,
        num_workers=workers,
        indices=subset,
    ) as loader:
        loader.next_epoch = first_epoch
        for epoch in range(first_epoch, first_epoch + 2):
            expected = indices
            if order == RANDOM:
                expected = random_order(indices, seed, epoch)
            elif order == QUASI_RANDOM and len(indices):
                expected = windowed_order(indices, np.ones(len(indices), int), 64, seed, epoch)[0]
            batches = cut(expected, batch_size, drop_last)
            assert len(loader) == len(batches)
            assert_batches(drain(loader), batches)


@pytest.mark.parametrize("order", [RANDOM, QUASI_RANDOM])
def test_epochs_are_permutations_that_never_repeat(pages, order):
    seen = set()
    for seed in range(4):
        with make(pages, 500, order=order, seed=seed, window_bytes=32 << 20) as loader:
            for _ in range(4):
                epoch = np.concatenate(drain(loader))
                assert sorted(epoch) == list(range(1500))
                seen.add(tuple(epoch))
    assert len(seen) == 16  # FFCV's seed + epoch would repeat


def test_windows_hold_what_they_say(pages):
    with make(pages, 100, order=QUASI_RANDOM, seed=1, window_bytes=16 << 20) as loader:  # one page in each window
        per_page = (8 << 20) // (3 * 64 * 64)
        for _ in range(3):
            page = np.concatenate(drain(loader)) // per_page
            assert (np.diff(page) != 0).sum() == 2  # one page after the other
    order, window, members = windowed_order(np.arange(90), np.arange(90) // 10, 2, 0, 0)
    assert [len(m) for m in members] == [2, 2, 2, 2, 1] and sorted(order) == list(range(90))
    for number, m in enumerate(members):
        assert set(order[window == number] // 10) == set(m)


class Watched:
    """A beton as Windows sees it: ten pages of 4 bytes, whose reads wait for the gate."""

    page_size, header, file_name = 4, {"alloc_table_ptr": 38}, "watched"

    def __init__(self):
        self.fetched, self.released, self.gate = [], [], threading.Semaphore(0)

    def fetch(self, start, count):
        self.gate.acquire()
        self.fetched.append((start, count))

    def release(self, start, count):
        self.released.append((start, count))


def test_windows_are_read_before_their_batches_and_dropped_behind():
    beton = Watched()
    pages = [np.array([1, 0]), np.array([9, 5]), np.array([3, 2])]
    windows = Windows(beton, pages, spans=[(0, 0), (0, 1), (1, 2)])
    entered = threading.Thread(target=windows.enter, args=(0,))
    entered.start()
    time.sleep(0.1)
    assert entered.is_alive()  # nothing has been read
    beton.gate.release()
    entered.join(5)
    assert beton.fetched == [(0, 8)]  # adjacent pages in one read
    for _ in range(2):
        beton.gate.release()
    windows.enter(1)
    assert beton.fetched == [(0, 8), (20, 4), (36, 2)]  # only up to the allocation table
    time.sleep(0.1)
    assert not beton.released  # batch 1 needs both
    beton.gate.release()
    windows.enter(2)
    assert beton.fetched[3:] == [(8, 8)] and beton.released == [(0, 8)]
    windows.stop()
    windows.thread.join(5)
    assert beton.released == [(0, 8), (20, 4), (36, 2), (8, 8)]


@pytest.mark.parametrize("exceeds", [True, False])
def test_the_page_cache_keeps_what_it_can(pages, monkeypatch, exceeds):
    monkeypatch.setattr("fastmlp.loader.mapped_beton.MappedBeton.exceeds_memory", exceeds)
    dropped, advised = [], []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: dropped.append(arguments))
    monkeypatch.setattr(
        "fastmlp.loader.mapped_beton.MappedBeton.expect_random_reads", lambda self: advised.append(self)
    )
    with make(pages, 500, order=QUASI_RANDOM, window_bytes=16 << 20) as loader:
        drain(loader)
    make(pages, 500, order=RANDOM).close()
    assert bool(dropped) == bool(advised) == exceeds


@settings(deadline=None)
@given(st.integers(1, 50), st.integers(1, 7))
def test_ranks_share_like_distributed_sampler(count, world_size):
    order = np.random.default_rng(count).permutation(count)
    parts = [shard(order, rank, world_size) for rank in range(world_size)]
    for rank, part in enumerate(parts):
        sampler = torch.utils.data.DistributedSampler(order, world_size, rank, shuffle=False)
        np.testing.assert_array_equal(part, order[list(sampler)])
    assert {len(part) for part in parts} == {-(-count // world_size)}
    assert set(np.concatenate(parts)) == set(range(count))


@pytest.mark.parametrize("order", [SEQUENTIAL, RANDOM, QUASI_RANDOM])
def test_distributed_loaders_cover_the_epoch(beton, order, monkeypatch):
    whole = np.concatenate(drain(make(beton, 50, order=order, seed=3, drop_last=False)))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        loader = make(beton, 50, order=order, seed=3, drop_last=False, distributed=True)
        assert len(loader) == 4
        parts.append(np.concatenate(drain(loader)))
        np.testing.assert_array_equal(parts[-1], shard(whole, rank, 3))
    assert {len(part) for part in parts} == {167}


def test_distributed_needs_its_group(beton):
    with pytest.raises(RuntimeError, match="init_process_group"):
        make(beton, distributed=True)
