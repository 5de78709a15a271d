"""Buffers, iterators and threads of the loader: reused, never overwritten, ended."""

import gc
import threading

import numpy as np
import psutil
import pytest
import torch
from ffcv.fields.decoders import SimpleRGBImageDecoder
from ffcv.transforms import ToDevice, ToTensor
from loading import (
    QUASI_RANDOM,
    RANDOM,
    SAMPLES,
    assert_batches,
    beton_fixture,  # noqa: F401
    cut,
    drain,
    make,
    pages_fixture,  # noqa: F401
    wait_until,
)
from numbered_images import index_of, numbered

from fastmlp.beton.writer import write_beton


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
    if pinned:  # as for a pipeline that sends to an accelerator
        monkeypatch.setattr("fastmlp.device.host_buffer", lambda n, pinned: torch.empty(n, dtype=torch.uint8).numpy())
    image = [SimpleRGBImageDecoder(), ToTensor(), *([] if pinned else [ToDevice(torch.device("cpu"))])]
    with make(beton, 64, pipelines={"image": image, "label": None}, order=RANDOM, seed=0) as loader:
        referenced = [(images, images.clone()) for (images,) in (next(iter(loader)) for _ in range(5))]
        for _ in range(3):
            for _ in loader:
                pass
        assert all(torch.equal(images, copy) for images, copy in referenced)


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_lists_of_batches(beton, ahead):
    """As with FFCV, batches_ahead + 2 batches may be held; whoever holds more is told, once."""
    with make(beton, 25, batches_ahead=ahead, order=RANDOM, seed=0) as loader:
        loader.indices = np.arange(25 * (ahead + 2))
        for _ in range(5):
            assert (
                np.concatenate(drain(list(loader))).tolist()
                == loader.traversal_order.sample_order(loader.next_epoch - 1).tolist()
            )
        loader.indices = np.arange(SAMPLES)
        with pytest.warns(UserWarning, match=rf"no more than {ahead + 2} are \(batches_ahead \+ 2\)") as told:
            for _ in range(3):
                list(loader)
        assert len(told) == 1 and told[0].filename == __file__


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


@pytest.mark.filterwarnings("ignore:a batch of .* still in use")  # by a thread that waits for the next one
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
