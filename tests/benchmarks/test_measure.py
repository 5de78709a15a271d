"""How benchmarks measure and print: noise, limits of odd sizes, the device, JSON lines, the budget."""

import io
import json
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import inference
import limits
import measure
import numpy as np
import pytest
import report_html
import report_suite
import torch
import train_step
from test_report import line, verdicts

from fastmlp import device as devices
from fastmlp.cost.hardware import Machine

ON_DEVICE = ("loader", "transforms", "train_step", "inference", "growth", "report")
SPLIT_STEP = ["--case", "S_1-Wi_8,8,10,1000", "--rounds", "2", "--device", "cpu"]


def ran(module, *arguments):
    """The JSON lines of a benchmark, and what it prints to stderr."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setattr(measure, "PAUSE_S", 0)
        patch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
        with redirect_stderr(io.StringIO()) as err:
            module.main()
    return [json.loads(text) for text in out.getvalue().splitlines()], err.getvalue()


def test_noise_is_the_pooled_standard_deviation():
    runs = [[0.9, 1.0, 1.1], [4.0, 2.0, 2.0], [7.0]]
    parts = [np.median(seconds) / np.array(seconds) - 1 for seconds in runs[:2]]
    expected = np.sqrt(sum((part**2).sum() for part in parts) / (2 + 2))
    assert measure.noise(runs) == pytest.approx(expected)
    assert measure.noise([[1.0], [2.0]]) is None and measure.noise([]) is None


def shifted(own_noise, factor):
    """A line of candidates whose runs scatter by own_noise, all of them times factor, on a quiet machine."""
    one = line(np.random.default_rng(0), own_noise, candidates=6)
    for r in one["results"].values():
        r |= {key: factor * r[key] for key in ("images_per_s", "least", "most")}
    return {**one, "machine_noise": 0.01, "noise": measure.noise(measure.runs_of(one["results"]))}


def test_a_table_is_judged_by_its_own_noise():
    """Runs that scatter by 20 % say nothing about a factor of 0.7, whatever the products between the benchmarks do."""
    for r in (noisy := shifted(0.2, 1.0))["results"].values():  # as if by chance the ranges did not overlap
        r |= {"least": 0.99 * r["images_per_s"], "most": 1.01 * r["images_per_s"]}
    slower = {**noisy, "results": {n: {**r} for n, r in noisy["results"].items()}}
    for r in slower["results"].values():
        r |= {key: 0.7 * r[key] for key in ("images_per_s", "least", "most")}
    assert set(verdicts(slower, noisy).values()) == {""}
    assert set(verdicts(shifted(0.01, 0.7), shifted(0.01, 1.0)).values()) == {"slower"}


def test_the_machine_s_noise_counts_too():
    quiet, slower = shifted(0.005, 1.0), shifted(0.005, 0.8)
    assert set(verdicts(slower, quiet).values()) == {"slower"}
    assert set(verdicts({**slower, "machine_noise": 0.1}, quiet).values()) == {""}


def test_the_page_shows_the_noise_of_each_table(tmp_path, monkeypatch):
    monkeypatch.setattr(report_html, "saved_figure", lambda *_: "")
    lines = [shifted(0.2, 1.0), {**shifted(0.05, 1.0), "res": 32}]
    page = report_html.page(lines, {}, tmp_path)
    assert "Noise of this machine: 1.0%" in page
    for one in lines:
        assert page.count(f"Noise of this table: {one['noise']:.1%}") == 1


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stdout, asked, lines", [(Terminal, [], 0), (Terminal, ["--json"], 1), (io.StringIO, [], 1)])
def test_json_lines_go_to_a_terminal_only_if_asked_for(stdout, asked, lines, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x.py", *asked])
    monkeypatch.setattr(measure, "_json_lines", False)
    options = measure.parse(measure.argparse.ArgumentParser())
    assert not vars(options)
    monkeypatch.setattr(sys, "stdout", stdout())
    measure.emit("loader", {"res": 64}, {"fastmlp": measure.summary([1.0, 2.0], 10)})
    found = [json.loads(text) for text in sys.stdout.getvalue().splitlines()]
    assert len(found) == lines
    assert all(one["noise"] == measure.noise([[1.0, 2.0]]) and one["res"] == 64 for one in found)


@pytest.mark.parametrize("name", ON_DEVICE)
def test_an_unknown_or_missing_device_is_one_line(script, name, tmp_path):
    given = ["--out", tmp_path] if name == "report" else []
    ended = script(f"benchmarks/{name}.py", "--device", "gpu", *given)
    assert (ended.code, ended.out, ended.err) == (2, "", "error: unknown device 'gpu': expected auto, cpu or cuda\n")
    ended = script(f"benchmarks/{name}.py", "--device", "cuda", *given)
    assert ended.code == 2 and ended.err.count("\n") == 1 and "torch sees no CUDA device" in ended.err


def test_the_report_passes_the_device_on():
    for name in ("loader", "transforms", "train_step", "profile", "growth", "inference"):
        assert report_suite.SUITE[name].flags(False, "x", "cpu")[-2:] == ["--device", "cpu"]
        assert "--device" not in report_suite.SUITE[name].flags(False, "x")
    assert "--device" not in report_suite.SUITE["cold"].flags(False, "x", "cpu")


@pytest.mark.parametrize(
    "name, flags, told",
    [
        ("loader", ["--case", "64:2048:0"], "--case 64:2048:0: expected RES:BATCH:BATCHES, of positive integers"),
        ("loader", ["--peers", "64"], "--peers 64: expected RES:BATCH, of positive integers"),
        ("transforms", ["--case", "crop:64:64:0"], "--case 64:64:0: expected STORED:MADE:BATCH, of positive integers"),
        ("transforms", ["--case", "crap:64:64:8"], "expected crop, flip, uint8 before the first colon, not 'crap'"),
        ("train_step", ["--case", "B_6-Wi_256,32,10"], "expected ARCH,RES,CLASSES,BATCH"),
        ("inference", ["--images", "0"], "--images 0: expected at least 1"),
        ("growth", ["--points", "0"], "--points 0: expected at least 1"),
    ],
)
def test_cases_without_work_are_told(script, name, flags, told):
    ended = script(f"benchmarks/{name}.py", *flags)
    assert ended.code == 2 and told in ended.err


def test_no_rounds_are_told():
    with pytest.raises(ValueError, match="--rounds 0: expected at least 1"):
        measure.alternate({"x": lambda: None}, 0)


def rows_of_products(monkeypatch, run):
    """The rows of every product that run() computes."""
    rows, multiply = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: rows.append((len(a), a.shape[1])) or multiply(a, b, out=out))
    run()
    monkeypatch.undo()
    return rows


def test_products_are_of_all_images_and_of_no_others(monkeypatch):
    layers = [(3, 5, False), (5, 2, True)]
    run = limits.training_products(layers, 10, 2, 4, measure.CPU)  # 4 + 4 + 2 images, twice
    rows = rows_of_products(monkeypatch, run)
    assert sum(count for count, inner in rows if (count, inner) in [(4, 3), (2, 3)]) == 20  # forward, first layer
    assert (
        len(rows) == 2 * 3 * 5 and sum(inner for count, inner in rows if count in (5,)) == 20
    )  # its weights' gradients
    run = limits.forward_products(layers, 10, 4, measure.CPU)
    assert rows_of_products(monkeypatch, run) == [(4, 3), (4, 5), (4, 3), (4, 5), (2, 3), (2, 5)]


def test_batches_larger_than_the_images_are_left_out(monkeypatch):
    monkeypatch.setattr(inference, "evaluate", lambda *_: None)  # would compile for seconds
    monkeypatch.setattr(inference, "evaluate_detailed", lambda *_: None)
    monkeypatch.setattr(inference, "probe", lambda *_: {})
    flags = ["--arch", "S_1-Wi_8", "--res", "8", "--images", "300", "--views", "1", "--rounds", "1", "--device", "cpu"]
    (whole, crops, _), err = ran(inference, *flags)
    assert list(whole["results"]) == ["gemm 256", "ready batches of 256", "from a beton"]
    assert all(r["images_per_s"] > 0 for one in (whole, crops) for r in one["results"].values())
    assert whole["best_batch"] == 256 and " 0 images/sec" not in err
    assert limits.fitting((256, 512), 100) == [100] and limits.parts(5, 2) == [2, 2, 1]


@pytest.fixture(scope="module")
def trained():
    """The JSON lines of train_step.py, and what it printed, with a budget that is known."""
    machine = Machine("a known machine", 1e8, 8e9, 1e12, None, "float32", 1.0, measured=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_step.hardware, "this_machine", lambda device: machine)
        patch.setattr(train_step.hardware, "copied_bytes_per_s", lambda device: 7e9)
        patch.setattr(train_step, "GEMM_MICRO_BATCHES", (300,))  # does not divide the batch
        return ran(train_step, *SPLIT_STEP)


def test_training_is_compared_with_the_budget(trained):
    (step, _), err = trained
    found, own = step["results"]["predicted"], step["results"]["beton, eager"]["images_per_s"]
    flop = 6 * (8 * 8 * 3 * 8 + 8 * 8 + 8 * 10) - 2 * 3 * 8 * 8 * 8  # FLOP of an image
    assert found["images_per_s"] == pytest.approx(1e8 / flop, rel=0.01)
    assert found["measured_over_predicted"] == pytest.approx(own / found["images_per_s"])
    assert found["products_gflop_per_s"] == 0.1 and found["copies_gb_per_s"] == 7
    row = next(text for text in err.splitlines() if "measured over predicted" in text)
    assert f"{own:,.0f} of {found['images_per_s']:,.0f} images/sec" in row and "7.0 GB/s" in row
    assert "device" not in step and "gemm 300" in step["results"]  # of the CPU, as in earlier reports


def test_a_slow_loader_bounds_the_prediction_and_the_step(monkeypatch):
    """A loader of 30 batches a second: batches that were ready before a run must not hide it."""
    batches = train_step.Split.batches

    def slow(self, epoch, first=0):
        for batch in batches(self, epoch, first):
            time.sleep(1 / 30)
            yield batch

    monkeypatch.setattr(train_step.Split, "batches", slow)
    (step, _), _ = ran(train_step, *SPLIT_STEP)
    loading, batch = step["results"]["loading alone"]["images_per_s"], step["batch"]
    assert loading < 30 * batch and step["results"]["predicted"]["images_per_s"] == pytest.approx(loading)
    assert step["results"]["beton, eager"]["images_per_s"] < 30 * batch


def test_the_budget_is_a_headline_of_the_report(trained, tmp_path):
    (step, _), _ = trained
    own = {"script": "train_step", "arch": "B_6-Wi_256", "batch": 1024, "command": "x", "machine_noise": 0.01}
    step = {**step, **own}
    ratio = f"{step['results']['predicted']['measured_over_predicted']:.2f} of predicted"
    page = report_html.page([step], {}, tmp_path)
    assert "from the beton: measured over predicted" in page
    assert f"measured over predicted</td><td>{ratio}" in page and "<th>measured over predicted</th>" in page


def test_the_limit_that_a_line_names_is_its_limit():
    one = {**line(np.random.default_rng(0), 0.01), "limit": "candidate 2"}
    assert report_html.limit_of(one) == one["results"]["candidate 2"]
    assert limits.slowest(one["results"], ["candidate 3", "candidate 2"]) == "candidate 2"


def test_a_stopwatch_measures_seconds(monkeypatch):
    monkeypatch.setattr(devices.time, "perf_counter", iter([3.0, 5.5]).__next__)
    stopwatch = devices.Stopwatch(measure.CPU)
    stopwatch.start()
    assert stopwatch.stop() == 2.5
