"""The resampling "area", on the host and on the device, against OpenCV's INTER_AREA and against each other."""

import cv2
import ffcv.loader
import numpy as np
import pytest
import torch
from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder
from ffcv.transforms import ToTensor
from slow_augment import MEAN, STD, write_noise_beton
from test_resample import on_device, on_host

from fastmlp import Loader
from fastmlp.transforms import torch_path
from fastmlp.transforms.augment_params import Augment, draw_params
from fastmlp.transforms.pipelines import image_pipelines
from fastmlp.transforms.resample import fill_area_taps
from fastmlp.transforms.torch_path import area_taps


def by_opencv(image, box, flip, res):
    """Return one image (3, res, res), as FFCV's decoders make it."""
    top, left, height, width = box
    crop = image[top : top + height, left : left + width]
    resized = cv2.resize(crop, (res, res), interpolation=cv2.INTER_AREA).reshape(res, res, 3)
    return (resized[:, ::-1] if flip else resized).transpose(2, 0, 1).astype(float)


def compare(images, boxes, flips, res):
    """Both paths are within 1 of 255 of OpenCV's rounded pixels, and within 1e-4, normalised, of each other."""
    host = on_host(images, boxes, flips, res, area=True)
    device = on_device(np.stack(images), boxes, flips, res, area=True)
    np.testing.assert_allclose(device, host, atol=1e-4)
    expected = np.stack([by_opencv(*sample, res) for sample in zip(images, boxes, flips, strict=True)])
    pixels = host.reshape(expected.shape) * STD[:, None, None] + MEAN[:, None, None]
    assert np.abs(pixels - expected).max() <= 1
    rounded = on_host(images, boxes, flips, res, dtype=np.uint8, area=True)
    assert np.abs(rounded.transpose(0, 3, 1, 2) - expected).max() <= 1


@pytest.mark.parametrize(
    ("side", "res"),
    [(32, 64), (48, 64), (33, 64), (64, 32), (96, 64), (49, 63), (57, 63), (63, 57), (7, 5), (5, 7), (64, 64), (1, 9)],
)
def test_whole_squares_equal_opencv(side, res):
    images = list(np.random.default_rng(side).integers(0, 256, (3, side, side, 3), dtype=np.uint8))
    boxes = np.tile(np.array([0, 0, side, side], np.int32), (3, 1))
    compare(images, boxes, np.array([False, True, False]), res)


@pytest.mark.parametrize("res", [16, 24, 33])
def test_random_crops_equal_opencv(res):
    """Smaller and larger than the output, and both at once, where OpenCV blends two pixels of many."""
    images = list(np.random.default_rng(0).integers(0, 256, (300, 40, 56, 3), dtype=np.uint8))
    boxes, flips = draw_params(Augment("random_resized", flip=True), 40, 56, 0, 0, np.arange(300))
    larger = boxes[:, 2:] >= res
    assert larger.all(1).any() and (~larger).all(1).any() and (larger.any(1) & ~larger.all(1)).any()
    compare(images, boxes, flips, res)


def test_32_px_are_repeated_at_64_px():
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    boxes, flips = np.tile(np.array([0, 0, 32, 32], np.int32), (2, 1)), np.zeros(2, bool)
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    host = on_host(images, boxes, flips, 64, zero, one, area=True)
    expected = images.transpose(0, 3, 1, 2).repeat(2, 2).repeat(2, 3)
    np.testing.assert_array_equal(host.reshape(2, 3, 64, 64), expected)
    bilinear = on_host(images, boxes, flips, 64, zero, one)
    assert (bilinear.reshape(2, 3, 64, 64) != expected).mean() > 0.9


def test_crops_outside_of_the_image_are_black_alike():
    images = np.random.default_rng(0).integers(1, 256, (60, 20, 20, 3), dtype=np.uint8)
    boxes, flips = draw_params(Augment("pad_and_crop", padding=9, flip=True), 20, 20, 0, 0, np.arange(60))
    for res in (13, 20, 32):
        host, device = on_host(images, boxes, flips, res, area=True), on_device(images, boxes, flips, res, area=True)
        np.testing.assert_allclose(device, host, atol=1e-4)
        padded = np.pad(images, ((0, 0), (9, 9), (9, 9), (0, 0)))
        inside = boxes + np.array([9, 9, 0, 0])
        expected = np.stack([by_opencv(*sample, res) for sample in zip(padded, inside, flips, strict=True)])
        assert np.abs(host.reshape(expected.shape) * STD[:, None, None] + MEAN[:, None, None] - expected).max() <= 1


@pytest.mark.parametrize("res", [5, 8, 64])
def test_the_taps_of_each_place_sum_to_one(res):
    """For all sides of boxes; those of averages also fit into the array that they are written to."""
    low, weights = (taps.numpy() for taps in area_taps(150, res))
    wide_low, wide = np.empty_like(low), np.empty((2, 151, weights.shape[2] + 3, res), np.float32)
    fill_area_taps(wide_low, wide)
    np.testing.assert_array_equal(wide[:, :, : weights.shape[2]], weights)
    assert not wide[:, :, weights.shape[2] :].any()
    np.testing.assert_allclose(weights[0, 1:].sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(weights[1, res:].sum(1), 1, atol=1e-6)


@pytest.fixture(scope="module")
def beton(tmp_path_factory):
    return write_noise_beton(tmp_path_factory.mktemp("beton") / "r.beton")[0]


@pytest.mark.parametrize("res", [32, 11])
def test_evaluation_sees_what_the_authors_evaluation_sees(beton, res, monkeypatch):
    """FFCV's CenterCropRGBImageDecoder, with which they evaluate."""
    monkeypatch.setattr(torch_path, "_works", False)  # test_torch_path.py compiles it
    threads = torch.get_num_threads()
    decode = CenterCropRGBImageDecoder((res, res), 1)
    label = [IntDecoder(), ToTensor()]
    theirs = ffcv.loader.Loader(str(beton), 300, 1, pipelines={"image": [decode], "label": label})
    (expected, _) = next(iter(theirs))
    torch.set_num_threads(threads)
    expected = (expected.transpose(0, 3, 1, 2).astype(float) - MEAN[:, None, None]) / STD[:, None, None]
    for augment_on in ("host", "device"):
        numbers = {"mean": MEAN, "std": STD, "augment_on": augment_on}
        pipelines = image_pipelines(Augment(), res, **numbers, resampling="area")
        with Loader(beton, 300, pipelines=pipelines) as loader:
            ready = next(iter(loader))[0].numpy().reshape(expected.shape)
        np.testing.assert_allclose(ready, expected, atol=1 / STD.min())


def test_an_unknown_resampling_is_refused():
    with pytest.raises(ValueError, match="unknown resampling 'cubic': expected one of bilinear, area"):
        image_pipelines(Augment(), 8, mean=MEAN, std=STD, resampling="cubic")
