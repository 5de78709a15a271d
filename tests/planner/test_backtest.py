"""Backtests on studies from a known law, and on one whose law breaks where it is held out."""

import pytest
from synthetic_study import LAW, study_rows, true_error, write_study

from fastmlp.planner import backtest
from fastmlp.planner.backtest import choose, describe_choices, describe_held_out, hold_out


def breaks_late(parameters, images_seen, samples):
    """The law of small runs, and eight points more for the widest models: they would need other settings."""
    return true_error(parameters, images_seen, samples) + (0.08 if parameters > 400_000 else 0)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(backtest, "RESAMPLES", 6)
    monkeypatch.setattr(backtest, "SPLITS", 3)


def test_held_out_runs_are_predicted():
    rows = study_rows()
    found, reason = hold_out(rows, lambda row, fitted: 1.0)
    assert len(found) == 10 and not reason
    assert all(3.6 < one.factor < 8 for one in found)
    assert [one.cell.flop for one in found] == sorted({row["flop"] for row in rows})[:-11:-1]
    off = sorted(one.off for one in found)
    assert off[5] < 0.01 and off[9] < 0.025 and sum(one.is_covered for one in found) >= 7
    by_speed = [one for one in found if not one.is_by_cost]
    for one in found:
        assert one.seconds == pytest.approx(one.cell.flop / 1e11, rel=0.15)
        assert one.predicted_seconds == (1.0 if one.is_by_cost else pytest.approx(one.seconds, rel=0.15))
    assert by_speed
    text = describe_held_out(found)
    assert f"the interval contained {sum(one.is_covered for one in found)} of 10" in text
    assert text.count("| B_2-Wi") == 10 and "points (median)" in text


def test_a_law_that_breaks_is_told(monkeypatch):
    monkeypatch.setattr(backtest, "RESAMPLES", 3)  # fits to such runs take many steps
    monkeypatch.setattr(backtest, "MAX_HELD_OUT", 5)
    found, _ = hold_out(study_rows(breaks_late), lambda row, fitted: None)
    widest = [one for one in found if one.cell.parameters > 400_000]
    assert max(one.off for one in widest) > 0.025
    assert not all(one.is_covered for one in widest)
    choices, _ = choose(study_rows(breaks_late))
    assert all(one.regret > 0.01 for one in choices), choices
    assert f"in 0 of {len(choices)}; its interval contains" in describe_choices(choices)


def test_the_choice_is_nearly_the_best():
    choices, reason = choose(rows := study_rows())
    assert len(choices) == 3 and not reason
    limit = 0.1 * max(row["flop"] for row in rows)
    best = min((row for row in rows if row["flop"] >= limit), key=lambda row: true_error(*sizes(row)))
    for one in choices:
        assert one.chosen.flop >= limit and one.regret >= 0
        assert true_error(*sizes(vars(one.chosen))) - true_error(*sizes(best)) < 0.01
    assert "in 3 of 3; its interval contains the measured error in" in describe_choices(choices)
    single, _ = choose(study_rows(seeds=(0,)))
    assert len(single) == 1 and "there is one split only" in describe_choices(single)


def sizes(row):
    return row["parameters"], row["images_seen"], row["samples"], LAW


def test_too_few_runs_are_told():
    rows = [row for row in study_rows() if row["arch"] in ("B_2-Wi_16-E_2", "B_2-Wi_32-E_2")]
    assert hold_out(rows, lambda row, fitted: None)[1].startswith("2 sizes of the model")
    assert "below a tenth of the largest compute" in choose(rows)[1]
    same = [row for row in rows if row["arm"] == rows[0]["arm"]]
    assert hold_out(same, lambda row, fitted: None) == ([], "no run has four times the compute of another")


def test_the_command(script, tmp_path, monkeypatch):
    folder = write_study(tmp_path / "study", study_rows(), loss=None)
    monkeypatch.setattr(backtest, "RESAMPLES", 2)
    ended = script("recipes/plan.py", "--dataset", "fashion_mnist", "--study", folder, "--backtest")
    assert ended.code == 0, ended.err
    assert "120 runs on fashion_mnist, predicted from smaller ones" in ended.out
    assert "held-out cells" in ended.out and "splits by seed: the choice is within 1 point" in ended.out
    assert "by the speed of smaller runs of the architecture: off by" in ended.out
    few = write_study(tmp_path / "few", study_rows()[:6], loss=None)
    ended = script("recipes/plan.py", "--dataset", "fashion_mnist", "--study", few, "--backtest")
    assert ended.code == 0 and ended.out.count("cannot tell") == 2
