"""Augmentation parameters against their distributions: torchvision's crops, uniform draws, independence."""

import numpy as np
import pytest
from scipy import stats

from fastmlp.transforms.augment_params import Augment, draw_params, sample_key, uniform


def uniforms(seed, epoch, samples, draw, count=1):
    streams = [np.uint64(sample_key(seed, epoch, sample)) for sample in samples.tolist()]
    return np.array([[uniform(state, d) for state in streams] for d in range(draw, draw + count)])


def test_parameters_depend_on_the_sample_alone():
    augment = Augment("random_resized", flip=True)
    boxes, flips = draw_params(augment, 64, 64, 3, 5, np.arange(1000))
    order = np.random.default_rng(0).permutation(1000)
    for part in np.array_split(order, 7):  # another order, another batch size
        part_boxes, part_flips = draw_params(augment, 64, 64, 3, 5, part)
        np.testing.assert_array_equal(part_boxes, boxes[part])
        np.testing.assert_array_equal(part_flips, flips[part])
    for other in ((4, 5), (3, 6), (5, 3)):
        assert (draw_params(augment, 64, 64, *other, np.arange(1000))[0] != boxes).any(axis=1).mean() > 0.9


def test_uniforms_are_uniform_and_independent():
    values = uniforms(7, 1, np.arange(100_000), 0, 3)
    assert values.min() >= 0 and values.max() < 1
    assert stats.kstest(values.ravel()[::3], "uniform").pvalue > 1e-3
    others = [
        uniforms(7, 2, np.arange(100_000), 0)[0],
        uniforms(8, 1, np.arange(100_000), 0)[0],
        values[1],
        values[2],
        np.roll(values[0], 1),
        uniforms(1, 7, np.arange(100_000), 0)[0],
    ]
    for other in others:
        table, *_ = np.histogram2d(values[0], other, bins=16, range=[(0, 1), (0, 1)])
        assert stats.chisquare(table.ravel()).pvalue > 1e-4


def test_resized_crops_follow_torchvision():
    """The same distribution as torchvision's loop, drawn here with NumPy's generator."""
    rng = np.random.default_rng(0)

    def torchvision(height, width, scale, ratio):
        for _ in range(10):
            area = height * width * rng.uniform(*scale)
            aspect = np.exp(rng.uniform(np.log(ratio[0]), np.log(ratio[1])))
            w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
        if width / height < min(ratio):
            w, h = width, round(width / min(ratio))
        elif width / height > max(ratio):
            w, h = round(height * max(ratio)), height
        else:
            w, h = width, height
        return (height - h) // 2, (width - w) // 2, h, w

    for height, width, scale, ratio in (
        (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
        (32, 32, (0.9, 1.0), (0.5, 2.0)),
        (32, 32, (0.4, 1.0), (1.0, 1.0)),
        (20, 60, (0.8, 1.0), (3 / 4, 4 / 3)),
        (60, 20, (0.3, 1.0), (3 / 4, 4 / 3)),
    ):
        ours = draw_params(Augment("random_resized", scale, ratio), height, width, 1, 1, np.arange(20_000))[0]
        theirs = np.array([torchvision(height, width, scale, ratio) for _ in range(20_000)])
        assert (ours[:, :2] >= 0).all() and (ours[:, :2] + ours[:, 2:] <= [height, width]).all()
        assert (ours[:, 2:] > 0).all()
        for column in range(4):
            assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3, (scale, ratio, column)


def test_shifts_and_flips():
    boxes, flips = draw_params(Augment("pad_and_crop", padding=2, flip=True), 32, 32, 0, 0, np.arange(50_000))
    assert (boxes[:, 2:] == 32).all()
    counts = np.unique(boxes[:, :2], axis=0, return_counts=True)[1]
    assert len(counts) == 25 and stats.chisquare(counts).pvalue > 1e-3
    assert abs(flips.mean() - 0.5) < 0.01
    boxes, flips = draw_params(Augment(), 32, 32, 0, 0, np.arange(3))
    assert (boxes == [0, 0, 32, 32]).all() and not flips.any()
    heights, widths = np.array([40, 9, 1]), np.array([60, 20, 1])
    boxes, _ = draw_params(Augment("center", center=0.5), heights, widths, 0, 0, np.arange(3))
    np.testing.assert_array_equal(boxes, [[10, 20, 20, 20], [2, 8, 4, 4], [0, 0, 1, 1]])


def test_shift_and_flip_are_independent():
    boxes, flips = draw_params(Augment("pad_and_crop", padding=2, flip=True), 32, 32, 0, 0, np.arange(50_000))
    for axis in (0, 1):
        table = np.histogram2d(boxes[:, axis], flips, bins=(5, 2))[0]
        assert stats.chi2_contingency(table).pvalue > 1e-4


def test_boxes_of_thin_images_hold_a_pixel():
    for height, width in ((1, 500), (500, 1), (1, 1)):
        for ratio in ((100.0, 100.0), (0.01, 0.01)):
            boxes, _ = draw_params(Augment("random_resized", ratio=ratio), height, width, 0, 0, np.arange(500))
            assert (boxes[:, 2:] >= 1).all() and (boxes[:, :2] + boxes[:, 2:] <= [height, width]).all()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"crop": "bogus"}, "unknown crop 'bogus'"),
        ({"scale": (0.5, 0.1)}, "min <= max"),
        ({"ratio": (0, 1)}, "ratio"),
        ({"padding": -1}, "padding -1"),
        ({"center": 0.0}, "center 0.0"),
    ],
)
def test_augmentations_that_make_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        Augment(**wrong)
