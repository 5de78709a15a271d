"""Verdicts: the paired t-test and Holm's method against their definitions, and how often they err."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from fastmlp.study.recipe_run import search_rate
from fastmlp.study.report import summary
from fastmlp.study.verdicts import adjust, paired, read_claims, write_claims


def by_seed(values):
    return dict(enumerate(values))


def test_the_paired_test_is_scipy_s():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 8), rng.normal(0.2, 1, 8)
    (found,) = adjust([paired("a > b", by_seed(a), by_seed(b))])
    reference = ttest_rel(a, b)
    low, high = reference.confidence_interval()
    assert found.p == pytest.approx(reference.pvalue) == pytest.approx(found.adjusted)
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(a - b), low, high))


def test_words():
    (agrees, differs, tell), words = zip(
        *[
            (paired("a > b", by_seed(np.arange(5) + shift), by_seed(np.arange(5) + [0, 0.1, 0, 0.2, 0])), word)
            for shift, word in ((3, "agrees"), (-3, "differs"), (0.06, "cannot tell"))
        ],
        strict=True,
    )
    assert [one.word for one in adjust([agrees, differs, tell])] == [*words]
    assert str(adjust([agrees])[0]).startswith("a > b: agrees (+2.94 points, 95 % interval")


def test_fewer_than_five_common_seeds_are_not_tested():
    found = paired("a > b", {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0, 9: 1.0}, {n: 0.1 * n for n in range(5)})
    assert str(adjust([found])[0]) == "a > b: cannot tell (4 seeds, the test needs 5)"
    same = adjust([paired("a > b", by_seed([1.0] * 5), by_seed([1.0] * 5))])[0]
    assert same.word == "cannot tell" and same.p == 1
    assert adjust([paired("a > b", by_seed([2.0] * 5), by_seed([1.0] * 5))])[0].word == "agrees"


def test_holm_s_example():
    """p of 0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02 (Holm 1979, by hand)."""
    blank = paired("x", {}, {})
    ps = [0.01, 0.04, 0.03, 0.005]
    found = adjust([blank, *(type(blank)("c", 1.0, 0.0, 2.0, p) for p in ps), blank])
    assert [one.adjusted for one in found[1:-1]] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [one.word for one in found] == ["cannot tell", "agrees", *2 * ["cannot tell"], "agrees", "cannot tell"]


def test_a_set_without_differences_is_rarely_told_otherwise():
    """Of 300 sets of 10 claims without any difference, about 5 % have a verdict; without Holm's method 40 % would."""
    rng, wrong, naive = np.random.default_rng(1), 0, 0
    for _ in range(300):
        claims = [paired("c", by_seed(rng.normal(size=5)), by_seed(rng.normal(size=5))) for _ in range(10)]
        wrong += any(one.word != "cannot tell" for one in adjust(claims))
        naive += any(one.p < 0.05 for one in claims)
    assert wrong <= 27 and naive > 90


def test_the_table_of_a_set():
    a, b = by_seed([1.0, 2.0, 3.5, 4.0, 5.0]), by_seed([0.0, 0.5, 0.6, 1.0, 1.1])
    one, none = adjust([paired("a > b", a, b), paired("c > d", {}, {})])
    lines = summary({"first": [one], "second": [none]}).splitlines()
    assert (
        lines[2].startswith("| `first` | a > b | **agrees** | +2.46 points, 95 % interval ")
        and "| **cannot tell** | 0 seeds" in lines[3]
    )


def test_claims_are_kept_for_the_table_of_a_set(tmp_path, script):
    claims = [paired("a > b", by_seed(np.arange(5.0) + 3), by_seed([0, 0.1, 0, 0.2, 0])), paired("c > d", {}, {})]
    write_claims(tmp_path, claims)
    assert [str(one) for one in adjust(read_claims(tmp_path))] == [str(one) for one in adjust(claims)]
    other = tmp_path / "other"
    other.mkdir()
    write_claims(other, claims[:1])
    ended = script("recipes/scaling.py", tmp_path, other, "--results", "--out", tmp_path)
    assert ended.code == 0, ended.err
    assert ended.out.count("| a > b | **agrees** |") == 2 and (tmp_path / "studies.md").read_text() in ended.out
    (other / "claims.json").write_text('[{"claims": 1}]')
    ended = script("recipes/scaling.py", tmp_path, other, "--results", "--out", tmp_path)
    assert ended.code == 2 and "other/claims.json: expected the claims of a study" in ended.err


def test_a_search_over_runs_of_a_recipe():
    """Each run is asked for once, and the best of a hill lies inside."""
    asked = []

    def held_out_top1(rate, seed):
        asked.append((rate, seed))
        return 1 - abs(np.log(rate / 0.02)) / 10

    rate, state = search_rate([1e-3, 3e-3], held_out_top1, 2)
    assert rate == 0.027 and not state.unbracketed and len(asked) == len({*asked}) == 5 + 3
