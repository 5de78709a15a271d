"""Logistic regression against SciPy's minimiser on the plain formula."""

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from fastmlp.evaluation import logistic
from fastmlp.evaluation.logistic import choose_l2, fit_logistic


def data(seed, samples, columns, classes, scales=False):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    x = rng.normal(size=(samples, columns)) + rng.normal(size=(classes, columns))[labels]
    x = x @ rng.normal(size=(columns, columns))  # correlated
    if scales:
        x = (x + 3) * np.logspace(-3, 3, columns)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(labels)


def slowly(features, labels, classes, l2):
    """Logits of the optimum, by the definition, in float64."""
    x, y = features.numpy().astype(np.float64), labels.numpy()
    std = x.std(0)
    z = np.where(std > 1e-9, (x - x.mean(0)) / np.where(std > 1e-9, std, 1), 0)
    one_hot = np.eye(classes)[y]

    def loss(p):
        w, b = p[: classes * z.shape[1]].reshape(classes, -1), p[classes * z.shape[1] :]
        logits = z @ w.T + b
        shifted = logits - logits.max(1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        errors = (np.exp(log_p) - one_hot) / len(z)
        value = -(one_hot * log_p).sum() / len(z) + l2 / 2 * (w**2).sum()
        return value, np.concatenate([(errors.T @ z + l2 * w).ravel(), errors.sum(0)])

    found = minimize(
        loss,
        np.zeros(classes * (z.shape[1] + 1)),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 5000, "gtol": 1e-9, "ftol": 1e-15, "maxfun": 20000},
    )
    w, b = found.x[: classes * z.shape[1]].reshape(classes, -1), found.x[classes * z.shape[1] :]
    logits = z @ w.T + b
    return logits - logits.mean(1, keepdims=True)


def logits(features, weight, bias):
    out = (features.double() @ weight.double().T + bias.double()).numpy()
    return out - out.mean(1, keepdims=True)


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-3])
@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("chunk", [2**20, 64])
def test_the_optimum_is_scipy_s(l2, scales, chunk, monkeypatch):
    monkeypatch.setitem(logistic.CHUNK, "cpu", chunk)
    features, labels = data(0, 300, 7, 4, scales)
    got = logits(features, *fit_logistic(features, labels, 4, l2))
    np.testing.assert_allclose(got, slowly(features, labels, 4, l2), atol=2e-2)


def test_constant_columns_and_classes_without_samples():
    features, labels = data(1, 200, 5, 3)
    features[:, 2] = 17.0
    weight, bias = fit_logistic(features, labels, 6, 1e-2)
    assert torch.all(weight[:, 2] == 0) and weight.isfinite().all() and bias.isfinite().all()
    got = logits(features, weight[:3], bias[:3])
    np.testing.assert_allclose(got, slowly(features, labels, 3, 1e-2), atol=5e-2)
    said = (features @ weight.T + bias).argmax(1)
    assert said.max() < 3


def test_separable_classes_with_hardly_any_penalty():
    labels = torch.arange(60) % 3
    features = torch.nn.functional.one_hot(labels).float() + 0.01 * torch.randn(60, 3)
    weight, bias = fit_logistic(features, labels, 3, 1e-6)
    assert torch.equal((features @ weight.T + bias).argmax(1), labels)


def test_a_search_that_ends_early_says_so():
    features, labels = data(2, 200, 20, 5)
    with pytest.warns(UserWarning, match=r"l2=1e-06 has not converged after 3 iterations: the gradient's norm is"):
        fit_logistic(features, labels, 5, 1e-6, max_iterations=3)


def test_the_penalty_is_chosen_on_what_was_held_out():
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.normal(size=(300, 200)).astype(np.float32))
    labels = torch.from_numpy((rng.random(300) < 0.3).astype(np.int64))  # 70 % of one class: best said always
    l2, top1 = choose_l2(noise, labels, 2)
    assert l2 >= 0.1 and len(top1) < len(logistic.CANDIDATES)
    assert choose_l2(noise, labels, 2) == (l2, top1)
    features, labels = data(3, 2000, 20, 10)
    weak, top1 = choose_l2(features, labels, 10)
    assert weak < 0.1 and top1[weak] > top1[1.0]


def test_the_penalty_has_the_lowest_loss_on_what_was_held_out():
    """A second opinion on each candidate, by fit_logistic on the rest; the strongest of equals."""
    features, labels = data(3, 600, 20, 10)
    l2, top1 = choose_l2(features, labels, 10, seed=4, tolerance=1e-6)
    rest, held_out = logistic._hold_out(labels, 0.1, 4)
    losses = {}
    for candidate in top1:
        weight, bias = fit_logistic(features[rest], labels[rest], 10, candidate)
        logits = features[held_out] @ weight.T + bias
        losses[candidate] = torch.nn.functional.cross_entropy(logits, labels[held_out]).item()
        assert top1[candidate] == pytest.approx((logits.argmax(1) == labels[held_out]).float().mean().item(), abs=0.02)
    assert l2 == min(losses, key=losses.get) and l2 != min(top1)
    assert choose_l2(torch.ones(40, 1), torch.arange(40) % 2, 2)[0] == 1.0


def test_each_class_is_held_out_alike():
    """Of every class, or a class that nobody learns would be judged; and 20 of 200 samples."""
    labels = torch.arange(200) % 10
    _, top1 = choose_l2(torch.nn.functional.one_hot(labels).float(), labels, 10, holdout=0.05)
    assert set(top1.values()) == {1.0}
    assert all(share * 20 == round(share * 20) for share in choose_l2(*data(4, 200, 5, 10), 10)[1].values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.full((50,), 7)}, "labels 7..7 are outside of the 3 classes"),
        ({"labels": torch.zeros(49, dtype=torch.int64)}, r"expected \(N, m\)"),
        ({"l2": 0.0}, "expected numbers above 0"),
        ({"features": torch.full((50, 4), float("nan"))}, r"column 0 \(at least\) is not finite"),
    ],
)
def test_what_cannot_be_fitted_is_told(change, message):
    given = {"features": torch.randn(50, 4), "labels": torch.arange(50) % 3, "num_classes": 3, "l2": 1.0, **change}
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        fit_logistic(**given)
    with pytest.raises(ValueError, match="leaves no sample on one side"):
        choose_l2(torch.randn(50, 4), torch.arange(50) % 3, 3, holdout=0.0)
