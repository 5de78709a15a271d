"""The loss and its gradient, against the formula in float64."""

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastmlp.models.loss import loss_kernel, mixed_cross_entropy, passes_in_place

KERNELS = {
    "passes": passes_in_place,
    "kernel": loss_kernel,
    "compiled": torch.compile(loss_kernel, dynamic=False, isolate_recompiles=True, recompile_limit=64),
}


def expected(logits, labels, lam, smoothing, divisor):
    """Loss, gradient, and the size of the terms whose difference the gradient is: all in float64."""
    x = logits.double().numpy()
    p = np.exp(x - x.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    log_p = x - x.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    target = np.full_like(p, smoothing / p.shape[1])
    for row, label in enumerate(labels.tolist()):
        partner = row ^ 1 if row ^ 1 < len(labels) else row
        target[row, label] += (1 - smoothing) * lam
        target[row, labels[partner]] += (1 - smoothing) * (1 - lam)
    return -(target * log_p).sum() / divisor, (p - target) / divisor, (p + target) / divisor


@pytest.fixture
def batch():
    def make(size, classes, seed, dtype=torch.float32, scale=3.0):
        generator = torch.Generator().manual_seed(seed)
        logits = scale * torch.randn(size, classes, generator=generator)
        return logits.to(dtype), torch.randint(0, classes, (size,), generator=generator)

    return make


def loss_and_gradient(logits, labels, *arguments, kernel, root=None):
    x = logits.clone().requires_grad_()
    loss = mixed_cross_entropy(x * 1, labels, *arguments, kernel, root)  # not a leaf: it is overwritten
    loss.backward(root)
    return loss.detach(), x.grad


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "size, classes, lam, smoothing",
    [
        (5, 4, 0.6, 0.3),
        (6, 1000, 1.0, 0.0),
        (7, 37, 0.0, 0.1),
        (3, 1, 0.4, 0.2),
        (1, 9, 0.5, 0.0),
        (64, 11_230, 0.7, 0.3),
    ],
)
def test_loss_and_gradient_are_the_formula_s(batch, name, size, classes, lam, smoothing):
    for seed in range(3):
        logits, labels = batch(size, classes, seed)
        loss, gradient = loss_and_gradient(logits, labels, lam, smoothing, 13, kernel=KERNELS[name])
        loss64, gradient64, terms = expected(logits, labels, lam, smoothing, 13)
        assert loss.dtype == gradient.dtype == torch.float32
        assert loss.item() == pytest.approx(loss64, rel=1e-6, abs=1e-7)
        error = gradient.double().numpy() - gradient64
        assert np.linalg.norm(error) <= 1e-6 * (np.linalg.norm(gradient64) or 1)
        # float32 rounds x - max, of up to 30 here; exp of torch.compile on the CPU has about 20 bits.
        assert (np.abs(error) <= (1e-5 if name == "compiled" else 3e-6) * terms).all()


@pytest.mark.parametrize("name", KERNELS)
def test_gradient_of_bfloat16_logits_is_rounded_once(batch, name, monkeypatch):
    monkeypatch.setattr("fastmlp.models.loss.CHUNK_ELEMENTS", 7000)  # several chunks, the last one smaller
    logits, labels = batch(33, 3000, 0, torch.bfloat16)
    loss, gradient = loss_and_gradient(logits, labels, 0.7, 0.3, 64, kernel=KERNELS[name])
    loss32, gradient32 = loss_and_gradient(logits.float(), labels, 0.7, 0.3, 64, kernel=KERNELS[name])
    assert gradient.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert torch.equal(gradient, gradient32.bfloat16())
    assert loss.item() == pytest.approx(loss32.item(), rel=1e-6)


@pytest.mark.parametrize("name", KERNELS)
def test_large_logits_stay_finite_and_infinite_ones_do_not_hide(batch, name):
    logits, labels = batch(8, 50, 0, scale=1e4)
    loss, gradient = loss_and_gradient(logits, labels, 0.7, 0.1, 8, kernel=KERNELS[name])
    assert (
        loss.item() == pytest.approx(expected(logits, labels, 0.7, 0.1, 8)[0], rel=1e-6) and gradient.isfinite().all()
    )
    logits[3, 3] = float("inf")
    assert not loss_and_gradient(logits, labels, 0.7, 0.1, 8, kernel=KERNELS[name])[0].isfinite()


def test_only_another_gradient_of_the_loss_scales_the_logits_gradient(batch):
    logits, labels = batch(6, 10, 0)
    root = torch.ones(())
    received = []
    for given, scale in ((root, 1.0), (None, 1.0), (torch.tensor(-2.5), -2.5)):
        x = logits.clone().requires_grad_()
        product = x * 1
        product.register_hook(lambda gradient, product=product: received.append((gradient, product.data_ptr())))
        mixed_cross_entropy(product, labels, 0.7, 0.3, 6, None, root).backward(given)
        gradient64 = scale * expected(logits, labels, 0.7, 0.3, 6)[1]
        np.testing.assert_allclose(x.grad.numpy(), gradient64, rtol=1e-4, atol=1e-7)
    kept = [gradient.data_ptr() == logits_at for gradient, logits_at in received]
    assert kept == [True, True, False]


def test_a_leaf_is_refused(batch):
    logits, labels = batch(4, 3, 0)
    with pytest.raises(ValueError, match="leaf"):
        mixed_cross_entropy(logits.requires_grad_(), labels, 0.7, 0.3)


class NewTensors(TorchDispatchMode):
    """Notes the size of every tensor that an operation allocates, its inputs' memory apart."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in known:
                self.sizes.append(t.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_second_tensor_of_the_logits_size(batch, dtype, monkeypatch):
    monkeypatch.setattr("fastmlp.models.loss.CHUNK_ELEMENTS", 1000)
    logits, labels = batch(40, 100, 0, dtype)
    x = logits.requires_grad_() * 1
    root = torch.ones(())
    with NewTensors() as new:
        mixed_cross_entropy(x, labels, 0.7, 0.3, 40, None, root).backward(root)
    leaf_gradient = logits.nbytes  # of `* 1`
    assert sorted(new.sizes)[-2] <= 4000 and max(new.sizes) == leaf_gradient


def test_the_weight_of_mixup_compiles_nothing_anew(batch):
    counter = CompileCounterWithBackend("eager")
    kernel = torch.compile(loss_kernel, dynamic=False, backend=counter, isolate_recompiles=True)
    for seed, lam in enumerate((1.0, 0.7, 0.1, 0.55)):
        logits, labels = batch(8, 12, seed)
        loss_and_gradient(logits, labels, lam, 0.3, 8, kernel=kernel)
    assert counter.frame_count == 1
