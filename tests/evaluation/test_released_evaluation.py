"""Evaluation of a released model against the authors' own way, written anew in NumPy: which pixels, which formula."""

import csv

import numpy as np
import pytest
import torch
from scipy.special import erf

from fastmlp import build_model, load_model
from fastmlp.beton.writer import write_beton
from fastmlp.datasets import beton_path
from fastmlp.sources.base import ArraySource
from fastmlp.sources.fashion_mnist import CLASSES, DEBIAN_FOLDERS, FashionMNIST

CIFAR_MEAN = np.array([0.4914, 0.4822, 0.4465]) * 255
CIFAR_STD = np.array([0.2470, 0.2435, 0.2616]) * 255


def authors_logits(state, images):
    """Images (N, 32, 32, 3) uint8, enlarged to 64 px by repeating pixels, through their BottleneckMLP in float64."""
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in state.items()}
    planes = images.repeat(2, axis=1).repeat(2, axis=2).transpose(0, 3, 1, 2).astype(np.float64)
    planes = (planes - CIFAR_MEAN[:, None, None]) / CIFAR_STD[:, None, None]
    z = planes.reshape(len(images), -1) @ w["linear_in.weight"].T + w["linear_in.bias"]
    for b in range(2):
        mean, var = z.mean(1, keepdims=True), z.var(1, keepdims=True)
        normed = (z - mean) / np.sqrt(var + 1e-5) * w[f"layernorms.{b}.weight"] + w[f"layernorms.{b}.bias"]
        hidden = normed @ w[f"blocks.{b}.block.0.weight"].T + w[f"blocks.{b}.block.0.bias"]
        act = 0.5 * hidden * (1 + erf(hidden / np.sqrt(2)))
        z = z + act @ w[f"blocks.{b}.block.2.weight"].T + w[f"blocks.{b}.block.2.bias"]
    return z @ w["linear_out.weight"].T + w["linear_out.bias"]


def test_images():
    """Fashion-MNIST's 10,000 where its Debian package is installed, else 1,000 of noise in blocks."""
    if any(folder.is_dir() for folder in DEBIAN_FOLDERS):
        source = FashionMNIST("test")
        return source, np.repeat(source.images[..., None], 3, axis=3)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1000, 8, 8, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    images = images // 2 + rng.integers(0, 128, images.shape, dtype=np.uint8)
    return ArraySource(images, rng.integers(0, 10, 1000), CLASSES), images


test_images.__test__ = False  # a helper


@pytest.fixture
def released(tmp_path):
    """A file as the authors release them, whose predictions vary, and its state dict."""
    torch.manual_seed(0)
    state = build_model("B_2-Wi_64", 64, 10).state_dict()
    state = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in state.items()}
    path = tmp_path / "B-2_Wi-64_res_64_cifar10_epochs_20_weights"
    torch.save(state, path)
    return path, state


def test_predictions_are_those_of_the_authors_way(script, released, tmp_path):
    path, state = released
    source, images = test_images()
    metadata = {"dataset": "fashion_mnist", "split": "test", "splits": ["train", "test"]}
    write_beton(beton_path(tmp_path, "fashion_mnist", "test", 32), source, 32, metadata=metadata, seed=None)
    ended = script(
        "recipes/evaluate.py",
        f"--cfg.weights={path}",
        "--cfg.dataset=fashion_mnist",
        f"--cfg.data_dir={tmp_path}",
        "--cfg.res=32",
        f"--cfg.out={tmp_path / 'out'}",
    )
    assert ended.code == 0, ended.err
    rows = csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines())
    mine = np.array([CLASSES.index(row["predicted"]) for row in rows])
    expected = np.concatenate([authors_logits(state, part) for part in np.array_split(images, 10)])
    best = expected.argmax(1)
    assert len(mine) == len(best) and len(set(best.tolist())) >= 5
    chosen = expected[np.arange(len(mine)), mine]
    assert (expected.max(1) - chosen).max() < 1e-3, "a prediction that is not a tie differs"
    assert (mine != best).sum() <= 2


def test_the_property_is_saved_exported_and_inherited(script, released, data_dir, tmp_path, monkeypatch):
    """Through fine-tuning, a safetensors export and evaluation; a file that does not have it means bilinear."""
    monkeypatch.chdir(tmp_path)
    path, _ = released
    assert load_model(path)[0].resampling == "area"
    shared = (f"--cfg.data_dir={data_dir}", "--cfg.res=8", "--cfg.num_workers=1")
    flags = (f"--cfg.weights={path}", "--cfg.dataset=synthetic", "--cfg.run_dir=run", "--cfg.epochs=1")
    ended = script("recipes/finetune.py", *shared, *flags, "--cfg.batch_size=100")
    assert ended.code == 0, ended.err
    for name in ("final.pt", "final.safetensors"):
        model, metadata = load_model(tmp_path / "run" / name)
        assert model.resampling == metadata["resampling"] == "area"
    content = torch.load(tmp_path / "run" / "final.pt", weights_only=True)
    for resampling, complaint in ((None, ""), ("cubic", "damaged: resampling")):
        del content["facts"]["resampling"]
        if resampling:
            content["facts"]["resampling"] = resampling
        torch.save(content, tmp_path / "changed.pt")
        if complaint:
            with pytest.raises(ValueError, match=complaint):
                load_model(tmp_path / "changed.pt")
        else:
            assert load_model(tmp_path / "changed.pt")[0].resampling == "bilinear"
            content["facts"]["resampling"] = ""


def losses(script, weights, data_dir, tmp_path, *flags):
    out = tmp_path / "scores"
    shared = (f"--cfg.data_dir={data_dir}", "--cfg.dataset=synthetic", "--cfg.res=8", "--cfg.num_workers=1")
    ended = script("recipes/evaluate.py", f"--cfg.weights={weights}", f"--cfg.out={out}", *shared, *flags)
    assert ended.code == 0, ended.err
    return ended.out.split("loss ")[1].split(";")[0]


@pytest.mark.parametrize("flags", [(), ("--cfg.tta_crops=2",)])
def test_evaluation_and_its_crops_are_resampled_as_the_model_was(script, data_dir, tmp_path, flags):
    from fastmlp.models.weights import save_model

    torch.manual_seed(0)
    model = build_model("B_1-Wi_64", 20, 5)
    with torch.no_grad():
        model.linear_in.weight.mul_(10)
    metadata = {"dataset": "synthetic", "mean": [127.5] * 3, "std": [64.0] * 3}
    found = []
    for resampling in ("bilinear", "area"):
        model.resampling = resampling
        save_model(tmp_path / "model.pt", model, metadata)
        found.append(losses(script, tmp_path / "model.pt", data_dir, tmp_path, *flags))
    assert found[0] != found[1]
