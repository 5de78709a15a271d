"""The step, the loop, evaluation and saved weights."""

import dataclasses
import io
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmlp import build_model
from fastmlp.atomic import save_torch
from fastmlp.beton import layout
from fastmlp.config import PretrainConfig
from fastmlp.data.split import Split
from fastmlp.datasets import get_dataset
from fastmlp.evaluation.evaluate import evaluate, topk_correct
from fastmlp.loader.loader import Loader
from fastmlp.loader.order import random_order
from fastmlp.models.weights import load_model, load_weights, save_model
from fastmlp.training.loop import fit
from fastmlp.training.run_folder import open_run
from fastmlp.training.run_log import RunLog, read_log
from fastmlp.training.schedule import learning_rate
from fastmlp.training.trainer import Trainer, even_chunk_size
from fastmlp.transforms.augment_params import Augment, draw_params
from fastmlp.transforms.mixup import mixup_lam
from fastmlp.transforms.pipelines import raw_pipelines

BASE = PretrainConfig(
    dataset="synthetic",
    res=8,
    arch="B_2-Wi_32",
    batch_size=100,
    epochs="2",
    optimizer="adamw",
    lr=3e-3,
    mixup_alpha=0.8,
    label_smoothing=0.1,
    schedule="cosine",
    compile="off",
)


def splits(data_dir, batch_size=100, augment=None, seed=0):
    spec, shared = get_dataset("synthetic", data_dir), {"data_dir": data_dir, "res": 8, "num_workers": 1}
    augment = augment or Augment("random_resized", flip=True)
    return (
        Split(spec, "train", "train", batch_size=batch_size, augment=augment, seed=seed, **shared),
        Split(spec, "test", "evaluate", batch_size=64, **shared),
    )


def new_model(config=BASE):
    torch.manual_seed(config.seed)
    return build_model(config.arch, config.res, 5)


@pytest.mark.parametrize("micro_batch_size", [2, 30, 64, 98])
def test_micro_batched_gradients_are_the_full_batch_s(data_dir, micro_batch_size):
    train, _ = splits(data_dir, batch_size=99)  # odd: the last sample has no partner
    images, labels = (x.clone() for x in next(train.batches(0)))
    grads = {}
    for size in (100, micro_batch_size):
        config = dataclasses.replace(BASE, micro_batch_size=size, optimizer="sgd", lr=1e-9)
        trainer = Trainer(new_model(), config, train.batches_per_epoch)
        loss = trainer.step(images, labels)
        grads[size] = [loss, *(p.grad for p in trainer.model.parameters())]
    for whole, summed in zip(grads[100], grads[micro_batch_size], strict=True):
        torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-6)


def test_batches_are_keyed_by_seed_epoch_and_sample(data_dir):
    """Order, samples, labels and boxes over two epochs, against the beton's own bytes and draw_params."""
    augment = Augment("pad_and_crop", padding=2, flip=True)
    train, _ = splits(data_dir, batch_size=250, augment=augment, seed=4)
    records = train.loader.reader.metadata
    spec = get_dataset("synthetic", data_dir)
    for epoch in (1, 3):
        order = random_order(np.arange(600), 4, epoch)
        for number, (ready, labels) in enumerate(train.batches(epoch)):
            samples = order[250 * number : 250 * (number + 1)]
            np.testing.assert_array_equal(labels, records["f1"][samples])
            starts = records["f0"]["data_ptr"][samples]
            stored = np.stack([train.loader.reader.bytes[s : s + 192] for s in starts]).reshape(-1, 8, 8, 3)
            boxes, flips = draw_params(augment, 8, 8, 4, epoch, samples)
            for row, (image, (top, left, _, _), flip) in enumerate(zip(stored, boxes, flips, strict=True)):
                moved = np.pad(image, ((2, 2), (2, 2), (0, 0)))[2 + top : 10 + top, 2 + left : 10 + left]
                moved = ((moved[:, ::-1] if flip else moved) - np.array(spec.mean)) / np.array(spec.std)
                np.testing.assert_allclose(ready[row].view(3, 8, 8), moved.transpose(2, 0, 1), atol=1e-4)


def test_views_of_test_time_augmentation(data_dir):
    """In order, every image, another crop per view."""
    spec, augment = get_dataset("synthetic", data_dir), Augment("random_resized", flip=True)
    views = Split(spec, "test", "tta", data_dir=data_dir, res=8, batch_size=64, num_workers=1, augment=augment)
    plain = Split(spec, "test", "evaluate", data_dir=data_dir, res=8, batch_size=64, num_workers=1)
    images = [torch.cat([images.clone() for images, _ in views.batches(view)]) for view in (0, 1, 0)]
    labels = torch.cat([labels.clone() for _, labels in views.batches(0)])
    assert torch.equal(labels, torch.cat([labels.clone() for _, labels in plain.batches(0)])) and len(labels) == 200
    assert torch.equal(images[0], images[2]) and ((images[0] - images[1]).abs().amax(1) > 0.1).float().mean() > 0.9


def test_every_step_has_its_own_rate_and_lambda(data_dir, monkeypatch):
    train, _ = splits(data_dir)
    trainer, seen = Trainer(new_model(), dataclasses.replace(BASE, warmup="0.5"), 6), []
    monkeypatch.setattr("fastmlp.training.trainer.mix", lambda z, lam: seen.append(lam) or z)
    for epoch in range(2):
        for images, labels in train.batches(epoch):
            trainer.step(images, labels)
            lr = learning_rate(len(seen) - 1, 12, BASE.lr, "cosine", 3)
            assert [group["lr"] for group in trainer.optimizer.param_groups] == [lr, lr]
    assert seen == [mixup_lam(0.8, 0, step) for step in range(12)] and len(set(seen)) == 12


def test_warm_up_is_at_most_half_of_the_run():
    assert Trainer(new_model(), dataclasses.replace(BASE, epochs="2", warmup="2.5"), 3).warmup_steps == 3
    assert Trainer(new_model(), dataclasses.replace(BASE, epochs="1", warmup="2.5"), 1).warmup_steps == 0


def test_a_seed_repeats_bit_for_bit_and_another_differs(data_dir, tmp_path):
    states = []
    for number, seed in enumerate((0, 0, 1)):
        config = dataclasses.replace(BASE, seed=seed)
        train, test = splits(data_dir, seed=seed)
        model = new_model(config)
        (tmp_path / str(number)).mkdir()
        with RunLog(tmp_path / str(number), config, "CPU") as log:
            result = fit(Trainer(model, config, train.batches_per_epoch), train, test, log, {})
        assert result.scores.top1 > 0.5 and result.images_per_s > 0
        states.append(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
        lines = read_log(tmp_path / str(number), "epoch")
        assert [line["epoch"] for line in lines] == [1, 2] and lines[-1]["eval_top1"] == result.scores.top1
    assert states[0] == states[1] != states[2]


def test_overfits_64_images(tmp_path):
    from fastmlp.beton.writer_cli import WriteOptions, write_splits
    from fastmlp.sources.synthetic import Synthetic

    write_splits(
        "synthetic", lambda split: Synthetic(64, 5, 8, split), ("train", "test"), WriteOptions(8, tmp_path, 1, None, 0)
    )
    config = dataclasses.replace(BASE, mixup_alpha=0.0, label_smoothing=0.0, epochs="60", batch_size=64)
    train, _ = splits(tmp_path, 64, Augment())
    trainer = Trainer(new_model(), config, 1)
    losses = [trainer.step(*batch).item() for epoch in range(60) for batch in train.batches(epoch)]
    assert losses[-1] < 0.02 < 1 < losses[0]


def test_divergence_is_told_with_its_step(data_dir, tmp_path):
    config = dataclasses.replace(BASE, lr=1e30, log_every=1, optimizer="sgd")
    train, test = splits(data_dir)
    trainer = Trainer(new_model(), config, train.batches_per_epoch)
    with (
        RunLog(tmp_path, config, "CPU") as log,
        pytest.raises(FloatingPointError, match=r"at step 2: lower --cfg.lr.*; there is no checkpoint yet"),
    ):
        fit(trainer, train, test, log, {})


def test_weights_that_are_not_finite_are_never_saved(data_dir, tmp_path, monkeypatch):
    train, test = splits(data_dir)
    config = dataclasses.replace(BASE, checkpoint_every="4 steps", log_every=100)
    trainer, step = Trainer(new_model(), config, train.batches_per_epoch), Trainer.step

    def broken(self, *batch):
        loss = step(self, *batch)
        if self.steps_done == 8:
            next(iter(self.model.parameters())).data[0, 0] = float("inf")
        return loss

    monkeypatch.setattr(Trainer, "step", broken)
    with (
        RunLog(tmp_path, config, "CPU") as log,
        pytest.raises(
            FloatingPointError,
            match=r"weights are not finite at step 8: .*; the last checkpoint is .*step_000000004.pt",
        ),
    ):
        fit(trainer, train, test, log, {})


def test_evaluation_equals_a_plain_loop(data_dir):
    _, test = splits(data_dir)
    model = new_model()
    scores = evaluate(model, test)
    top1 = top5 = loss = 0.0
    with torch.no_grad():
        for stored, labels in Loader(test.path, 64, 1, drop_last=False, pipelines=raw_pipelines()):
            x = stored.numpy().astype(np.float64).transpose(0, 3, 1, 2)
            x = (x - 127.5) / 64.0  # the synthetic set's statistics
            logits = model(torch.from_numpy(x.reshape(len(x), -1)).float())
            for row, label in zip(logits.numpy().astype(np.float64), labels.tolist(), strict=True):
                ranked = np.argsort(-row)
                top1 += ranked[0] == label
                top5 += label in ranked[:5]
                loss += np.log(np.exp(row).sum()) - row[label]
    assert (scores.images, scores.top1, scores.top5) == (200, top1 / 200, top5 / 200)
    assert scores.loss == pytest.approx(loss / 200, rel=1e-5)
    assert model.training


def test_of_a_tie_the_first_class_wins_and_nan_is_no_hit():
    logits = torch.tensor([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [float("nan")] * 3])
    labels = torch.tensor([0, 0, 1, 0])
    assert topk_correct(logits, labels, 1) == 2 and topk_correct(logits, labels, 2) == 3


def test_saved_models_come_back(tmp_path):
    model = new_model()
    save_model(tmp_path / "m.pt", model, {"dataset": "synthetic"})
    again, metadata = load_model(tmp_path / "m.pt")
    x = torch.randn(3, 192)
    assert torch.equal(model(x), again(x)) and metadata == {"dataset": "synthetic"}
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


def test_damaged_and_foreign_weights_are_refused(tmp_path):
    path = tmp_path / "m.pt"
    save_model(path, new_model())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="damaged"):
        load_model(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        load_model(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="has no arch"):
        load_model(path)
    torch.save(pytest.approx, path)  # code, not data
    with pytest.raises(ValueError, match="damaged"):
        load_model(path)
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "none.pt")


def test_strict_loading_names_what_differs():
    model = new_model()
    state = dict(model.state_dict())
    missing = {k: v for k, v in state.items() if k != "linear_out.bias"}
    with pytest.raises(ValueError, match=r"missing: linear_out\.bias"):
        load_weights(model, missing, "x")
    with pytest.raises(ValueError, match="not of this architecture: extra"):
        load_weights(model, {**state, "extra": torch.zeros(1)}, "x")
    with pytest.raises(ValueError, match=r"linear_out\.bias is \(7,\), expected \(5,\)"):
        load_weights(model, {**state, "linear_out.bias": torch.zeros(7)}, "x")


def test_a_full_disk_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.pt"
    save_torch(path, {"a": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="x.pt"):
            save_torch(path, {"a": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.load(path, weights_only=True) == {"a": 1} and len(list(tmp_path.iterdir())) == 1


def test_splits_refuse_what_does_not_fit(data_dir, tmp_path):
    spec, shared = get_dataset("synthetic", data_dir), {"data_dir": data_dir, "num_workers": 1, "batch_size": 64}
    with pytest.raises(ValueError, match="labels 0..4 are outside of the 3 classes"):
        Split(dataclasses.replace(spec, num_classes=3), "train", "train", res=8, **shared)
    with pytest.raises(FileNotFoundError, match=r"writers/synthetic\.py --res 16"):
        Split(spec, "train", "train", res=16, **shared)
    with pytest.raises(ValueError, match="batch of 601 is larger .* 600 images"):
        Split(spec, "train", "train", res=8, augment=Augment(), **{**shared, "batch_size": 601})
    renamed = tmp_path / "synthetic_train_16.beton"
    renamed.write_bytes((data_dir / "synthetic_train_8.beton").read_bytes())
    with pytest.raises(ValueError, match="not 16 x 16"):
        Split(spec, "train", "train", res=16, **{**shared, "data_dir": tmp_path})


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        ("samples", 10**6, "records reach into"),
        ("samples", 700, "600 allocations for 700 samples"),
        ("type", 9, "unknown types"),
        ("name", 0, "has the name"),
        ("mode", 0, "JPEG"),
        ("ptr", 0, "no allocation of its own"),
        ("ptr", 1 << 45, "no allocation of its own"),
    ],
)
def test_betons_that_are_not_ours_are_refused(data_dir, tmp_path, at, value, message):
    whole = bytearray((data_dir / "synthetic_train_8.beton").read_bytes())
    record = layout.HEADER.itemsize + 2 * layout.DESCRIPTOR.itemsize + 100 * layout.METADATA.itemsize
    first_field, samples = layout.HEADER.itemsize, layout.HEADER.fields["num_samples"][1]
    place, size = {
        "samples": (samples, 8),
        "type": (first_field, 1),
        "name": (first_field + 1, 1),
        "mode": (record, 1),
        "ptr": (record + 5, 8),
    }[at]
    whole[place : place + size] = value.to_bytes(size, "little")
    (tmp_path / "synthetic_train_8.beton").write_bytes(whole)
    spec = get_dataset("synthetic", data_dir)
    with pytest.raises(ValueError, match=message):
        Split(spec, "train", "train", data_dir=tmp_path, res=8, batch_size=64, num_workers=1)


def test_run_folders_are_never_shared(tmp_path):
    with open_run(BASE, "a", tmp_path) as first, open_run(BASE, "a", tmp_path) as second:
        assert first.folder != second.folder
    folder = first.folder
    with RunLog(folder, BASE, "CPU") as log:
        log.write("x", value=1)
        position = log.position()
        log.write("x", value=2)
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"event": "x", "val')  # cut short by a crash
    assert [line["value"] for line in read_log(folder, "x")] == [1, 2]
    assert json.loads((folder / "environment.json").read_text())["versions"]["torch"]
    with RunLog(folder, BASE, "CPU", position) as log:
        log.write("x", value=3)
    assert [line["value"] for line in read_log(folder, "x")] == [1, 3] and (folder / "environment1.json").exists()


def test_parts_are_even_and_about_equal():
    assert [
        even_chunk_size(b, m) for b, m in ((1000, 512), (16384, 1024), (99, 30), (100, 1024), (7, 2), (1, 512))
    ] == [
        500,
        1024,
        26,
        100,
        2,
        2,
    ]


@pytest.mark.parametrize("optimizer", ["lion", "adamw", "sgd", "muon"])
def test_a_trainer_taken_up_again_takes_the_same_steps(data_dir, optimizer):
    config = dataclasses.replace(BASE, optimizer=optimizer, ema_decay=0.9, clip_norm=0.5)
    train, _ = splits(data_dir)
    batches = [(x.clone(), y.clone()) for epoch in range(2) for x, y in train.batches(epoch)]
    whole = Trainer(new_model(), config, 6)
    for batch in batches:
        whole.step(*batch)
    first, second = Trainer(new_model(), config, 6), Trainer(new_model(dataclasses.replace(config, seed=1)), config, 6)
    for batch in batches[:7]:
        first.step(*batch)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    assert second.steps_done == 7
    for batch in batches[7:]:
        second.step(*batch)
    states = ([*trainer.model.parameters(), *trainer.ema] for trainer in (whole, second))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*states, strict=True))
    assert whole.pop_mean_loss(12) == second.pop_mean_loss(12)


def test_clipping_and_averaging(data_dir):
    train, _ = splits(data_dir)
    images, labels = (x.clone() for x in next(train.batches(0)))
    config = dataclasses.replace(BASE, optimizer="sgd", clip_norm=1e-3, ema_decay=0.75, schedule="constant")
    trainer = Trainer(new_model(), config, 6)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.step(images, labels)
    assert sum((p.grad**2).sum() for p in trainer.model.parameters()).sqrt() == pytest.approx(1e-3, rel=1e-4)
    after = [p.detach().clone() for p in trainer.model.parameters()]
    for old, new, average in zip(before, after, trainer.ema, strict=True):
        torch.testing.assert_close(average, 0.75 * old + 0.25 * new)
    kept = [average.clone() for average in trainer.ema]
    with trainer.ema_weights():
        assert all(torch.equal(p, average) for p, average in zip(trainer.model.parameters(), kept, strict=True))
    assert all(torch.equal(p, new) for p, new in zip(trainer.model.parameters(), after, strict=True))


LOSSES = Path(__file__).parent / "losses.json"


def test_a_refactoring_does_not_move_the_losses(data_dir):
    """30 steps as committed in losses.json; FASTMLP_NEW_LOSSES=1 writes it anew, after a change that is meant."""
    config = dataclasses.replace(BASE, optimizer="lion", epochs="5", warmup="1", micro_batch_size=40, lr=1e-3)
    train, _ = splits(data_dir)
    trainer = Trainer(new_model(), config, 6)
    losses = [trainer.step(*batch).item() for epoch in range(5) for batch in train.batches(epoch)]
    if os.environ.get("FASTMLP_NEW_LOSSES") == "1":
        LOSSES.write_text(json.dumps(losses) + "\n")
    assert len(losses) == 30
    np.testing.assert_allclose(losses, json.loads(LOSSES.read_text()), rtol=1e-4)
