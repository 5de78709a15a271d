"""Scores against slow, independent versions: top-k, per class, ReaL, views of test-time augmentation, intervals."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from fastmlp import build_model
from fastmlp.beton.writer import write_beton
from fastmlp.data.split import Split
from fastmlp.datasets import SPECS, beton_path, get_dataset
from fastmlp.evaluation.evaluate import (
    evaluate,
    evaluate_detailed,
    iter_logits,
    select_forward,
    wilson_interval,
)
from fastmlp.sources.synthetic import Synthetic
from fastmlp.transforms.augment_params import Augment

CROP = Augment("random_resized", (0.4, 1.0), (1.0, 1.0), flip=True)


def split(data_dir, mode="evaluate", **more):
    settings = {"data_dir": data_dir, "res": 8, "batch_size": 64, "num_workers": 1, **more}
    return Split(get_dataset("synthetic", data_dir), "test", mode, **settings)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("B_2-Wi_32", 8, 5)


def all_logits(model, split, view=0):
    with torch.no_grad():
        return torch.cat([model(images) for images, _ in split.batches(view)]).double().numpy()


@pytest.mark.parametrize("arch", ["B_2-Wi_32", "S_2-Wi_32"])
def test_the_fast_forward_pass_is_the_model_s(arch):
    model, x = build_model(arch, 8, 5), torch.randn(37, 192)
    kept = x.clone()
    with torch.inference_mode():
        torch.testing.assert_close(select_forward(model)(x), model(x), rtol=1e-5, atol=1e-6)
    assert torch.equal(x, kept)


def test_every_number_against_a_plain_loop(data_dir, model):
    images = split(data_dir)
    found = evaluate_detailed(model, images)
    logits, labels = all_logits(model, images), images.loader.reader.metadata["f1"]
    ranked = np.argsort(-logits, 1)
    assert found.scores == evaluate(model, images) and found.scores.images == 200
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_array_equal(found.predicted, ranked[:, 0])
    shares = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(found.probability, (shares / shares.sum(1, keepdims=True)).max(1), rtol=1e-4)
    table = np.zeros((5, 5), int)
    for label, said in zip(labels, ranked[:, 0], strict=True):
        table[label, said] += 1
    np.testing.assert_array_equal(found.confusion, table)
    np.testing.assert_allclose(found.per_class_top1, [table[c, c] / (labels == c).sum() for c in range(5)])
    assert model.training


def test_a_class_without_images_has_no_accuracy(data_dir):
    found = evaluate_detailed(build_model("B_1-Wi_8", 8, 7), split(data_dir))
    assert np.isnan(found.per_class_top1).tolist() == 5 * [False] + 2 * [True]


@pytest.mark.parametrize("average", ["logits", "softmax"])
@pytest.mark.parametrize("block", [1 << 30, 4 * 5 * 30])  # the second: 30 images at a time
def test_views_are_averaged(data_dir, model, average, block, monkeypatch):
    monkeypatch.setattr("fastmlp.evaluation.evaluate.BLOCK_BYTES", block)
    views = split(data_dir, "tta", augment=CROP, seed=3)
    stack = np.stack([all_logits(model, views, view) for view in range(4)])
    if average == "softmax":
        stack = np.exp(stack) / np.exp(stack).sum(2, keepdims=True)
    expected = stack.mean(0) if average == "logits" else np.log(stack.mean(0))
    with torch.inference_mode():
        got = [(logits.clone(), labels.clone()) for logits, labels in iter_logits(model, views, 4, average)]
    assert len(got) == (1 if block > 1000 else 7)
    np.testing.assert_allclose(torch.cat([logits for logits, _ in got]).numpy(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(torch.cat([labels for _, labels in got]), views.loader.reader.metadata["f1"])
    assert evaluate_detailed(model, views, 4, average).scores == evaluate_detailed(model, views, 4, average).scores


def test_a_softmax_that_underflows_gives_a_finite_loss(data_dir, model):
    with torch.no_grad():
        model.linear_out.bias.copy_(torch.tensor([1000.0, 0, 0, 0, 0]))
    assert np.isfinite(evaluate_detailed(model, split(data_dir, "tta", augment=CROP), 2, "softmax").scores.loss)


def test_views_differ_from_one_another_and_repeat(data_dir, model):
    views = split(data_dir, "tta", augment=CROP)
    one, four = evaluate_detailed(model, views, 2), evaluate_detailed(model, views, 4)
    assert one.scores.loss != four.scores.loss
    other = evaluate_detailed(model, split(data_dir, "tta", augment=CROP, batch_size=33, num_workers=2), 4)
    assert np.array_equal(four.predicted, other.predicted) and four.scores.loss == pytest.approx(other.scores.loss)


class WithReal(Synthetic):
    """No, one or two further labels for each image."""

    def __init__(self):
        super().__init__(200, num_classes=5, res=8, split="test")
        self.multi_labels = np.full((200, 2), -1, np.int64)
        for n in range(200):
            extra = [[], [n % 5], [(n + 1) % 5, (n + 2) % 5]][n % 3]
            self.multi_labels[n, : len(extra)] = extra


def test_real_leaves_out_images_without_a_label(tmp_path, model):
    source = WithReal()
    write_beton(beton_path(tmp_path, "synthetic", "test", 8), source, 8, seed=None)
    spec = dataclasses.replace(SPECS["synthetic"], num_classes=5)
    images = Split(spec, "test", "evaluate", data_dir=tmp_path, res=8, batch_size=64, num_workers=1)
    np.testing.assert_array_equal(images.multi_labels(), source.multi_labels)
    found = evaluate_detailed(model, images, multi_labels=images.multi_labels())
    right = known = 0
    for said, labels in zip(found.predicted, source.multi_labels, strict=True):
        allowed = {label for label in labels.tolist() if label >= 0}
        known += bool(allowed)
        right += said in allowed
    assert (found.real_images, found.real_top1) == (known, right / known) and known < 200
    with pytest.raises(ValueError, match="holds no ReaL labels"):
        (tmp_path / "plain").mkdir()
        write_beton(beton_path(tmp_path / "plain", "synthetic", "test", 8), Synthetic(50, 5, 8), 8)
        Split(spec, "test", "evaluate", data_dir=tmp_path / "plain", res=8, batch_size=50).multi_labels()


@pytest.mark.parametrize(("hit", "images"), [(0, 10), (10, 10), (37, 50), (9026, 10_000)])
def test_intervals_are_wilson_s(hit, images):
    expected = binomtest(hit, images).proportion_ci(0.95, "wilson")
    assert wilson_interval(hit / images, images) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_scaled_on_the_fly_as_scaled_beforehand(data_dir):
    """8 px read as 16 px: the pixels of torch's bilinear resizing."""
    scaled, plain = split(data_dir, image_res=16), split(data_dir)
    for (large, labels), (small, same) in zip(scaled.batches(0), plain.batches(0), strict=True):
        beforehand = torch.nn.functional.interpolate(small.view(-1, 3, 8, 8), size=16, mode="bilinear")
        torch.testing.assert_close(large.view(-1, 3, 16, 16), beforehand, atol=1e-4, rtol=1e-4)
        assert torch.equal(labels, same) and large.shape[1] == 3 * 16 * 16
