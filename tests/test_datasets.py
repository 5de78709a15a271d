"""Which data set a name means."""

import pytest

from fastmlp.datasets import SPECS, beton_path, get_dataset, sidecar_path


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
