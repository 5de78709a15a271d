"""Models without norms and with BatchNorm, against models written with torch's own modules."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastmlp import build_model, load_model
from fastmlp.arch import parse_arch
from fastmlp.config import FinetuneConfig, PretrainConfig
from fastmlp.data.split import Split
from fastmlp.datasets import get_dataset
from fastmlp.evaluation.evaluate import evaluate
from fastmlp.evaluation.features import CachedFeatures
from fastmlp.models.weights import export_safetensors, save_model
from fastmlp.training.trainer import Trainer
from fastmlp.transforms.augment_params import Augment

BASE = PretrainConfig(
    dataset="synthetic",
    res=8,
    arch="B_2-Wi_16-N_batch",
    batch_size=100,
    epochs="2",
    optimizer="adamw",
    lr=3e-3,
    schedule="cosine",
    compile="off",
    micro_batch_size=40,
)
STATISTICS = {
    f"layernorms.{i}.{name}" for i in range(2) for name in ("running_mean", "running_var", "num_batches_tracked")
}


def test_names():
    for name in ("B_2-Wi_256-E_2-N_batch", "B-2/Wi-256/E-2/N-batch"):
        arch = parse_arch(name)
        assert (arch.blocks, arch.width, arch.expansion, arch.norm) == (2, 256, 2, "batch")
        assert str(arch) == "B_2-Wi_256-E_2-N_batch"
    assert str(parse_arch("S-3/Wi-8/N-none")) == "S_3-Wi_8-N_none"
    assert str(parse_arch("B_2-Wi_8-N_layer")) == "B_2-Wi_8" and parse_arch("B_2-Wi_8").norm == "layer"
    for name in ("B_2-Wi_8-N_group", "B_2-Wi_8-N_", "B_2-Wi_8-N_batch-E_2", "B_2-Wi_8-N_Batch"):
        with pytest.raises(ValueError, match="-N_batch or -N_none"):
            parse_arch(name)


class Reference(nn.Module):
    """The MLP as a chain of torch's modules, with the weights of `model`."""

    def __init__(self, model):
        super().__init__()
        self.arch, width = model.arch, model.arch.width
        self.first, self.last = nn.Linear(192, width), nn.Linear(width, 5)
        hidden = self.arch.expansion * width
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(width) if self.arch.norm == "batch" else nn.Identity() for _ in range(self.arch.blocks)
        )
        self.inner = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            if self.arch.kind == "B"
            else nn.Sequential(nn.Linear(width, width), nn.ReLU())
            for _ in range(self.arch.blocks)
        )
        for mine, theirs in zip(self.parameters_in_order(), self.of(model), strict=True):
            mine.data = theirs.detach().clone()

    def parameters_in_order(self):
        return [p for part in (self.first, self.norms, self.inner, self.last) for p in part.parameters()]

    @staticmethod
    def of(model):
        parts = (model.linear_in, model.layernorms, model.blocks, model.linear_out)
        return [p for part in parts for p in part.parameters()]

    def forward(self, images):
        z = self.first(images)
        for norm, inner in zip(self.norms, self.inner, strict=True):
            z = inner(norm(z)) + (z if self.arch.kind == "B" else 0)
        return self.last(z)


@pytest.mark.parametrize("name", ["B_2-Wi_16-N_batch", "S_3-Wi_16-N_batch", "B_2-Wi_16-E_2-N_none", "S_3-Wi_16-N_none"])
def test_a_model_equals_torch_s_modules(name):
    """Logits, gradients, running statistics; in training, then in evaluation, of one image too."""
    torch.manual_seed(0)
    model = build_model(name, 8, 5)
    for p in model.layernorms.parameters():
        nn.init.normal_(p)
    reference = Reference(model)
    x, labels = torch.randn(30, 192) * 2 + 1, torch.randint(0, 5, (30,))
    for _ in range(3):
        outs = model(x), reference(x)
        torch.testing.assert_close(*outs)
        for out in outs:
            F.cross_entropy(out, labels).backward()
    for mine, theirs in zip(Reference.of(model), reference.parameters_in_order(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(list(model.layernorms.buffers()), list(reference.norms.buffers()))
    moved = {name for name, _ in model.named_buffers()}
    assert len(moved) == (3 * model.arch.blocks if model.arch.norm == "batch" else 0)
    model.eval(), reference.eval()
    torch.testing.assert_close(model(x), reference(x))
    torch.testing.assert_close(model(x[:1]), reference(x)[:1])
    if model.arch.norm == "none":
        assert not [key for key in model.state_dict() if "norm" in key]


def splits(data_dir, batch_size=100):
    spec, shared = get_dataset("synthetic", data_dir), {"data_dir": data_dir, "res": 8, "num_workers": 1}
    return (
        Split(spec, "train", "train", batch_size=batch_size, augment=Augment("random_resized", flip=True), **shared),
        Split(spec, "test", "evaluate", batch_size=199, **shared),  # leaves a batch of one
    )


def new_model(arch=BASE.arch, seed=0):
    torch.manual_seed(seed)
    return build_model(arch, 8, 5)


def test_evaluation_leaves_statistics_and_mode(data_dir):
    train, test = splits(data_dir)
    trainer = Trainer(new_model(), BASE, 6)
    for batch in train.batches(0):
        trainer.step(*batch)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert before["layernorms.0.num_batches_tracked"] == 6 * 3  # micro-batches
    scores = evaluate(trainer.model, test)
    assert trainer.model.training and scores.top1 > 0.3
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    trainer.model.eval()
    with torch.no_grad():
        images, labels = (
            torch.cat([x.clone() for x in parts])
            for parts in zip(*((x.clone(), y.clone()) for x, y in test.batches(0)), strict=True)
        )
        right = (trainer.model(images).argmax(1) == labels).float().mean()
    assert scores.top1 == pytest.approx(float(right))


def test_a_micro_batch_is_what_batch_norm_sees(data_dir):
    """A batch of 100 in micro-batches of 34, 34 and 32: the gradients are the sum of those of three passes."""
    train, _ = splits(data_dir)
    images, labels = (x.clone() for x in next(train.batches(0)))
    config = dataclasses.replace(BASE, optimizer="sgd", lr=1e-9, mixup_alpha=0.0, label_smoothing=0.0)
    model, reference = new_model(), Reference(new_model())
    Trainer(model, config, 6).step(images, labels)
    for image_chunk, label_chunk in zip(images.split(34), labels.split(34), strict=True):
        (F.cross_entropy(reference(image_chunk), label_chunk, reduction="sum") / 100).backward()
    for mine, theirs in zip(Reference.of(model), reference.parameters_in_order(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(list(model.layernorms.buffers()), list(reference.norms.buffers()))


@pytest.mark.parametrize("arch", ["B_2-Wi_16-N_batch", "S_2-Wi_16-N_batch", "B_2-Wi_16-N_none"])
def test_a_trainer_taken_up_again_takes_the_same_steps(data_dir, arch):
    config = dataclasses.replace(BASE, ema_decay=0.9, arch=arch)
    train, _ = splits(data_dir)
    batches = [(x.clone(), y.clone()) for epoch in range(2) for x, y in train.batches(epoch)]
    whole, first, second = (Trainer(new_model(arch, seed), config, 6) for seed in (0, 0, 1))
    for batch in batches:
        whole.step(*batch)
    for batch in batches[:7]:
        first.step(*batch)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    for batch in batches[7:]:
        second.step(*batch)
    states = ([*trainer.model.state_dict().values(), *trainer.ema] for trainer in (whole, second))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*states, strict=True))


def test_running_statistics_are_averaged_with_the_weights(data_dir):
    train, _ = splits(data_dir)
    trainer = Trainer(new_model(), dataclasses.replace(BASE, ema_decay=0.75), 6)
    names = [name for name, value in trainer.model.state_dict().items() if value.is_floating_point()]
    before = {name: trainer.model.state_dict()[name].clone() for name in names}
    trainer.step(*next(train.batches(0)))
    after = {name: trainer.model.state_dict()[name].clone() for name in names}
    with trainer.ema_weights():
        for name in names:
            torch.testing.assert_close(trainer.model.state_dict()[name], 0.75 * before[name] + 0.25 * after[name])
    assert all(torch.equal(trainer.model.state_dict()[name], after[name]) for name in names)
    assert not torch.equal(before["layernorms.1.running_var"], after["layernorms.1.running_var"])


@pytest.mark.parametrize("name", ["B_2-Wi_16-N_batch", "B_2-Wi_16-E_2-N_none", "S_2-Wi_16-N_batch", "S_2-Wi_16-N_none"])
def test_saved_exported_and_bare_weights_come_back(tmp_path, name):
    model = new_model(name)
    model(torch.randn(50, 192) * 3 + 1)  # moves the statistics
    model.eval()
    save_model(tmp_path / "m.pt", model)
    exported = export_safetensors(tmp_path / "m.pt")
    torch.save(model.state_dict(), tmp_path / "bare")
    x = torch.randn(3, 192)
    for path in (tmp_path / "m.pt", exported, tmp_path / "bare"):
        again, _ = load_model(path)
        assert again.arch == model.arch and torch.equal(again.eval()(x), model(x))
    metadata = {"architecture": name.split("-N")[0], "normalization": model.arch.norm}
    (tmp_path / "config.txt").write_text(json.dumps(metadata))
    assert load_model(tmp_path / "bare")[0].arch == model.arch
    (tmp_path / "config.txt").write_text(json.dumps({**metadata, "normalization": "layer"}))
    with pytest.raises(ValueError, match=rf"normalization 'layer' \(weights: '{model.arch.norm}'\)"):
        load_model(tmp_path / "bare")


def test_statistics_of_another_kind_are_refused(tmp_path):
    state = new_model().state_dict()
    torch.save({**state, "layernorms.0.num_batches_tracked": torch.tensor(1.5)}, tmp_path / "bare")
    with pytest.raises(ValueError, match=r"layernorms\.0\.num_batches_tracked is torch\.float32, expected integer"):
        load_model(tmp_path / "bare")


@pytest.mark.parametrize("backbone", ["frozen", "cached"])
def test_a_frozen_body_keeps_its_statistics_and_norms_by_them(data_dir, backbone):
    train, test = splits(data_dir)
    model = new_model()
    model(torch.randn(50, 192))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if backbone == "cached":
        train = CachedFeatures(
            model,
            Split(
                get_dataset("synthetic", data_dir),
                "train",
                "evaluate",
                data_dir=data_dir,
                res=8,
                num_workers=1,
                batch_size=64,
            ),
            100,
        )
        assert model.training
    config = FinetuneConfig(batch_size=100, optimizer="adamw", ema_decay=0.9, epochs="1", compile="off")
    trainer = Trainer(model, config, 6, backbone=backbone)
    for number, (images, labels) in enumerate(train.batches(0)):
        loss = trainer.step(images, labels)
        if number == 0:
            head = nn.Linear(16, 5)
            head.load_state_dict({name: before[f"linear_out.{name}"] for name in ("weight", "bias")})
            fixed = new_model()
            fixed.load_state_dict(before)
            with torch.no_grad():  # a graph would hold the batch's images
                logits = head(images if backbone == "cached" else fixed.eval().features(images))
            assert loss.item() == pytest.approx(F.cross_entropy(logits, labels, label_smoothing=0.3).item(), rel=1e-5)
    if backbone == "frozen":
        evaluate(model, test)
        trainer.step(*next(train.batches(1)))
    after = model.state_dict()
    assert len(trainer.ema) == 2 and before.keys() > STATISTICS
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "linear_out.weight",
        "linear_out.bias",
    }


def test_what_batch_norm_cannot_train_on_is_told():
    for batch_size, micro_batch_size in ((1, 0), (101, 2), (5, 4)):
        config = dataclasses.replace(BASE, batch_size=batch_size, micro_batch_size=micro_batch_size)
        if (batch_size, micro_batch_size) == (5, 4):  # in 4 and 1; but micro-batches are about equal
            assert batch_size % Trainer(new_model("B_2-Wi_16"), config, 6).micro_batch_size == 1
        with pytest.raises(ValueError, match="BatchNorm needs at least two images"):
            Trainer(new_model(), config, 6)
        Trainer(new_model("B_2-Wi_16-N_none"), config, 6)


@pytest.mark.filterwarnings("default")
def test_torch_compile_is_for_layer_norm():
    with pytest.warns(UserWarning, match="B_2-Wi_16-N_none is trained without it"):
        trainer = Trainer(new_model("B_2-Wi_16-N_none"), dataclasses.replace(BASE, compile="on"), 6)
    assert trainer.compile_s == 0
    np.testing.assert_allclose(
        float(trainer.step(torch.zeros(100, 192), torch.zeros(100, dtype=torch.int64))), 1.6, atol=0.3
    )
