"""The decoder of the host path in our Loader and in FFCV's: its pixels, other sizes, betons that it refuses."""

import ffcv.loader
import numpy as np
import pytest
import torch
from ffcv.fields.decoders import IntDecoder
from ffcv.transforms import ToTensor
from slow_augment import AUGMENT, MEAN, STD, augmented, batches, write_noise_beton

from fastmlp import Loader, OrderOption
from fastmlp.beton import layout
from fastmlp.transforms.augment_params import Augment
from fastmlp.transforms.cpu_decoder import AugmentedRGBImageDecoder
from fastmlp.transforms.pipelines import image_pipelines
from fastmlp.transforms.torch_path import AugmentOnDevice


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    return write_noise_beton(tmp_path_factory.mktemp("beton") / "r.beton")


@pytest.mark.parametrize("os_cache", [True, False])
@pytest.mark.parametrize("normalised", [True, False])
def test_the_decoder_in_a_stock_ffcv_loader(beton, os_cache, normalised):
    file, images = beton
    numbers = {"mean": MEAN, "std": STD} if normalised else {}
    decoder = AugmentedRGBImageDecoder(AUGMENT, 24, seed=5, **numbers)
    threads = torch.get_num_threads()
    loader = ffcv.loader.Loader(
        str(file),
        64,
        1,
        os_cache,
        order=ffcv.loader.OrderOption.RANDOM,
        drop_last=False,
        pipelines={"image": [decoder, ToTensor()], "label": [IntDecoder(), ToTensor()]},
    )
    for epoch in (0, 2):
        decoder.epoch = epoch
        for ready, labels in loader:
            wanted = augmented(images, labels.numpy().ravel(), epoch)
            if normalised:
                np.testing.assert_allclose(ready, wanted, atol=1e-4)
            else:
                pixels = wanted.reshape(-1, 3, 24, 24) * STD[:, None, None] + MEAN[:, None, None]
                assert np.abs(ready.numpy() - pixels.transpose(0, 2, 3, 1)).max() < 0.501
    torch.set_num_threads(threads)


def test_ffcv_s_debugging_mode(beton):
    from ffcv.pipeline.compiler import Compiler

    file, images = beton
    decoder = AugmentedRGBImageDecoder(AUGMENT, 24, seed=5, mean=MEAN, std=STD)
    Compiler.set_enabled(False)
    threads = torch.get_num_threads()
    try:
        loader = ffcv.loader.Loader(str(file), 50, 1, pipelines={"image": [decoder], "label": None})
        (ready,) = next(iter(loader))
    finally:
        Compiler.set_enabled(True)
        torch.set_num_threads(threads)
    np.testing.assert_allclose(ready, augmented(images, np.arange(50), 0), atol=1e-4)


def test_the_host_path_may_send_bytes(beton):
    """What it does for CUDA, with the CPU as the device: crops as uint8, normalised there."""
    file, images = beton
    decode, finish = AugmentedRGBImageDecoder(AUGMENT, 24, seed=5), AugmentOnDevice(Augment(), 24, mean=MEAN, std=STD)
    pipelines = {"image": [decode, ToTensor(), finish], "label": [IntDecoder(), ToTensor()]}
    with Loader(file, 64, order=OrderOption.RANDOM, seed=1, pipelines=pipelines) as loader:
        for ready, labels in batches(loader, 2):
            np.testing.assert_allclose(ready, augmented(images, labels, 2), atol=0.51 / STD.min())


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("kind", [Loader, ffcv.loader.Loader])
def test_progressive_resizing(beton, kind, normalised):
    file, images = beton
    decoder = AugmentedRGBImageDecoder(Augment(), 16, **({"mean": MEAN, "std": STD} if normalised else {}))
    threads = torch.get_num_threads()
    loader = kind(str(file), 100, 1, pipelines={"image": [decoder], "label": None}, recompile=kind is not Loader)
    for res in (16, 24, 8, 24):
        decoder.res = res
        for (batch,) in loader:
            assert batch.shape[1:] == ((3 * res * res,) if normalised else (res, res, 3))
        wanted = augmented(images, [299], 0, res=res, augment=Augment())[0].reshape(3, res, res)
        if normalised:
            np.testing.assert_allclose(batch[-1].reshape(3, res, res), wanted, atol=1e-4)
        else:
            pixels = wanted * STD[:, None, None] + MEAN[:, None, None]
            np.testing.assert_allclose(batch[-1].transpose(2, 0, 1), pixels, atol=0.501)
        if kind is Loader:
            abandoned = iter(loader)
            next(abandoned)
    torch.set_num_threads(threads)


def test_jpeg_betons_are_refused(tmp_path):
    from ffcv.fields import RGBImageField
    from ffcv.writer import DatasetWriter

    image = np.zeros((8, 8, 3), np.uint8)
    writer = DatasetWriter(str(tmp_path / "j.beton"), {"image": RGBImageField(write_mode="jpg")}, num_workers=1)
    writer.from_indexed_dataset([(image,)] * 3)
    with pytest.raises(ValueError, match="reads raw images, the beton has JPEG"):
        Loader(tmp_path / "j.beton", 1, pipelines={"image": [AugmentedRGBImageDecoder(Augment(), 8)]})
    with pytest.raises(ValueError, match="both mean and std"):
        AugmentedRGBImageDecoder(Augment(), 8, mean=MEAN)
    with pytest.raises(ValueError, match="unknown augment_on 'gpu'"):
        image_pipelines(Augment(), 8, mean=MEAN, std=STD, augment_on="gpu")


@pytest.mark.parametrize("place, size, value", [(1, 2, 0), (3, 2, 0), (5, 8, 2**64 - 700), (5, 8, 0)])
def test_corrupt_records_are_refused(beton, tmp_path, place, size, value):
    whole = bytearray(beton[0].read_bytes())
    record = layout.HEADER.itemsize + 2 * layout.DESCRIPTOR.itemsize + 7 * layout.METADATA.itemsize
    whole[record + place : record + place + size] = value.to_bytes(size, "little")
    (tmp_path / "c.beton").write_bytes(whole)
    with pytest.raises(ValueError, match="is corrupt: .* of sample 7"):
        Loader(tmp_path / "c.beton", 1, pipelines={"image": [AugmentedRGBImageDecoder(Augment(), 8)]})
