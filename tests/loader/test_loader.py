"""The loader against a plain NumPy model of it, and against faults, interruption and time."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import ffcv.loader
import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT
from ffcv.fields import FloatField, IntField, NDArrayField, RGBImageField
from ffcv.fields.decoders import IntDecoder, NDArrayDecoder, SimpleRGBImageDecoder
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.pipeline_spec import PipelineSpec
from ffcv.transforms import Squeeze, ToDevice, ToTensor
from ffcv.traversal_order.base import TraversalOrder
from ffcv.traversal_order.quasi_random import QuasiRandom
from ffcv.traversal_order.sequential import Sequential
from ffcv.writer import DatasetWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_images import index_of, numbered

from fastmlp import Loader, OrderOption
from fastmlp.beton import layout
from fastmlp.beton.writer import write_beton
from fastmlp.loader.loader import clamp_workers
from fastmlp.loader.order import random_order, shard, windowed_order
from fastmlp.loader.read_ahead import Windows
from fastmlp.transforms.pipelines import raw_pipelines

SAMPLES = 500
SEQUENTIAL, RANDOM, QUASI_RANDOM = OrderOption.SEQUENTIAL, OrderOption.RANDOM, OrderOption.QUASI_RANDOM


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    return write_beton(tmp_path_factory.mktemp("beton") / "n.beton", numbered(SAMPLES), 8, seed=None)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """1,500 images of 64 px on three pages."""
    return write_beton(tmp_path_factory.mktemp("beton") / "p.beton", numbered(1500, res=64), 64, seed=None)


def make(beton, batch_size=64, **keywords):
    return Loader(beton, batch_size, **{"num_workers": 1, "pipelines": raw_pipelines(), **keywords})


def drain(batches):
    """Indices of the samples in each batch; checks that labels and pixels belong together."""
    found = []
    for images, labels in batches:
        indices = index_of(images.numpy())
        np.testing.assert_array_equal(labels.numpy(), indices % 7)
        found.append(indices)
    return found


def wait_until(holds, seconds=5):
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert holds()


def cut(order, batch_size, drop_last):
    whole = len(order) // batch_size * batch_size if drop_last else len(order)
    return [order[first : first + batch_size] for first in range(0, whole, batch_size)]


def assert_batches(got, expected):
    assert [len(batch) for batch in got] == [len(batch) for batch in expected]
    for mine, theirs in zip(got, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


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
    with make(pages, 100, order=QUASI_RANDOM, seed=1, window_bytes=16 << 20) as loader:  # a page a window
        per_page = (8 << 20) // (3 * 64 * 64)
        for _ in range(3):
            page = np.concatenate(drain(loader)) // per_page
            assert (np.diff(page) != 0).sum() == 2  # one page after the other
    order, window, members = windowed_order(np.arange(90), np.arange(90) // 10, 2, 0, 0)
    assert [len(m) for m in members] == [2, 2, 2, 2, 1] and sorted(order) == list(range(90))
    for number, m in enumerate(members):
        assert set(order[window == number] // 10) == set(m)


class Watched:
    """What Windows asks of a beton: ten pages of 4 bytes; reads wait until they are let through."""

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
    assert beton.fetched == [(0, 8), (20, 4), (36, 2)]  # up to the allocation table, no further
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


# --- resuming


@pytest.mark.parametrize("order", [SEQUENTIAL, RANDOM, QUASI_RANDOM])
@pytest.mark.parametrize("drop_last", [True, False])
def test_resume_after_every_batch(beton, order, drop_last):
    options = {"order": order, "seed": 5, "drop_last": drop_last}
    with make(beton, 60, **options) as loader:
        epochs = [drain(loader) for _ in range(3)]
    for received in range(len(epochs[1]) + 1):
        with make(beton, 60, **options) as loader:
            drain(loader)
            batches = iter(loader)
            for _ in range(received):
                next(batches)
            time.sleep(0.01)  # what has been loaded ahead does not count
            state = loader.state_dict()
        with make(beton, 60, **options) as loader:
            loader.load_state_dict(state)
            assert loader.state_dict() == state
            assert_batches(drain(loader), epochs[1][received:])
            assert_batches(drain(loader), epochs[2])
    with make(beton, 60, **options) as loader:  # an exhausted epoch is over
        drain(loader)
        state = loader.state_dict()
        assert (state["epoch"], state["samples"]) == (1, 0)


def test_resume_with_another_batch_size_goes_on_at_the_sample(beton):
    with make(beton, 60, order=RANDOM, seed=5) as loader:
        batches = iter(loader)
        head = [index_of(next(batches)[0].numpy()) for _ in range(3)]
        state = loader.state_dict()
    with make(beton, 32, order=RANDOM, seed=5, drop_last=False) as loader:
        loader.load_state_dict(state)
        rest = drain(loader)
    np.testing.assert_array_equal(np.concatenate(head + rest), random_order(np.arange(SAMPLES), 5, 0))


def test_states_of_others_are_refused(beton, pages):
    state = make(beton, order=RANDOM, seed=1).state_dict()
    for other, message in (
        (make(pages, order=RANDOM, seed=1), "beton"),
        (make(beton, order=RANDOM, seed=2), r"seed 1 \(here 2\)"),
        (make(beton, order=SEQUENTIAL, seed=1), "order"),
        (make(beton, order=RANDOM, seed=1, indices=[1, 2]), "indices"),
    ):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
    for wrong in ({}, {**state, "samples": 501}, {**state, "samples": -1}, {**state, "epoch": -1}):
        with pytest.raises(ValueError):
            make(beton, order=RANDOM, seed=1).load_state_dict(wrong)
    windowed = make(beton, order=QUASI_RANDOM, seed=1, window_bytes=16 << 20).state_dict()
    with pytest.raises(ValueError, match="window_bytes"):
        make(beton, order=QUASI_RANDOM, seed=1).load_state_dict(windowed)


# --- buffers


def addresses(loader):
    return {images.data_ptr() for images, _ in loader}


def test_buffers_are_kept_over_epochs_and_after_a_break(beton):
    with make(beton, 64, batches_ahead=1) as loader:
        first = addresses(loader)
        assert len(first) <= 3
        for _ in range(5):
            first |= addresses(loader)
            batches = iter(loader)
            next(batches)
            batches.close()
        assert len(first) <= 3


def test_tensors_that_the_caller_holds_are_never_overwritten(beton):
    with make(beton, 64, batches_ahead=1, order=RANDOM, seed=0) as loader:
        referenced = []
        for _ in range(6):
            images, labels = next(iter(loader))
            referenced.append((images, labels, images.clone(), labels.clone()))
            part = images[3:5, 0]  # a view is enough
            referenced.append((part, part, part.clone(), part.clone()))
            for _ in loader:
                pass
        for images, labels, image_copy, label_copy in referenced:
            assert torch.equal(images, image_copy) and torch.equal(labels, label_copy)


@pytest.mark.parametrize("pinned", [False, True])
def test_tensors_behind_torch_buffers_are_never_overwritten(beton, monkeypatch, pinned):
    if pinned:  # as on a machine with CUDA
        monkeypatch.setattr("fastmlp.device.host_buffer", lambda n: torch.empty(n, dtype=torch.uint8).numpy())
    image = [SimpleRGBImageDecoder(), ToTensor(), *([] if pinned else [ToDevice(torch.device("cpu"))])]
    with make(beton, 64, pipelines={"image": image, "label": None}, order=RANDOM, seed=0) as loader:
        referenced = [(images, images.clone()) for (images,) in (next(iter(loader)) for _ in range(5))]
        for _ in range(3):
            for _ in loader:
                pass
        assert all(torch.equal(images, copy) for images, copy in referenced)


def test_a_plain_loop_allocates_no_slot_per_epoch(beton, monkeypatch):
    with make(beton, 64, batches_ahead=1) as loader:
        made, real = [], type(loader.program).new_slot
        monkeypatch.setattr(type(loader.program), "new_slot", lambda *a: made.append(1) or real(*a))
        for _ in range(12):
            for images, _ in loader:  # noqa: B007  leaves the last batch bound
                pass
        assert len(made) <= 4


def test_batch_size_may_change_between_epochs(beton):
    with make(beton, 16) as loader:
        for size in (16, 250, 30):
            loader.batch_size = size
            assert_batches(drain(loader), cut(np.arange(SAMPLES), size, True))


def test_rows_of_any_length(tmp_path):
    source = numbered(40, res=5)  # 75 bytes: no whole cache lines
    with make(write_beton(tmp_path / "x.beton", source, 5, seed=None), 40) as loader:
        ((images, _),) = loader
        np.testing.assert_array_equal(images, source.images)


def test_consumers_in_several_threads_all_end(beton):
    with make(beton, 10) as loader:
        batches, ended = iter(loader), []
        count = lambda: ended.append(sum(1 for _ in batches))  # noqa: E731
        threads = [threading.Thread(target=count, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert sum(ended) == SAMPLES // 10 and len(ended) == 4


def test_two_iterators_at_once(beton):
    with make(beton, 50) as loader:
        for (a, _), (b, _) in zip(loader, loader, strict=True):
            np.testing.assert_array_equal(index_of(a.numpy()), index_of(b.numpy()))
            assert a.data_ptr() != b.data_ptr()


def test_broken_off_iterators_leave_nothing(beton):
    rng = np.random.default_rng(0)
    with make(beton, 20, order=RANDOM, seed=0) as loader:
        for _ in loader:
            pass
        threads, memory = threading.active_count(), psutil.Process().memory_info().rss
        for number in range(1000):
            batches = iter(loader)
            for _ in range(rng.integers(0, 8)):
                next(batches)
            if number % 3 == 0:
                batches.close()
        del batches
        gc.collect()
        wait_until(lambda: threading.active_count() == threads)
        assert psutil.Process().memory_info().rss - memory < 20 << 20
        assert np.concatenate(drain(loader)).size == SAMPLES // 20 * 20


def test_dropping_the_iterator_ends_its_thread(pages):
    for order in (RANDOM, QUASI_RANDOM):
        batches = iter(make(pages, 100, order=order, window_bytes=16 << 20))
        next(batches)
        assert [t for t in threading.enumerate() if t.name.startswith("fastmlp")]
        del batches
        gc.collect()
        wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("fastmlp")])


def test_closed_loaders_say_so(beton):
    loader = make(beton)
    batches = iter(loader)
    next(batches)
    loader.close()
    with pytest.raises(StopIteration):
        next(batches)
    with pytest.raises(ValueError, match="is closed"):
        iter(loader)


# --- faults


class Spoil(Operation):
    """Raises in the batch that holds sample 150."""

    def generate_code(self):
        def spoil(images, _, indices):
            if 150 in indices:
                raise RuntimeError("spoilt")
            return images

        spoil.with_indices = True
        return spoil

    def declare_state_and_memory(self, previous):
        return previous, None


def test_an_operation_that_raises(beton):
    pipelines = {"image": [SimpleRGBImageDecoder(), ToTensor(), Spoil()], "label": None}
    with make(beton, 60, pipelines=pipelines) as loader:
        for _ in range(2):  # and once more
            received = 0
            with pytest.raises(RuntimeError, match="spoilt") as raised:
                for _ in loader:
                    received += 1
            assert received == 2
            if sys.version_info >= (3, 11):
                assert f"batch 2 of epoch {loader.next_epoch - 1} of {beton}" in raised.value.__notes__[0]


class Stop(Operation):
    def generate_code(self):
        def stop(images, _):
            raise StopIteration

        return stop

    def declare_state_and_memory(self, previous):
        return previous, None


def test_stop_iteration_in_an_operation_is_an_error(beton):
    pipelines = {"image": [SimpleRGBImageDecoder(), ToTensor(), Stop()], "label": None}
    with make(beton, 60, pipelines=pipelines) as loader, pytest.raises(RuntimeError, match="StopIteration"):
        next(iter(loader))


def test_a_file_cut_short_while_open(tmp_path):
    path = write_beton(tmp_path / "x.beton", numbered(200, res=64), 64)
    with make(path, 10, batches_ahead=1) as loader:
        batches = iter(loader)
        next(batches)
        time.sleep(0.5)  # until the thread waits for a slot: a cut in the middle of a gather would end the process
        os.truncate(path, 1 << 20)
        with pytest.raises(OSError, match="cut short while open"):
            for _ in batches:
                pass
        with pytest.raises(OSError, match="cut short while open"):
            next(iter(loader))


def test_no_memory_for_buffers(beton, monkeypatch):
    def exhausted(_):
        raise MemoryError("no memory for buffers")

    with make(beton) as loader:
        monkeypatch.setattr("fastmlp.device.host_buffer", exhausted)
        with pytest.raises(MemoryError, match="no memory for buffers"):
            next(iter(loader))
        monkeypatch.undo()
        assert len(drain(loader)) == SAMPLES // 64


def test_bad_arguments(beton, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        make(tmp_path / "none.beton")
    (tmp_path / "text.beton").write_text("hello" * 100)
    with pytest.raises(ValueError, match="not a beton"):
        make(tmp_path / "text.beton")
    with pytest.raises(ValueError, match="reach outside of the 500 samples"):
        make(beton, indices=[0, 500])
    with pytest.raises(ValueError, match="reach outside"):
        make(beton, indices=[-1])
    for wrong in (
        {"batch_size": 0},
        {"batches_ahead": -1},
        {"cache": "disk"},
        {"order": "random"},
        {"pipelines": {"image": 3}},
    ):
        with pytest.raises(ValueError):
            make(beton, **wrong)


def test_workers_are_clamped_with_a_notice():
    with pytest.warns(UserWarning, match="num_workers=999 is more than"):
        assert clamp_workers(999) == clamp_workers(0) == clamp_workers(-1) >= 1
    assert clamp_workers(1) == 1


INTERRUPTED = """
import sys, time
from fastmlp import Loader, OrderOption
from fastmlp.beton import layout
loader = Loader(sys.argv[1], 10, order=OrderOption.RANDOM)
print("ready", flush=True)
while True:
    for batch in loader:
        time.sleep(0.001)
"""
LEFT_OPEN = """
import sys
from fastmlp import Loader
batches = iter(Loader(sys.argv[1], 10))
next(batches)
"""


def test_interpreter_exit_with_an_open_iterator(beton):
    command = [sys.executable, "-W", "error", "-c", LEFT_OPEN, str(beton)]
    ended = subprocess.run(command, capture_output=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_ctrl_c(beton):
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(beton)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=10)
    assert err.rstrip().endswith("KeyboardInterrupt") and err.count("Traceback") == 1


# --- what FFCV offers


@pytest.mark.parametrize(
    "module", ["fastmlp.data.split", "fastmlp.loader.mapped_beton", "fastmlp.transforms.cpu_decoder"]
)
def test_importing_leaves_torch_s_threads_alone(module):
    code = "import torch, numba; n, m = torch.get_num_threads(), numba.get_num_threads(); "
    code += f"import {module}; assert (torch.get_num_threads(), numba.get_num_threads()) == (n, m)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "3"})


def test_importing_compiles_nothing():
    """ffcv's own import has numba compile for seconds; what it needs that for is a constant."""
    code = """if True:
        from numba.core.dispatcher import Dispatcher
        Dispatcher.compile = lambda self, signature: (_ for _ in ()).throw(AssertionError(self))
        import fastmlp.loader.loader
        from ffcv.fields import rgb_image
        assert dict(rgb_image.IMAGE_MODES) == {"jpg": 0, "raw": 1}"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torch_keeps_its_threads(beton):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    drain(make(beton))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


class Backwards(TraversalOrder):
    def __init__(self, loader, step=1):
        super().__init__(loader)
        self.step = step

    def sample_order(self, epoch):
        return self.indices[:: -self.step]


def test_custom_traversal_orders(beton):
    backwards = np.arange(SAMPLES)[::-1]
    assert_batches(drain(make(beton, 64, order=Backwards)), cut(backwards, 64, True))
    assert_batches(drain(make(beton, 64, order=Backwards, order_kwargs={"step": 2})), cut(backwards[::2], 64, True))
    instance = Backwards(make(beton))
    assert_batches(drain(make(beton, 64, order=instance)), cut(backwards, 64, True))


def test_ffcv_s_own_orders_and_one_set_afterwards(pages):
    loader = make(pages, 500, order=QuasiRandom, seed=3)
    stock = ffcv.loader.Loader(str(pages), 500, 1, order=QUASI_RANDOM, seed=3, os_cache=False)
    np.testing.assert_array_equal(loader.first_traversal_order, stock.first_traversal_order)
    assert loader.memory_manager.page_to_samples == dict(stock.memory_manager.page_to_samples)
    assert_batches(drain(loader), cut(stock.next_traversal_order(), 500, True))  # that order keeps a state
    loader.indices = np.arange(7, 1207)
    loader.traversal_order = Sequential(loader)
    assert_batches(drain(loader), cut(np.arange(7, 1207), 500, True))


class Beyond(TraversalOrder):
    def sample_order(self, epoch):
        return np.array([0, SAMPLES])


def test_an_order_that_leaves_the_beton(beton):
    with pytest.raises(ValueError, match="0 to 500 reach outside of the 500 samples"):
        drain(make(beton, 1, order=Beyond))


def test_recompile_makes_the_code_anew(beton, monkeypatch):
    made = []
    whole = Loader.generate_code
    monkeypatch.setattr(Loader, "generate_code", lambda self: made.append(whole(self)))
    for recompile in (False, True):
        with make(beton, recompile=recompile) as loader:
            made.clear()
            drain(loader)
            drain(loader)
            assert len(made) == 2 * recompile


def test_an_allocation_table_in_any_order(tmp_path):
    """What FFCV's writer makes with several workers."""
    path = tmp_path / "records.beton"
    DatasetWriter(str(path), {"array": NDArrayField(np.dtype(np.int32), (5,))}, num_workers=1).from_indexed_dataset(
        [(np.full(5, i, np.int32),) for i in range(40)]
    )
    header = np.fromfile(path, layout.HEADER, 1)
    table = np.memmap(path, layout.ALLOCATION, "r+", offset=int(header["alloc_table_ptr"][0]))
    table[:] = table[np.random.default_rng(0).permutation(len(table))]
    table.flush()
    (batch,) = next(iter(Loader(path, 40, 1)))
    np.testing.assert_array_equal(batch.numpy(), np.arange(40)[:, None].repeat(5, 1))


class Records:
    """JPEG images of varying size, a float and an array."""

    def __len__(self):
        return 90

    def __getitem__(self, i):
        y, x = np.mgrid[0 : 20 + i % 7, 0 : 30 + i % 5]
        image = np.stack([4 * x + i, 5 * y + i, x + y + i], -1).astype(np.uint8)
        return image, i / 3, np.full(4, i, np.float32)


def test_jpeg_variable_sizes_and_other_fields_equal_ffcv_s(tmp_path):
    from ffcv.fields.decoders import CenterCropRGBImageDecoder

    path = tmp_path / "mixed.beton"
    # In a fresh process: FFCV's writer forks, which is not safe in one that has threads.
    subprocess.run(
        [sys.executable, __file__, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        check=True,
        timeout=60,
    )

    def batches(kind):
        image, array = [CenterCropRGBImageDecoder((16, 16), 0.9), ToTensor()], [NDArrayDecoder(), ToTensor()]
        loader = kind(str(path), 32, num_workers=2, pipelines={"image": image, "array": array}, drop_last=False)
        return [tuple(part.clone() for part in batch) for batch in loader]

    loader, sizes = (
        Loader(
            path, 30, num_workers=1, pipelines=(p := {"image": [CenterCropRGBImageDecoder((16, 16), 0.9), ToTensor()]})
        ),
        [],
    )
    for size in (8, 12, 4):  # progressive resizing, as FFCV's ImageNet script does it
        p["image"][0].output_size = (size, size)
        sizes += [batch[0].shape[1] for batch in loader]
    assert sizes == [8] * 3 + [12] * 3 + [4] * 3
    for options in ({}, {"cache": "device"}):
        for mine, theirs in zip(batches(partial(Loader, **options)), batches(ffcv.loader.Loader), strict=True):
            assert len(mine) == 3 and all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


class AddOne(Operation):
    def generate_code(self):
        def add(values, destination):
            destination[: len(values)] = values + 1
            return destination[: len(values)]

        return add

    def declare_state_and_memory(self, previous):
        return previous, AllocationQuery(previous.shape, previous.dtype)


def test_pipelines_that_share_a_decoder_and_user_s_lists_stay_whole(beton):
    decoder = IntDecoder()
    label = [decoder, ToTensor(), Squeeze(1)]
    pipelines = {"image": None, "label": label, "next": PipelineSpec(decoder, transforms=[AddOne(), ToTensor()])}
    for _ in range(2):
        for labels, following in make(beton, 64, pipelines=pipelines):
            assert torch.equal(labels + 1, following[:, 0])
    assert len(label) == 3


def test_filter_keeps_the_right_samples(beton):
    with make(beton, 30, indices=np.arange(100, 200), order=RANDOM, seed=0) as loader:
        only = loader.filter("label", lambda label: int(label) == 3)
        found = np.sort(np.concatenate(drain(Loader(**{**only._args, "drop_last": False}))))
    np.testing.assert_array_equal(found, [i for i in range(100, 200) if i % 7 == 3])


@pytest.mark.parametrize("to_device", [False, True])
@pytest.mark.parametrize("subset", [None, np.arange(499, 0, -3)])
def test_cached_batches_equal_streamed_ones(beton, to_device, subset):
    def batches(cache):
        image = [SimpleRGBImageDecoder(), ToTensor(), *([ToDevice(torch.device("cpu"))] if to_device else [])]
        pipelines = {**raw_pipelines(), "image": image}
        options = {"cache": cache, "order": RANDOM, "seed": 2, "indices": subset, "drop_last": False}
        loader = make(beton, 60, pipelines=pipelines, **options)
        return [(a.clone(), b.clone()) for _ in range(2) for a, b in loader]

    for mine, theirs in zip(batches("device"), batches("none"), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_indices_beyond_the_cache(beton):
    image = [SimpleRGBImageDecoder(), ToTensor(), ToDevice(torch.device("cpu"))]
    with make(beton, 10, pipelines={**raw_pipelines(), "image": image}, cache="device", indices=[*range(90)]) as loader:
        loader.indices = np.arange(90) * 2
        with pytest.raises(IndexError, match="that the loader was made with"):
            drain(loader)


def test_a_cache_that_does_not_fit(beton, monkeypatch):
    monkeypatch.setattr("fastmlp.device.free_bytes", lambda device: 1000)
    with pytest.raises(MemoryError, match=r"takes 0\.\d+ GB, cpu has 0\.00 GB free"):
        make(beton, cache="device")


def test_scalar_fields_alone(tmp_path):
    path = tmp_path / "scalars.beton"
    writer = DatasetWriter(str(path), {"a": IntField(), "b": FloatField()}, num_workers=1)
    writer.from_indexed_dataset([(i, i / 2) for i in range(10)])
    ((a, b),) = Loader(path, 10, num_workers=1, order=QUASI_RANDOM)
    assert sorted(a[:, 0].tolist()) == list(range(10)) and torch.equal(a / 2, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("cache", ["none", "device"])
def test_batches_on_a_gpu(pages, cache):
    image = [SimpleRGBImageDecoder(), ToTensor(), ToDevice(torch.device("cuda"))]
    label = [IntDecoder(), ToTensor(), Squeeze(1), ToDevice(torch.device("cuda"))]
    with make(pages, 100, pipelines={"image": image, "label": label}, order=RANDOM, seed=0, cache=cache) as loader:
        for epoch in range(5):
            received = []
            for images, labels in loader:
                torch.cuda._sleep(1_000_000)  # a consumer that is behind must still see its own batch
                received.append((images[:, 0, 0].clone(), labels.clone()))
            corners = torch.cat([corner for corner, _ in received]).cpu().numpy().astype(int)
            found = corners[:, 0] + 256 * corners[:, 1]
            np.testing.assert_array_equal(found, random_order(np.arange(1500), 0, epoch))
            assert torch.equal(torch.cat([y for _, y in received]).cpu(), torch.from_numpy(found % 7))


if __name__ == "__main__":
    mixed = {
        "image": RGBImageField(write_mode="proportion"),
        "value": FloatField(),
        "array": NDArrayField(np.dtype("float32"), (4,)),
    }
    DatasetWriter(sys.argv[1], mixed, num_workers=2).from_indexed_dataset(Records(), chunksize=10)
