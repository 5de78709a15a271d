"""Scripts as a user calls them: what they print, which files they write, how they fail."""

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image

from fastmlp import cli
from fastmlp.config import EvaluateConfig, FinetuneConfig, PretrainConfig, ProbeConfig
from fastmlp.data import preview
from fastmlp.data.split import Split
from fastmlp.datasets import SPECS, get_dataset
from fastmlp.loader.order import random_order
from fastmlp.models.weights import load_model
from fastmlp.transforms.augment_params import Augment

SMALL = (
    "--cfg.dataset=synthetic",
    "--cfg.res=8",
    "--cfg.arch=B_1-Wi_16",
    "--cfg.batch_size=100",
    "--cfg.epochs=2",
    "--cfg.mixup_alpha=0",
    "--cfg.optimizer=adamw",
    "--cfg.lr=0.003",
)


@pytest.fixture
def pretrain(script, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *flags: script("recipes/pretrain.py", *SMALL, f"--cfg.data_dir={data_dir}", *flags)


def preview_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["preview", *map(str, arguments)])
    monkeypatch.setattr("warnings.formatwarning", None)
    cli.run(preview.main)


def test_the_preview_shows_what_the_trainer_sees(data_dir, tmp_path, monkeypatch, capsys):
    beton, sheet = data_dir / "synthetic_train_8.beton", tmp_path / "sheet.png"
    preview_command(monkeypatch, beton, "--out", sheet, "--flip", "--rows", 2, "--columns", 5, "--seed", 3)
    assert "2 rows of 5 images" in capsys.readouterr().out
    with Image.open(sheet) as picture:
        assert picture.size == (2 * (5 * 9 + 1), 2 * (4 * 9 + 1))

    augment, spec = Augment("random_resized", flip=True), get_dataset("synthetic", data_dir)
    images = preview.before_and_after(beton, augment, 8, 3, 2, 5, epoch=1)
    train = Split(spec, "train", "train", data_dir=data_dir, res=8, batch_size=100, seed=3, augment=augment)
    order, records = random_order(np.arange(600), 3, 1)[:10], train.loader.reader.metadata["f0"]
    stored = [train.loader.reader.bytes[start : start + 192] for start in records["data_ptr"][order].astype(int)]
    np.testing.assert_array_equal(images[0::2].reshape(10, -1), stored)
    ready = next(train.batches(1))[0][:10].view(10, 3, 8, 8).permute(0, 2, 3, 1).numpy()
    shown = images[1::2].reshape(10, 8, 8, 3).astype(float)
    np.testing.assert_allclose(ready * np.array(spec.std) + np.array(spec.mean), shown, atol=0.501)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["missing.beton"], "missing.beton is missing"),
        (["--ratio", "0"], "--ratio 0.0"),
        (["--scale", "2"], "crop scale"),
    ],
)
def test_previews_that_cannot_be(data_dir, tmp_path, monkeypatch, capsys, arguments, message):
    beton = [] if "missing.beton" in arguments else [data_dir / "synthetic_train_8.beton"]
    with pytest.raises(SystemExit) as ended:
        preview_command(monkeypatch, *beton, *arguments, "--out", tmp_path / "sheet.png")
    assert ended.value.code == 2 and message in capsys.readouterr().err and not list(tmp_path.iterdir())


def final_weights(folder):
    return b"".join(p.detach().numpy().tobytes() for p in load_model(folder / "final.pt")[0].parameters())


def test_a_run_leaves_its_folder(pretrain, tmp_path):
    ended = pretrain("--cfg.run_dir=run")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("data set synthetic (as asked), model B_1-Wi_16\n") and "test top-1" in ended.out
    names = {path.name for path in (tmp_path / "run").iterdir()}
    weights = {f"{name}.{end}" for name in ("final", "best") for end in ("pt", "safetensors", "json")}
    others = {"config.yaml", "environment.json", "log.jsonl", "curve.png", "augmented.png", "tensorboard"}
    others |= {"predictions.csv", "predictions.json", "report.html"}
    assert names == others | weights
    model, metadata = load_model(tmp_path / "run" / "final.pt")
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert metadata["mean"] == [127.5] * 3 and metadata["std"] == [64.0] * 3
    assert metadata["test_top1"] == events[-1]["test_top1"] and str(model.arch) == "B_1-Wi_16"
    with Image.open(tmp_path / "run" / "augmented.png") as sheet:
        assert sheet.size == (2 * (16 * 9 + 1), 2 * (8 * 9 + 1))
    # The saved settings repeat the run.
    ended = pretrain("--config-file=run/config.yaml", "--cfg.run_dir=again")
    assert ended.code == 0 and final_weights(tmp_path / "run") == final_weights(tmp_path / "again")


CHANGES = {  # for each field a value other than in SMALL
    "arch": "B_2-Wi_16",
    "crop": "none",
    "min_crop_scale": 0.5,
    "min_crop_ratio": 1.0,
    "max_crop_ratio": 1.0,
    "flip": 0,
    "mixup_alpha": 0.5,
    "optimizer": "lion",
    "lr": 0.001,
    "weight_decay": 0.5,
    "label_smoothing": 0.0,
    "schedule": "cosine",
    "warmup": 1,
    "cooldown": "4 steps",
    "batch_size": 200,
    "micro_batch_size": 2,
    "epochs": 1,
    "seed": 1,
    "clip_norm": 0.01,
    "ema_decay": 0.5,
    "backbone_lr_scale": 0.5,
    "validation": 0.2,
    "train_fraction": 0.5,
    "parametrization": "mup",
}


def test_every_field_has_an_effect(pretrain, tmp_path, monkeypatch):
    monkeypatch.setattr("fastmlp.cost.hardware.device_peak_flop_per_s", lambda device: None)
    pretrain("--cfg.run_dir=base")
    base = final_weights(tmp_path / "base")
    for field, value in CHANGES.items():
        ended = pretrain(f"--cfg.{field}={value}", f"--cfg.run_dir={field}")
        assert ended.code == 0, (field, ended.err)
        assert final_weights(tmp_path / field) != base, field
    shifts = [pretrain("--cfg.crop=pad_and_crop", f"--cfg.crop_padding={n}", f"--cfg.run_dir=shift{n}") for n in (0, 3)]
    assert [ended.code for ended in shifts] == [0, 0]
    assert final_weights(tmp_path / "shift0") != final_weights(tmp_path / "shift3")
    decays = [
        pretrain("--cfg.weight_decay=0.5", f"--cfg.decay_norms_and_biases={n}", f"--cfg.run_dir=decay{n}")
        for n in (0, 1)
    ]
    assert [ended.code for ended in decays] == [0, 0]
    assert final_weights(tmp_path / "decay0") != final_weights(tmp_path / "decay1")
    bases = [
        pretrain("--cfg.parametrization=mup", f"--cfg.base_width={n}", f"--cfg.run_dir=width{n}") for n in (16, 128)
    ]
    assert [ended.code for ended in bases] == [0, 0]
    assert final_weights(tmp_path / "width16") == base != final_weights(tmp_path / "width128")
    # Fields that must not change the weights, but have another effect.
    assert (
        pretrain(
            "--cfg.log_every=1",
            "--cfg.eval_every=2 epochs",
            "--cfg.run_dir=log",
            "--cfg.num_workers=1",
            "--cfg.device=cpu",
        ).code
        == 0
    )
    assert final_weights(tmp_path / "log") == base
    lines = [json.loads(line) for line in (tmp_path / "log" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "step"] == list(range(1, 13))
    assert ["test_top1" in line for line in lines if line["event"] == "epoch"] == [False, True]
    assert pretrain("--cfg.checkpoint_every=3 steps", "--cfg.keep_checkpoints=3", "--cfg.run_dir=kept").code == 0
    assert len(list((tmp_path / "kept" / "checkpoints").iterdir())) == 3 and final_weights(tmp_path / "kept") == base
    assert pretrain("--cfg.checkpoint_minutes=1e-9", "--cfg.run_dir=timed").code == 0
    assert len(list((tmp_path / "timed" / "checkpoints").iterdir())) == 2
    tested = {
        *CHANGES,
        "crop_padding",
        "log_every",
        "eval_every",
        "run_dir",
        "num_workers",
        "device",
        "decay_norms_and_biases",
        "base_width",
        "checkpoint_every",
        "keep_checkpoints",
        "checkpoint_minutes",
    }
    # Tested by the other tests of this file and test_resume.py.
    elsewhere = {"dataset", "data_dir", "res", "compile", "resume", "budget"}
    assert tested | elsewhere == {field.name for field in dataclasses.fields(PretrainConfig)}


def test_a_budget_is_told_and_nothing_is_begun(pretrain, tmp_path):
    ended = pretrain("--cfg.budget=1", "--cfg.run_dir=run")
    assert ended.code == 0 and "predicted for this CPU" in ended.out and "images/sec   <- binds" in ended.out
    assert "an epoch of 600 images" in ended.out and not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("default")  # torch.compile warns of its own inside
def test_compile_trains_to_the_same_loss(pretrain, tmp_path):
    for flag in ("off", "on"):
        ended = pretrain(f"--cfg.compile={flag}", f"--cfg.run_dir=c{flag}", "--cfg.epochs=1")
        assert ended.code == 0, ended.err
    losses = [
        json.loads((tmp_path / f"c{flag}" / "log.jsonl").read_text().splitlines()[-2])["train_loss"]
        for flag in ("off", "on")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cfg.dataset=imagenette"], "unknown data set 'imagenette'"),
        (["--cfg.dataset=../x"], "unknown data set"),
        (["--cfg.dataset=cifar10"], "python writers/cifar.py --dataset cifar10 --res 8 --out "),
        (["--cfg.arch=ResNet_50"], "--cfg.arch: expected B_<blocks>-Wi_<width>"),
        (["--cfg.optimizer=adam"], "--cfg.optimizer: expected one of lion, adamw, sgd, muon, got 'adam'"),
        (["--cfg.epoch=3"], "unrecognized arguments: --cfg.epoch=3"),  # an abbreviation, refused as well
        (["--cfg.epochs=3 weeks"], "--cfg.epochs: expected a number of epochs above 0, or such as '5000 steps'"),
        (["--cfg.epochs=0"], "--cfg.epochs: expected a number of epochs above 0"),
        (["--cfg.cooldown=1", "--cfg.schedule=cosine"], "a cool-down ends a constant schedule"),
        (["--cfg.lr=fast"], "--cfg.lr: expected a number above 0, got 'fast'"),
        (["--cfg.lr=nan"], "--cfg.lr: expected a number above 0"),
        (["--cfg.lr=inf"], "--cfg.lr: expected a number above 0"),
        (["--cfg.flip=maybe"], "--cfg.flip: expected 0 or 1, got 'maybe'"),
        (["--cfg.batch_size=601"], "batch of 601 is larger than the data set"),
        (["--cfg.res=16"], "writers/synthetic.py --res 16"),
        (["--cfg.micro_batch_size=33"], "--cfg.micro_batch_size=33 is odd"),
        ([f"--cfg.seed={2**64}"], "--cfg.seed: expected an integer"),
        (["--cfg.lr=1e30", "--cfg.optimizer=sgd"], "the training loss is"),
        (["--config-file=nowhere.yaml"], "nowhere.yaml"),
        (["--cfg.arch=B_1-Wi_999999999"], "GiB are free: take a narrower model"),
        (["--cfg.arch=B_999999999-Wi_1"], "--cfg.arch: expected B_<blocks>"),
        (["--cfg.res=2147483647"], "GiB are free: take a narrower model or smaller images"),
        (["--cfg.lr=1e308"], "--cfg.lr: expected a number above 0, got '1e308'"),
        (["--cfg.lr=1e30", "--cfg.weight_decay=1e30"], "the training loss is"),
        (["--cfg.warmup=1e308"], "--cfg.warmup: expected a number of epochs"),
        ([f"--cfg.seed={'9' * 5000}"], "--cfg.seed: expected an integer of at least 0, got '999"),
    ],
)
def test_bad_flags_end_in_one_line_and_code_2(pretrain, flags, message):
    ended = pretrain(*flags)
    assert ended.code == 2 and message in ended.err
    assert "Traceback" not in ended.err and ended.err.rstrip().splitlines()[-1].count("error: ") == 1
    assert len(ended.err.splitlines()[-1]) < 400


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("writers/synthetic.py --limit 4 --train-images 9999999999999999999999999", "of at least 1, at most 2,147,483"),
        ("writers/synthetic.py --limit 4 --train-images 2147483647", "at most 100,000,000 images"),
        ("writers/synthetic.py --limit 4 --num-classes 1000000", "30,000 classes, not"),
        ("benchmarks/budget.py --card 4090 --res 1" + "0" * 400, "res=1"),
        ("benchmarks/budget.py --card 4090 --images 1" + "0" * 400, "expected at least 1 and at most"),
        ("benchmarks/budget.py --card 4090 --batch-size 1" + "0" * 400, "batch_size=1"),
        ("benchmarks/budget.py --card 4090 --epochs nan", "epochs=nan"),
        ("benchmarks/budget.py --card 4090 --epochs inf", "epochs=inf"),
        ("recipes/speedrun.py /dev/zero", "/dev/zero is missing"),
        ("recipes/speedrun.py --seeds 99999999999", "expected 1 to 1,000,000"),
        ("recipes/studies/transfer.py --seeds 0", "expected 1 to 5000 images and 2 to 100 seeds"),
        ("recipes/studies/transfer.py --few -5", "expected 1 to 5000 images and 2 to 100 seeds"),
    ],
    ids=range(12),
)
def test_absurd_sizes_are_refused_at_once(script, tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    ended = script(*command.split())
    assert ended.code == 2 and message in ended.err, ended.err
    assert not list(tmp_path.iterdir())


def test_memory_for_all_of_a_run_is_asked_for_before_it_begins(pretrain, tmp_path, monkeypatch):
    monkeypatch.setattr("fastmlp.device.free_bytes", lambda device: 50_000)  # the weights alone have 21 kB
    ended = pretrain("--cfg.run_dir=run", "--cfg.optimizer=adamw", "--cfg.ema_decay=0.9")
    assert ended.code == 2 and "0 GiB are free: take a narrower model" in ended.err and "optimiser" in ended.err
    assert not (tmp_path / "run").exists()


def test_cuda_where_there_is_none(pretrain):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    ended = pretrain("--cfg.device=cuda")
    assert ended.code == 2 and "torch sees no CUDA device" in ended.err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epoch: 3", "unknown field epoch"),
        ("cfg: {crop_padding: 3.7}", "expected an integer"),
        ("epochs:", "no value for"),
        ("- 1", "must map fields"),
        ("a: [", "not a YAML file"),
        ("flip: [1]", "expected 0 or 1"),
        ("cfg: {crop_padding: true}", "expected an integer"),
        ("run_dir: {a: b}", "expected a path"),
        ("seed: x", "error: x.yaml: seed: expected an integer of at least 0, got 'x'"),
        ("seed: 1\nclip_norm: -1", "error: x.yaml: clip_norm: expected a number of at least 0, got -1"),
        ("micro_batch_size: 33", "error: x.yaml: --cfg.micro_batch_size=33 is odd"),
        ("seed: 1\nseed: 2", "error: x.yaml, line 2: 'seed' is there twice"),
        ("cfg:\n  seed: 010", "error: x.yaml, line 2: 010 is ambiguous"),
        ("seed: 0x" + "f" * 5000, "error: x.yaml, line 1: 0xff"),
        ("seed: &a [*a]", "error: x.yaml, line 1: 100,000 values or more, or an alias of what it is in"),
    ],
)
def test_bad_config_files(pretrain, tmp_path, content, message):
    (tmp_path / "x.yaml").write_text(content)
    ended = pretrain("--config-file=x.yaml")
    assert ended.code == 2 and message in ended.err, ended.err


def test_a_value_that_turns_out_wrong_later_names_its_file(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = tmp_path / "x.yaml"
    asked.write_text("dataset: nope\nweights: ~/gone.pt\nbatch_size: 100\noptimizer: sgd")
    ended = script("recipes/finetune.py", "--config-file=x.yaml")
    assert ended.code == 2 and ended.err.startswith("error: x.yaml: unknown data set 'nope'")
    asked.write_text("dataset: nope")
    ended = script("recipes/pretrain.py", "--config-file=x.yaml")
    assert ended.code == 2 and ended.err.startswith("error: x.yaml: unknown data set 'nope'")
    ended = script("recipes/pretrain.py", "--config-file=x.yaml", "--cfg.dataset=nada")
    assert ended.err.startswith("error: unknown data set 'nada'")
    asked.write_text("{title: x, base: {dataset: nope, arch: B_1-Wi_8}}")
    ended = script("recipes/scaling.py", asked, "--plan")
    assert ended.code == 2 and ended.err.startswith(f"error: {asked}: unknown data set 'nope'")


def test_a_deleted_current_folder_is_told(tmp_path):
    for arguments in (["-m", "fastmlp.beton.inspect", "x.beton"], [str(ROOT / "recipes/pretrain.py")]):
        gone = tmp_path / "gone"
        gone.mkdir()
        command = ["bash", "-c", 'rmdir ../gone; exec "$@"', "bash", sys.executable, *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run(command, cwd=gone, env=environment, capture_output=True, text=True)
        assert ended.returncode == 2 and ended.stderr == "error: the current folder was deleted: go to another one\n"


def test_flags_go_before_files_before_presets_before_defaults(tmp_path):
    (tmp_path / "a.yaml").write_text("cfg: {epochs: 2, flip: False, lr: 1e-3}")  # YAML reads 1e-3 as text
    (tmp_path / "b.yaml").write_text("epochs: 3\nseed: 7")
    files = [f"--config-file={tmp_path / name}" for name in ("a.yaml", "b.yaml")]
    got = cli.parse(
        PretrainConfig,
        "",
        lambda _: {"seed": 1, "mixup_alpha": 0.5, "crop_padding": 2},
        [*files, "--cfg.crop_padding=1"],
    )
    assert (got.epochs, got.flip, got.lr, got.seed) == ("3 epochs", False, 1e-3, 7)
    assert (got.mixup_alpha, got.crop_padding, got.log_every) == (0.5, 1, 10)


CONFIGS = [*ROOT.glob("recipes/configs/*.yaml"), *ROOT.glob("fastmlp/training/dataset_settings/*.yaml")]


@pytest.mark.parametrize("path", sorted(CONFIGS), ids=lambda path: path.stem)
def test_published_runs_are_settings_with_a_head(path):
    recipe = {"finetune": FinetuneConfig, "probe": ProbeConfig}.get(path.stem.split("_")[0], PretrainConfig)
    config = cli.parse(recipe, "", argv=["--config-file", str(path)])
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert config.dataset in SPECS or config.dataset == "auto"
    script = {FinetuneConfig: "finetune", ProbeConfig: "linear_probe"}.get(recipe, "pretrain")
    assert any(f"recipes/{script}.py" in line for line in head), head
    if "21k" in path.stem:
        assert (config.batch_size, config.optimizer, config.label_smoothing, config.mixup_alpha) == (
            16384,
            "lion",
            0.3,
            0.8,
        )
        assert "not measured" in " ".join(head)


def test_auto_takes_imagenet_where_its_beton_lies(script, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for split, ours in (("train", "train"), ("test", "val")):
        content = (data_dir / f"synthetic_{split}_8.beton").read_bytes()
        (tmp_path / "data" / f"imagenet_{ours}_8.beton").write_bytes(content)
    flags = ("--cfg.epochs=1", "--cfg.batch_size=300", "--cfg.lr=1e-4", "--cfg.arch=S_1-Wi_8")
    ended = script("recipes/pretrain.py", "--cfg.res=8", *flags)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("data set imagenet (its beton is in ./data), model S_1-Wi_8\n")
    # Without it: Fashion-MNIST, written on first use, with its own settings.
    source = tmp_path / "idx"
    source.mkdir()
    monkeypatch.setattr("fastmlp.sources.fashion_mnist.DEBIAN_FOLDERS", (source,))
    ended = script("recipes/pretrain.py", *flags[:2])
    assert ended.out.startswith("data set fashion_mnist (no ImageNet beton of 64 px is in ./data), model B_2-Wi_256")
    assert ended.code == 2 and "train-images-idx3-ubyte" in ended.err


def test_a_finished_speedrun_is_known_by_its_settings(script, tmp_path, monkeypatch):
    """Also if version 0.1 left the copy of its config file, which then has the old names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_text("# mine\ncfg: {crop: pad_and_crop, crop_padding: 2, mixup_alpha: 0.0, lr: 0.01}\n")
    folder = tmp_path / "out" / "x-seed0"
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text('{"event": "end", "test_top1": 0.91, "train_s": 3.5}\n')
    (folder / "asked.yaml").write_text("cfg: {crop: shift, shift: 2, mixup: 0.0, lr: 0.01}\n")
    ended = script("recipes/speedrun.py", "x.yaml", "--seeds", 1, "--out", "out")
    assert ended.code == 0 and "| x | 91.00 | 1 | 3.5 (3.5 to 3.5) |" in ended.out, ended.err
    (folder / "asked.yaml").write_text("cfg: {crop: shift, shift: 3, mixup: 0.0, lr: 0.01}\n")
    ended = script("recipes/speedrun.py", "x.yaml", "--seeds", 1, "--out", "out")
    assert ended.code == 2 and "has a run with other settings than x.yaml" in ended.err
    (folder / "asked.yaml").unlink()
    assert script("recipes/speedrun.py", "x.yaml", "--seeds", 1, "--out", "out").code == 2


def test_help_is_quick_and_complete():
    recipes = (f"recipes/{p.name}" for p in (ROOT / "recipes").glob("*.py"))
    for path in (*sorted(recipes), *sorted(f"writers/{p.name}" for p in (ROOT / "writers").glob("*.py"))):
        ended = subprocess.run(
            [sys.executable, "-X", "importtime", path, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == 0 and "--help" in ended.stdout
        imported = {line.rsplit("|", 1)[-1].strip() for line in ended.stderr.splitlines()}
        assert not imported & {"torch", "ffcv", "numba"}, path  # seconds each
    text = subprocess.run([sys.executable, "recipes/pretrain.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    for field in dataclasses.fields(PretrainConfig):
        assert f"--cfg.{field.name}" in text.stdout and field.metadata["help"].split()[0] in text.stdout


def test_import_without_warnings():
    code = "import sys, fastmlp; assert not {'torch', 'ffcv'} & set(sys.modules); fastmlp.build_model"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_writers_share_flags_and_fail_alike(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended = script(
        "writers/synthetic.py",
        "--res",
        8,
        "--limit",
        30,
        "--train-images",
        50,
        "--test-images",
        20,
        "--num-workers",
        999,
    )
    assert ended.code == 0 and "data/synthetic_train_8.beton: 30 images" in ended.out
    assert "notice: --num-workers 999 is more than" in ended.err
    for path, flags, message in (
        ("writers/cifar.py", ["--source", "nowhere"], "cifar-10-binary.tar.gz"),
        ("writers/cifar.py", ["--dataset", "cifar11"], "invalid choice"),
        ("writers/fashion_mnist.py", ["--source", "nowhere"], "train-images-idx3-ubyte.gz is missing"),
        ("writers/folder.py", ["--name", "a/b", "--source", "."], "letters, digits"),
        ("writers/folder.py", ["--name", "pets", "--source", "nowhere"], "nowhere is not a folder"),
        ("writers/imagenet.py", [], "https://image-net.org"),
        ("writers/synthetic.py", ["--res", "0"], "at least 1"),
        ("writers/synthetic.py", ["--res", "2000"], "--res can be 1 to 1672"),
        ("writers/synthetic.py", ["--num-classes", "0"], "at least 1"),
        ("writers/synthetic.py", ["--seed", "-1"], "--seed"),
        ("writers/folder.py", ["--name", "imagenet", "--source", "."], "known data set"),
        ("writers/synthetic.py", ["--re", "8"], "unrecognized arguments"),
        ("writers/synthetic.py", ["--out", "/proc/nowhere"], "/proc/nowhere"),
    ):
        ended = script(path, *flags)
        assert ended.code == 2 and message in ended.err and "Traceback" not in ended.err, (path, flags, ended)


def test_shards_and_order_from_the_command_line(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ("writers/synthetic.py", "--res", 8, "--train-images", 50, "--test-images", 20)
    assert script(*flags, "--out", "whole").code == 0
    for shard in ("1/2", "0/2"):
        ended = script(*flags, "--out", "parts", "--shard", shard)
        assert ended.code == 0 and "run the same command with --finish" in ended.out
    assert not list((tmp_path / "parts").glob("*.beton"))
    assert script(*flags, "--out", "parts", "--finish").code == 0
    assert script(*flags, "--out", "kept", "--no-shuffle").code == 0
    betons = [tmp_path / name / "synthetic_train_8.beton" for name in ("whole", "parts", "kept")]
    whole, parts, kept = (beton.read_bytes() for beton in betons)
    assert whole == parts != kept
    for wrong in (["--shard", "2/2"], ["--shard", "x"], ["--fit", "widest"], ["--finish", "--shard", "0/2"]):
        assert script(*flags, *wrong).code == 2
    ended = script(*flags, "--out", "none", "--finish")
    assert ended.code == 2 and "there is nothing to finish" in ended.err


def test_own_folder_from_images_to_weights(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (tmp_path / "shades" / name).mkdir(parents=True)
        for i in range(40):
            pixels = rng.normal(level, 20, (20, 30, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "shades" / name / f"{i}.png")
    assert script("writers/folder.py", "--name", "shades", "--source", "shades", "--res", 16).code == 0
    ended = script(
        "recipes/pretrain.py",
        "--cfg.dataset=shades",
        "--cfg.batch_size=24",
        "--cfg.epochs=8",
        "--cfg.mixup_alpha=0",
        "--cfg.arch=B_1-Wi_32",
        "--cfg.lr=1e-3",
        "--cfg.run_dir=run",
    )
    assert ended.code == 0, ended.err
    assert load_model(tmp_path / "run" / "final.pt")[1]["test_top1"] == 1.0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["cfg"]["res"] == 16


def test_every_flag_that_the_pages_name_exists():
    kinds = (PretrainConfig, FinetuneConfig, ProbeConfig, EvaluateConfig)
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    pages = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    for folder, kind in (
        ("docs", "*.md"),
        ("recipes", "*.md"),
        ("recipes", "*.py"),
        ("recipes", "*.yaml"),
        ("fastmlp", "*.py"),
    ):
        pages += (ROOT / folder).rglob(kind)
    named = [
        (page, flag) for page in pages for flag in re.findall(r"--cfg\.([a-z_]\w*)", page.read_text(encoding="utf-8"))
    ]
    assert len(named) > 50
    assert [(page.name, flag) for page, flag in named if flag not in fields] == []


def test_torture_dumps_no_stacks():
    """Its tests take longer than the minute after which those of CI do."""
    text = (ROOT / "scripts" / "torture.sh").read_text()
    assert text.count("-m pytest") == text.count("-m pytest -o faulthandler_timeout=0") == 1


def test_streams_that_were_never_open(tmp_path):
    """Neither bars and notices on a closed stderr fail, nor what a C library writes ends in a file with its number."""
    command = (sys.executable, "writers/synthetic.py", "--res", "8", "--train-images", "20", "--test-images", "10")
    script = shlex.join([*command, "--num-workers", "9999", "--out", str(tmp_path)]) + " <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", script], cwd=ROOT).returncode == 0
    assert len(list(tmp_path.glob("*.beton"))) == 2


def test_a_tilde_is_the_home_folder_in_every_path(script, data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "betons").symlink_to(data_dir)
    (tmp_path / "x.yaml").write_text("data_dir: ~/betons\nrun_dir: ~/runs/one\n")
    ended = script("recipes/pretrain.py", *SMALL, "--config-file", "~/x.yaml", "--cfg.epochs=1")
    assert ended.code == 0, ended.err
    evaluated = script(
        "recipes/evaluate.py",
        "--cfg.weights=~/runs/one/final.pt",
        "--cfg.data_dir=~/betons",
        "--cfg.out=~/scores",
        "--cfg.res=8",
    )
    assert evaluated.code == 0, evaluated.err
    written = script("writers/synthetic.py", "--out=~/written", "--res", 8, "--train-images", 20, "--test-images", 10)
    assert written.code == 0, written.err
    assert {"runs", "scores", "written"} <= {path.name for path in tmp_path.iterdir()} and not Path("~").exists()
    ended = script("recipes/pretrain.py", "--cfg.run_dir=~nobody-of-this-name/x")
    assert ended.code == 2 and "--cfg.run_dir: expected a path, got '~nobody-of-this-name/x'" in ended.err
    for path in [*(ROOT / "writers").glob("*.py"), *ROOT.glob("recipes/**/*.py"), *ROOT.glob("fastmlp/**/*.py")]:
        assert "type=Path" not in path.read_text(), path


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["argparse", "numpy", "multiprocessing.spawn"])
def test_signals_while_modules_load_and_workers_start_leave_no_traceback(tmp_path, number, module):
    """The signal comes when a module has been loaded, by the script or by one of its workers."""
    command = [sys.executable, "-X", "importtime", "writers/synthetic.py", "--res", "8", "--out", tmp_path / "x"]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while (line := child.stdout.readline()).rsplit("|")[-1].strip() != module:
        assert line, module
    child.send_signal(number)
    out, _ = child.communicate(timeout=60)
    assert "Traceback" not in out and "Exception ignored" not in out, out[-3000:]
    assert child.returncode in (128 + number, -number), child.returncode


def test_a_signal_while_numpy_loads_is_no_broken_numpy(tmp_path):
    """Its C code makes an ImportError of a KeyboardInterrupt."""
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text(
        "import os, signal\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    [0 for _ in range(1000)]\n"
        "except KeyboardInterrupt as error:\n    raise ImportError('a bad install') from error\n"
    )
    command = [sys.executable, ROOT / "writers/synthetic.py"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "\ninterrupted\n")


def test_the_cache_of_compiled_code_falls_back_to_a_temporary_folder(tmp_path, monkeypatch):
    from fastmlp.transforms import numba_cache

    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    assert numba_cache.choose_folder() == ""  # beside the modules
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert numba_cache.choose_folder(tmp_path / "file") == ""  # in the user's folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = numba_cache.choose_folder(tmp_path / "file")
    assert folder == str(tmp_path / f"fastmlp-numba-{os.getuid()}") and os.stat(folder).st_mode & 0o777 == 0o700
    os.chmod(folder, 0o777)  # others could put code there
    assert numba_cache.choose_folder(tmp_path / "file") is None
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    assert numba_cache.choose_folder() is None


def test_names_that_are_not_utf8(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in (b"caf\xe9", b"other"):
        folder = os.path.join(os.fsencode(tmp_path), b"images", name)
        os.makedirs(folder)
        for i in range(8):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(os.fsdecode(folder + b"/\xff%d.png" % i))
    assert script("writers/folder.py", "--name", "odd", "--source", "images", "--res", 8).code == 0
    flags = ("--cfg.dataset=odd", "--cfg.batch_size=6", "--cfg.epochs=1", "--cfg.arch=B_1-Wi_8", "--cfg.mixup_alpha=0")
    ended = script("recipes/pretrain.py", *flags, "--cfg.run_dir=run\udce9")
    assert ended.code == 0, ended.err
    weights = "--cfg.weights=run\udce9/final.pt"
    for more, name in (((), "a"), (("--cfg.images=images",), "b")):
        ended = script("recipes/evaluate.py", weights, f"--cfg.out={name}", *more)
        assert ended.code == 0, ended.err
    assert "caf\\udce9" in (tmp_path / "a" / "predictions.csv").read_text(encoding="utf-8")
    assert "\\udcff0.png" in (tmp_path / "b" / "predictions.csv").read_text(encoding="utf-8")
