"""Which data set a name means."""

import json

import numpy as np
import pytest

from fastmlp.beton.writer import write_beton
from fastmlp.datasets import IMAGENET_MEAN, SPECS, beton_path, get_dataset, sidecar_path
from fastmlp.sources.base import ArraySource


def test_known_names_need_no_files(tmp_path):
    assert get_dataset("cifar100", tmp_path / "none").num_classes == 100
    for spec in SPECS.values():
        assert all(0 < value < 255 for value in spec.mean + spec.std) and spec.writer.startswith("python writers/")
    assert beton_path("data", "cifar10", "test", 32).as_posix() == "data/cifar10_test_32.beton"


def test_descriptions_beside_betons(tmp_path):
    beton = beton_path(tmp_path, "pets", "train", 48)
    sidecar_path(beton).write_text(
        '{"dataset": "pets", "classes": ["cat", "dog"], "splits": ["train", "val"], "res": 48}'
    )
    spec = get_dataset("pets", tmp_path)
    assert (spec.num_classes, spec.res, spec.train_split, spec.eval_split) == (2, 48, "train", "val")
    sidecar_path(beton_path(tmp_path, "pets", "a", 9)).write_text(
        '{"dataset": "pets", "classes": ["x"], "splits": ["a", "b"], "res": 9}'
    )
    assert get_dataset("pets", tmp_path, 48).num_classes == 2 and get_dataset("pets", tmp_path, 9).num_classes == 1
    for name in ("pet", "pets_", "*", "../pets", ""):
        with pytest.raises(ValueError, match="unknown data set"):
            get_dataset(name, tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"dataset": "pets"}',
        '{"dataset": "pets", "classes": 5, "splits": ["train", "val"], "res": 8}',
        '{"dataset": "pets", "classes": ["a"], "splits": [], "res": 8}',
    ],
)
def test_damaged_descriptions_are_named(tmp_path, content):
    (tmp_path / "pets_train_48.json").write_text(content)
    with pytest.raises(ValueError, match=r"pets_train_48\.json is no description"):
        get_dataset("pets", tmp_path)


@pytest.mark.parametrize("fit", ["square", "longest"])
def test_statistics_of_own_images_are_those_of_the_training_pixels(tmp_path, fit):
    """Of all pixels that the beton holds, by numpy; with "longest" the images are not square."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, [20, 130, 256], (30, 12, 8, 3), np.uint8)
    metadata = {"dataset": "pets", "splits": ["train", "val"]}
    for split, some in (("train", images), ("val", 255 - images)):
        source = ArraySource(some, np.arange(30) % 2, ("cat", "dog"))
        path = beton_path(tmp_path, "pets", split, 12)
        write_beton(path, source, 12, metadata=metadata, fit=fit, statistics=split == "train")
    sidecar = sidecar_path(beton_path(tmp_path, "pets", "train", 12))
    stored = json.loads(sidecar.read_bytes())
    sidecar.write_text(json.dumps({name: value for name, value in stored.items() if name not in ("mean", "std")}))
    assert get_dataset("pets", tmp_path).mean == IMAGENET_MEAN  # as after 0.1
    source = ArraySource(images, np.arange(30) % 2, ("cat", "dog"))
    beton = beton_path(tmp_path, "pets", "train", 12)
    write_beton(beton, source, 12, metadata=metadata, fit=fit, statistics=True)  # is already written
    assert json.loads(sidecar.read_bytes()) == stored
    written = images[:, 2:10] if fit == "square" else images
    spec = get_dataset("pets", tmp_path)
    if fit == "longest":  # as they are; square ones are enlarged
        np.testing.assert_allclose(spec.mean, written.mean((0, 1, 2)), atol=5e-4)
        np.testing.assert_allclose(spec.std, written.std((0, 1, 2)), atol=5e-4)
    else:
        np.testing.assert_allclose(spec.mean, written.mean((0, 1, 2)), atol=1)


def test_statistics_of_0_1_are_those_of_imagenet_and_damaged_ones_are_named(tmp_path):
    sidecar = sidecar_path(beton_path(tmp_path, "pets", "train", 8))
    description = {"dataset": "pets", "classes": ["a", "b"], "splits": ["train", "val"], "res": 8}
    sidecar.write_text(json.dumps(description))
    assert get_dataset("pets", tmp_path).mean == IMAGENET_MEAN
    sidecar.write_text(json.dumps({**description, "mean": [0, 0, 0], "std": [0, 2, 3]}))
    assert get_dataset("pets", tmp_path).std == (1, 2, 3)  # nothing is divided by the 0 of a constant channel
    for mean in ([1, 2], [1, 2, 256], [1, 2, None], "x", [1, 2, float("nan")]):
        sidecar.write_text(json.dumps({**description, "mean": mean, "std": [1, 2, 3]}))
        with pytest.raises(ValueError, match=r"pets_train_8\.json is damaged: mean"):
            get_dataset("pets", tmp_path)
