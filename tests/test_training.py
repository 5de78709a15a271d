"""The step, the loop, evaluation and saved weights."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from fastmlp import build_model
from fastmlp.checkpoints import load_model, load_weights, save_model, write_atomically
from fastmlp.config import PretrainConfig
from fastmlp.datasets import find
from fastmlp.evaluation import evaluate, hits
from fastmlp.pipelines import Split
from fastmlp.runlog import RunLog, create_run_folder, read_log
from fastmlp.training import Trainer, fit, mixed_cross_entropy
from fastmlp.transforms.params import Augment

BASE = PretrainConfig(
    dataset="synthetic", res=8, arch="B_2-Wi_32", batch_size=100, epochs=2, optimizer="adamw", lr=3e-3, mixup=0.8,
    label_smoothing=0.1, schedule="cosine",
)  # fmt: skip


def splits(data_dir, batch_size=100, augment=None, seed=0):
    spec, shared = find("synthetic", data_dir), {"data_dir": data_dir, "res": 8, "num_workers": 1}
    augment = augment or Augment("resized", flip=True)
    return (
        Split(spec, "train", batch_size=batch_size, augment=augment, seed=seed, **shared),
        Split(spec, "test", batch_size=64, **shared),
    )


def new_model(config=BASE):
    torch.manual_seed(config.seed)
    return build_model(config.arch, config.res, 5)


@pytest.mark.parametrize("micro_batch", [2, 30, 64, 98])
def test_micro_batched_gradients_are_the_full_batch_s(data_dir, micro_batch):
    train, _ = splits(data_dir, batch_size=99)  # odd: the last sample has no partner
    batch = next(train.raw_batches(0))
    grads = {}
    for size in (100, micro_batch):
        config = dataclasses.replace(BASE, micro_batch=size, optimizer="sgd", lr=1e-9)
        trainer = Trainer(new_model(), config, train.batches_per_epoch)
        loss = trainer.step(batch, train)
        grads[size] = [loss, *(p.grad for p in trainer.model.parameters())]
    for whole, summed in zip(grads[100], grads[micro_batch], strict=True):
        torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-6)


def test_mixed_cross_entropy_equals_the_formula():
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    partners = labels[[1, 0, 3, 2, 4]]
    log_p = logits.double().log_softmax(1).numpy()
    target = np.full((5, 4), 0.3 / 4)
    for row in range(5):
        target[row, labels[row]] += 0.7 * 0.6
        target[row, partners[row]] += 0.7 * 0.4
    got = mixed_cross_entropy(logits, labels, 0.6, 0.3)
    assert got.item() == pytest.approx(-(target * log_p).sum(), rel=1e-5)


def test_a_seed_repeats_bit_for_bit_and_another_differs(data_dir, tmp_path):
    states = []
    for number, seed in enumerate((0, 0, 1)):
        config = dataclasses.replace(BASE, seed=seed)
        train, test = splits(data_dir, seed=seed)
        model = new_model(config)
        with RunLog(create_run_folder(str(tmp_path / str(number)), ""), config, "CPU") as log:
            result = fit(model, train, test, config, log)
        assert result.scores.top1 > 0.5 and result.images_per_s > 0
        states.append(b"".join(p.detach().numpy().tobytes() for p in model.parameters()))
        lines = read_log(tmp_path / str(number), "epoch")
        assert [line["epoch"] for line in lines] == [1, 2] and lines[-1]["test_top1"] == result.scores.top1
    assert states[0] == states[1] != states[2]


def test_overfits_64_images(tmp_path):
    from fastmlp.beton.command import WriteOptions, write_splits
    from fastmlp.sources.synthetic import Synthetic

    write_splits("synthetic", lambda split: Synthetic(64, 5, 8, split), ("train", "test"),
                 WriteOptions(8, tmp_path, 1, None, 0))  # fmt: skip
    config = dataclasses.replace(BASE, mixup=0.0, label_smoothing=0.0, epochs=60, batch_size=64)
    train, _ = splits(tmp_path, 64, Augment())
    trainer = Trainer(new_model(), config, 1)
    losses = [trainer.step(batch, train).item() for epoch in range(60) for batch in train.raw_batches(epoch)]
    assert losses[-1] < 0.02 < 1 < losses[0]


def test_divergence_is_told_with_its_step(data_dir, tmp_path):
    config = dataclasses.replace(BASE, lr=1e30, log_every=1, optimizer="sgd")
    train, test = splits(data_dir)
    with RunLog(create_run_folder(str(tmp_path), ""), config, "CPU") as log, pytest.raises(
        FloatingPointError, match=r"step \d+: lower --cfg.lr"
    ):  # fmt: skip
        fit(new_model(), train, test, config, log)


def test_evaluation_equals_a_plain_loop(data_dir):
    _, test = splits(data_dir)
    model = new_model()
    scores = evaluate(model, test)
    top1 = top5 = loss = 0.0
    with torch.no_grad():
        for batch in test.raw_batches(0):
            x = batch.images.numpy().astype(np.float64).transpose(0, 3, 1, 2)
            x = (x - test.mean.numpy()[:, None, None]) / test.std.numpy()[:, None, None]
            logits = model(torch.from_numpy(x.reshape(len(x), -1)).float())
            for row, label in zip(logits.numpy().astype(np.float64), batch.labels.tolist(), strict=True):
                ranked = np.argsort(-row)
                top1 += ranked[0] == label
                top5 += label in ranked[:5]
                loss += np.log(np.exp(row).sum()) - row[label]
    assert (scores.images, scores.top1, scores.top5) == (200, top1 / 200, top5 / 200)
    assert scores.loss == pytest.approx(loss / 200, rel=1e-5)
    assert model.training


def test_ties_and_nan_are_no_hits():
    logits = torch.tensor([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [float("nan")] * 3])
    labels = torch.tensor([0, 0, 0])
    assert hits(logits, labels, 1) == 1 and hits(logits, labels, 2) == 2


def test_saved_models_come_back(tmp_path):
    model = new_model()
    save_model(tmp_path / "m.pt", model, {"dataset": "synthetic"})
    again, facts = load_model(tmp_path / "m.pt")
    x = torch.randn(3, 192)
    assert torch.equal(model(x), again(x)) and facts == {"dataset": "synthetic"}
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
    with pytest.raises(ValueError, match="authors' own S-MLP"):
        load_weights(model, {"layers.0.weight": torch.zeros(1)}, "x")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    write_atomically(path, {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError):
        write_atomically(path, {"a": 2})
    assert torch.load(path, weights_only=True) == {"a": 1} and len(list(tmp_path.iterdir())) == 1


def test_splits_refuse_what_does_not_fit(data_dir, tmp_path):
    spec, shared = find("synthetic", data_dir), {"data_dir": data_dir, "num_workers": 1, "batch_size": 64}
    with pytest.raises(ValueError, match="labels 0..4 outside of the 3 classes"):
        Split(dataclasses.replace(spec, num_classes=3), "train", res=8, **shared)
    with pytest.raises(FileNotFoundError, match=r"writers/synthetic\.py --res 16"):
        Split(spec, "train", res=16, **shared)
    with pytest.raises(ValueError, match="batch of 601 is larger .* 600 images"):
        Split(spec, "train", res=8, augment=Augment(), **{**shared, "batch_size": 601})
    renamed = tmp_path / "synthetic_train_16.beton"
    renamed.write_bytes((data_dir / "synthetic_train_8.beton").read_bytes())
    with pytest.raises(ValueError, match="not 16 x 16"):
        Split(spec, "train", res=16, **{**shared, "data_dir": tmp_path})


def test_run_folders_are_never_shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert create_run_folder("", "a") != create_run_folder("", "a")
    folder = create_run_folder(str(tmp_path / "mine"), "")
    with RunLog(folder, BASE, "CPU") as log:
        log.write("x", value=1)
    with (folder / "log.jsonl").open("a") as file:
        file.write('{"event": "x", "val')  # cut short by a crash
    assert [line["value"] for line in read_log(folder, "x")] == [1]
    assert json.loads((folder / "environment.json").read_text())["versions"]["torch"]
    with pytest.raises(ValueError, match="already holds a run"):
        create_run_folder(str(folder), "")
