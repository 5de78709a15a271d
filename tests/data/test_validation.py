"""Held-out training images: which ones, that no run trains on them, and what is chosen by them."""

import dataclasses

import numpy as np
import pytest
import torch

from fastmlp import build_model, load_model
from fastmlp.config import FinetuneConfig, PretrainConfig
from fastmlp.data.split import Split
from fastmlp.data.subset import hold_out
from fastmlp.datasets import get_dataset
from fastmlp.evaluation import evaluate as evaluation
from fastmlp.models.weights import save_model
from fastmlp.training import loop, transfer
from fastmlp.training.run import run_training
from fastmlp.training.run_log import read_log

SIZES = (1, 2, 3, 10, 99, 1000, 0, 7)  # images of each class


@pytest.mark.parametrize(
    ("share", "counts"),
    [
        (0.1, [0, 1, 1, 1, 10, 100, 0, 1]),
        (0.5, [0, 1, 2, 5, 50, 500, 0, 4]),
        (0.9, [0, 1, 2, 9, 89, 900, 0, 6]),
    ],
)
def test_each_class_keeps_an_image_and_gives_its_share(share, counts):
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(len(SIZES)), SIZES))
    rest, held_out = hold_out(labels, share, 0)
    assert np.bincount(labels[held_out], minlength=len(SIZES)).tolist() == counts
    assert sorted([*rest, *held_out]) == list(range(len(labels)))
    again, other = hold_out(labels, share, 0)[1], hold_out(labels, share, 1)[1]
    assert held_out.tolist() == again.tolist() != other.tolist()


def split(data_dir, mode, **keywords):
    keywords = {"data_dir": data_dir, "res": 8, "num_workers": 1, "batch_size": 20, "seed": 4, **keywords}
    return Split(get_dataset("synthetic", data_dir), "train", mode, **keywords)


@pytest.mark.parametrize("fraction", [1.0, 0.25])
def test_what_is_held_out_is_trained_on_by_nobody(data_dir, fraction):
    """Of 600 images, 120 of each class, by the samples that the loader reads."""
    how = {"fraction": fraction, "validation": 0.1}
    train, in_order, held_out = (split(data_dir, mode, **how) for mode in ("train", "evaluate", "validate"))
    expected = hold_out(train.loader.reader.metadata["f1"], 0.1, 4)
    assert held_out.loader.indices.tolist() == expected[1].tolist() and held_out.num_samples == 60
    assert set(train.loader.indices) <= set(expected[0]) and train.num_samples == round(540 * fraction)
    assert train.loader.indices.tolist() == in_order.loader.indices.tolist()
    labels = torch.cat([labels for _, labels in held_out.batches(0)])
    assert labels.bincount().tolist() == [12] * 5


def test_what_leaves_too_few_images_is_told(data_dir):
    with pytest.raises(ValueError, match=r"batch of 541 .* 540 images that --cfg.validation=0.1 leaves"):
        split(data_dir, "train", batch_size=541, validation=0.1)
    with pytest.raises(ValueError, match=r"--cfg.validation=0.5 of .* holds out no image"):
        one = [np.arange(5)] * 2  # a single image of each class

        def single(labels, share, seed):
            return hold_out(one[0], share, seed)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fastmlp.data.split.hold_out", single)
            split(data_dir, "validate", validation=0.5)


@pytest.fixture
def config(data_dir, tmp_path):
    return PretrainConfig(
        dataset="synthetic",
        data_dir=str(data_dir),
        res=8,
        arch="B_1-Wi_16",
        batch_size=20,
        lr=3e-3,
        epochs="4 epochs",
        validation=0.1,
        num_workers=1,
        compile="off",
        run_dir=str(tmp_path / "run"),
    )


def test_a_run_chooses_by_held_out_images_and_looks_at_the_test_images_at_its_end(
    config, data_dir, tmp_path, capsys, monkeypatch
):
    """best.pt is that of the highest line; the reported scores are those of the files, computed here again."""
    looked_at = []

    def noted(model, split, **options):
        looked_at.append(split.path.name)
        return evaluation.evaluate_detailed(model, split, **options)

    monkeypatch.setattr(loop, "evaluate_detailed", noted)
    spec = get_dataset("synthetic", data_dir)
    run_training(config, spec, lambda: build_model("B_1-Wi_16", 8, 5), "x")
    assert looked_at == 4 * ["synthetic_train_8.beton"] + 2 * ["synthetic_test_8.beton"]
    lines, (end,) = read_log(tmp_path / "run", "epoch"), read_log(tmp_path / "run", "end")
    assert not any("eval_top1" in line for line in lines) and end["val_top1"] == lines[-1]["val_top1"]
    tops = [line["val_top1"] for line in lines]
    best, metadata = load_model(tmp_path / "run" / "best.pt")
    assert metadata["val_top1"] == max(tops) == end["best_top1"] and "test_top1" not in metadata
    assert metadata["steps"] == 27 * (1 + tops.index(max(tops)))
    test = Split(spec, "test", "evaluate", data_dir=data_dir, res=8, batch_size=200, num_workers=1)
    final, _ = load_model(tmp_path / "run" / "final.pt")
    scores = [evaluation.evaluate(model, test).top1 for model in (final, best)]
    assert [end["eval_top1"], end["best_eval_top1"]] == scores
    held_out = split(data_dir, "validate", validation=0.1, seed=config.seed)
    assert evaluation.evaluate(best, held_out).top1 == max(tops)
    out = capsys.readouterr().out
    assert "validation top-1" in out and f"test top-1   {scores[0]:.2%}  (top-5" in out
    assert (
        f"best.pt      test top-1 {scores[1]:.2%}, chosen by its {max(tops):.2%} of 60 held-out training images" in out
    )


def test_without_held_out_images_the_summary_says_what_best_was_chosen_on(config, data_dir, capsys):
    config = dataclasses.replace(config, validation=0.0, epochs="1 epochs")
    run_training(config, get_dataset("synthetic", data_dir), lambda: build_model("B_1-Wi_16", 8, 5), "x")
    assert "chosen on the evaluation split" in capsys.readouterr().out


def test_a_probe_on_kept_features_holds_out_the_same_images(config, data_dir, tmp_path):
    save_model(tmp_path / "body.pt", build_model("B_1-Wi_16", 8, 5))
    kept = {}
    for crop in ("none", "pad_and_crop"):  # features kept in memory, or computed in each epoch
        given = dataclasses.asdict(config) | {"crop": crop, "crop_padding": 0, "flip": False, "mixup_alpha": 0.0}
        given |= {"weights": str(tmp_path / "body.pt"), "arch": "", "run_dir": str(tmp_path / crop)}
        probe = FinetuneConfig(**given, normalization="dataset")
        run_training(*transfer.prepare(probe, "probe"), backbone="frozen")
        kept[crop] = read_log(tmp_path / crop, "epoch")[-1]["val_loss"]
    assert kept["none"] == pytest.approx(kept["pad_and_crop"], rel=1e-4)


def test_a_logistic_probe_refuses_it(config):
    with pytest.raises(ValueError, match="leave --cfg.validation out"):
        transfer.fit_head(dataclasses.replace(config, crop="none", flip=False, mixup_alpha=0.0), None, None, "x")
