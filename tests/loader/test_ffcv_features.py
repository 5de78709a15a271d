"""Features of FFCV that the loader keeps as a drop-in: orders, decoders, fields, filter."""

import os
import subprocess
import sys
from functools import partial

import ffcv.loader
import numpy as np
import pytest
import torch
from conftest import ROOT
from ffcv.fields import FloatField, IntField, NDArrayField
from ffcv.fields.decoders import IntDecoder, NDArrayDecoder, SimpleRGBImageDecoder
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.pipeline_spec import PipelineSpec
from ffcv.transforms import (
    Cutout,
    ImageMixup,
    NormalizeImage,
    ReplaceLabel,
    Squeeze,
    ToTensor,
)
from ffcv.traversal_order.base import TraversalOrder
from ffcv.traversal_order.quasi_random import QuasiRandom
from ffcv.traversal_order.sequential import Sequential
from ffcv.writer import DatasetWriter
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

from fastmlp import Loader
from fastmlp.beton import layout


@pytest.mark.parametrize(
    "module", ["fastmlp.data.split", "fastmlp.loader.mapped_beton", "fastmlp.transforms.cpu_decoder"]
)
def test_importing_leaves_torch_s_threads_alone(module):
    code = "import torch, numba; n, m = torch.get_num_threads(), numba.get_num_threads(); "
    code += f"import {module}; assert (torch.get_num_threads(), numba.get_num_threads()) == (n, m)"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "OMP_NUM_THREADS": "3"})


def test_importing_compiles_nothing():
    """ffcv's own import makes numba compile for seconds, only for a constant."""
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
    assert_batches(drain(loader), cut(stock.next_traversal_order(), 500, True))  # that order has a state
    loader.indices = np.arange(7, 1207)
    loader.traversal_order = Sequential(loader)
    assert_batches(drain(loader), cut(np.arange(7, 1207), 500, True))


@pytest.mark.parametrize("order", [SEQUENTIAL, RANDOM, QUASI_RANDOM])
def test_ffcv_s_recipe_of_changing_the_indices_of_the_order(beton, order):
    with make(beton, 50, order=order, seed=0) as loader:
        drain(loader)
        loader.traversal_order.indices = [*range(400, 500), 3, 2]  # a list, as in the constructor
        assert len(loader) == 2 and len(loader.indices) == len(loader.next_traversal_order()) == 102
        found = np.concatenate(drain(loader))
        assert len(set(found)) == 100 and set(found) <= {*range(400, 500), 3, 2}
        if order == SEQUENTIAL:
            assert found.tolist() == [*range(400, 500)]
        loader.traversal_order.indices = None
        assert len(loader) == 10


def test_the_length_follows_the_indices_of_an_order_of_one_s_own(beton):
    loader = make(beton, 50, order=Backwards)
    assert len(loader) == 10
    loader.traversal_order.indices = [*range(60)]
    assert len(loader) == 1 and len(drain(loader)) == 1


@pytest.mark.parametrize("indices", [[-1], [[0, 1], [2, 3]], np.array(3), [0.5], [SAMPLES], {1, 2}, "ab"])
def test_wrong_indices_are_refused_whenever_they_are_set(beton, indices):
    with pytest.raises(ValueError, match="indices"):
        make(beton, indices=indices)
    with make(beton, 10, indices=range(20)) as loader:
        for changed in (loader, loader.traversal_order):
            with pytest.raises(ValueError, match="indices"):
                changed.indices = indices
        assert np.concatenate(drain(loader)).tolist() == [*range(20)]
        loader.indices[3] = SAMPLES  # in place
        with pytest.raises(ValueError, match="reach outside"):
            iter(loader)


def test_two_dimensions_from_an_order_of_one_s_own(beton):
    with make(beton, order=Backwards) as loader, pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        loader.traversal_order.indices = np.array([[0, 1], [2, 3]])
        drain(loader)


def test_other_settings_are_checked_when_they_have_changed(beton):
    with make(beton, 10) as loader:
        for name, wrong in (("batch_size", 0), ("batches_ahead", -1)):
            before = getattr(loader, name)
            setattr(loader, name, wrong)
            with pytest.raises(ValueError, match=name):
                iter(loader)
            setattr(loader, name, before)
        loader.num_workers = -1
        assert len(drain(loader)) == 50


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
    """FFCV's writer makes such tables with several workers."""
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


def test_jpeg_variable_sizes_and_other_fields_equal_ffcv_s(tmp_path):
    from ffcv.fields.decoders import CenterCropRGBImageDecoder

    path = tmp_path / "mixed.beton"
    # In a fresh process: FFCV's writer forks, which is not safe in one that has threads.
    subprocess.run([sys.executable, ROOT / "tests/loader/mixed_beton.py", path], check=True, timeout=60)

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
    expected = batches(ffcv.loader.Loader)
    for options in ({}, {"cache": "device"}):
        for mine, theirs in zip(batches(partial(Loader, **options)), expected, strict=True):
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


class Negate(Operation):
    """An operation of one's own whose loop is parallel."""

    def __init__(self, by_row):
        super().__init__()
        self.by_row = by_row

    def generate_code(self):
        my_range = Compiler.get_iterator()

        def negate(images, destination):
            for i in my_range(len(images)):
                destination[i] = 255 - images[i]
            return destination

        negate.is_parallel = True
        if self.by_row:
            negate.by_row = True
        return negate

    def declare_state_and_memory(self, previous):
        return previous, AllocationQuery(previous.shape, previous.dtype)


def test_ffcv_s_operations_in_parts_equal_those_of_ffcv(beton):
    def pipelines(by_row):
        image = [SimpleRGBImageDecoder(), Negate(by_row), Cutout(8, (7, 8, 9))]
        mixed = [SimpleRGBImageDecoder(), ImageMixup(0.8, True)]
        label = [IntDecoder(), ReplaceLabel(np.arange(0, SAMPLES, 3), 77), ToTensor()]
        return {
            "image": [*image, NormalizeImage(np.full(3, 5.0), np.full(3, 2.0), np.float32)],
            "mixed": PipelineSpec("image", mixed[0], mixed[1:]),
            "label": label,
        }

    stock = ffcv.loader.Loader(str(beton), 100, 1, pipelines=pipelines(False))
    with make(beton, 100, num_workers=2, pipelines=pipelines(True)) as loader:
        parts = {step.node: [] for step in loader.program.steps}
        for step in loader.program.steps:
            step.part_bytes, whole = 1, step.function
            step.function = lambda *a, whole=whole, node=step.node: parts[node].append(len(a[0])) or whole(*a)
        for mine, theirs in zip(loader, stock, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert [max(lengths) < 100 for lengths in parts.values()].count(False) == 3  # MixUp, the labels' read, ToTensor
    with pytest.warns(UserWarning, match="parallel loop of Negate runs on one thread"):
        make(beton, pipelines=pipelines(False))


def test_filter_keeps_the_right_samples(beton):
    with make(beton, 30, indices=np.arange(100, 200), order=RANDOM, seed=0) as loader:
        only = loader.filter("label", lambda label: int(label) == 3)
        found = np.sort(np.concatenate(drain(Loader(**{**only._args, "drop_last": False}))))
    np.testing.assert_array_equal(found, [i for i in range(100, 200) if i % 7 == 3])


def test_filter_after_changes(beton, monkeypatch, tmp_path):
    """Of the current folder, and of the loader's indices and batch size."""
    monkeypatch.chdir(beton.parent)
    with make(beton.name, 30) as loader:
        monkeypatch.chdir(tmp_path)
        loader.indices, loader.batch_size, loader.drop_last = [*range(100, 200)], 7, False
        found = np.concatenate(drain(loader.filter("label", lambda label: int(label) == 3)))
    np.testing.assert_array_equal(found, [i for i in range(100, 200) if i % 7 == 3])


def test_scalar_fields_alone(tmp_path):
    path = tmp_path / "scalars.beton"
    writer = DatasetWriter(str(path), {"a": IntField(), "b": FloatField()}, num_workers=1)
    writer.from_indexed_dataset([(i, i / 2) for i in range(10)])
    ((a, b),) = Loader(path, 10, num_workers=1, order=QUASI_RANDOM)
    assert sorted(a[:, 0].tolist()) == list(range(10)) and torch.equal(a / 2, b)
