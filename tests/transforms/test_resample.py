"""Pixels of the host path and of the device path against a slow NumPy reference and against torch."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher
from slow_augment import MEAN, STD, slow_crop

from fastmlp.loader import gather
from fastmlp.transforms import augment_params, cpu_decoder, resample, torch_path, vectors
from fastmlp.transforms.augment_params import Augment, draw_params


def on_host(images, boxes, flips, res, mean=MEAN, std=STD, dtype=np.float32, offset=0, area=False):
    """Through the host path, into memory `offset` numbers past a cache line; uint8 without normalising."""
    count = len(images)
    addresses = np.array([image.ctypes.data for image in images], np.uint64)
    heights, widths = (np.array([image.shape[axis] for image in images], np.int64) for axis in (0, 1))
    memory = np.full(count * 3 * res * res + 64, 77, dtype)
    first = (-memory.ctypes.data % 64) // memory.itemsize + offset
    if dtype == np.uint8:
        out = memory[first : first + count * 3 * res * res].reshape(count, res, res, 3)
        resample.crop_resize(addresses, heights, widths, boxes, flips, out, res, area)
    else:
        out = memory[first : first + count * 3 * res * res].reshape(count, -1)
        resample.crop_resize_normalize(addresses, heights, widths, boxes, flips, mean, std, out, res, area)
    assert (memory[:first] == 77).all() and (memory[first + out.size :] == 77).all()  # nothing beside the images
    return out


def on_device(images, boxes, flips, res, area=False):
    tensors = [torch.from_numpy(x) for x in (images, boxes, flips, MEAN, STD)]
    taps = torch_path.area_taps(max(images.shape[1:3]), res) if area else None
    return torch_path.crop_resize_normalize(*tensors, res, area=taps).numpy()


def run_both(images, boxes, flips, res):
    return on_host(images, boxes, flips, res), on_device(images, boxes, flips, res)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pixels_equal_the_slow_reference(data):
    height, width = (data.draw(st.integers(1, 12)) for _ in range(2))
    res = data.draw(st.integers(1, 12) | st.sampled_from([16, 24, 31, 32]))
    count = data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    images = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    boxes = np.empty((count, 4), np.int32)
    for box in boxes:  # inside, across the border, or outside of the image
        box[2:] = data.draw(st.integers(1, height + 3)), data.draw(st.integers(1, width + 3))
        box[:2] = data.draw(st.integers(-4, height)), data.draw(st.integers(-4, width))
    flips = rng.integers(0, 2, count).astype(bool)
    expected = np.stack([slow_crop(*sample, res) for sample in zip(images, boxes, flips, strict=True)])
    for got in run_both(images, boxes, flips, res):
        np.testing.assert_allclose(got, expected, atol=1e-4)
    pixels = (expected.reshape(count, 3, res, res) * STD[:, None, None] + MEAN[:, None, None]).transpose(0, 2, 3, 1)
    rounded = on_host(images, boxes, flips, res, dtype=np.uint8)
    assert np.abs(rounded - pixels).max() < 0.501


def test_thousands_of_boxes_equal_the_slow_reference():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2000, 16, 16, 3), dtype=np.uint8)
    boxes, flips = draw_params(Augment("random_resized", flip=True), 16, 16, 0, 0, np.arange(2000))
    expected = np.stack([slow_crop(*sample, 8) for sample in zip(images, boxes, flips, strict=True)])
    for got in run_both(images, boxes, flips, 8):
        np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("res", [7, 8, 32])
@pytest.mark.parametrize("offset", [0, 1, 8])
def test_images_of_any_size_into_memory_of_any_alignment(res, offset):
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in rng.integers(1, 70, (40, 2))]
    images += [rng.integers(0, 256, (res, res, 3), dtype=np.uint8) for _ in range(4)]
    sides = np.array([image.shape[:2] for image in images])
    flips = np.arange(44) % 2 == 0
    for crop in ("none", "center", "random_resized"):
        boxes = draw_params(Augment(crop), sides[:, 0], sides[:, 1], 0, 0, np.arange(44))[0]
        got = on_host(images, boxes, flips, res, offset=offset)
        for image, box, flip, mine in zip(images, boxes, flips, got, strict=True):
            np.testing.assert_allclose(mine, on_device(image[None], box[None], np.array([flip]), res)[0], atol=1e-4)


@pytest.mark.parametrize("res", [7, 16])
def test_identity_gives_exact_integers(res):
    images = np.random.default_rng(0).integers(0, 256, (5, res, res, 3), dtype=np.uint8)
    boxes = np.tile(np.array([0, 0, res, res], np.int32), (5, 1))
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    for flip, expected in ((False, images), (True, images[:, :, ::-1])):
        flips = np.full(5, flip)
        out = on_host(images, boxes, flips, res, zero, one)
        np.testing.assert_array_equal(out.reshape(5, 3, res, res), expected.transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(on_host(images, boxes, flips, res, dtype=np.uint8), expected)


def test_equals_grid_sample():
    images = np.random.default_rng(0).integers(0, 256, (50, 20, 20, 3), dtype=np.uint8)
    boxes, flips = draw_params(Augment("random_resized", (0.3, 1.0), flip=True), 20, 20, 0, 0, np.arange(50))
    centre = (np.arange(16) + 0.5) / 16
    inner = []  # grid_sample blends with pixels beyond the box's border: compare those that need none
    grid = np.empty((50, 16, 16, 2), np.float32)
    for b, ((top, left, h, w), flip) in enumerate(zip(boxes, flips, strict=True)):
        y, x = top + centre * h, left + (centre[::-1] if flip else centre) * w
        grid[b] = np.stack(np.meshgrid(x, y), -1) / 20 * 2 - 1
        inner.append(np.outer(abs(centre - 0.5) * h <= h / 2 - 0.5, abs(centre - 0.5) * w <= w / 2 - 0.5))
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    theirs = torch.nn.functional.grid_sample(planes, torch.from_numpy(grid), align_corners=False).numpy()
    theirs = (theirs - MEAN[:, None, None]) / STD[:, None, None]
    inside = np.broadcast_to(np.array(inner)[:, None], theirs.shape)
    for got in run_both(images, boxes, flips, 16):
        np.testing.assert_allclose(got.reshape(theirs.shape)[inside], theirs[inside], atol=1e-4)


def test_resizing_equals_torch_interpolate():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 32, 32], [4, 9, 20, 11], [31, 0, 1, 32]], np.int32)
    for got in run_both(images, boxes, np.zeros(3, bool), 64):
        for image, (top, left, h, w), mine in zip(images, boxes, got, strict=True):
            crop = torch.from_numpy(image[top : top + h, left : left + w]).permute(2, 0, 1)[None].float()
            theirs = torch.nn.functional.interpolate(crop, (64, 64), mode="bilinear", align_corners=False)[0].numpy()
            np.testing.assert_allclose(
                mine.reshape(3, 64, 64), (theirs - MEAN[:, None, None]) / STD[:, None, None], atol=1e-4
            )


def test_compiled_code_is_not_older_than_the_vectors():
    """Numba's cache on disk would not notice a change of vectors.py: resample.py must change with it."""
    digest = hashlib.sha256(Path(vectors.__file__).read_bytes()).hexdigest()[:16]
    assert digest == resample.VECTORS_SHA256, f'vectors.py has changed: set VECTORS_SHA256 = "{digest}" in resample.py'


def test_no_cached_kernel_inherits_fastmath():
    """FFCV compiles pipelines with fastmath, callees inherit it, and Numba's cache on disk would keep the result."""
    kernels = [
        kernel
        for module in (augment_params, cpu_decoder, resample, gather)
        for kernel in vars(module).values()
        if isinstance(kernel, Dispatcher) and kernel.__module__ == module.__name__
        if isinstance(kernel._cache, FunctionCache)
    ]
    assert len(kernels) >= 10
    assert [kernel.__name__ for kernel in kernels if kernel.targetoptions.get("fastmath") is not False] == []
