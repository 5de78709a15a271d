"""Batches of a cached beton, and batches on a GPU."""

import numpy as np
import pytest
import torch
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.transforms import Squeeze, ToDevice, ToTensor
from loading import (
    RANDOM,
    beton_fixture,  # noqa: F401
    drain,
    make,
    pages_fixture,  # noqa: F401
)

from fastmlp.loader.order import random_order
from fastmlp.transforms.pipelines import raw_pipelines


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
                torch.cuda._sleep(1_000_000)  # a consumer that is late must still see its own batch
                received.append((images[:, 0, 0].clone(), labels.clone()))
            corners = torch.cat([corner for corner, _ in received]).cpu().numpy().astype(int)
            found = corners[:, 0] + 256 * corners[:, 1]
            np.testing.assert_array_equal(found, random_order(np.arange(1500), 0, epoch))
            assert torch.equal(torch.cat([y for _, y in received]).cpu(), torch.from_numpy(found % 7))
