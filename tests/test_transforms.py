"""Augmentation: host and device against a slow NumPy reference, parameters against their distributions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastmlp.transforms import device, host
from fastmlp.transforms.mixup import mix, mixup_weight, swap_partners
from fastmlp.transforms.params import Augment, draw_params, uniforms

MEAN, STD = np.array([120.0, 110.0, 100.0], np.float32), np.array([60.0, 50.0, 70.0], np.float32)


def slow(image, box, flip, res):
    """One image, pixel by pixel, in float64."""
    top, left, box_h, box_w = (int(v) for v in box)
    height, width = image.shape[:2]

    def pixel(y, x):  # within the box, its border repeated; black outside of the image
        y, x = top + min(max(y, 0), box_h - 1), left + min(max(x, 0), box_w - 1)
        return image[y, x].astype(float) if 0 <= y < height and 0 <= x < width else np.zeros(3)

    out = np.empty((3, res, res))
    for y in range(res):
        for x in range(res):
            sy, sx = (y + 0.5) * box_h / res - 0.5, (x + 0.5) * box_w / res - 0.5
            y0, x0 = int(np.floor(sy)), int(np.floor(sx))
            wy, wx = sy - y0, sx - x0
            value = (
                (1 - wy) * ((1 - wx) * pixel(y0, x0) + wx * pixel(y0, x0 + 1))
                + wy * ((1 - wx) * pixel(y0 + 1, x0) + wx * pixel(y0 + 1, x0 + 1))
            )  # fmt: skip
            out[:, y, res - 1 - x if flip else x] = (value - MEAN) / STD
    return out.ravel()


def run_both(images, boxes, flips, res):
    on_host = np.full((len(images), 3 * res * res), np.nan, np.float32)
    host.crop_resize_normalize(images, boxes, flips, MEAN, STD, on_host, res)
    tensors = [torch.from_numpy(x) for x in (images, boxes, flips, MEAN, STD)]
    return on_host, device.crop_resize_normalize(*tensors, res).numpy()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_pixels_equal_the_slow_reference(data):
    height, width, res = (data.draw(st.integers(1, 12)) for _ in range(3))
    count = data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    images = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    boxes = np.empty((count, 4), np.int32)
    for box in boxes:  # inside, across the border, or outside of the image
        box[2:] = data.draw(st.integers(1, height + 3)), data.draw(st.integers(1, width + 3))
        box[:2] = data.draw(st.integers(-4, height)), data.draw(st.integers(-4, width))
    flips = rng.integers(0, 2, count).astype(bool)
    expected = np.stack([slow(*sample, res) for sample in zip(images, boxes, flips, strict=True)])
    for got in run_both(images, boxes, flips, res):
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_identity_gives_exact_integers():
    images = np.random.default_rng(0).integers(0, 256, (5, 7, 7, 3), dtype=np.uint8)
    boxes = np.tile(np.array([0, 0, 7, 7], np.int32), (5, 1))
    out = np.empty((5, 3 * 49), np.float32)
    zero, one = np.zeros(3, np.float32), np.ones(3, np.float32)
    host.crop_resize_normalize(images, boxes, np.zeros(5, bool), zero, one, out, 7)
    np.testing.assert_array_equal(out.reshape(5, 3, 7, 7), images.transpose(0, 3, 1, 2))
    host.crop_resize_normalize(images, boxes, np.ones(5, bool), zero, one, out, 7)
    np.testing.assert_array_equal(out.reshape(5, 3, 7, 7), images.transpose(0, 3, 1, 2)[..., ::-1])


def test_resizing_equals_torch_interpolate():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    boxes = np.array([[0, 0, 32, 32], [4, 9, 20, 11], [31, 0, 1, 32]], np.int32)
    for got in run_both(images, boxes, np.zeros(3, bool), 64):
        for image, (top, left, h, w), mine in zip(images, boxes, got, strict=True):
            crop = torch.from_numpy(image[top : top + h, left : left + w]).permute(2, 0, 1)[None].float()
            theirs = torch.nn.functional.interpolate(crop, (64, 64), mode="bilinear", align_corners=False)[0].numpy()
            np.testing.assert_allclose(mine.reshape(3, 64, 64), (theirs - MEAN[:, None, None]) / STD[:, None, None],
                                       atol=1e-4)  # fmt: skip


def test_parameters_depend_on_the_sample_alone():
    augment = Augment("resized", flip=True)
    boxes, flips = draw_params(augment, 64, 3, 5, np.arange(1000))
    order = np.random.default_rng(0).permutation(1000)
    for part in np.array_split(order, 7):  # another order, another batch size
        part_boxes, part_flips = draw_params(augment, 64, 3, 5, part)
        np.testing.assert_array_equal(part_boxes, boxes[part])
        np.testing.assert_array_equal(part_flips, flips[part])
    for other in ((4, 5), (3, 6), (5, 3)):
        assert (draw_params(augment, 64, *other, np.arange(1000))[0] != boxes).any(axis=1).mean() > 0.9


def test_uniforms_are_uniform_and_independent():
    values = uniforms(7, 1, np.arange(200_000), 0, 3)
    assert values.min() >= 0 and values.max() < 1
    assert stats.kstest(values.ravel()[::3], "uniform").pvalue > 1e-3
    others = [uniforms(7, 2, np.arange(200_000), 0)[0], uniforms(8, 1, np.arange(200_000), 0)[0],
              values[1], values[2], np.roll(values[0], 1), uniforms(1, 7, np.arange(200_000), 0)[0]]  # fmt: skip
    for other in others:
        table, *_ = np.histogram2d(values[0], other, bins=16, range=[(0, 1), (0, 1)])
        assert stats.chisquare(table.ravel()).pvalue > 1e-4


def test_resized_crops_follow_torchvision():
    """The same distribution as torchvision's loop, drawn here with NumPy's generator."""
    rng = np.random.default_rng(0)

    def torchvision(size, scale, ratio):
        for _ in range(10):
            area = size * size * rng.uniform(*scale)
            aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
            w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < w <= size and 0 < h <= size:
                return rng.integers(0, size - h + 1), rng.integers(0, size - w + 1), h, w
        return 0, 0, size, size

    for scale, ratio in (((0.08, 1.0), (3 / 4, 4 / 3)), ((0.9, 1.0), (0.5, 2.0)), ((0.4, 1.0), (1.0, 1.0))):
        ours = draw_params(Augment("resized", scale, ratio), 32, 1, 1, np.arange(20_000))[0]
        theirs = np.array([torchvision(32, scale, ratio) for _ in range(20_000)])
        assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= 32).all() and (ours[:, 2:] > 0).all()
        for column in range(4):
            assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3, (scale, ratio, column)


def test_shifts_and_flips():
    boxes, flips = draw_params(Augment("shift", shift=2, flip=True), 32, 0, 0, np.arange(50_000))
    assert (boxes[:, 2:] == 32).all()
    counts = np.unique(boxes[:, :2], axis=0, return_counts=True)[1]
    assert len(counts) == 25 and stats.chisquare(counts).pvalue > 1e-3
    assert abs(flips.mean() - 0.5) < 0.01
    boxes, flips = draw_params(Augment(), 32, 0, 0, np.arange(3))
    assert (boxes == [0, 0, 32, 32]).all() and not flips.any()
    with pytest.raises(ValueError, match="unknown crop"):
        draw_params(Augment("bogus"), 32, 0, 0, np.arange(3))


def test_mixup_pairs_and_weights():
    values = torch.arange(7.0)[:, None]
    assert swap_partners(values).ravel().tolist() == [1, 0, 3, 2, 5, 4, 6]
    assert torch.equal(torch.cat([swap_partners(values[:4]), swap_partners(values[4:])]), swap_partners(values))
    torch.testing.assert_close(mix(values, 0.25), 0.25 * values + 0.75 * swap_partners(values))
    assert mix(values, 1.0) is values and mixup_weight(0.0, 1, 1) == 1.0
    weights = np.array([mixup_weight(0.8, 0, step) for step in range(5000)])
    assert stats.kstest(weights, stats.beta(0.8, 0.8).cdf).pvalue > 1e-3
    assert weights[3] == mixup_weight(0.8, 0, 3) != mixup_weight(0.8, 1, 3)


def test_mixing_embeddings_equals_mixing_images():
    torch.manual_seed(0)
    embed, images = torch.nn.Linear(48, 16), torch.randn(9, 48)
    torch.testing.assert_close(mix(embed(images), 0.3), embed(mix(images, 0.3)), atol=1e-5, rtol=1e-5)
