"""Files that version 0.1 (commit 4ca2f60) wrote still load, resume and finish.

written_by_0.1.tar.xz holds betons with their sidecars, a finished run, the same run interrupted after step 10 (with
every setting that was renamed away from its default), and a beton whose writing was interrupted.
"""

import dataclasses
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmlp import build_model, cli, load_model
from fastmlp.atomic import load_torch
from fastmlp.beton import writer
from fastmlp.beton.checksum import verify_checksum
from fastmlp.beton.writer import write_beton
from fastmlp.config import RENAMED_FIELDS, EvaluateConfig, PretrainConfig, translate_fields
from fastmlp.data import preview
from fastmlp.datasets import get_dataset
from fastmlp.models.weights import save_model
from fastmlp.sources.synthetic import Synthetic
from fastmlp.study.plan import plan_runs
from fastmlp.study.study_file import Study
from fastmlp.training.checkpoints import Checkpoints
from fastmlp.training.run_log import read_log

FLAGS = (
    "--cfg.dataset=synthetic",
    "--cfg.data_dir=data",
    "--cfg.train_fraction=0.75",
    "--cfg.arch=S_2-Wi_16",
    "--cfg.crop=pad_and_crop",
    "--cfg.min_crop_scale=0.5",
    "--cfg.min_crop_ratio=0.8",
    "--cfg.crop_padding=1",
    "--cfg.mixup_alpha=0.4",
    "--cfg.optimizer=adamw",
    "--cfg.lr=0.01",
    "--cfg.backbone_lr_scale=0.5",
    "--cfg.weight_decay=0.1",
    "--cfg.decay_norms_and_biases=1",
    "--cfg.ema_decay=0.9",
    "--cfg.batch_size=16",
    "--cfg.micro_batch_size=8",
    "--cfg.epochs=4",
    "--cfg.res=8",
    "--cfg.compile=off",
    "--cfg.device=cpu",
    "--cfg.log_every=2",
)


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """The folder that the archive was unpacked into, which is the current one."""
    with tarfile.open(Path(__file__).with_name("written_by_0.1.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_betons_are_known(old):
    spec = get_dataset("synthetic", "data", 8)
    assert spec.num_classes == 5
    verify_checksum(old / "data" / "synthetic_train_8.beton")
    again = write_beton(old / "again.beton", Synthetic(120, num_classes=5, res=8), 8, seed=0)
    assert again.read_bytes() == (old / "data" / "synthetic_train_8.beton").read_bytes()


SETTINGS_SINCE = {"max_crop_ratio", "validation", "parametrization", "base_width"}


def test_its_interrupted_writing_is_resumed(old, monkeypatch, capsys):
    monkeypatch.setattr(writer, "CHUNK_BYTES", 192 * 8)
    source = Synthetic(48, num_classes=5, res=8)
    path = write_beton(old / "interrupted" / "x.beton", source, 8)
    assert "interrupted" in capsys.readouterr().err
    whole = write_beton(old / "whole.beton", source, 8)
    assert path.read_bytes() == whole.read_bytes()


def test_its_models_load(old):
    model, metadata = load_model("finished/final.pt")
    end = read_log(old / "finished", "end")[-1]
    assert metadata["test_top1"] == end["eval_top1"] == 0.4 and metadata["steps"] == 20
    other, described = load_model("finished/final.safetensors")
    assert described == metadata
    for mine, theirs in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_its_interrupted_run_ends_as_the_finished_one(old, script):
    ended = script("recipes/pretrain.py", *FLAGS, "--cfg.run_dir=unfinished")
    assert ended.code == 0 and "after step 10 of 20" in ended.out, ended.err
    mine, theirs = (load_torch(old / run / "final.pt") for run in ("unfinished", "finished"))
    assert mine.keys() == theirs.keys() and mine["facts"].keys() - {"beton_res"} == theirs["facts"].keys()
    for name, tensor in theirs["state_dict"].items():  # bit for bit on the same kind of processor
        torch.testing.assert_close(mine["state_dict"][name], tensor, rtol=1e-4, atol=1e-6)
    lines = [
        [json.loads(line) for line in (old / run / "log.jsonl").read_text().splitlines()]
        for run in ("unfinished", "finished")
    ]
    assert [line.keys() - {"test_loss"} for line in lines[0][-1:]] == [line.keys() for line in lines[1][-1:]]
    assert [line.keys() for line in lines[0][:-1]] == [line.keys() for line in lines[1][:-1]]
    losses = [[line["loss"] for line in some if line["event"] == "step"] for some in lines]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_its_checkpoints_have_the_keys_of_today(old, script):
    before = load_torch(Checkpoints(old / "unfinished").paths()[-1])
    ended = script("recipes/pretrain.py", *FLAGS, "--cfg.run_dir=new", "--cfg.checkpoint_every=5 steps")
    assert ended.code == 0, ended.err
    after = Checkpoints(old / "new").newest()
    assert before.keys() < after.keys() and after.keys() - before.keys() == {"normalization"}
    assert after["trainer"].keys() - before["trainer"].keys() == {"device"}
    assert before["trainer"].keys() < after["trainer"].keys()
    translated = translate_fields(before["config"]).keys()
    assert after["config"].keys() > translated and after["config"].keys() - translated == SETTINGS_SINCE


def test_its_run_on_own_images_is_not_resumed_with_their_statistics(old, script, monkeypatch):
    """It took ImageNet's mean and std for what is no known data set."""
    monkeypatch.setattr("fastmlp.training.loop.SPECS", {})
    ended = script("recipes/pretrain.py", *FLAGS, "--cfg.run_dir=unfinished")
    assert ended.code == 2 and "unfinished normalises images with {'mean': [123.675, 116.28, 103.53" in ended.err


def test_a_run_of_other_settings_is_refused_by_the_new_names(old, script):
    ended = script("recipes/pretrain.py", *FLAGS, "--cfg.run_dir=unfinished", "--cfg.mixup_alpha=0.5")
    assert ended.code == 2 and "mixup_alpha 0.4 (now 0.5)" in ended.err
    assert "crop" not in ended.err and "compile" not in ended.err


@pytest.mark.parametrize(("name", "new"), RENAMED_FIELDS.items())
def test_an_old_name_is_answered_with_the_new_one(name, new, tmp_path, capsys):
    kind = PretrainConfig if new in {field.name for field in dataclasses.fields(PretrainConfig)} else EvaluateConfig
    (tmp_path / "mine.yaml").write_text(f"{name}: 1")
    for words in ([f"--cfg.{name}=1"], [f"--cfg.{name}", "1"], [f"--config-file={tmp_path / 'mine.yaml'}"]):
        with pytest.raises(SystemExit) as ended:
            cli.parse(kind, "", argv=words)
        assert ended.value.code == 2 and f"{name} is now called {new}" in capsys.readouterr().err
    with pytest.raises(ValueError, match=f"{name} is now called {new}"):
        cli.from_mapping(kind, {name: 1})


@pytest.mark.parametrize(
    ("field", "value", "new"),
    [
        ("crop", "resized", "random_resized"),
        ("crop", "shift", "pad_and_crop"),
        ("compile", "0", "off"),
        ("compile", "1", "on"),
    ],
)
def test_an_old_value_is_answered_with_the_new_one(field, value, new, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(f"{field}: {value}")
    for words in ([f"--cfg.{field}={value}"], [f"--config-file={tmp_path / 'mine.yaml'}"]):
        with pytest.raises(SystemExit) as ended:
            cli.parse(PretrainConfig, "", argv=words)
        assert ended.value.code == 2 and f"is now called {new}" in capsys.readouterr().err


def test_values_are_translated_as_yaml_reads_them():
    assert translate_fields({"compile": 0, "crop": "shift"}) == {"compile": "off", "crop": "pad_and_crop"}
    assert translate_fields({"lr": [1e-3, 1e-2], "crop": ["shift"]}) == {"lr": [1e-3, 1e-2], "crop": ["shift"]}


def test_yaml_s_truths_are_words():
    assert cli.from_mapping(PretrainConfig, {"compile": False}).compile == "off"
    assert cli.from_mapping(PretrainConfig, {"compile": True}).compile == "on"


def test_studies_keep_the_folders_of_0_1(tmp_path, old):
    """As 4ca2f60 named them: a study that it began is resumed, not trained again beside what is there."""
    study = Study(
        title="old",
        base={"dataset": "synthetic", "res": 8, "mixup_alpha": [0, 0.4], "compile": ["off"], "batch_size": 16},
        arms={"flip, shift 2": {"crop_padding": 2}},
        vary={"train_fraction": [0.5], "crop": ["pad_and_crop", "none"]},
        seeds=[1],
    )
    plan = plan_runs(study, tmp_path, old / "data")
    assert [run.folder.name for run in plan.runs] == [
        f"flip_shift_2_fraction_0.5_crop_{crop}-mixup_0-compile_0-seed_1" for crop in ("shift", "none")
    ]
    trials = [run.folder.name for run in plan.trials]  # which held out no images then, and are others today
    assert trials[0] == "flip_shift_2_fraction_0.5_crop_shift-mixup_0-compile_0-validation_0.1-seed_100"
    assert [run.combination.name for run in plan.runs] == [
        f"flip, shift 2, train_fraction 0.5, crop {crop}" for crop in ("pad_and_crop", "none")
    ]


def test_a_model_s_metadata_comes_back_as_it_was_saved(tmp_path):
    metadata = {"test_top1": 0.9, "eval_top1": 0.8, "mine": [1, "two"]}
    save_model(tmp_path / "m.pt", build_model("S_1-Wi_4", 2, 3), metadata)
    assert load_model(tmp_path / "m.pt")[1] == metadata


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (["--crop", "resized"], "resized is now called random_resized"),
        (["--shift", "2"], "--shift is now called --pad"),
    ],
)
def test_the_preview_answers_old_flags(old, monkeypatch, capsys, flags, answer):
    monkeypatch.setattr("sys.argv", ["preview", "data/synthetic_train_8.beton", *flags])
    monkeypatch.setattr("warnings.formatwarning", None)
    with pytest.raises(SystemExit) as ended:
        cli.run(preview.main)
    assert ended.value.code == 2 and answer in capsys.readouterr().err
