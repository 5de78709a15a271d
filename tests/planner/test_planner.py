"""Plans: what fits by the budget, the best by brute force, the command that starts it, and what is not claimed."""

import json
import math
import re
import shlex
from dataclasses import replace
from functools import partial

import pytest
from synthetic_study import IMAGES, LAW, study_rows, true_error, write_study

from fastmlp import cli
from fastmlp.arch import parse_arch
from fastmlp.config import PretrainConfig
from fastmlp.cost import flops
from fastmlp.cost.budget import RESERVED_BYTES, Host, TrainingJob, needed_bytes, predict
from fastmlp.cost.hardware import card
from fastmlp.duration import Duration
from fastmlp.planner import candidates as planning
from fastmlp.planner import command as plan_command
from fastmlp.planner.candidates import Limit, PlannedData, Recipe, candidates, paper_archs, suitable_batch_size
from fastmlp.planner.data_law import cells_of, fit_data_law
from fastmlp.planner.planned_data import planned_data
from fastmlp.planner.report import explain_end
from fastmlp.planner.speeds import ran_here
from fastmlp.study.scaling_laws import flop
from fastmlp.training.pretrain import presets

IN21K = PlannedData("imagenet21k", 11_801_680, 11_230, 64)
FASHION = PlannedData("fashion_mnist", IMAGES, 10, 32)


@pytest.mark.parametrize("limit", [Limit(hours=24.0), Limit(flop=1e18)])
def test_what_is_planned_fits(limit):
    machine = replace(card("4090"), memory_bytes=8e9)
    found = candidates(IN21K, machine, limit, paper_archs(), host=Host(loader_images_per_s=90_000))
    assert {str(one.arch) for one in found} >= {"B_6-Wi_64", "B_12-Wi_512", "B_6-Wi_1024"}
    assert not any(one.arch.width == 4096 for one in found)  # would need 8 GB for weights, gradients and LION alone
    for one in found[::7]:
        job = TrainingJob(one.arch, 64, 11_230, one.images, one.batch_size, one.epochs, "lion")
        budget = predict(job, machine, Host(loader_images_per_s=90_000))
        assert budget.fits and needed_bytes(budget.memory) <= machine.memory_bytes - RESERVED_BYTES
        assert one.memory_bytes == needed_bytes(budget.memory)
        assert one.hours == pytest.approx(24 * budget.days)
        steps = Duration(one.epochs).steps(one.batch_size, one.images // one.batch_size)
        assert one.images_seen == steps * one.batch_size and one.images == round(one.share * IN21K.images)
        assert one.flop == flop(one.arch, 64, 11_230, one.images_seen)
        assert one.hours <= 24 if limit.hours else one.flop <= 1e18
        assert one.epochs <= planning.MAX_EPOCHS and one.parameters == flops.parameters(one.arch, 64, 11_230)
    # The longest of an architecture uses up what it may, unless MAX_EPOCHS ends it.
    longest = max((one for one in found if str(one.arch) == "B_12-Wi_512" and one.share == 1), key=lambda one: one.flop)
    used = longest.hours / 24 if limit.hours else longest.flop / 1e18
    assert used > 0.99


def test_the_batch_suits_the_data():
    sizes = [suitable_batch_size(n) for n in (500, 20_000, 50_000, 60_000, 100_000, 1_281_167, 11_801_680)]
    assert sizes == [128, 128, 256, 512, 512, 8192, 16_384]


def test_the_winner_is_the_minimum_by_brute_force():
    law = fit_data_law(cells_of(study_rows()), resamples=5)
    archs = planning.study_archs(f"B_2-Wi_{width}-E_2" for width in (16, 64))
    assert {arch.width for arch in archs} == {16, *planning.WIDTHS} and {str(a)[:3] for a in archs} == {"B_2"}
    found = candidates(FASHION, card("4090"), Limit(hours=0.05), archs, Recipe(batch_size=500))
    ranked = planning.rank_by_law(found, law)
    names = {name: getattr(law, name) for name in LAW}
    by_hand = [true_error(one.parameters, one.images_seen, one.images, names) for one in found]
    assert ranked[0].error <= min(by_hand) + 1e-4 and len(ranked) == len(found)
    assert [one.error for one in ranked] == sorted((one.error for one in ranked), key=lambda e: round(e / 1e-4))
    assert all(one.interval[0] <= one.interval[1] <= 1 for one in ranked)
    as_good = [
        one for one, error in zip(found, by_hand, strict=True) if round(error / 1e-4) == round(min(by_hand) / 1e-4)
    ]
    assert ranked[0].hours == min(one.hours for one in as_good)
    assert ranked[0].beyond["flop"] > 0 and ranked[-1].beyond["flop"] == 0
    best = planning.best_of_each_arch(ranked, 3)
    assert len({one.arch for one in best}) == 3 and best[0] is ranked[0]


@pytest.mark.parametrize("anchor", ["B_12-Wi_1024", "B_6-Wi_256"])
def test_the_split_goes_through_the_anchor(anchor):
    arch, images = parse_arch(anchor), 11_801_680 * 800
    own = flop(arch, 64, 11_230, images)
    assert planning.optimal_parameters(own, anchor) == pytest.approx(flops.parameters(arch, 64, 11_230))
    assert planning.optimal_parameters(own * 10, anchor) / planning.optimal_parameters(own, anchor) == pytest.approx(
        10**0.35
    )
    # With the anchor's own compute, the anchor is what is planned, for as long.
    found = candidates(IN21K, card("4090"), Limit(flop=own * 1.0001), paper_archs())
    first = planning.rank_by_split(found, Limit(flop=own * 1.0001), anchor)[0]
    assert (str(first.arch), first.epochs, first.share) == (anchor, 800, 1)
    with pytest.raises(ValueError, match="expected one of B_6-Wi_256"):
        planning.optimal_parameters(1e18, "B_6-Wi_64")


def test_no_run_is_better_for_ending_early():
    """800 epochs of 60,000 images are far below 1e18 FLOP for every size: P* is that of 1e18 all the same."""
    found = candidates(FASHION, card("4090"), Limit(flop=1e18), paper_archs())
    first = planning.rank_by_split(found, Limit(flop=1e18))[0]
    target = planning.optimal_parameters(1e18)
    assert abs(math.log(first.parameters / target)) == min(abs(math.log(one.parameters / target)) for one in found)
    assert first.epochs == 800 and "no run here is longer than 800 epochs" in explain_end(first, Limit(flop=1e18))
    assert explain_end(first, Limit(flop=first.flop)) == ""


def test_sizes_of_data_that_is_not_here(tmp_path, data_dir):
    assert planned_data("imagenet21k", tmp_path)[0] == IN21K
    assert planned_data("imagenet", tmp_path)[0].images == 1_281_167
    data, source = planned_data("synthetic", data_dir, res=8)
    assert data == PlannedData("synthetic", 600, 5, 8) and source.endswith("synthetic_train_8.beton")
    assert planned_data("synthetic", data_dir, 8, images=99)[0].images == 99
    with pytest.raises(ValueError, match="give --images, or run python writers/synthetic.py --res 16"):
        planned_data("synthetic", data_dir, res=16)
    with pytest.raises(ValueError, match="unknown data set 'pets'"):
        planned_data("pets", tmp_path)


def settings_of(text: str) -> PretrainConfig:
    """Parse the command that a plan prints as recipes/pretrain.py does."""
    (line,) = [line for line in text.splitlines() if line.startswith("python recipes/pretrain.py")]
    return cli.parse(PretrainConfig, "", presets, shlex.split(line)[2:])


def test_without_a_study_there_is_no_percentage(script, tmp_path):
    ended = script(
        "recipes/plan.py", "--card", "4090", "--hours", 24, "--dataset", "imagenet21k", "--data-dir", tmp_path
    )
    assert ended.code == 0, ended.err
    assert not re.search(r"%|error|percent|top-1", ended.out)
    assert "no --study: ranked by the paper's split alone" in ended.out and "That anchor is a choice" in ended.out
    assert "hours and memory are predicted, not measured" in ended.out
    table = [line for line in ended.out.splitlines() if line.startswith("| B_")]
    assert len(table) == 5 and len({line.split("|")[1] for line in table}) == 5
    settings = settings_of(ended.out)
    assert settings.dataset == "imagenet21k" and settings.train_fraction == 1 and settings.batch_size == 16_384
    assert f"| {settings.arch} |" in table[0] and f"| {Duration.parse(settings.epochs).amount:g} |" in table[0]
    compute = script("recipes/plan.py", "--card", "4090", "--flop", 1e18, "--dataset", "imagenet21k", "--rows", 2)
    assert compute.code == 0 and compute.out.count("| B_") == 2


def test_a_plan_from_a_study(script, tmp_path, monkeypatch):
    monkeypatch.setattr(plan_command, "fit_data_law", partial(fit_data_law, resamples=20))
    folder = write_study(tmp_path / "study", study_rows(widths=(16, 64, 256)))
    flags = ("--card", "T4", "--hours", 0.02, "--dataset", "fashion_mnist", "--study", folder)
    ended = script("recipes/plan.py", *flags, "--data-dir", tmp_path)
    assert ended.code == 0, ended.err
    first = next(line for line in ended.out.splitlines() if line.startswith("| B_2"))
    cells = [cell.strip() for cell in first.split("|")[1:-1]]
    settings = settings_of(ended.out)
    assert cells[0] == settings.arch and cells[4] == f"{settings.batch_size:,}" == "500"
    assert settings.lr == 1e-3 and settings.run_dir == "" and settings.data_dir == str(tmp_path)  # the study's rate
    cooldown, epochs = Duration.parse(settings.cooldown).amount, Duration.parse(settings.epochs).amount
    assert cooldown == pytest.approx(0.2 * epochs, rel=1e-3)
    truth = true_error(int(cells[1].replace(",", "")), epochs * 60_000, 60_000)
    low, high = map(float, cells[9].split(" to "))
    assert float(cells[8]) == pytest.approx(100 * truth, abs=1.5) and low < 100 * truth < high
    assert "EXTRAPOLATED: decades by which" in ended.out and "compute" in cells[10]
    assert "collapse of the learning curves: go" in ended.out
    assert (folder / "plan" / "collapse.png").stat().st_size > 5000 and (folder / "plan" / "collapse.svg").exists()
    longest = max(row["images_seen"] / row["samples"] for row in study_rows(widths=(16, 64, 256)))
    planned = [
        [cell.strip() for cell in line.split("|")] for line in ended.out.splitlines() if line.startswith("| B_2")
    ]
    assert max(float(cells[4]) for cells in planned) <= 2 * longest
    assert f"see an image more than {2 * longest:.3g} times" in ended.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--hours", 1, "--dataset", "cifar10", "--study", "study"),
            "is a study on fashion_mnist at 32 px, not on cifar10",
        ),
        (("--hours", 1, "--res", 64, "--study", "study"), "not on fashion_mnist at 64 px"),
        (("--hours", 1, "--study", "few"), "few cannot carry a law: 3 different runs"),
        (("--hours", 1, "--study", "gone"), "results.jsonl is missing"),
        (
            (
                "--hours",
                1e-9,
            ),
            "allow more hours",
        ),
        ((), "expected one of them"),
        (("--hours", 1, "--flop", 1e18), "expected one of them"),
        (("--hours", 1, "--loader", 0), "--loader=0: expected images/sec above 0"),
        (("--flop", 3e8, "--card", "4090"), "no run on all images fits into the limit"),
        (("--hours", -1), "a number above 0"),
        (("--hours", 1, "--rows", 0), "--rows=0"),
        (("--backtest",), "--backtest needs --study"),
    ],
)
def test_plans_that_cannot_be(script, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    write_study(tmp_path / "study", study_rows(seeds=(0,)), loss=None)
    write_study(tmp_path / "few", study_rows(seeds=(0,))[:3], loss=None)
    ended = script("recipes/plan.py", "--card", "4090", "--dataset", "fashion_mnist", *flags)
    assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1, ended


def test_the_device_here_is_planned_for(script, tmp_path):
    ended = script("recipes/plan.py", "--hours", 0.1, "--dataset", "fashion_mnist", "--data-dir", tmp_path)
    assert ended.code == 0 and "this CPU (products and copies measured)" in ended.out, ended.err
    assert "from products and copies measured on this machine" in ended.out


def test_times_of_runs_that_shared_the_cores_are_not_this_machine_s(tmp_path):
    environment = {"device": "CPU", "cores": 4, "threads": 4}
    for change, is_here in (({}, True), ({"threads": 1}, False), ({"cores": 8}, False), ({"device": "H200"}, False)):
        (tmp_path / "environment.json").write_text(json.dumps(environment | change))
        assert ran_here(tmp_path, "CPU", 4) == is_here
    (tmp_path / "environment.json").write_text('{"device": "CPU", "cores": 4}')  # an earlier version's
    assert not ran_here(tmp_path, "CPU", 4) and not ran_here(tmp_path / "none", "CPU", 4)
    (tmp_path / "environment.json").write_text(json.dumps(environment | {"device": "H200", "threads": 1}))
    assert ran_here(tmp_path, "H200", 4)
