"""Training in bfloat16, as on a GPU, against float32: the same batches, the losses side by side."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from emulated_bfloat16 import Bfloat16, bfloat16_orthogonalize, rounded
from torch import Tensor

from fastmlp import build_model
from fastmlp.config import PretrainConfig
from fastmlp.models.mlp import bottleneck_block
from fastmlp.sources.synthetic import Synthetic
from fastmlp.training import muon, trainer
from fastmlp.training.muon import orthogonalize
from fastmlp.training.trainer import Trainer

# At these, bfloat16 weights would stall: near 0.1 they would be 0.0005 apart, and smaller updates rounded away.
RATES = {"lion": 1e-4, "adamw": 3e-4, "sgd": 3e-3, "muon": 5e-4}
STEPS, MEAN_OF, STALLED_STEPS = 300, 30, 60
# Nats, in means of 30 steps. Over 20 seeds of each optimiser the largest difference was 0.00024. Seeds differ by a
# standard deviation of at least 0.0156, and bfloat16 weights were behind by at least 0.0186 (Muon; LION: 0.069).
TOLERANCE = 1e-3
RES, CLASSES, BATCH = 6, 10, 32


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More only wait for each other on matrices of 64 x 64."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    source = Synthetic(1280, CLASSES, RES, noise=150.0)  # noise enough for 300 steps not to reach the end
    images, labels = zip(*(source[index] for index in range(len(source))), strict=True)
    flat = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).flatten(1)
    # Exact in bfloat16: it rounds the two numbers of clipped pixels, 41 % of all, always the same way. Divided by 100
    # instead, both grow by 0.1 to 0.3 %, and losses differ by up to 0.0015.
    return flat.float().sub(128).div(128), torch.tensor(labels)


@pytest.fixture
def in_bfloat16(monkeypatch) -> Callable[[], None]:
    """in_bfloat16(): from here on, the CPU trains as a device does."""

    def call() -> None:
        monkeypatch.setattr(trainer, "autocast", lambda device: Bfloat16())
        monkeypatch.setattr(trainer, "bottleneck_own_backward", bottleneck_block)  # only without autocast
        monkeypatch.setattr(muon, "orthogonalize", bfloat16_orthogonalize)

    return call


def new_trainer(optimizer: str, seed: int = 0, arch: str = "B_1-Wi_64-E_1", mixup_alpha: float = 0.0) -> Trainer:
    config = PretrainConfig(
        arch=arch,
        batch_size=BATCH,
        epochs=f"{STEPS} steps",
        optimizer=optimizer,
        lr=RATES[optimizer],
        mixup_alpha=mixup_alpha,
        label_smoothing=0.1,
        ema_decay=0.9,
        compile="off",
        seed=seed,
    )
    torch.manual_seed(seed)
    return Trainer(build_model(arch, RES, CLASSES), config, batches_per_epoch=STEPS)


def losses(
    trained: Trainer, data: tuple[Tensor, Tensor], steps: int = STEPS, after_step: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Means of the losses of MEAN_OF steps each."""
    images, labels = data
    rng, found = np.random.default_rng(trained.config.seed), []
    for _ in range(steps):
        batch = torch.from_numpy(rng.integers(0, len(images), BATCH))
        found.append(trained.step(images[batch], labels[batch]))
        after_step()
    return torch.stack(found).view(-1, MEAN_OF).mean(1).numpy()


def is_bfloat16(tensor: Tensor) -> bool:
    return torch.equal(tensor, rounded(tensor))


@pytest.mark.parametrize("optimizer", RATES)
def test_300_steps_lose_what_they_lose_in_float32(optimizer, data, in_bfloat16):
    """Weights, gradients, optimiser state and moving average stay float32; all but gradients use more bits."""
    wanted = losses(new_trainer(optimizer), data)
    in_bfloat16()
    trained = new_trainer(optimizer)
    difference = np.abs(losses(trained, data) - wanted)
    assert 1e-5 < difference.max() < TOLERANCE, difference
    assert wanted[0] - wanted[-1] > 0.5
    states = [value for state in trained.optimizer.state.values() for value in state.values() if value.ndim]
    for kept in (*trained.trained, *trained.ema, *states):
        assert kept.dtype == torch.float32 and not is_bfloat16(kept)
    for p in trained.trained:
        assert p.grad.dtype == torch.float32 and (p.ndim == 1 or is_bfloat16(p.grad))  # of one micro-batch


def test_weights_kept_in_bfloat16_would_be_noticed(data, in_bfloat16):
    """LION's small steps are lost: the loss hardly falls."""
    in_bfloat16()
    trained, stalled = new_trainer("lion"), new_trainer("lion")

    @torch.no_grad()
    def keep_in_bfloat16() -> None:
        for p in stalled.trained:
            p.copy_(rounded(p))

    wanted, found = losses(trained, data, STALLED_STEPS), losses(stalled, data, STALLED_STEPS, keep_in_bfloat16)
    assert found[-1] - wanted[-1] > 10 * TOLERANCE


def one_step(arch: str, data: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the gradients of a step."""
    trained = new_trainer("sgd", arch=arch, mixup_alpha=0.8)
    loss = trained.step(data[0][:BATCH], data[1][:BATCH])
    return loss, {name: p.grad for name, p in trained.model.named_parameters()}


def assert_rounded_alike(got: Tensor, wanted: Tensor, unrounded: Tensor) -> None:
    """Sums in another order round some numbers to their neighbours: the ratio was 0 to 0.3; without a rounding, 1."""
    assert (got - wanted).norm() <= 0.5 * (wanted - unrounded).norm()


@pytest.mark.parametrize("arch", ["B_2-Wi_64", "S_2-Wi_64", "B_2-Wi_64-N_none", "S_2-Wi_64-N_none"])
def test_what_is_emulated_is_torch_s_autocast(arch, data, in_bfloat16, monkeypatch):
    """The CPU's; simulated_training.py compares with the lists for CUDA, which differ in LayerNorm."""
    _, unrounded = one_step(arch, data)
    in_bfloat16()
    loss, emulated = one_step(arch, data)
    monkeypatch.setattr(trainer, "autocast", lambda device: torch.autocast("cpu", torch.bfloat16))
    wanted_loss, wanted = one_step(arch, data)
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-4, atol=0)
    for name in wanted:
        if not name.startswith("layernorms."):
            assert_rounded_alike(emulated[name], wanted[name], unrounded[name])
            assert is_bfloat16(emulated[name]) and is_bfloat16(wanted[name])


@pytest.mark.parametrize("shape", [(64, 64), (64, 192), (192, 64)])
def test_muon_s_products_are_bfloat16_s(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    wanted, unrounded = orthogonalize(matrix, torch.bfloat16).float(), orthogonalize(matrix, torch.float32)
    assert_rounded_alike(bfloat16_orthogonalize(matrix, torch.bfloat16), wanted, unrounded)
