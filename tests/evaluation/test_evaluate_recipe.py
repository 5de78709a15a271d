"""Evaluation of a data set and of a folder of images through recipes/evaluate.py."""

import csv
import dataclasses
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transferred import FACTS, run_fixture, trained_fixture  # noqa: F401

from fastmlp import build_model
from fastmlp.beton.writer import write_beton
from fastmlp.data.split import Split
from fastmlp.datasets import SPECS, beton_path, get_dataset
from fastmlp.evaluation.evaluate import wilson_interval
from fastmlp.models.weights import save_model
from fastmlp.sources.synthetic import Synthetic


@pytest.mark.parametrize(
    "flag",
    [
        "--cfg.seed=1",
        "--cfg.min_crop_scale=0.9",
        "--cfg.min_crop_ratio=0.5",
        "--cfg.max_crop_ratio=2",
        "--cfg.flip=0",
        "--cfg.tta_crops=4",
        "--cfg.tta_average=softmax",
    ],
)
def test_every_setting_of_the_crops_has_an_effect(run, trained, flag):
    save_model(trained, build_model("B_2-Wi_32", 16, 5), {**FACTS, "classes": []})
    losses = []
    for flags in ((), (flag,), ()):
        assert run("evaluate", "--cfg.tta_crops=3", "--cfg.out=seen", *flags).code == 0
        losses.append(json.loads(Path("seen", "results.json").read_text())["loss"])
    assert losses[0] == losses[2] != losses[1]


def test_evaluation_takes_the_betons_that_the_model_was_trained_on(script, trained):
    """Of two sizes; a model that does not say it takes the data set's own, and another data set its own."""
    for res in (12, 32):
        flags = ("--res", res, "--out", "both", "--train-images", 100, "--test-images", 100, "--num-classes", 5)
        assert script("writers/synthetic.py", *flags).code == 0
    model = build_model("B_2-Wi_32", 16, 5)
    for sizes, flags, wanted in (
        ({"beton_res": 12}, (), 12),
        ({"beton_res": 12}, ("--cfg.res=32",), 32),
        ({"beton_res": 12, "dataset": "x"}, ("--cfg.dataset=synthetic",), 32),
        ({}, (), 32),
    ):
        save_model(trained, model, {**FACTS, "classes": [], **sizes})
        ended = script(
            "recipes/evaluate.py", f"--cfg.weights={trained}", "--cfg.data_dir=both", *flags, "--cfg.out=seen"
        )
        assert ended.code == 0, ended.err
        assert json.loads(Path("seen", "results.json").read_text())["split"] == f"synthetic_test_{wanted}.beton"


def test_each_way_to_evaluate_has_a_folder(run, trained):
    save_model(trained, build_model("B_2-Wi_32", 16, 5), {**FACTS, "classes": []})
    ways = {
        "evaluation-synthetic": (),
        "evaluation-synthetic-train": ("--cfg.split=train",),
        "evaluation-synthetic-2-crops": ("--cfg.tta_crops=2",),
        "evaluation-synthetic-train-2-crops": ("--cfg.split=train", "--cfg.tta_crops=2"),
    }
    for flags in ways.values():
        assert run("evaluate", *flags).code == 0
    settings = {
        path.parent.name: json.loads(path.read_text())["settings"] for path in trained.parent.glob("*/results.json")
    }
    assert {name: (s["split"], s["tta_crops"]) for name, s in settings.items()} == {
        name: ("train" if "train" in name else "", 2 if "crops" in name else 0) for name in ways
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cfg.images=.", "--cfg.tta_crops=2"], "are for data sets"),
        (["--cfg.images=.", "--cfg.split=test"], "are for data sets"),
        (["--cfg.images=one.png"], "one.png is not a folder: .*fastmlp.predict takes a file"),
        (["--cfg.images=nowhere"], "nowhere is not a folder: --cfg.images must name a folder of images$"),
    ],
)
def test_what_a_folder_of_images_cannot_have_is_told(run, flags, message):
    Image.new("RGB", (9, 9)).save("one.png")
    ended = run("evaluate", *flags)
    assert ended.code == 2 and re.search(message, ended.err) and ended.err.count("\n") == 1


def test_real_accuracy_has_the_interval_of_its_own_images(run, trained, tmp_path):
    source = Synthetic(60, num_classes=5, res=8, split="test")
    source.multi_labels = np.full((60, 1), -1, np.int64)
    spec = SPECS["synthetic"]
    metadata = {"dataset": "synthetic", "split": "test", "splits": ["train", "test"]}
    for known in (20, 0):
        source.multi_labels[:] = -1
        source.multi_labels[:known, 0] = 3
        folder = tmp_path / f"real{known}"
        folder.mkdir()
        for split in spec.splits:
            write_beton(beton_path(folder, "synthetic", split, 8), source, 8, metadata=metadata, seed=None)
        save_model(trained, build_model("B_2-Wi_32", 16, 5), {**FACTS, "classes": []})
        assert run("evaluate", f"--cfg.data_dir={folder}").code == 0
        results = json.loads((trained.parent / "evaluation-synthetic" / "results.json").read_text())
        if known:
            assert results["ReaL"]["images"] == 20
            expected = wilson_interval(results["ReaL"]["share"], 20)
            assert results["ReaL"]["interval_95"] == pytest.approx(expected)
        else:
            assert "ReaL" not in results


def test_images_of_another_fit_are_noticed(run, trained):
    save_model(trained, build_model("B_2-Wi_32", 16, 5), {**FACTS, "classes": [], "fit": "longest"})
    ended = run("evaluate")
    assert ended.code == 0 and "has --fit square: write it with --fit longest" in ended.err
    save_model(trained, build_model("B_2-Wi_32", 16, 5), {**FACTS, "classes": []})
    assert "--fit" not in run("evaluate").err


def test_evaluation_refuses_another_number_of_classes(run):
    ended = run("evaluate")
    assert ended.code == 2 and "has 3 classes, synthetic has 5: give the model another head" in ended.err


def test_normalisation_is_the_checkpoint_s(run, trained, data_dir):
    """The same weights that expect other numbers give other losses, not those of the data set."""
    model = build_model("B_2-Wi_32", 16, 5)
    losses = []
    for std in (64.0, 20.0):
        save_model(trained, model, {**FACTS, "std": [std] * 3, "classes": []})
        assert run("evaluate").code == 0
        losses.append(json.loads((trained.parent / "evaluation-synthetic" / "results.json").read_text())["loss"])
    spec = dataclasses.replace(get_dataset("synthetic", data_dir), std=(20.0,) * 3)
    split = Split(spec, "test", "evaluate", data_dir=data_dir, res=8, image_res=16, batch_size=200, num_workers=1)
    ((images, labels),) = split.batches(0)
    with torch.no_grad():
        assert losses[1] == pytest.approx(torch.nn.functional.cross_entropy(model(images), labels).item(), rel=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("fit", ["square", "longest"])
def test_a_folder_of_images_is_classified_as_if_from_a_beton(run, script, trained, tmp_path, fit):
    """Odd shapes, a nested folder and an unreadable file."""
    rng, model = np.random.default_rng(0), build_model("B_2-Wi_32", 16, 3)
    save_model(trained, model, {**FACTS, "fit": fit})
    folder = tmp_path / "pictures" / "x"
    (folder / "deep").mkdir(parents=True)
    for n, shape in enumerate([(40, 30), (16, 16), (9, 50), (100, 100), (33, 64)]):
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(folder / ("deep/" * (n % 2) + f"{n}.png"))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    for litter in ("._0.png", "Thumbs.db", "deep/.DS_Store", "x.heic"):
        (folder / litter).write_bytes(b"")
    ended = run("evaluate", f"--cfg.images={folder}")
    assert "left out: 3 hidden files or litter" in ended.out and "1 .heic files, a format that is not" in ended.out
    assert ended.code == 0 and "5 images, 1 unreadable" in ended.out and "broken.jpg: cannot be read" in ended.err
    out = trained.parent / "evaluation-x"
    rows = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == ["0.png", "2.png", "4.png", "deep/1.png", "deep/3.png"]
    (folder / "broken.jpg").unlink()
    (folder.parent / "y").mkdir()  # one class alone would be refused
    (folder.parent / "y" / "0.png").write_bytes((folder / "0.png").read_bytes())
    written = script(
        "writers/folder.py",
        "--name",
        "x",
        "--source",
        folder.parent,
        "--res",
        16,
        "--fit",
        fit,
        "--holdout",
        0.2,
        "--out",
        tmp_path / "betons",
        "--no-shuffle",
    )
    assert written.code == 0, written.err
    spec = dataclasses.replace(get_dataset("x", tmp_path / "betons"), num_classes=3, mean=(127.5,) * 3, std=(64.0,) * 3)
    seen = {}
    for part in spec.splits:
        split = Split(spec, part, "evaluate", data_dir=tmp_path / "betons", res=16, batch_size=5, num_workers=1)
        with torch.no_grad():
            for images, _ in split.batches(0):
                for share in model(images).softmax(1):
                    seen[f"{float(share.max()):.4f}"] = "abc"[int(share.argmax())]
    assert {row["probability1"]: row["class1"] for row in rows} == seen
    assert (out / "surest.png").exists() and (out / "least_sure.png").exists()


def test_classes_without_names_are_told_by_number(run, trained):
    Path("pictures").mkdir()
    Image.new("RGB", (9, 9)).save("pictures/0.png")
    assert "names no classes" not in run("evaluate", "--cfg.images=pictures").out
    os.chdir("pictures")
    assert run("evaluate", f"--cfg.weights={trained}", "--cfg.images=.").code == 0
    os.chdir("..")
    assert {path.name for path in trained.parent.glob("evaluation-*")} == {"evaluation-pictures"}
    save_model(trained, build_model("B_2-Wi_32", 16, 5), {**FACTS, "classes": []})
    ended = run("evaluate", "--cfg.images=pictures")
    assert ended.code == 0 and "body.pt names no classes: they are told by number" in ended.out


def test_a_folder_without_images_is_told(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no images" in run("evaluate", "--cfg.images=empty").err
    assert "is not a folder" in run("evaluate", "--cfg.images=nowhere").err
