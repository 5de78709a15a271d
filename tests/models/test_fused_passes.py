"""The fused passes against torch in float64, at ragged shapes, with any number of threads."""

import hashlib
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fastmlp.models import fused_passes, grey_images, torch_threads
from fastmlp.models.bottleneck_autograd import bottleneck_in_place, bottleneck_own_backward
from fastmlp.models.mlp import bottleneck_block
from fastmlp.training import lion

SHAPES = [(1, 1), (3, 5), (128, 64), (129, 17), (300, 250)]


@pytest.fixture
def threads():
    """threads(n): use so many, until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def randn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_gelu_and_its_slope_are_torch_s_to_4e_7_of_the_input():
    x = torch.cat([torch.linspace(-30, 30, 600_001), torch.tensor([0.0, -0.0, 1e-30, -1e-38, 1e4, -1e4, 3e38, -3e38])])[
        :, None
    ]
    exact = x.double().requires_grad_()
    value = F.gelu(exact)
    value.sum().backward()
    bias = torch.zeros(1)
    act, slope = fused_passes.gelu_and_slope(x.clone(), bias)
    assert ((act - value).abs() <= 4e-7 * x.abs().clamp(1, 2)).all()
    assert ((slope - exact.grad).abs() <= 4e-7).all()
    assert torch.equal(fused_passes.gelu_(x.clone(), bias), act)
    assert act.isfinite().all() and slope.isfinite().all()


def test_gelu_of_nan_is_nan():
    act, slope = fused_passes.gelu_and_slope(torch.tensor([[float("nan"), 1.0]]), torch.zeros(2))
    assert act.isnan().tolist() == slope.isnan().tolist() == [[True, False]]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_bias_is_added_first_and_may_be_of_any_layout(shape):
    x, biases = randn(*shape), randn(shape[1], 2, seed=1)
    act, _ = fused_passes.gelu_and_slope(x.clone(), biases[:, 0])
    torch.testing.assert_close(act, F.gelu(x + biases[:, 0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_product_and_its_sum_over_the_rows(shape):
    grad, slope = randn(*shape), randn(*shape, seed=1)
    product, total = fused_passes.multiply_and_sum(grad.clone(), slope)
    assert torch.equal(product, grad * slope)
    torch.testing.assert_close(total, (grad.double() * slope).sum(0).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm_and_the_sum_beside_it(shape):
    z = randn(*shape, scale=3.0) + 5
    weight, bias, shift = (randn(shape[1], seed=seed) for seed in (1, 2, 3))
    normed, shifted, mean, rstd = fused_passes.layer_norm(z, weight, bias, shift)
    exact = F.layer_norm(z.double(), shape[1:], weight.double(), bias.double())
    torch.testing.assert_close(normed.double(), exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(shifted, z + shift)
    torch.testing.assert_close(mean.double(), z.double().mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(rstd.double(), (z.double().var(1, correction=0) + 1e-5).rsqrt(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_layer_norm_s_backward_pass(shape):
    grad, z, skip, weight = (randn(*s, seed=i) for i, s in enumerate((shape, shape, shape, shape[1:])))
    inputs = [one.double().requires_grad_() for one in (z, weight, torch.zeros(shape[1]))]
    F.layer_norm(inputs[0], shape[1:], *inputs[1:]).backward(grad.double())
    _, mean, rstd = torch.native_layer_norm(z, shape[1:], weight, torch.zeros(shape[1]), 1e-5)
    found = fused_passes.layer_norm_backward(grad.clone(), z, mean[:, 0], rstd[:, 0], weight, skip)
    expected = inputs[0].grad + skip, inputs[1].grad, inputs[2].grad, skip.double().sum(0)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def block_arguments(batch, width, expansion=4):
    shapes = (batch, width), (width,), (width,), (expansion * width, width), (expansion * width,)
    arguments = [randn(*s, seed=i) for i, s in enumerate((*shapes, (width, expansion * width), (width,)))]
    return [one / one.shape[1] ** 0.5 if one.ndim == 2 and i else one for i, one in enumerate(arguments)]


def outcome(block, arguments):
    """The block's result and the gradients of its arguments."""
    arguments = [one.clone().requires_grad_() for one in arguments]
    out = block(*arguments)
    (out * out.detach().cos()).sum().backward()
    return [out.detach(), *(one.grad for one in arguments)]


def passes():
    """The results of two passes."""
    x, other = randn(400, 96), randn(400, 96, seed=1)
    normed = fused_passes.layer_norm(x, other[0], other[1], other[2])
    return *normed, *fused_passes.gelu_and_slope(x.clone(), other[0]), *fused_passes.multiply_and_sum(x, other)


def test_results_do_not_depend_on_the_number_of_threads(threads):
    threads(1)
    expected = passes()
    for count in (2, 3, 5):
        threads(count)
        assert all(map(torch.equal, passes(), expected))


def test_the_block_s_result_and_gradients_are_those_in_float64():
    arguments = block_arguments(400, 24)
    exact = outcome(bottleneck_block, [one.double() for one in arguments])
    for one, other in zip(outcome(bottleneck_own_backward, arguments), exact, strict=True):
        assert (one - other).abs().max() <= 1e-6 * other.abs().max()


def test_numbers_that_are_not_finite_go_through_without_a_warning():
    arguments = block_arguments(300, 8)
    arguments[0][3], arguments[0][200] = float("inf"), float("nan")
    found = outcome(bottleneck_own_backward, arguments)
    assert found[0][:3].isfinite().all() and not found[0][[3, 200]].isfinite().any() and found[2].isnan().any()


@pytest.mark.parametrize("how", ["no OpenMP", "forked"])
def test_one_thread_does_all_where_there_is_no_team(how, monkeypatch):
    arguments = block_arguments(300, 8)
    expected = outcome(bottleneck_own_backward, arguments)
    if how == "forked":
        monkeypatch.setattr(torch_threads, "_forked", [True])
    else:
        monkeypatch.setattr(torch_threads, "_team", lambda: None)
    assert all(map(torch.equal, outcome(bottleneck_own_backward, arguments), expected))


def _in_the_child(queue, x, bias):
    queue.put(fused_passes.gelu_and_slope(x, bias)[0].numpy())


def test_a_forked_child_does_not_wait_for_threads_that_stayed_behind():
    x, bias = randn(600, 8), randn(8, seed=1)
    expected, _ = fused_passes.gelu_and_slope(x.clone(), bias)
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    child = fork.Process(target=_in_the_child, args=(queue, x.clone(), bias), daemon=True)
    child.start()
    found = torch.from_numpy(queue.get(timeout=60))
    child.join(60)
    assert child.exitcode == 0 and torch.equal(found, expected)


def test_double_precision_takes_torch_s_own_block():
    arguments = [one.double() for one in block_arguments(10, 6)]
    for one, other in zip(
        outcome(bottleneck_own_backward, arguments), outcome(bottleneck_block, arguments), strict=True
    ):
        assert torch.equal(one, other)


def test_torch_s_default_type_changes_nothing():
    arguments = block_arguments(300, 8)
    expected = outcome(bottleneck_own_backward, arguments)
    torch.set_default_dtype(torch.float64)
    try:
        found = outcome(bottleneck_own_backward, arguments)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, expected))


def test_under_a_caller_s_autocast_the_blocks_are_torch_s():
    z, *parameters = block_arguments(300, 16)
    with torch.autocast("cpu", torch.bfloat16):
        expected = bottleneck_block(z, *parameters)
        assert torch.equal(bottleneck_own_backward(z, *parameters), expected)
        assert torch.equal(bottleneck_in_place(z.clone(), *parameters), expected)


def test_operands_of_another_type_are_refused():
    with pytest.raises(TypeError, match=r"gelu: expected contiguous float32 on the CPU, got torch\.bfloat16 on cpu"):
        fused_passes.gelu_(torch.ones(3, 4, dtype=torch.bfloat16), torch.zeros(4))


def test_the_block_in_place_is_the_block():
    z, *parameters = block_arguments(200, 16)
    expected = bottleneck_block(z, *parameters)
    torch.testing.assert_close(bottleneck_in_place(z.clone(), *parameters), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("module", [fused_passes, grey_images, lion])
def test_compiled_code_is_not_older_than_the_threads(module):
    """Numba's cache on disk would not notice a change of torch_threads.py: its users must change with it."""
    digest = hashlib.sha256(Path(torch_threads.__file__).read_bytes()).hexdigest()[:16]
    assert digest == module.THREADS_SHA256, f'torch_threads.py has changed: set THREADS_SHA256 = "{digest}"'
