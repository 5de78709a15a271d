"""Training on a share of the images: which ones, in what order, and that everything counts those alone."""

import dataclasses

import numpy as np
import pytest
import torch

from fastmlp import build_model
from fastmlp.config import FinetuneConfig, PretrainConfig, ProbeConfig
from fastmlp.data.split import Split, shard_batches
from fastmlp.data.subset import stratified_subset
from fastmlp.datasets import get_dataset
from fastmlp.distributed import DistributedContext
from fastmlp.evaluation.features import CachedFeatures
from fastmlp.loader.order import random_order
from fastmlp.models.weights import save_model
from fastmlp.training import transfer
from fastmlp.training.run import run_training
from fastmlp.training.run_log import read_log
from fastmlp.training.trainer import Trainer
from fastmlp.transforms.augment_params import Augment

SIZES = (1, 2, 3, 10, 99, 1000, 0, 7)  # images of each class


@pytest.fixture
def labels():
    return np.random.default_rng(3).permutation(np.repeat(np.arange(len(SIZES)), SIZES))


@pytest.mark.parametrize(
    ("fraction", "counts"),
    [
        (0.1, [1, 1, 1, 1, 10, 100, 0, 1]),
        (0.5, [1, 1, 2, 5, 50, 500, 0, 4]),
        (1e-9, [1, 1, 1, 1, 1, 1, 0, 1]),
        (0.999, [1, 2, 3, 10, 99, 999, 0, 7]),
    ],
)
def test_counts_of_each_class(labels, fraction, counts):
    """The nearest whole number, halves to the even one, and one at least."""
    chosen = stratified_subset(labels, fraction, seed=0)
    assert np.bincount(labels[chosen], minlength=len(SIZES)).tolist() == counts
    assert (np.diff(chosen) > 0).all()  # each once, in the beton's order
    many = stratified_subset(labels * 10_000, fraction, seed=0)  # labels that need more than 16 bits
    np.testing.assert_array_equal(many, chosen)


def test_smaller_shares_lie_within_larger_ones(labels):
    shares = [set(stratified_subset(labels, fraction, seed=5).tolist()) for fraction in np.linspace(0.01, 1, 60)]
    assert all(small <= large for small, large in zip(shares, shares[1:], strict=False))
    assert len(shares[0]) < len(shares[30]) < len(shares[-1]) == len(labels)


def test_a_seed_and_a_fraction_tell_all(labels):
    first, again, other = (stratified_subset(labels, 0.3, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(first) == len(other) and len(set(first) & set(other)) / len(first) == pytest.approx(0.3, abs=0.1)
    frequency = np.mean(
        [np.isin(np.arange(len(labels)), stratified_subset(labels, 0.3, seed)) for seed in range(400)], 0
    )
    of_1000 = frequency[labels == 5]  # each image as often as any other: 5 standard deviations
    assert of_1000.mean() == pytest.approx(0.3) and np.abs(of_1000 - 0.3).max() < 5 * (0.3 * 0.7 / 400) ** 0.5


def split(data_dir, mode="train", batch_size=20, **keywords):
    keywords = {"fraction": 0.25, "seed": 4, **keywords}
    return Split(
        get_dataset("synthetic", data_dir),
        "train",
        mode,
        data_dir=data_dir,
        res=8,
        num_workers=1,
        batch_size=batch_size,
        **keywords,
    )


def pixels_of_all(data_dir):
    """Number of each image of the whole set by its pixels."""
    whole = split(data_dir, "evaluate", 600, fraction=1.0)
    ((images, _),) = ((images.clone(), labels) for images, labels in whole.batches(0))
    return {image.numpy().tobytes(): number for number, image in enumerate(images)}


def test_each_epoch_is_a_permutation_of_the_subset(data_dir):
    train, number = split(data_dir), pixels_of_all(data_dir)
    expected = stratified_subset(train.loader.reader.metadata["f1"], 0.25, 4)
    assert len(number) == 600 and train.num_samples == len(expected) == 150 and train.batches_per_epoch == 7
    assert np.bincount(train.loader.reader.metadata["f1"][expected]).tolist() == [30] * 5
    seen = []
    for epoch in range(3):
        epochs = [(images.clone(), labels.clone()) for images, labels in train.batches(epoch)]
        seen.append([number[image.numpy().tobytes()] for images, _ in epochs for image in images])
        np.testing.assert_array_equal(seen[-1], random_order(expected, 4, epoch)[:140])
        np.testing.assert_array_equal(train.loader.reader.metadata["f1"][seen[-1]], torch.cat([y for _, y in epochs]))
        for (images, _), (again, _) in zip(epochs[5:], train.batches(epoch, first=5), strict=True):
            assert torch.equal(images, again)  # gone on with in mid epoch
    assert seen[0] != seen[1] and len(set(seen[0])) == 140
    of_two = [split(data_dir, context=DistributedContext(rank, 2)) for rank in range(2)]
    assert [one.batches_per_epoch for one in of_two] == [7, 7]
    for rank, one in enumerate(of_two):
        mine = [number[image.numpy().tobytes()] for images, _ in one.batches(1) for image in images]
        assert mine == shard_batches(random_order(expected, 4, 1), 20, DistributedContext(rank, 2)).tolist()
        assert len(mine) == 70 and set(mine) <= set(seen[1])


def test_a_batch_larger_than_the_subset_is_told(data_dir):
    with pytest.raises(
        ValueError, match=r"batch of 151 .* 150 images that --cfg.train_fraction=0.25 leaves. .*size=8 makes 18 steps"
    ):
        split(data_dir, batch_size=151)
    assert split(data_dir, batch_size=150).batches_per_epoch == 1


def test_cached_features_are_those_of_the_subset(data_dir):
    """In the order of streaming: the same losses."""
    config = FinetuneConfig(batch_size=20, optimizer="adamw", lr=1e-2, epochs="2", compile="off", train_fraction=0.25)
    losses = []
    for backbone in ("frozen", "cached"):
        torch.manual_seed(0)
        model, train = build_model("B_1-Wi_16", 8, 5), split(data_dir, augment=Augment())
        if backbone == "cached":
            train = CachedFeatures(model, split(data_dir, "evaluate", 64), 20, seed=4)
            assert train.num_samples == 150
        trainer = Trainer(model, config, train.batches_per_epoch, backbone=backbone)
        losses.append([float(trainer.step(*batch)) for epoch in range(2) for batch in train.batches(epoch)])
    assert len(losses[0]) == 14
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_a_run_counts_and_sees_the_subset_alone(data_dir, tmp_path, capsys):
    config = PretrainConfig(
        dataset="synthetic",
        data_dir=str(data_dir),
        res=8,
        arch="B_1-Wi_16",
        batch_size=20,
        epochs="3 epochs",
        train_fraction=0.25,
        seed=4,
        crop="none",
        flip=False,
        mixup_alpha=0.0,
        num_workers=1,
        compile="off",
        log_every=1,
        run_dir=str(tmp_path / "a"),
    )
    spec = get_dataset("synthetic", data_dir)
    make = lambda: build_model("B_1-Wi_16", 8, 5)  # noqa: E731
    run_training(config, spec, make, "x")
    assert "150 training images, 3 epochs of 7 batches of 20" in capsys.readouterr().out
    torch.manual_seed(4)
    train, trainer = split(data_dir), Trainer(make(), config, 7)
    losses = [float(trainer.step(*batch)) for epoch in range(3) for batch in train.batches(epoch)]
    assert [line["loss"] for line in read_log(tmp_path / "a", "step")] == losses and len(losses) == 21
    run_training(dataclasses.replace(config, budget=True), spec, make, "x")
    assert "an epoch of 150 images" in capsys.readouterr().out
    with pytest.raises(ValueError, match="batch of 151"):
        run_training(dataclasses.replace(config, batch_size=151, run_dir=str(tmp_path / "b")), spec, make, "x")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("method", ["gradient", "logistic"])
def test_probes_fit_the_subset_alone(data_dir, tmp_path, monkeypatch, capsys, method):
    save_model(tmp_path / "body.pt", build_model("B_1-Wi_16", 8, 5))
    made, real = [], CachedFeatures.__init__

    def noted(self, *arguments, **keywords):
        real(self, *arguments, **keywords)
        made.append(self)

    monkeypatch.setattr(CachedFeatures, "__init__", noted)
    config = ProbeConfig(
        weights=str(tmp_path / "body.pt"),
        normalization="dataset",
        dataset="synthetic",
        data_dir=str(data_dir),
        res=8,
        batch_size=20,
        epochs="1 epochs",
        method=method,
        l2=0.1,
        train_fraction=0.25,
        seed=4,
        num_workers=1,
        run_dir=str(tmp_path / "run"),
    )
    if method == "gradient":
        run_training(*transfer.prepare(config, "probe"), backbone="frozen")
    else:
        transfer.fit_head(*transfer.prepare(config, "probe"))
    train, test = made
    records = split(data_dir).loader.reader.metadata
    np.testing.assert_array_equal(train.labels, records["f1"][stratified_subset(records["f1"], 0.25, 4)])
    assert (train.num_samples, test.num_samples) == (150, 200)
