"""Runs that branch off another at the start of its cool-down, compared with the same runs from their first step."""

import dataclasses
import json

import pytest
import torch
import yaml

from fastmlp import build_model
from fastmlp.atomic import load_torch
from fastmlp.config import PretrainConfig
from fastmlp.datasets import get_dataset
from fastmlp.models.weights import load_model
from fastmlp.training import branch as branch_module
from fastmlp.training.branch import branch
from fastmlp.training.checkpoints import Checkpoints
from fastmlp.training.run import run_training
from fastmlp.training.run_folder import open_run
from fastmlp.training.run_log import read_log

BASE = PretrainConfig(
    dataset="synthetic",
    res=8,
    arch="B_2-Wi_32",
    batch_size=100,
    epochs="20 steps",
    cooldown="6 steps",
    warmup="3 steps",
    lr=1e-3,
    ema_decay=0.9,
    compile="off",
    log_every=1,
    eval_every="4 steps",
    num_workers=1,
    keep_checkpoints=1,
    checkpoint_every="3 steps",
)
LONGER = dataclasses.replace(BASE, epochs="5", cooldown="10 steps")  # 30 steps, of which it shares 14


@pytest.fixture
def train(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("fastmlp.cost.hardware.device_peak_flop_per_s", lambda device: None)
    spec = get_dataset("synthetic", data_dir)

    def call(name, config=BASE):
        config = dataclasses.replace(config, data_dir=str(data_dir), run_dir=str(tmp_path / name))
        run_training(config, spec, lambda: build_model(config.arch, 8, 5), "x")
        return tmp_path / name

    return call


def weights(folder, name):
    state = load_model(folder / f"{name}.pt")[0].state_dict()
    return b"".join(value.numpy().tobytes() for value in state.values())


def numbers(folder):
    """The log's lines, without times and memory."""
    names = ("event", "step", "epoch", "loss", "lr", "train_loss", "eval_top1", "eval_top5", "eval_loss", "best_top1")
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in names if name in line} for line in lines]


@pytest.mark.parametrize(
    "config",
    [
        LONGER,
        dataclasses.replace(BASE, epochs="17 steps", cooldown="3 steps"),
        dataclasses.replace(BASE, epochs="16 steps", cooldown="0"),
    ],
    ids=["longer", "at once", "without a cool-down"],
)
def test_a_branch_ends_with_the_bytes_of_a_run_of_its_own(train, tmp_path, config):
    parent = train("parent")
    # The checkpoint of its cool-down stays, though one is kept and five are written.
    assert [path.name for path in Checkpoints(parent).paths()] == ["step_000000014.pt", "step_000000018.pt"]
    before = {path: path.read_bytes() for path in parent.rglob("*") if path.is_file()}
    ready = branch(parent, config, tmp_path / "branch")
    assert load_torch(Checkpoints(tmp_path / "branch").paths()[0])["trainer"]["steps_done"] == 14
    train("branch", ready)
    whole = train("whole", config)
    for kind in ("final", "best"):
        assert weights(tmp_path / "branch", kind) == weights(whole, kind)
    assert numbers(tmp_path / "branch") == numbers(whole) and len(read_log(whole, "step")) > 15
    assert yaml.safe_load((tmp_path / "branch" / "config.yaml").read_text())["cfg"]["epochs"] == config.epochs
    assert weights(whole, "final") != weights(parent, "final")
    assert {path: path.read_bytes() for path in parent.rglob("*") if path.is_file()} == before


def test_a_branch_keeps_the_best_by_held_out_images(train, tmp_path):
    parent = train("parent", dataclasses.replace(BASE, validation=0.1, batch_size=60))
    longer = dataclasses.replace(LONGER, validation=0.1, batch_size=60)
    ready = branch(parent, longer, tmp_path / "branch")
    assert load_torch(tmp_path / "branch" / "best.pt")["facts"]["val_top1"] > 0
    train("branch", ready)
    whole = train("whole", longer)
    for kind in ("final", "best"):
        assert weights(tmp_path / "branch", kind) == weights(whole, kind)


def test_a_branch_is_branched_off_where_its_own_cool_down_began(train, tmp_path):
    parent, longest = train("parent"), dataclasses.replace(LONGER, epochs="6")
    train("longer", branch(parent, LONGER, tmp_path / "longer"))
    train("longest", branch(tmp_path / "longer", longest, tmp_path / "longest"))
    assert read_log(tmp_path / "longest", "step")[:20] == read_log(tmp_path / "longer", "step")[:20]
    assert weights(tmp_path / "longest", "final") == weights(train("whole", longest), "final")


def test_the_best_model_of_a_branch_may_be_from_before_it(train, tmp_path, monkeypatch):
    """The parent's best.pt may be replaced in its cool-down: the branch gets the one of the step it branched off at."""
    from fastmlp.training import loop

    real = loop.evaluate_detailed

    def with_top1(*split, **options):
        found = real(*split, **options)
        return dataclasses.replace(found, scores=dataclasses.replace(found.scores, top1=next(top1)))

    monkeypatch.setattr(loop, "evaluate_detailed", with_top1)
    top1 = iter([0.1, 0.3, 0.2, 0.9, 0.5])  # after steps 4, 8, 12, 16 and 20
    parent = train("parent")
    branch(parent, LONGER, tmp_path / "longer")
    top1 = iter([0.2, 0.2, 0.2, 0.2, 0.2])
    train("longer", LONGER)
    top1 = iter([0.1, 0.3, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2])
    whole = train("whole", LONGER)
    assert weights(tmp_path / "longer", "best") == weights(whole, "best") != weights(parent, "best")
    assert load_model(tmp_path / "longer" / "best.pt")[1]["steps"] == 8


def test_killed_while_it_branches(train, tmp_path, monkeypatch):
    """After each file the folder is one that open_run starts again or resumes; branching again completes it."""
    parent = train("parent")
    for survive in range(6):
        left, folder = [survive], tmp_path / f"killed{survive}"
        with monkeypatch.context() as patch:
            for module, name in (
                (branch_module, "write_atomic"),
                (branch_module, "save_torch"),
                (Checkpoints, "keep_best"),
            ):
                real = getattr(module, name)

                def dying(*arguments, real=real, left=left):
                    left[0] -= 1
                    if left[0] < 0:
                        raise KeyboardInterrupt
                    real(*arguments)

                patch.setattr(module, name, dying)
            if survive < 5:
                with pytest.raises(KeyboardInterrupt):
                    branch(parent, LONGER, folder)
            else:
                branch(parent, LONGER, folder)
        with open_run(dataclasses.replace(LONGER, run_dir=str(folder)), "x") as run:
            assert (run.checkpoint is not None) == (survive == 5)
        branch(parent, LONGER, folder)
        with open_run(dataclasses.replace(LONGER, run_dir=str(folder)), "x") as run:
            assert run.checkpoint["trainer"]["steps_done"] == 14
        assert len(read_log(folder, "step")) == 14
    whole = train("whole", LONGER)
    train("killed0", LONGER)
    assert weights(tmp_path / "killed0", "final") == weights(whole, "final")


def test_branching_again_changes_nothing(train, tmp_path):
    parent = train("parent")
    ready = branch(parent, LONGER, tmp_path / "longer")
    assert ready == dataclasses.replace(LONGER, run_dir=str(tmp_path / "longer"))
    with (tmp_path / "longer" / "log.jsonl").open("a") as log:
        log.write('{"event": "step", "step": 15}\n')  # it was resumed and has not reached another checkpoint
    for number in range(2):  # before and after it was resumed to its end
        before = {path: path.read_bytes() for path in (tmp_path / "longer").rglob("*") if path.is_file()}
        branch(parent, LONGER, tmp_path / "longer")
        assert {path: path.read_bytes() for path in (tmp_path / "longer").rglob("*") if path.is_file()} == before
        if number == 0:
            train("longer", ready)
    with pytest.raises(ValueError, match=r"longer has a run with other settings \(epochs\)"):
        branch(parent, dataclasses.replace(LONGER, epochs="7"), tmp_path / "longer")
    with (
        open_run(dataclasses.replace(LONGER, run_dir=str(tmp_path / "busy")), "x"),
        pytest.raises(ValueError, match="another process is using"),
    ):
        branch(parent, LONGER, tmp_path / "busy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1, "lr": 0.1}, "only in epochs and cooldown, not in lr, seed"),
        (
            {"epochs": "19 steps"},
            r"longer than 14 steps, after which .*'19 steps' with cooldown '6 steps' are 19 steps, 13 of them",
        ),
        ({"epochs": "14 steps", "cooldown": "0"}, "longer than 14 steps"),
    ],
)
def test_what_cannot_branch_is_told(train, tmp_path, changes, message):
    parent = train("parent")
    with pytest.raises(ValueError, match=message):
        branch(parent, dataclasses.replace(BASE, **changes), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_parents_that_nothing_can_branch_off_from(train, tmp_path):
    warm = dataclasses.replace(BASE, warmup="10 steps", checkpoint_every="2 steps", keep_checkpoints=9)
    parent = train("parent", warm)
    refused = [
        (parent, dataclasses.replace(warm, epochs="16 steps", cooldown="1 steps"), "take 8 steps of this run, but"),
        (tmp_path / "none", BASE, "has no checkpoint"),
        (train("constant", dataclasses.replace(BASE, cooldown="0")), BASE, "no cool-down, or no step before it"),
        (
            train("at once", dataclasses.replace(BASE, warmup="0", cooldown="20 steps")),
            dataclasses.replace(LONGER, warmup="0"),
            "no cool-down, or no step before it",
        ),
    ]
    assert len(Checkpoints(tmp_path / "at once").paths()) == 1
    for folder, config, message in refused:
        with pytest.raises(ValueError, match=message):
            branch(folder, config, tmp_path / "other")
    longer = dataclasses.replace(warm, epochs="22 steps")
    best = Checkpoints(parent).best_before_cooldown
    kept = torch.load(best, weights_only=True)
    torch.save({**kept, "facts": {**kept["facts"], "test_top1": 2.0}}, best)
    with pytest.raises(ValueError, match="is not the best model before the cool-down"):
        branch(parent, longer, tmp_path / "other")
    log = parent / "log.jsonl"
    log.write_bytes(log.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"log\.jsonl is shorter"):
        branch(parent, longer, tmp_path / "other")
    Checkpoints(parent).path(14).unlink()
    with pytest.raises(ValueError, match="not reached its cool-down at step 14"):
        branch(parent, longer, tmp_path / "other")
    assert not (tmp_path / "other").exists()
