"""Architectures against the paper's counts and against forward passes written from its formulas in NumPy."""

import numpy as np
import pytest
import torch
from scipy.special import erf

from fastmlp import build_model
from fastmlp.arch import parse_arch
from fastmlp.models.bottleneck_autograd import bottleneck_own_backward
from fastmlp.models.mlp import bottleneck_block


@pytest.mark.parametrize(
    ("arch", "millions"),
    [
        ("B_6-Wi_256", 9),
        ("B_12-Wi_256", 12),
        ("B_6-Wi_512", 24),
        ("B_12-Wi_512", 37),
        ("B_6-Wi_1024", 74),
        ("B_12-Wi_1024", 124),
    ],
)
def test_parameter_counts_of_the_paper(arch, millions):
    with torch.device("meta"):
        count = sum(p.numel() for p in build_model(arch).parameters())
    assert int(count / 1e6) == millions  # the paper cuts off


def test_names_in_either_spelling():
    assert str(parse_arch("B-12/Wi-1024")) == str(parse_arch("B_12-Wi_1024")) == "B_12-Wi_1024"
    assert parse_arch("B_6-Wi_512-E_2").expansion == parse_arch("B-6/Wi-512/E-2").expansion == 2
    assert str(parse_arch("B_6-Wi_512-E_2")) == "B_6-Wi_512-E_2" and parse_arch("S_3-Wi_64").kind == "S"


@pytest.mark.parametrize(
    "name", ["", "B_12", "B_12-Wi_", "C_12-Wi_64", "B_0-Wi_64", "B_2-Wi_0", "B_2-Wi_4-E_0", "S_2-Wi_4-E_2", "B_2-Wi_4 "]
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="architecture"):
        build_model(name)


def weights_of(model):
    return {name: value.detach().double().numpy() for name, value in model.state_dict().items()}


def layer_norm(z, w, b):
    return (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-5) * w + b


def test_b_mlp_equals_the_formula():
    torch.manual_seed(0)
    model = build_model("B_3-Wi_16-E_2", res=4, num_classes=5)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    w, x = weights_of(model), np.random.default_rng(0).normal(size=(7, 48))
    z = x @ w["linear_in.weight"].T + w["linear_in.bias"]
    for i in range(3):
        h = layer_norm(z, w[f"layernorms.{i}.weight"], w[f"layernorms.{i}.bias"])
        h = h @ w[f"blocks.{i}.block.0.weight"].T + w[f"blocks.{i}.block.0.bias"]
        h = h * 0.5 * (1 + erf(h / np.sqrt(2)))
        z = z + h @ w[f"blocks.{i}.block.2.weight"].T + w[f"blocks.{i}.block.2.bias"]
    logits = z @ w["linear_out.weight"].T + w["linear_out.bias"]
    np.testing.assert_allclose(model(torch.from_numpy(x).float()).detach().numpy(), logits, rtol=1e-4, atol=1e-4)
    assert set(w) == {  # the released checkpoints' names, nothing else
        "linear_in.weight",
        "linear_in.bias",
        "linear_out.weight",
        "linear_out.bias",
        *(
            f"{part}.{i}.{end}"
            for i in range(3)
            for part, end in (
                ("layernorms", "weight"),
                ("layernorms", "bias"),
                ("blocks", "block.0.weight"),
                ("blocks", "block.0.bias"),
                ("blocks", "block.2.weight"),
                ("blocks", "block.2.bias"),
            )
        ),
    }


def test_s_mlp_equals_the_formula():
    torch.manual_seed(0)
    model = build_model("S_3-Wi_16", res=4, num_classes=5)
    w, x = weights_of(model), np.random.default_rng(0).normal(size=(7, 48))
    z = x @ w["linear_in.weight"].T + w["linear_in.bias"]
    for i in range(3):
        h = layer_norm(z, w[f"layernorms.{i}.weight"], w[f"layernorms.{i}.bias"])
        z = np.maximum(h @ w[f"blocks.{i}.weight"].T + w[f"blocks.{i}.bias"], 0)
    logits = z @ w["linear_out.weight"].T + w["linear_out.bias"]
    np.testing.assert_allclose(model(torch.from_numpy(x).float()).detach().numpy(), logits, rtol=1e-4, atol=1e-5)


def test_the_lean_block_has_the_gradients_of_autograd():
    torch.manual_seed(0)
    shapes = [(10, 6), (6,), (6,), (24, 6), (24,), (6, 24), (6,)]
    mine = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    theirs = [t.detach().clone().requires_grad_() for t in mine]
    weight = torch.randn(10, 6, dtype=torch.float64)
    outs = [block(*arguments) for block, arguments in ((bottleneck_own_backward, mine), (bottleneck_block, theirs))]
    torch.testing.assert_close(*outs)
    for out in outs:
        (out.sin() * weight).sum().backward()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
