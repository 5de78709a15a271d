"""Studies: planning from a file, running and resuming, the report."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT

from fastmlp import cli
from fastmlp.arch import parse_arch
from fastmlp.config import PretrainConfig
from fastmlp.cost import flops
from fastmlp.data.split import Split
from fastmlp.models.weights import build_model
from fastmlp.study import report, runner, scaling_report, verdicts
from fastmlp.study.plan import group_by_shared_start, plan_runs
from fastmlp.study.runner import RunSequence
from fastmlp.study.study_file import SEARCH_SEED, Study, read_study
from fastmlp.training.run import run_training
from fastmlp.training.run_log import read_log

BASE = {
    "dataset": "synthetic",
    "res": 8,
    "arch": "B_1-Wi_16",
    "crop": "none",
    "flip": 0,
    "mixup_alpha": 0,
    "lr": 1e-3,
    "batch_size": 50,
    "epochs": 3,
    "log_every": 20,
    "eval_every": 1000,
}


def write(folder: Path, **content) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"title": "small", "base": BASE, **content}, sort_keys=False))
    return path


def finish(run, top1: float, **others: float) -> None:
    run.folder.mkdir(parents=True)
    end = {"event": "end", "test_top1": top1, "train_s": 1.0, **others}
    (run.folder / "log.jsonl").write_text(json.dumps(end) + "\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"bases": 1}, "a study has title and base"),
        ({"arms": {"a": {"epoch": 1}}}, "unknown field epoch"),
        ({"arms": {"a": {"lr": [1e-3, -1]}}}, r"--cfg\.lr: expected a number above 0"),
        ({"arms": {"a": {"lr": None}}}, "no value for lr"),
        ({"arms": {"a": {"lr": []}}}, "expected a list of values"),
        ({"arms": {"a": 3}}, "arm 'a' has 3: expected a mapping of settings"),
        ({"arms": {0.1: {}}}, "quote names"),
        ({"arms": {}}, "arms {}: expected a mapping, not empty"),
        ({"vary": None}, "vary None: expected a mapping"),
        ({"vary": {"epochs": "12"}}, "epochs '12': expected a list"),
        ({"vary": {"seed": [1]}}, "seed: the study sets this for each run"),
        ({"arms": {"a": {}}, "compare": ["a > b"]}, "compare 'a > b': expected 'A > B'"),
        ({"arms": {"a/b": {}, "a_b": {}}}, "would share the folder a_b"),
        ({"compare": [1]}, "compare 1: expected"),
        ({"seeds": []}, r"seeds \[\]: expected a list, not empty"),
        ({"seeds": [0, 0]}, "expected different integers"),
        ({"seeds": [100]}, "seed 100 is a seed of the search"),
        ({"seeds": [102], "search_seeds": 3}, "seed 102 is a seed of the search"),
        ({"search_seeds": 0}, "search_seeds 0: expected a number of 1 to 20"),
        ({"more_seeds": {"nowhere": [7]}}, "more_seeds 'nowhere': expected words of"),
        ({"more_seeds": {"": [0]}}, r"seeds \[0, 1, 2, 3, 4, 0\]: expected different ones"),
        ({"search_at": {"epochs": 3}}, r"search_at has epochs 3: expected one of \[\] in vary"),
        ({"fewer_images": ["a > b"], "arms": {"a": {}, "b": {}}}, "fewer_images: expected several lengths"),
        ({"fewer_images": ["a > c"], "arms": {"a": {}, "b": {}}}, "fewer_images 'a > c': expected 'A > B'"),
        ({"max_flop": 0}, "max_flop 0: expected a number above 0"),
        ({"vary": {"lr": [1e-3, 1e-3]}}, "'lr 0.001' is there twice"),
        ({"arms": {"a": {"epochs": [1, 2]}}}, r"epochs \[1, 2\]: a length is not searched; give the list to vary"),
        ({"title": 5}, "5: expected a text; quote it"),
        ({"probe": 3}, "3: expected a text"),
        ({"gradients": True}, "gradients True: expected a number of images"),
        ({"branch": 1.5}, "branch 1.5"),
        ({"branch": 0.2, "vary": {"epochs": ["7 steps"]}}, "gives lengths in epochs"),
        ({"branch": 0.2, "vary": {"schedule": ["linear"]}}, "schedule linear: a branch cools down"),
    ],
)
def test_mistakes_in_a_file_are_told(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read_study(write(tmp_path, **content))
    assert "small.yaml" in str(error.value)


def test_quick_changes_what_it_names(tmp_path):
    path = write(tmp_path, seeds=[0, 1, 2], quick={"base": {"epochs": 1}, "seeds": [5]})
    assert (read_study(path).base["epochs"], read_study(path).seeds) == (3, [0, 1, 2])
    quick = read_study(path, quick=True)
    assert quick.seeds == [5] and quick.base == {**BASE, "epochs": 1}


def test_every_combination_is_planned_and_the_search_decides(tmp_path, data_dir):
    study = Study(
        "x",
        BASE,
        {"lion": {"lr": [1e-4, 1e-3, 1e-2]}, "sgd": {"optimizer": "sgd"}},
        vary={"train_fraction": [0.5, 1.0]},
        seeds=[0, 1],
    )
    plan = plan_runs(study, tmp_path, data_dir)
    searches, runs = plan.trials, plan.runs
    assert [run.settings.seed for run in searches] == 6 * [SEARCH_SEED] and len(runs) == 8
    assert {run.combination.name for run in runs} == {
        f"{name}, train_fraction {f}" for name in ("lion", "sgd") for f in (0.5, 1.0)
    }
    assert {run.settings.validation for run in searches} == {0.1} and {run.settings.validation for run in runs} == {0}
    for trial, top1 in zip(searches, [0.1, 0.3, 0.2, 0.5, 0.4, 0.6], strict=True):
        finish(trial, 0.9, val_top1=top1)
    plan = plan_runs(study, tmp_path, data_dir)
    for run in plan.runs:
        finish(run, 0.8) if run.combination.searched and run.settings.seed == 0 and run.settings.lr == 1e-4 else None
    assert not report.rows(study, plan.runs[2:4])  # as chosen by an earlier list: the search has not chosen again
    (more,) = [trial for trial in plan.trials if trial not in searches]  # beyond the best rate of the second list
    assert more.settings.lr == 3e-2 and [search.best for search in plan.searches] == [{"lr": 1e-3}, None]
    finish(more, 0.9, val_top1=0.1)
    plan = plan_runs(study, tmp_path, data_dir)
    rates = {(run.combination.name, run.settings.seed): run.settings.lr for run in plan.runs}
    assert rates["lion, train_fraction 0.5", 1] == 1e-3 and rates["lion, train_fraction 1.0", 0] == 1e-2
    assert rates["sgd, train_fraction 1.0", 0] == BASE["lr"]
    for run in plan.runs:
        finish(run, 0.5)
    text = report.write_report(study, plan, tmp_path)
    assert "| lr 0.01 |" in text and "| lr 0.001 |" in text and (tmp_path / "search.png").is_file()
    assert {path.name for path in tmp_path.glob("lion*0.5*0.01*")} == {
        "lion_fraction_0.5-lr_0.01-validation_0.1-seed_100"
    }


def test_an_arm_that_is_not_bracketed_claims_nothing(tmp_path, data_dir):
    study = Study("x", BASE, {"a": {"lr": [1e-2]}, "b": {}}, compare=["a > b"])
    while not (plan := plan_runs(study, tmp_path / "inside", data_dir)).searches[0].best:
        for trial in plan.trials:
            if trial.top1() is None:
                finish(trial, 0.0, val_top1=trial.settings.lr if trial.settings.lr < 1 else 0.1)
    assert plan.searches[0].unbracketed == () and plan.searches[0].best == {"lr": 0.81}
    study = Study("x", BASE, {"a": {"lr": [1e-9]}, "b": {}}, compare=["a > b"])
    while not (plan := plan_runs(study, tmp_path, data_dir)).searches[0].best:
        for trial in plan.trials:
            if trial.top1() is None:
                finish(trial, 0.0, val_top1=trial.settings.lr)
    assert plan.searches[0].unbracketed == ("lr",)
    for run in plan.runs:
        finish(run, 0.9 if run.combination.arm == "a" else 0.1 + 0.001 * run.settings.seed)
    text = report.write_report(study, plan, tmp_path)
    assert "a > b: cannot tell (the search ended at its limit: a (lr))" in text
    assert "(limit of the search: lr)" in text


def test_lengths_share_one_search(tmp_path, data_dir):
    vary = {"epochs": [8, 4], "train_fraction": [0.5, 1.0]}
    study = Study("x", {**BASE, "lr": [1e-4, 1e-3]}, vary=vary, seeds=[0], branch=0.25)
    plan = plan_runs(study, tmp_path, data_dir)
    assert {(t.settings.epochs, t.settings.train_fraction) for t in plan.trials} == {("8 epochs", 0.5), ("8 epochs", 1)}
    whole = plan_runs(dataclasses.replace(study, search_at={"train_fraction": 1}), tmp_path, data_dir)
    assert {(t.settings.epochs, t.settings.train_fraction) for t in whole.trials} == {("8 epochs", 1)}
    once = dataclasses.replace(study, search_at={"train_fraction": 0.5, "epochs": 4})
    plan = plan_runs(once, tmp_path, data_dir)
    assert {(t.settings.epochs, t.settings.train_fraction) for t in plan.trials} == {("4 epochs", 0.5)}
    for trial in plan.trials:
        finish(trial, 0.0, val_top1=0.5 - abs(trial.settings.lr - 1e-4))
    for trial in plan_runs(once, tmp_path, data_dir).trials:
        if trial.top1() is None:
            finish(trial, 0.0, val_top1=0.1)
    plan = plan_runs(once, tmp_path, data_dir)
    assert [run.settings.lr for run in plan.runs] == 4 * [1e-4] and len(plan.searches) == 1


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path, data_dir):
    path = tmp_path / "text.yaml"
    path.write_text("title: x\nbase: {dataset: synthetic, res: 8, arch: S_1-Wi_4, batch_size: 50, lr: [1e-3, 3e-3]}\n")
    plan = plan_runs(read_study(path), tmp_path, data_dir)
    assert [trial.searched for trial in plan.trials] == [{"lr": 1e-3}, {"lr": 3e-3}]


def test_what_only_the_data_tells_is_told_before_training(tmp_path, data_dir):
    with pytest.raises(ValueError, match="nowhere"):
        plan_runs(Study("x", BASE, probe="nowhere"), tmp_path, data_dir)
    with pytest.raises(ValueError, match="gradients 5000: .* has fewer training images"):
        plan_runs(Study("x", BASE, gradients=5000), tmp_path, data_dir)
    study = Study("x", {**BASE, "lr": [1e-3]}, vary={"epochs": [1, 9]}, branch=0.2)
    flop = sorted({run.metadata()["flop"] for run in plan_runs(study, tmp_path, data_dir).runs})
    limited = dataclasses.replace(study, max_flop=flop[0])
    with pytest.raises(ValueError, match="the search of 'epochs 9' is above max_flop: name smaller runs in search_at"):
        plan_runs(limited, tmp_path, data_dir)
    plan = plan_runs(dataclasses.replace(limited, search_at={"epochs": 1}), tmp_path, data_dir)
    assert {run.settings.epochs for run in [*plan.runs, *plan.trials]} == {"1 epochs"}


def test_more_seeds_are_of_whole_parts_of_a_name(tmp_path, data_dir):
    study = Study("x", BASE, vary={"epochs": [5, 50]}, seeds=[0], more_seeds={"epochs 5": [1, 2]})
    seeds = [(run.settings.epochs, run.settings.seed) for run in plan_runs(study, tmp_path, data_dir).runs]
    assert seeds == [("5 epochs", 0), ("5 epochs", 1), ("5 epochs", 2), ("50 epochs", 0)]


def test_a_search_that_is_not_finished_is_told(tmp_path, data_dir):
    study = Study("x", BASE, {"a": {"lr": [1e-3]}, "b": {}}, seeds=[0], compare=["a > b"])
    for run in plan_runs(study, tmp_path, data_dir).runs:
        finish(run, 0.5)
    plan = plan_runs(study, tmp_path, data_dir)
    text = report.write_report(study, plan, tmp_path)
    assert "a > b: cannot tell (the search of a is not finished)" in text and "| a |" not in text
    assert "- not finished: the searches of a; the same command goes on" in text


def test_words_are_searched_without_a_picture(tmp_path, data_dir):
    study = Study("x", {**BASE, "crop": ["none", "pad_and_crop"]}, seeds=[0])
    for trial in plan_runs(study, tmp_path, data_dir).trials:
        finish(trial, 0.0, val_top1=0.5)
    plan = plan_runs(study, tmp_path, data_dir)
    finish(plan.runs[0], 0.5)
    text = report.write_report(study, plan, tmp_path)
    assert "| crop none |" in text and "search.png" not in text


def test_runs_of_more_compute_are_left_out(tmp_path, data_dir):
    study = Study("x", BASE, vary={"epochs": [4, 8, 16], "arch": ["B_1-Wi_16", "B_1-Wi_32"]}, seeds=[0])
    every = plan_runs(study, tmp_path, data_dir).runs
    flop = sorted(run.metadata()["flop"] for run in every)
    some = plan_runs(dataclasses.replace(study, max_flop=flop[3]), tmp_path, data_dir).runs
    assert len(some) == 4 and {run.folder for run in some} < {run.folder for run in every}


def test_a_trial_never_reads_a_test_image(tmp_path, data_dir, monkeypatch):
    """Neither the run of a search nor its choice; a probe scores only what counts."""
    study = Study("x", BASE, {"a": {"lr": [1e-3]}}, seeds=[0], probe="synthetic")
    (trial,) = plan_runs(study, tmp_path, data_dir).trials
    read = []
    real = Split.batches
    monkeypatch.setattr(Split, "batches", lambda self, *a, **k: read.append(self.path.name) or real(self, *a, **k))
    threads = torch.get_num_threads()
    runner.train_sequence(RunSequence([trial], "synthetic", 1))
    torch.set_num_threads(threads)
    assert {name.split("_")[1] for name in read} == {"train"}
    end = trial.end()
    assert trial.top1("synthetic") == end["val_top1"] and "eval_top1" not in end
    assert not list(trial.folder.glob("*.png")) and not (trial.folder / "predictions.csv").exists()
    monkeypatch.setattr(Split, "batches", real)
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        run_training(
            dataclasses.replace(trial.settings, validation=0, run_dir=str(tmp_path / "none")),
            trial.spec,
            lambda: build_model("B_1-Wi_16", 8, 5),
            "",
            look_at_test=False,
        )


def test_what_a_run_costs_by_hand(tmp_path, data_dir):
    (run,) = plan_runs(Study("x", {**BASE, "train_fraction": 0.5, "epochs": 4}, seeds=[0]), tmp_path, data_dir).runs
    metadata = run.metadata()
    assert (metadata["samples"], metadata["images_seen"], metadata["epochs"]) == (300, 4 * 6 * 50, 4)
    weights = 3 * 8 * 8 * 16 + 2 * 16 * 64 + 16 * 5
    assert metadata["flop"] == 3 * 2 * weights * 1200
    assert metadata["parameters"] == flops.parameters(parse_arch("B_1-Wi_16"), 8, 5)


def test_lengths_share_a_run(tmp_path, data_dir):
    study = Study("x", BASE, vary={"epochs": [10, 5], "arch": ["B_1-Wi_16", "B_1-Wi_8"]}, seeds=[0], branch=0.2)
    found = group_by_shared_start(study, plan_runs(study, tmp_path, data_dir).runs)
    assert [[run.settings.epochs for run in group] for group in found] == 2 * [["5 epochs", "10 epochs"]]
    assert found[0][0].settings.cooldown == "1 epochs"
    whole = found[0][1].metadata()["flop"]
    assert RunSequence(found[0], "", 1).flop() == pytest.approx(
        whole / 2 + whole * 0.6
    )  # 4 of 10 epochs are shared with the shorter run
    assert len(group_by_shared_start(Study("x", BASE), plan_runs(study, tmp_path, data_dir).runs)) == 4


def test_noise_is_not_fitted(tmp_path):
    """Along its own front error always falls. A perfect run does not prevent the report."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "arm": str(n),
            "arch": f"B_1-Wi_{n % 8 + 1}",
            "parameters": 10 ** (1 + n % 8),
            "samples": 1000,
            "length": "1 epochs",
            "epochs": 1.0,
            "images_seen": 1000,
            "flop": 10.0 ** (6 + n % 8),
            "error": float(error),
            "seed": 0,
            "batch_size": 10,
        }
        for n, error in enumerate(np.clip(rng.normal(0.15, 0.02, 40), 0.01, 1))
    ]
    text = scaling_report.report_scaling(rows, tmp_path)
    assert "E(C): no fit: error does not fall" in text and "P* and N*: no fit: error does not fall" in text
    falling = [{**row, "error": 0.5 * row["flop"] ** -0.1 + 0.05} for row in rows]
    text = scaling_report.report_scaling(falling, tmp_path)
    assert "alpha = 0.1" in text and (tmp_path / "error-compute.png").is_file()
    assert "not drawn" in scaling_report.report_scaling([{**rows[0], "error": 0.0}], tmp_path)


def test_error_laws_are_at_the_largest_size_that_a_limit_of_compute_left_enough_of():
    """Of 8 widths and 5 shares of the images the corner of 8 is left out: the largest have too few runs for a fit."""
    rows = [
        {
            "arm": f"{width} {share}",
            "parameters": 100 * width,
            "samples": 1000 * share,
            "length": "9 epochs",
            "epochs": 9.0,
            "images_seen": 9000 * share,
            "flop": 1e6 * width * share,
            "error": (100.0 * width) ** -0.2 * (1000.0 * share) ** -0.1,
        }
        for width in (1, 2, 4, 8, 16, 32, 64, 128)
        for share in (1, 2, 4, 8, 16)
        if width * share <= 256
    ]
    fits = scaling_report.fit_scaling(rows)
    assert fits.held == {"parameters": 16_000, "samples": 3200}  # 128 and 64 are with 2 and 3 shares only
    assert fits.error_laws["parameters"].exponent == pytest.approx(-0.2)
    assert fits.error_laws["samples"].exponent == pytest.approx(-0.1)
    few = scaling_report.fit_scaling([row for row in rows if row["samples"] <= 2000])
    assert few.held["samples"] == 12_800, "no size has four runs: the largest with the most"


def test_a_longer_run_that_diverges_leaves_the_shorter_one(tmp_path, data_dir, monkeypatch):
    study = Study("x", BASE, vary={"epochs": [5, 10]}, seeds=[0], branch=0.2)
    (sequence,) = runner.make_sequences(study, plan_runs(study, tmp_path, data_dir).runs, 1)
    finish(sequence.runs[0], 0.7)

    def diverges(*_, **__):
        raise FloatingPointError("the training loss is not finite")

    monkeypatch.setattr("fastmlp.training.run.run_training", diverges)
    monkeypatch.setattr(runner, "branch", lambda *_: None)
    threads = torch.get_num_threads()
    runner.train_sequence(sequence)
    torch.set_num_threads(threads)
    assert [run.top1() for run in sequence.runs] == [0.7, 0.0]
    changed = plan_runs(
        Study("x", {**BASE, "lr": 1e-4}, vary={"epochs": [5, 10]}, seeds=[0], branch=0.2), tmp_path, data_dir
    ).runs
    with pytest.raises(ValueError, match=r"epochs_10.* of other settings \(lr\)"):
        runner.check_folders(changed)


def read_report(out: Path) -> tuple[str, list[dict]]:
    """Return the table and the rows, without the seconds of training."""
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return (out / "table.md").read_text(), [{**row, "train_s": None} for row in rows]


def test_a_study_from_end_to_end_killed_and_continued(tmp_path, data_dir, script):
    """Search, branches, a probe and a diverging rate; after kill -9 the same command gives the same table."""
    arms = {"searched": {"lr": [1e-4, 1e-2]}, "too fast": {"optimizer": "sgd", "lr": 1e30}}
    path = write(tmp_path, arms=arms, vary={"epochs": [12, 24]}, seeds=[0], branch=0.25, probe="synthetic")
    arguments = path, "--data-dir", data_dir, "--parallel", 2
    ended = script("recipes/scaling.py", *arguments, "--out", tmp_path / "whole")
    assert ended.code == 0, ended.err
    table, rows = read_report(tmp_path / "whole/study-small")
    assert len(rows) == 4 and [row["top1"] for row in rows[2:]] == 2 * [0.0]  # diverged
    assert all(0.2 < row["top1"] <= 1 for row in rows[:2]) and "| too fast, epochs 24 | 0.00" in table

    command = [sys.executable, ROOT / "recipes/scaling.py", *map(str, arguments), "--out", tmp_path / "killed"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    out, deadline = tmp_path / "killed/study-small", time.monotonic() + 120
    while not list(out.glob("searched*seed_0/config.yaml")):  # after the search, in a run that counts
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait(timeout=60)
    time.sleep(0.5)  # its worker processes end with it
    assert not any(out.glob("table.md"))
    ended = script("recipes/scaling.py", *arguments, "--out", tmp_path / "killed")
    assert ended.code == 0 and read_report(out) == (table, rows)

    before = {log: log.stat().st_mtime_ns for log in out.glob("*/log.jsonl")}
    assert script("recipes/scaling.py", *arguments, "--out", tmp_path / "killed").code == 0  # all runs are finished
    assert before == {log: log.stat().st_mtime_ns for log in out.glob("*/log.jsonl")}
    whole = script("recipes/scaling.py", *arguments, "--out", tmp_path / "killed", "--plan")
    assert whole.code == 0 and "predicted: 0.0 minutes" in whole.out

    changed = write(
        tmp_path,
        arms={"searched": {"lr": [1e-4, 1e-2], "batch_size": 60}},
        vary={"epochs": [12, 24]},
        seeds=[0],
        branch=0.25,
    )
    ended = script("recipes/scaling.py", changed, "--data-dir", data_dir, "--out", tmp_path / "killed")
    assert ended.code == 2 and "of other settings (batch_size)" in ended.err


def test_ctrl_c_leaves_checkpoints_and_no_process(tmp_path, data_dir):
    path = write(tmp_path, vary={"epochs": [100000]}, seeds=[0, 1])
    command = [sys.executable, ROOT / "recipes/scaling.py", path, "--data-dir", data_dir, "--out", tmp_path / "out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    out, deadline = tmp_path / "out/study-small", time.monotonic() + 120
    while sum(bool(read_log(log.parent, "step")) for log in out.glob("*/log.jsonl")) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # two runs that would take both cores for days
        raise
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert all(list(folder.glob("checkpoints/step_*.pt")) for folder in out.glob("epochs*"))
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # multiprocessing's helper process ends shortly after its parent
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def test_rows_of_the_speed_run():
    spec = importlib.util.spec_from_file_location("speedrun", ROOT / "recipes/speedrun.py")
    speedrun = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(speedrun)
    ends = [{"eval_top1": top1, "train_s": s} for top1, s in ((0.9001, 9.0), (0.8999, 7.0), (0.9003, 8.0))]
    assert speedrun.row("a", ends) == "| a | 90.01 ± 0.05 (89.99 to 90.03) | 3 | 8.0 (7.0 to 9.0) |"
    assert speedrun.row("a", [{**ends[1], "train_s": 700.2}]) == "| a | 89.99 | 1 | not in 700 |"
    every = sorted((ROOT / "recipes/configs/speedrun").glob("*.yaml"))
    assert {path.stem for path in every} > set(speedrun.ONE_SEED)
    for path in every:
        cli.from_mapping(PretrainConfig, yaml.safe_load(path.read_text())["cfg"])


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_here_are_sound(path):
    for quick in (False, True):
        study = read_study(path, quick)
        claims = study.compare or study.fewer_images
        assert study.paper and (quick or not claims or len(study.seeds) >= verdicts.MIN_SEEDS)


@pytest.mark.parametrize(
    ("function", "picture"),
    [("compute_optimal_sizes", "compute-optimal"), ("error_against_compute", "error-compute")],
)
def test_a_picture_that_cannot_be_drawn_costs_no_table(function, picture, tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("a log axis cannot show it")

    for name in ("compute_optimal_sizes", "error_against_compute"):
        monkeypatch.setattr(scaling_report.figures, name, refuse if name == function else lambda *_: None)
    none = ValueError("too few points")
    laws = {"parameters": none, "samples": none}
    fits = scaling_report.ScalingFits([], np.empty(0, int), none, object(), "10 epochs", laws, {})
    not_drawn = scaling_report.draw_scaling(fits, tmp_path)
    assert list(not_drawn) == [picture]
    text = scaling_report.describe_scaling(dataclasses.replace(fits, optimal=none), not_drawn)
    assert f"- {picture}: not drawn: a log axis cannot show it" in text.splitlines()
