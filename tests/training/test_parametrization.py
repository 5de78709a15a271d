"""One rate for all widths: what is scaled, that activations then change alike at all widths, and plain weights."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fastmlp
from fastmlp import build_model
from fastmlp.config import PretrainConfig
from fastmlp.datasets import get_dataset
from fastmlp.models.weights import load_model
from fastmlp.study.study_file import read_study
from fastmlp.training.optimizer import build_optimizer, parameter_groups
from fastmlp.training.parametrization import lr_scales, scale_initial_weights
from fastmlp.training.run import run_training
from fastmlp.training.run_folder import compare
from fastmlp.training.trainer import Trainer

OPTIMIZERS = ("adamw", "lion", "muon")
STEPS, CLASSES = 10, 10
BASE = PretrainConfig(
    res=8,
    arch="B_2-Wi_64-E_1",
    parametrization="mup",
    mixup_alpha=0.0,
    label_smoothing=0.0,
    batch_size=64,
    epochs="100 steps",
    compile="off",
)


def new_model(config):
    torch.manual_seed(config.seed)
    model = build_model(config.arch, config.res, CLASSES)
    scale_initial_weights(model, config)
    return model


def batches(seed):
    """Images, (64, 192), of 10 classes and 26 dimensions, and their labels. Images vary in few directions, too.

    Where they vary in more than the width, Muon's updates of linear_in reach a share of them that grows with width.
    """
    generator = torch.Generator().manual_seed(seed)
    originals, directions = (torch.randn(count, 192, generator=generator) for count in (CLASSES, 16))
    for _ in range(STEPS):
        labels = torch.randint(CLASSES, (64,), generator=generator)
        yield originals[labels] + 0.2 * torch.randn(64, 16, generator=generator) @ directions, labels


@torch.no_grad()
def activations(model, images):
    found = [model.embed(images)]
    for parameters in model.block_parameters():
        found.append(model.block(found[-1], *parameters))
    return [*found, model.linear_out(found[-1])]


def sizes(config):
    """Log RMS after some steps of the embedding and each block's output, then of their changes and the logits'."""
    model, data = new_model(config), list(batches(config.seed))
    before = activations(model, data[0][0])
    trainer = Trainer(model, config, 100)
    for batch in data:
        trainer.step(*batch)
    after = activations(model, data[0][0])
    values = [*after[:-1], *(new - old for new, old in zip(after, before, strict=True))]
    return [math.log(value.square().mean().sqrt()) for value in values]


def slopes(config, arch, widths, seeds):
    """The exponents of those sizes in width."""
    configs = [
        [dataclasses.replace(config, arch=arch.format(width), seed=seed) for seed in range(seeds)] for width in widths
    ]
    means = [np.mean([sizes(one) for one in some], axis=0) for some in configs]
    return np.polyfit(np.log(widths), means, 1)[0]


@pytest.mark.parametrize(
    ("optimizer", "lr", "arch", "widths"),
    [
        ("adamw", 1e-3, "B_2-Wi_{}-E_1", (64, 128, 256, 512)),
        ("adamw", 1e-3, "S_2-Wi_{}", (64, 128, 256, 512)),
        ("lion", 3e-4, "B_2-Wi_{}-E_1", (64, 128, 256, 512)),
        ("lion", 3e-4, "S_2-Wi_{}", (64, 128, 256, 512)),
        ("muon", 3e-3, "B_2-Wi_{}-E_1", (64, 128, 256)),
        # The second layer's change goes as width^0.13 from 64 to 128, ^0.09 to 256, ^0.04 to 512 and ^0.00 to 1024.
        ("muon", 3e-3, "S_2-Wi_{}", (128, 256, 512)),
    ],
)
def test_activations_and_their_changes_do_not_depend_on_width(optimizer, lr, arch, widths):
    """The coordinate check of "Tensor Programs V" (appendix D.1)."""
    config = dataclasses.replace(BASE, optimizer=optimizer, lr=lr)
    found = slopes(config, arch, widths, seeds=1 if optimizer == "muon" else 2)
    assert abs(found).max() < 0.1, found
    plain = slopes(dataclasses.replace(config, parametrization="standard"), arch, (64, 256), seeds=1)
    assert plain.max() > 0.5, plain


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_at_the_base_width_it_is_the_standard_parametrization(optimizer):
    config = dataclasses.replace(BASE, optimizer=optimizer, lr=1e-3, weight_decay=0.1, backbone_lr_scale=0.3)
    states, groups = [], []
    for parametrization in ("mup", "standard"):
        one = dataclasses.replace(config, parametrization=parametrization)
        trainer = Trainer(new_model(one), one, 100)
        for batch in batches(0):
            trainer.step(*batch)
        states.append([p.detach().numpy().tobytes() for p in trainer.model.parameters()])
        groups.append(trainer.optimizer.state_dict()["param_groups"])
    assert states[0] == states[1] and groups[0] == groups[1]


# Width 256, base 64, 192 numbers an image: initial weights, rate of AdamW and LION, rate of Muon.
BY_HAND = {
    "linear_in.weight": (1, 1, math.sqrt(3)),  # (1 / sqrt(192)) / (8 / 192)
    "linear_in.bias": (1, 1, 1),
    "blocks.0.block.0.weight": (1, 1 / 4, 1 / 2),
    "blocks.0.block.0.bias": (2, 1, 1),
    "blocks.0.block.2.weight": (1, 1 / 4, 1 / 2),
    "blocks.0.block.2.bias": (2, 1, 1),
    "layernorms.0.weight": (1, 1, 1),
    "layernorms.0.bias": (1, 1, 1),
    "linear_out.weight": (1 / 2, 1 / 4, 1 / 4),
    "linear_out.bias": (2, 1, 1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("decay_norms_and_biases", [False, True])
def test_factors_are_those_worked_out_by_hand(optimizer, decay_norms_and_biases):
    config = dataclasses.replace(BASE, optimizer=optimizer, arch="B_1-Wi_256-E_2")
    model, plain = new_model(config), new_model(dataclasses.replace(config, parametrization="standard"))
    options = dict(decay_norms_and_biases=decay_norms_and_biases, head_lr_scale=10.0, backbone_lr_scale=0.1)
    groups = parameter_groups(model, 0.3, **options, lr_scales=lr_scales(model, config))
    held = {id(p): group for group in groups for p in group["params"]}
    assert BY_HAND.keys() == dict(model.named_parameters()).keys()
    for (name, p), before in zip(model.named_parameters(), plain.parameters(), strict=True):
        initial, adamw, muon = BY_HAND[name]
        group, given = held[id(p)], 10 if name.startswith("linear_out") else 0.1
        torch.testing.assert_close(p, initial * before, rtol=1e-6, atol=0, msg=name)
        assert group["lr_scale"] == pytest.approx(given * (muon if optimizer == "muon" else adamw)), name
        decays = p.ndim == 2 or decay_norms_and_biases
        assert group["lr_scale"] * group["weight_decay"] == pytest.approx(0.3 * given * decays), name


@pytest.mark.parametrize("arch", ["B_1-Wi_{}-E_2", "S_1-Wi_{}"])
def test_muon_s_updates_keep_their_spectral_norm_relative_to_the_shape(arch):
    """Largest singular value of updates, in units of sqrt(rows / columns), with 64 and 320 rows for 192 inputs."""

    def updates(width):
        config = dataclasses.replace(BASE, optimizer="muon", arch=arch.format(width))
        model = new_model(config)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = build_optimizer("muon", model, 0.01, 0.0, lr_scales=lr_scales(model, config))
        generator = torch.Generator().manual_seed(0)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        changes = {name: p.detach() - before[name] for name, p in model.named_parameters()}
        return {
            name: torch.linalg.svdvals(change).max().item() / math.sqrt(len(change) / len(change[0]))
            for name, change in changes.items()
            if change.ndim == 2 and not name.startswith("linear_out")
        }

    base, wide = updates(64), updates(320)
    assert len(base) == 2 + arch.startswith("B")
    for name, value in base.items():
        assert wide[name] == pytest.approx(value, rel=0.1), name


def test_it_is_refused_where_it_has_no_meaning(script, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = "--cfg.dataset=synthetic", f"--cfg.data_dir={data_dir}"
    for recipe, flags, message in (
        ("pretrain", ["--cfg.optimizer=sgd"], "--cfg.parametrization=mup takes --cfg.optimizer=lion, adamw or muon"),
        ("finetune", ["--cfg.weights=x.pt"], "--cfg.parametrization=mup is for new weights: leave it out with --cfg.w"),
        ("linear_probe", ["--cfg.weights=x.pt"], "leave it out with --cfg.weights"),
        ("pretrain", ["--cfg.base_width=0"], "--cfg.base_width: expected an integer of at least 1"),
    ):
        ended = script(f"recipes/{recipe}.py", *data, *flags, "--cfg.parametrization=mup")
        assert ended.code == 2 and message in ended.err and len(ended.err.splitlines()) == 1, ended.err
    with pytest.raises(ValueError, match="^parametrization=mup takes optimizer=lion, adamw or muon, not sgd$"):
        fastmlp.train("synthetic", data_dir=data_dir, parametrization="mup", optimizer="sgd")
    for train in (fastmlp.finetune, fastmlp.linear_probe):
        with pytest.raises(ValueError, match="^parametrization=mup is for new weights: leave it out with weights$"):
            train("x.pt", "synthetic", data_dir=data_dir, parametrization="mup", optimizer="adamw")
    study = tmp_path / "x.yaml"
    study.write_text("{title: x, base: {parametrization: mup}, arms: {a: {optimizer: sgd}}}")
    with pytest.raises(ValueError, match=r"x\.yaml: --cfg\.parametrization=mup takes"):
        read_study(study)


def test_a_run_stored_without_the_setting_is_a_standard_one():
    stored = dataclasses.asdict(PretrainConfig())
    del stored["parametrization"], stored["base_width"]
    assert compare(stored, PretrainConfig()) == {}
    assert compare(stored, PretrainConfig(parametrization="mup")) == {"parametrization": ("standard", "mup")}


@pytest.fixture
def train(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("fastmlp.cost.hardware.device_peak_flop_per_s", lambda device: None)

    def call(name, optimizer, lr=3e-3):
        config = PretrainConfig(
            dataset="synthetic",
            data_dir=str(data_dir),
            run_dir=str(tmp_path / name),
            res=8,
            arch="B_2-Wi_32",
            parametrization="mup",
            base_width=8,
            optimizer=optimizer,
            lr=lr,
            weight_decay=0.1,
            batch_size=100,
            epochs="2",
            ema_decay=0.9,
            checkpoint_every="3 steps",
            compile="off",
            num_workers=1,
        )
        run_training(config, get_dataset("synthetic", data_dir), lambda: build_model(config.arch, 8, 5), "x")
        return tmp_path / name

    return call


def weights(folder, name="final"):
    return b"".join(value.numpy().tobytes() for value in load_model(folder / f"{name}.pt")[0].state_dict().values())


@pytest.mark.parametrize("optimizer", ["lion", "muon"])  # Muon is AdamW for the rest
def test_an_interrupted_run_ends_bit_for_bit_the_same(train, monkeypatch, optimizer):
    whole, real = train("whole", optimizer), Trainer.step

    def step(trainer, *batch):
        if trainer.steps_done == 8:
            raise InterruptedError("the power failed")
        return real(trainer, *batch)

    with monkeypatch.context() as failing:
        failing.setattr(Trainer, "step", step)
        with pytest.raises(InterruptedError):
            train("resumed", optimizer)
    resumed = train("resumed", optimizer)
    assert weights(whole) == weights(resumed) and weights(whole, "best") == weights(resumed, "best")


def test_a_run_begins_with_scaled_weights(train):
    state = load_model(train("run", "adamw", lr=1e-30) / "final.pt")[0].state_dict()
    torch.manual_seed(0)
    torch_s = build_model("B_2-Wi_32", 8, 5).state_dict()
    for name, factor in (("linear_out.weight", 1 / 2), ("linear_out.bias", 2), ("blocks.1.block.0.weight", 1)):
        torch.testing.assert_close(state[name], factor * torch_s[name])


def test_its_weights_are_plain(train, data_dir):
    folder = train("run", "adamw")
    model, metadata = load_model(folder / "final.pt")
    assert model.state_dict().keys() == build_model("B_2-Wi_32", 8, 5).state_dict().keys()
    exported, _ = load_model(folder / "final.safetensors")
    state, images = exported.state_dict(), torch.randn(7, 192, generator=torch.Generator().manual_seed(0))

    def linear(z, name):
        return z @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    z = linear(images, "linear_in")
    for block in range(2):
        normed = (z - z.mean(1, keepdim=True)) / (z.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        normed = normed * state[f"layernorms.{block}.weight"] + state[f"layernorms.{block}.bias"]
        z = z + linear(F.gelu(linear(normed, f"blocks.{block}.block.0")), f"blocks.{block}.block.2")
    with torch.no_grad():
        torch.testing.assert_close(model(images), linear(z, "linear_out"), rtol=1e-4, atol=1e-5)
    found = fastmlp.evaluate(folder / "final.pt", "synthetic", data_dir=data_dir, res=8)
    assert found.top1 == metadata["test_top1"] > 0.2  # of five classes
