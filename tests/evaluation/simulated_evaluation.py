"""Evaluation on the simulated accelerator: numbers as on the CPU, and waits (run by test_simulated_device.py)."""

import dataclasses

import numpy as np
import pytest
import torch
from simulated_device import Counters, reset
from test_logistic import data, logits, slowly
from test_ties import InMemory, tied

from fastmlp import build_model
from fastmlp.data.split import Split
from fastmlp.datasets import get_dataset
from fastmlp.evaluation import evaluate as evaluation
from fastmlp.evaluation import logistic
from fastmlp.evaluation.classify import classify_folder
from fastmlp.evaluation.evaluate import (
    evaluate,
    evaluate_detailed,
    evaluation_batch_size,
    evaluation_micro_batch_size,
    label_ranks,
    predict,
    select_forward,
)
from fastmlp.evaluation.features import CachedFeatures
from fastmlp.transforms.augment_params import Augment

GPU = "privateuseone:0"  # simgpu, once it is installed


def waits(counters: Counters) -> int:
    return sum(counters.syncs.values()) - sum(n for (kind, _), n in counters.syncs.items() if kind == RESET)


RESET = "device synchronize"  # by `reset` itself


def new_model(classes=5, arch="B_2-Wi_32"):
    torch.manual_seed(0)
    return build_model(arch, 8, classes)


def on_both(values, labels, batch_size=64):
    """The same data on the CPU and on the device."""
    return InMemory(values, labels, batch_size), InMemory(values.to(GPU), labels.to(GPU), batch_size)


def simulated_ties_and_nan_are_as_on_the_cpu():
    values, labels = tied(0)
    values[7, 3] = torch.nan
    assert torch.equal(predict(values.to(GPU)).cpu(), predict(values))
    assert torch.equal(label_ranks(values.to(GPU), labels.to(GPU)).cpu(), label_ranks(values, labels))


@pytest.mark.parametrize("arch", ["B_2-Wi_32", "S_2-Wi_32"])
def simulated_logits_are_float32_of_bfloat16_features(arch):
    model, images = new_model(11230, arch).to(GPU), torch.randn(64, 192)
    with torch.inference_mode():
        got = select_forward(model)(images.to(GPU)).cpu()
        with torch.autocast(torch.device(GPU).type, torch.bfloat16):
            features = model.features(images.to(GPU)).cpu()
    head = model.linear_out.cpu()
    exact = (features.double() @ head.weight.double().T + head.bias.double()).detach()
    assert features.dtype == torch.bfloat16 and got.dtype == torch.float32
    torch.testing.assert_close(got, exact.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [64, 200])
def simulated_evaluation_waits_at_the_end_only(batch_size, monkeypatch):
    """However many micro-batches there are."""
    monkeypatch.setattr(evaluation, "MAX_MICRO_BATCH", 16)
    model, (_, split) = new_model(), on_both(torch.randn(200, 192), torch.arange(200) % 5, batch_size)
    model.to(GPU)
    reset()
    scores = evaluate(model, split)
    assert waits(reset()) == 1
    assert evaluate_detailed(model, split).scores == scores
    assert waits(reset()) == 2


def simulated_views_wait_at_the_end_only(data_dir, monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_MICRO_BATCH", 32)
    monkeypatch.setattr("fastmlp.transforms.torch_path._works", False)  # no compiler knows the device
    crop = Augment("random_resized", (0.4, 1.0), (1.0, 1.0), flip=True)
    spec, model = get_dataset("synthetic", data_dir), new_model().to(GPU)
    shared, kinds = {"data_dir": data_dir, "res": 8, "batch_size": 100, "num_workers": 1}, {}
    for views in (2, 3):
        split = Split(spec, "test", "tta", augment=crop, device=GPU, **shared)
        reset()
        evaluate_detailed(model, split, views)
        kinds[views] = {key: n for key, n in reset().syncs.items() if "evaluation/" in key[1]}
    assert sum(kinds[2].values()) == 2 and kinds[2] == kinds[3]


def simulated_batches_are_larger():
    assert evaluation_batch_size(torch.device("cpu")) == 2048 and evaluation_batch_size(torch.device(GPU)) == 8192


def simulated_micro_batches_are_larger_and_bounded_by_bytes():
    assert evaluation_micro_batch_size(new_model()) == 1024
    small = new_model().to(GPU)
    assert evaluation_micro_batch_size(small) == evaluation_micro_batch_size(small.linear_out) == 16384
    many = new_model(21841).to(GPU)
    size = evaluation_micro_batch_size(many)
    assert size == 4096 and size * 4 * 2 * 21841 <= 1 << 30 < 2 * size * (4 * 2 * 21841 + 192)
    wide = build_model("B_1-Wi_8", 512, 5).to(GPU)
    assert evaluation_micro_batch_size(wide) == 512  # of 1.5 MB each, in bfloat16


@pytest.mark.parametrize("l2", [1e-1, 1e-2])
def simulated_logistic_regression_waits_once_an_evaluation(l2):
    features, labels = data(0, 300, 7, 4)
    made = []

    class Search(torch.optim.LBFGS):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            made.append(self)

    given = features.to(GPU), labels.to(GPU), 4, l2
    reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "LBFGS", Search)
        fitted = logistic.fit_logistic(*given, show_progress=False)
    counters = reset()
    np.testing.assert_allclose(logits(features, *(n.cpu() for n in fitted)), slowly(features, labels, 4, l2), atol=2e-2)
    (iterations,) = (state["n_iter"] for state in made[0].state.values())
    before_and_after = 6  # _check's two, the columns' check, the first p, the best p, the last gradient's norm
    assert iterations > 10 and waits(counters) - before_and_after <= 1.5 * iterations


def simulated_the_penalty_is_chosen_as_on_the_cpu(monkeypatch):
    features, labels = data(3, 1000, 20, 10)
    expected = logistic.choose_l2(features, labels, 10, candidates=(1.0, 0.1), holdout=0.5)
    given = features.to(GPU), labels.to(GPU), 10
    monkeypatch.setattr(logistic, "HOLD_OUT_CHUNK", 100)
    reset()
    assert logistic.choose_l2(*given, candidates=(1.0, 0.1), holdout=0.5, show_progress=False) == expected
    own = {key: n for key, n in reset().syncs.items() if key[1].endswith(" choose_l2")}
    assert sum(own.values()) == 2  # one a candidate


@dataclasses.dataclass
class AsSplit(InMemory):
    fingerprint: int = 0


def simulated_an_epoch_of_cached_features_waits_for_its_order_only():
    images, labels = torch.randn(300, 192), torch.arange(300) % 5
    model = new_model().to(GPU)
    reset()
    cached = CachedFeatures(model, AsSplit(images.to(GPU), labels.to(GPU)), 50, seed=1)
    assert [kind for kind, _ in reset().syncs if kind != RESET] == ["copy to the device"]  # the images, by this test
    batches = [(x.clone(), y.clone()) for x, y in cached.batches(0)]
    assert waits(reset()) == 1 and len(batches) == 6
    order = torch.cat([y for _, y in batches]).cpu()
    assert order.bincount().tolist() == [60] * 5 and cached.values.dtype == torch.bfloat16
    scores = evaluate(model.linear_out, CachedFeatures(model, AsSplit(images.to(GPU), labels.to(GPU))))
    expected = evaluate(model, AsSplit(images.to(GPU), labels.to(GPU)))  # in other micro-batches: another order of sums
    assert (scores.top1, scores.top5, scores.loss) == (expected.top1, expected.top5, pytest.approx(expected.loss))


def simulated_a_folder_is_classified_as_on_the_cpu(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(tmp_path / f"{number}.png")
    models = new_model(), new_model().to(GPU)
    for model in models:
        model.metadata = {"mean": (127.5,) * 3, "std": (64.0,) * 3}
    expected, got = (classify_folder(model, tmp_path, "square", 1) for model in models)
    np.testing.assert_allclose(got.probabilities, expected.probabilities, atol=0.01)
    assert got.probabilities.dtype == np.float32
    np.testing.assert_array_equal(got.best[:, 0], got.probabilities.argmax(1))
