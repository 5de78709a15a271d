"""One order of classes for every figure: ties and NaN, and logits that are not rounded to bfloat16."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fastmlp import build_model
from fastmlp.evaluation import evaluate as evaluation
from fastmlp.evaluation.classify import classify_folder
from fastmlp.evaluation.evaluate import evaluate, evaluate_detailed, label_ranks, predict, select_forward, topk_correct
from fastmlp.evaluation.predictions import prediction_rows


@dataclass
class InMemory:
    """The part of Split that evaluation uses, for images or features that are at hand."""

    values: Tensor
    labels: Tensor
    batch_size: int = 64
    path: Path = Path("in memory")

    @property
    def device(self):
        return self.values.device

    @property
    def num_samples(self):
        return len(self.values)

    def batches(self, epoch):
        yield from zip(self.values.split(self.batch_size), self.labels.split(self.batch_size), strict=True)


def head_of(logits):
    """A model that returns its input."""
    head = nn.Linear(logits.shape[1], logits.shape[1])
    with torch.no_grad():
        head.weight.copy_(torch.eye(logits.shape[1]))
        head.bias.zero_()
    return head


def tied(seed, samples=500, classes=9):
    """Logits, few of which differ, and labels; some rows hold equal logits only."""
    rng = np.random.default_rng(seed)
    logits, labels = rng.integers(0, 4, (samples, classes)).astype(np.float32), rng.integers(0, classes, samples)
    logits[:20] = 2
    return torch.from_numpy(logits), torch.from_numpy(labels)


def test_of_equal_logits_the_lower_class_is_ahead():
    logits, labels = tied(0)
    order = np.argsort(-logits.numpy(), 1, kind="stable")
    ranks = (order == labels.numpy()[:, None]).argmax(1)
    np.testing.assert_array_equal(label_ranks(logits, labels), ranks)
    np.testing.assert_array_equal(predict(logits), order[:, 0])
    np.testing.assert_array_equal(predict(logits), logits.argmax(1))
    for k in (1, 2, 5, 9):
        assert int(topk_correct(logits, labels, k)) == (ranks < k).sum()
    assert (ranks[:20] == labels[:20].numpy()).all() and (ranks == 0).sum() > 40


def test_every_figure_has_the_same_order():
    logits, labels = tied(1)
    multi_labels = np.stack([labels.numpy(), np.full(500, -1)], 1)
    found = evaluate_detailed(head_of(logits), InMemory(logits, labels), multi_labels=multi_labels)
    first = np.argmax(logits.numpy(), 1)
    np.testing.assert_array_equal(found.predicted, first)
    right = (first == labels.numpy()).mean()
    assert found.scores.top1 == right == found.real_top1 == np.trace(found.confusion) / 500
    assert found.per_class_top1 @ np.bincount(labels, minlength=9) / 500 == pytest.approx(right)
    assert found.scores == evaluate(head_of(logits), InMemory(logits, labels))


def test_the_prediction_is_the_logits_even_if_their_softmax_ties():
    logits = torch.tensor([[0.1, 0.1 + 7.5e-9, -1.0]])
    assert logits[0, 0] < logits[0, 1] and logits.softmax(1)[0, 0] == logits.softmax(1)[0, 1]
    found = evaluate_detailed(head_of(logits), InMemory(logits, torch.tensor([1])))
    assert found.predicted.tolist() == [1] and found.scores.top1 == 1


def test_a_model_of_nan_is_never_right():
    logits, labels = torch.full((40, 5), torch.nan), torch.arange(40) % 5
    padded = np.full((40, 2), -1)
    padded[:, 0] = labels
    found = evaluate_detailed(head_of(logits), InMemory(logits, labels), multi_labels=padded)
    assert (found.scores.top1, found.scores.top5, found.real_top1) == (0, 0, 0) and np.isnan(found.scores.loss)
    assert (found.predicted == -1).all() and np.isnan(found.probability).all()
    assert not found.confusion.any() and not found.per_class_top1.any()
    _, *rows = prediction_rows(found, list("abcde"))
    assert rows[3] == (3, "d", "", "nan", 0)


def test_one_nan_spoils_its_image_only():
    logits, labels = tied(2)
    logits[100:150, 3] = torch.nan  # highest, for torch.argmax
    expected = np.where(np.arange(500) // 50 == 2, -1, np.argmax(logits.nan_to_num(-1).numpy(), 1))
    np.testing.assert_array_equal(predict(logits), expected)
    assert (label_ranks(logits, labels)[100:150] == 9).all()
    np.testing.assert_array_equal(label_ranks(logits, labels) == 0, expected == labels.numpy())


def test_classes_of_plain_images_have_the_order_of_their_logits(tmp_path):
    """Of the last pair the softmax ties, the logits do not."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "0.png")
    model = build_model("B_1-Wi_8", 8, 7)
    with torch.no_grad():
        model.linear_out.weight.zero_()
        model.linear_out.bias.copy_(torch.tensor([-3.0, -1, -3, 2, 0.1, 0.1 + 7.5e-9, 2]))
    model.metadata = {"mean": (127.5,) * 3, "std": (64.0,) * 3}
    found = classify_folder(model, tmp_path, "square", 1)
    assert found.best.tolist() == [[3, 6, 5, 4, 1]] and found.probabilities[0, 4] == found.probabilities[0, 5]


@pytest.fixture
def bfloat16(monkeypatch):
    """The CPU as a device whose backbone runs in bfloat16."""
    monkeypatch.setattr(evaluation, "compute_dtype", lambda device: torch.bfloat16)
    monkeypatch.setattr(evaluation, "autocast", lambda device: torch.autocast("cpu", torch.bfloat16))


def many_classes(arch="B_2-Wi_32"):
    """A model of 11,230 classes, images, their bfloat16 features, float64 logits, and labels among the best eight."""
    torch.manual_seed(0)
    model, images = build_model(arch, 8, 11230), torch.randn(1000, 192)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        features = model.features(images)
    exact = features.double() @ model.linear_out.weight.double().T + model.linear_out.bias.double()
    exact, best = exact.detach(), exact.topk(8, 1).indices
    return model, images, features.clone(), exact, best[torch.arange(1000), torch.arange(1000) % 8]


@pytest.mark.parametrize("arch", ["B_2-Wi_32", "S_2-Wi_32"])
def test_top1_of_11230_classes_is_that_of_float64(arch, bfloat16):
    """The backbone's features are bfloat16, the head's logits are not: labels are first to eighth of the classes."""
    model, images, features, exact, labels = many_classes(arch)
    assert features.dtype == torch.bfloat16 or arch[0] == "S"
    logits = select_forward(model)(images).detach()
    assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())
    torch.testing.assert_close(logits, exact.float(), rtol=1e-4, atol=1e-5)
    expected = (exact.argmax(1) == labels).double().mean().item()
    rank = (exact > exact.gather(1, labels[:, None])).sum(1)
    scores = evaluate(model, InMemory(images, labels))
    assert (scores.top1, scores.top5) == (expected, (rank < 5).double().mean().item()) == (0.125, 0.625)
    found = evaluate_detailed(model, InMemory(images, labels))
    assert found.scores == scores and (found.predicted == exact.argmax(1).numpy()).all()


def test_a_head_on_bfloat16_features_is_as_exact(bfloat16):
    """A probe's: the same scores as those of images."""
    model, images, features, _, labels = many_classes()
    scores = evaluate(model.linear_out, InMemory(features, labels))
    assert scores == evaluate(model, InMemory(images, labels)) and scores.top1 == 0.125


def test_the_head_runs_without_autocast(bfloat16):
    model, seen = build_model("B_2-Wi_32", 8, 5), []

    def look(*_):
        seen.append(torch.is_autocast_enabled("cpu"))

    model.linear_in.register_forward_pre_hook(look)
    model.linear_out.register_forward_pre_hook(look)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert select_forward(model)(torch.randn(3, 192)).dtype == torch.float32
    assert seen == [True, False]
