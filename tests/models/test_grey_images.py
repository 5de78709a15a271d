"""Grey images' embedding in a third of the products: the same results and gradients, and only for grey images."""

import pytest
import torch
from torch import nn

from fastmlp.config import PretrainConfig
from fastmlp.evaluation.evaluate import select_forward
from fastmlp.models import grey_images
from fastmlp.models.grey_images import are_grey, embed
from fastmlp.models.weights import build_model
from fastmlp.training import muon
from fastmlp.training.muon import add_orthogonalized, orthogonalize
from fastmlp.training.trainer import Trainer


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def grey(images, res, seed=0):
    return randn(images, res * res, seed=seed).repeat(1, 3)


def outcome(function, images, width=7):
    torch.manual_seed(0)
    linear = nn.Linear(images.shape[1], width)
    out = function(linear, images)
    out.backward(randn(*out.shape, seed=1))
    return out.detach(), linear.weight.grad, linear.bias.grad


@pytest.mark.parametrize(("images", "res"), [(1, 1), (5, 4), (64, 9)])
def test_result_and_gradients_of_grey_images(images, res):
    x = grey(images, res)
    found, expected = outcome(embed, x), outcome(lambda linear, x: linear(x), x)
    assert [one.shape for one in found] == [one.shape for one in expected]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_what_is_not_grey_takes_the_ordinary_way_bit_for_bit(monkeypatch):
    monkeypatch.setattr(grey_images._FoldedLinear, "apply", lambda *_: pytest.fail("folded"))
    one_value, nan = grey(30, 4), grey(30, 4)
    one_value[29, 47] += 1e-6
    nan[3, 5::16] = float("nan")
    for x in (randn(30, 48), one_value, nan, randn(0, 48), randn(5, 3)):
        assert not are_grey(x)
        for one, other in zip(outcome(embed, x), outcome(lambda linear, x: linear(x), x), strict=True):
            assert torch.equal(one.nan_to_num(), other.nan_to_num())


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 100])
def test_one_value_of_any_plane_and_row_tells(rows):
    """In every tile and at the ends of the planes, also of images whose rows are not dense or not float32."""
    for make in (torch.clone, lambda x: x[:, None].expand(-1, 2, -1)[:, 1], torch.Tensor.double):
        assert are_grey(make(grey(rows, 4)))
        for row in {0, rows // 2, rows - 1}:
            for place in (0, 15, 16, 31, 32, 47):
                x = grey(rows, 4)
                x[row, place] = 9.0
                assert not are_grey(make(x))


def test_hooks_and_gradients_of_the_images_are_a_caller_s_own():
    torch.manual_seed(0)
    linear, x, seen = nn.Linear(48, 5), grey(6, 4), []
    handle = linear.register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(embed(linear, x), linear(x)) and len(seen) == 2
    handle.remove()
    embed(linear, x.requires_grad_()).sum().backward()
    torch.testing.assert_close(x.grad, linear.weight.detach().sum(0).expand(6, -1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(embed(linear, x.detach()), linear(x.detach()))


def losses_and_model(images, labels, optimizer="adamw"):
    torch.manual_seed(0)
    model = build_model("B_2-Wi_16", 4, 5)
    config = PretrainConfig(
        dataset="synthetic", res=4, batch_size=len(images), epochs="20", optimizer=optimizer, mixup_alpha=0.3
    )
    trainer = Trainer(model, config, batches_per_epoch=1)
    return [trainer.step(images, labels).item() for _ in range(20)], trainer


def test_training_and_evaluation_are_the_same_up_to_rounding(monkeypatch):
    images, labels = grey(40, 4), torch.arange(40) % 5
    folded, trainer = losses_and_model(images, labels)
    state = trainer.state_dict()
    logits = select_forward(trainer.model)(images)
    torch.testing.assert_close(logits, trainer.model(images), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(grey_images, "are_grey", lambda images: False)
    plain, other = losses_and_model(images, labels)
    assert folded == pytest.approx(plain, rel=1e-5)
    for one, two in zip(state["model"].values(), other.state_dict()["model"].values(), strict=True):
        assert one.shape == two.shape
    for one, two in zip(
        state["optimizer"]["state"].values(), other.state_dict()["optimizer"]["state"].values(), strict=True
    ):
        assert {name: value.shape for name, value in one.items()} == {name: v.shape for name, v in two.items()}


@pytest.mark.parametrize("shape", [(4, 3 * 16), (12, 3 * 9), (40, 3 * 4), (16, 3 * 16)])
def test_muon_on_equal_planes_is_muon(shape):
    rows, columns = shape
    for copies in (3, 1):
        grad, momentum, p = (randn(rows, columns // copies, seed=n).repeat(1, copies) for n in range(3))
        p = p + randn(rows, columns, seed=4)
        expected = p - 0.1 * orthogonalize(torch.lerp(grad, momentum, 0.95), torch.float32)
        add_orthogonalized(p, grad, momentum, 0.95, -0.1)
        torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-5)
    grad = randn(rows, columns // 3).repeat(1, 3)  # equal planes of the gradient alone are not enough
    expected = p.add(orthogonalize(torch.lerp(grad, momentum, 0.95), torch.float32), alpha=-0.1)
    add_orthogonalized(p, grad, momentum, 0.95, -0.1)
    assert torch.equal(p, expected)


def test_muon_orthogonalises_a_third_of_grey_gradients(monkeypatch):
    """Training takes the third, and ends as without it up to rounding; the state keeps its three planes."""
    shapes, real = [], muon.orthogonalize
    monkeypatch.setattr(muon, "orthogonalize", lambda x, dtype: shapes.append((*x.shape,)) or real(x, dtype))
    images, labels = grey(40, 4), torch.arange(40) % 5
    folded, trainer = losses_and_model(images, labels, "muon")
    assert shapes.count((16, 16)) == 20 and (16, 48) not in shapes
    assert {one["momentum"].shape for one in trainer.optimizer.state.values() if "momentum" in one} >= {(16, 48)}
    monkeypatch.setattr(muon, "are_grey", lambda matrix: False)
    plain, _ = losses_and_model(images, labels, "muon")
    assert (16, 48) in shapes and folded == pytest.approx(plain, rel=1e-4)
