"""LION against its formula, groups, and learning rates at their corners."""

import math

import numpy as np
import pytest
import torch

from fastmlp.optim import Lion, build_optimizer, learning_rate


def test_lion_equals_the_paper_s_algorithm():
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=(3, 4)), rng.normal(size=(5, 3, 4))
    param = torch.nn.Parameter(torch.from_numpy(start).float())
    optimizer = Lion([param], lr=0.1, betas=(0.9, 0.99), weight_decay=0.5)
    p, m = start.copy(), np.zeros_like(start)
    for g in grads:
        param.grad = torch.from_numpy(g).float()
        optimizer.step()
        p = p - 0.1 * (np.sign(0.9 * m + 0.1 * g) + 0.5 * p)
        m = 0.99 * m + 0.01 * g
    np.testing.assert_allclose(param.detach().numpy(), p, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["lion", "adamw", "sgd"])
def test_weight_decay_spares_biases_and_norms(name):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    build_optimizer(name, model, lr=0.1, weight_decay=0.5).step()
    for n, p in model.named_parameters():
        factor = 0.95 if n == "0.weight" else 1.0
        torch.testing.assert_close(p.detach(), factor * before[n])


def test_the_paper_s_momenta():
    lion, adamw = (0.9, 0.99), (0.9, 0.999)
    for name, key, value in (("lion", "betas", lion), ("sgd", "momentum", 0.9), ("adamw", "betas", adamw)):
        assert build_optimizer(name, torch.nn.Linear(1, 1), 0.1, 0.0).param_groups[0][key] == value


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown optimiser 'adam'"):
        build_optimizer("adam", torch.nn.Linear(1, 1), 0.1, 0.0)
    with pytest.raises(ValueError, match="unknown schedule"):
        learning_rate(0, 10, 1.0, "step")


def test_schedules():
    assert [learning_rate(s, 8, 1.0, "constant", 4) for s in range(8)] == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]
    assert [learning_rate(s, 6, 2.0, "linear", 2) for s in range(7)] == [1, 2, 2, 1.5, 1, 0.5, 0]
    cosine = [learning_rate(s, 10, 3.0, "cosine") for s in range(11)]
    np.testing.assert_allclose(cosine, [1.5 * (1 + math.cos(math.pi * s / 10)) for s in range(11)])
    assert cosine[0] == 3.0 and abs(cosine[10]) < 1e-12
