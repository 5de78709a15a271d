"""Curves that collapse and curves that do not, by construction; what cannot be told, with its reason."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from synthetic_study import collapsing_loss, crossing_loss, study_rows, true_error, write_study

from fastmlp.planner.collapse import BINS, binned_losses, collapse_of, collapse_report, judge, near_optimal
from fastmlp.planner.study_folder import read_study_runs


def losses_of(loss, seeds=3, noise=0.01, key=0):
    rng = np.random.default_rng(key)
    share = (np.arange(BINS) + 0.5) / BINS
    return {
        str(width): np.stack([loss(width, share) * np.exp(noise * rng.standard_normal(BINS)) for _ in range(seeds)])
        for width in (16, 64, 256)
    }


@pytest.mark.parametrize("key", range(5))
def test_go_and_no_go(key):
    go, no_go = judge(losses_of(collapsing_loss, key=key)), judge(losses_of(crossing_loss, key=key))
    assert go.verdict == "go" and go.between <= go.within and go.l0 == pytest.approx(0.5, abs=0.15)
    assert no_go.verdict == "no-go" and no_go.between > 2 * no_go.within
    assert no_go.max_between >= no_go.between


def test_the_noise_of_a_seed_is_the_threshold():
    ratios = []
    for tilt in np.linspace(0, 0.2, 11):
        found = judge(
            losses_of(lambda width, x, tilt=tilt: 0.5 + width**-0.3 * (x + 0.02) ** -(0.2 + tilt * np.log2(width / 16)))
        )
        ratios.append(found.between / found.within)
        assert found.verdict == ("go" if ratios[-1] <= 1 else "no-go")
    assert any(ratio < 1 for ratio in ratios) and any(1 < ratio < 3 for ratio in ratios)


def test_the_spreads_are_those_of_numpy():
    found = judge(losses := losses_of(crossing_loss))
    curves = {size: (c - found.l0) / (c[:, -1:] - found.l0) for size, c in losses.items()}
    means = np.array([c.mean(0)[4:-1] for c in curves.values()])
    within = np.sqrt(np.mean([c.var(0, ddof=1)[4:-1] for c in curves.values()], 0))
    assert found.between == pytest.approx((means.std(0, ddof=1) / means.mean(0)).mean())
    assert found.max_between == pytest.approx((means.std(0, ddof=1) / means.mean(0)).max())
    assert found.within == pytest.approx((within / means.mean(0)).mean())


def test_what_cannot_be_told():
    assert "noise of a seed is not known" in judge(losses_of(collapsing_loss, seeds=1)).reason
    two = dict(list(losses_of(collapsing_loss).items())[:2])
    assert judge(two).verdict == "cannot tell" and "2 sizes" in judge(two).reason
    loud = judge(losses_of(collapsing_loss, noise=0.3))
    assert loud.verdict == "cannot tell" and "differ by more than 0.2" in loud.describe()


def test_bins_are_means_of_a_run_s_twentieths():
    steps = [{"step": 10 * n, "loss": float(n)} for n in range(1, 61)]
    np.testing.assert_allclose(binned_losses(steps), [3 * n + 2 for n in range(BINS)])
    assert binned_losses(steps[:19]) is None and binned_losses([]) is None
    assert binned_losses([{**line, "loss": None} for line in steps]) is None
    damaged = [{**line, "loss": float("nan")} if line["step"] == 10 else line for line in steps]
    np.testing.assert_allclose(binned_losses(damaged), [2.5, *(3 * n + 2 for n in range(1, BINS))])
    assert binned_losses([*steps[:3], *steps[40:]]) is None  # an empty twentieth


def test_runs_near_compute_optimal_length():
    rows = study_rows(noise=0.0, seeds=(0, 1))
    chosen = near_optimal(rows)
    assert list(chosen) == [f"B_2-Wi_{width}-E_2" for width in (16, 32, 64, 128, 256)]
    assert all({row["seed"] for row in own} == {0, 1} for own in chosen.values())
    lengths = [own[0]["images_seen"] for own in chosen.values()]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]
    flat = near_optimal(study_rows(error=lambda p, d, u: true_error(1e5, d, u), noise=0.0))
    assert len(flat) == 5  # the front has one size


def test_a_study_s_logs_are_judged_and_drawn(tmp_path):
    rows = study_rows(seeds=(0, 1, 2), widths=(16, 64, 256), epochs=(6,))
    for name, loss, verdict in (("a", collapsing_loss, "go"), ("b", crossing_loss, "no-go")):
        study = read_study_runs(write_study(tmp_path / name, rows, loss))
        text = collapse_report(study, tmp_path / name / "plan")
        assert f"collapse of the learning curves: {verdict}: " in text and "collapse.png" in text
        words = " ".join(ET.parse(tmp_path / name / "plan" / "collapse.svg").getroot().itertext())
        assert (
            "share of the run's steps" in words
            and "B_2-Wi_256-E_2 (3 seeds)" in words
            and f"curves: {verdict}:" in words
            and "not compared" in words
        )


def test_missing_and_damaged_logs_are_no_crash(tmp_path):
    study = read_study_runs(write_study(tmp_path / "study", study_rows(epochs=(6,)), loss=None))
    found = collapse_of(study)
    assert found.verdict == "cannot tell" and "B_2-Wi_16-E_2" in found.reason and "no log" in found.reason
    for row in study.rows:
        (study.run_folder(row) / "log.jsonl").write_text("{\nnull\n" + json.dumps({"event": "step", "step": 1}))
    assert collapse_report(study, tmp_path / "out").startswith("collapse of the learning curves: cannot tell")
    assert not (tmp_path / "out").exists()
