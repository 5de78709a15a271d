"""Runs side by side: the paired test against scipy, its interval, and what recipes/compare.py says and refuses."""

from pathlib import Path

import numpy as np
import pytest
from finished_runs import write_run
from headless_browser import shown_at
from scipy.stats import binomtest

from fastmlp.evaluation.evaluate import wilson_interval
from fastmlp.evaluation.paired_test import compare_pairs, mcnemar_exact, paired_interval
from fastmlp.training.comparison import read_comparison


@pytest.mark.parametrize(
    ("only_first", "only_second"),
    [(0, 0), (0, 1), (1, 1), (3, 12), (12, 3), (0, 40), (7, 7), (144, 330), (5000, 5200), (0, 2000), (90_000, 91_000)],
)
def test_mcnemar_is_the_binomial_test(only_first, only_second):
    n = only_first + only_second
    expected = binomtest(only_first, n, 0.5).pvalue if n else 1.0
    assert mcnemar_exact(only_first, only_second) == pytest.approx(expected, rel=1e-7, abs=1e-300)


def test_the_interval_holds_the_difference_as_often_as_it_says():
    """Simulated: 500 images, of which 12 % only the second model has right, and 6 % only the first."""
    rng, held = np.random.default_rng(0), 0
    for only_first, only_second, _ in rng.multinomial(500, [0.06, 0.12, 0.82], 4000).tolist():
        low, high = paired_interval(only_first, only_second, 500)
        held += low <= 0.06 <= high
    assert 0.94 < held / 4000 < 0.965
    assert paired_interval(3, 9, 100) == pytest.approx([-n for n in reversed(paired_interval(9, 3, 100))])
    low, high = paired_interval(0, 0, 20)
    assert low < 0 < high and paired_interval(0, 1, 1)[1] <= 1


def test_pairs_are_counted():
    first, second = np.array([1, 1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 1, 1, 0], bool)
    test = compare_pairs(first, second)
    assert (test.only_first, test.only_second, test.images, test.difference) == (2, 2, 6, 0)
    assert compare_pairs(first, ~first).difference == pytest.approx((2 - 4) / 6)


@pytest.fixture
def runs(tmp_path, monkeypatch) -> tuple[np.ndarray, np.ndarray]:
    """Three runs, b's folder with a name like HTML, the third one unfinished; returns what a and b have right."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(3)
    a, b = rng.random(300) < 0.7, rng.random(300) < 0.8
    write_run(Path("a"), a)
    write_run(Path("<b onclick=alert(1)>"), b, lr=0.125)
    write_run(Path("unfinished"), None)
    return a, b


def test_runs_side_by_side(runs, script, tmp_path):
    a, b = runs
    ended = script("recipes/compare.py", "a", "<b onclick=alert(1)>", "unfinished")
    assert ended.code == 0, ended.err
    page = Path("compare.html").read_text()
    low, high = wilson_interval(a.mean(), 300)
    difference = 100 * (b.mean() - a.mean())
    p = binomtest(int((a & ~b).sum()), int((a != b).sum())).pvalue
    cells = [f"{a.mean():.2%}", f"{low:.2%} to {high:.2%}", "0.125", "5e-05", f"{difference:+.2f}", f"{p:.2g}"]
    cells += [str((a & ~b).sum()), str((b & ~a).sum()), "1 min 15 s", "unfinished, at step 18"]
    for cell in cells:
        assert cell in ended.out and f"<td>{cell}</td>" in page, cell
    assert "batch_size" not in ended.out and "no test: unfinished is unfinished" in ended.out
    assert page.count("<svg") == 4 and page.count("<polyline") == 4 * 3
    assert "<b onclick" not in page and "&lt;b onclick=alert(1)&gt;" in page and "<script" not in page
    assert "href" not in page and "src=" not in page
    shown = shown_at(360, tmp_path, page=page)["page"]
    assert shown["wide"] <= 360 and shown["scripts"] == 0 and "<b onclick=alert(1)>" in shown["text"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"fingerprint": 8, "beton": "data/y_test_8.beton"}, "other was evaluated on data/y_test_8.beton"),
        ({"classes": ["cat", "dog", "elk"]}, "these betons differ"),
        ({"right": np.ones(299, bool)}, "other on 299"),
    ],
)
def test_other_images_are_refused(runs, other, message):
    write_run(Path("other"), **{"right": runs[0], **other})
    text = read_comparison([Path("a"), Path("other")]).text()
    assert message in text and "a was evaluated on" in text and "only first right" not in text


def test_runs_without_predictions(runs, script):
    for name in ("predictions.csv", "predictions.json"):
        Path("a", name).unlink()
    text = read_comparison([Path("a"), Path("<b onclick=alert(1)>")]).text()
    assert "no test: a has no predictions.csv" in text and "--cfg.weights=a/final.pt --cfg.out=a" in text


def test_runs_that_cannot_be_compared(runs, script, tmp_path):
    (tmp_path / "empty").mkdir()
    write_run(Path("damaged"), runs[0])
    log = Path("damaged/log.jsonl")
    log.write_text("{\n" + log.read_text())
    write_run(Path("sub/a"), runs[0])
    for arguments, message in (
        (["a"], "a alone: give two runs or more"),
        (["a", "empty"], "empty is no run"),
        (["a", "missing"], "missing is no run"),
        (["a", "./a/../a"], "a/../a is given twice"),
        (["a", "damaged"], "damaged/log.jsonl is damaged: 1 of its 8 lines"),
        (["a", "unfinished", "--out", "a/config.yaml/x.html"], "a/config.yaml"),
    ):
        ended = script("recipes/compare.py", *arguments)
        assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1, ended.err
    assert read_comparison([Path("a"), Path("sub/a")]).names == ["a", "sub/a"]
    assert not Path("compare.html").exists()
