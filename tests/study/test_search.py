"""Searches that bracket: on known curves, against the best of a fine grid."""

import math
from itertools import pairwise, product

import numpy as np
import pytest

from fastmlp.study.search import MAX_EXTENSIONS, progress


def search(lists, score, seeds=1, limits=None, allowed=lambda values: True):
    """Run the search of score(values, seed) to its end; return its choice, its trials and the open ends."""
    scores = {}
    for _ in range(1000):
        state = progress(lists, scores, seeds, limits, allowed)
        if state.best is not None:
            return dict(zip(lists, state.best, strict=True)), scores, state.unbracketed
        missing = [trial for trial in state.trials if trial not in scores]
        assert missing
        scores |= {(point, seed): score(dict(zip(lists, point, strict=True)), seed) for point, seed in missing}
    raise AssertionError("the search does not end")


def hill(center, width=1.0):
    return lambda values, seed: -(math.log(values["lr"] / center) ** 2) / width


@pytest.mark.parametrize("center", [1.1e-6, 4e-5, 1.1e-3, 0.02, 0.6, 11.0])
@pytest.mark.parametrize("values", [[1e-3, 3e-3], [1e-3, 2e-3, 4e-3], [2e-3], [3e-3, 1e-3]])
def test_the_best_of_a_hill_lies_between_two_others(center, values):
    best, scores, unbracketed = search({"lr": values}, hill(center))
    tried = sorted(point[0] for point, _ in scores)
    if unbracketed:
        assert best["lr"] in (tried[0], tried[-1])
        assert len(tried) - len(values) >= MAX_EXTENSIONS
    else:
        assert tried[0] < best["lr"] < tried[-1]
        factors = [later / earlier for earlier, later in pairwise(tried)]
        assert abs(math.log(best["lr"] / center)) <= math.log(max(factors)) and 1.9 < min(factors) <= max(factors) < 3.2


def test_no_end_is_beyond_six_values():
    best, scores, unbracketed = search({"lr": [1.0, 2.0]}, hill(1e9))
    assert unbracketed == ("lr",) and best == {"lr": 130.0} and len(scores) == 2 + MAX_EXTENSIONS


def test_zero_is_an_end():
    best, scores, unbracketed = search(
        {"label_smoothing": [0, 0.1, 0.3]}, lambda values, seed: -values["label_smoothing"]
    )
    assert best == {"label_smoothing": 0} and unbracketed == () and len(scores) == 3


def test_integers_stay_integers_and_words_have_no_order():
    best, scores, unbracketed = search({"batch_size": [64, 128]}, lambda values, seed: -abs(values["batch_size"] - 600))
    assert best == {"batch_size": 512} and all(type(point[0]) is int for point, _ in scores)
    kinds = {"arch": ["B_1", "S_1"], "flip": [True, False]}
    best, scores, unbracketed = search(kinds, lambda values, seed: values["arch"] == "S_1" and not values["flip"])
    assert best == {"arch": "S_1", "flip": False} and len(scores) == 4 and unbracketed == ()


def test_two_settings_are_bracketed_together():
    def score(values, seed):
        x, y = math.log(values["lr"] / 0.05), math.log(values["weight_decay"] / 0.002)
        return -(x**2) - y**2 - 0.5 * x * y

    best, scores, unbracketed = search({"lr": [1e-3, 3e-3], "weight_decay": [0.1, 0.3]}, score)
    assert unbracketed == ()
    grid = [values for values, _ in scores]
    assert score(best, 0) == max(score(dict(zip(best, values, strict=True)), 0) for values in grid)
    beside = [score({**best, name: best[name] * f}, 0) for name, f in product(best, (1 / 3, 3))]
    assert all(score(best, 0) >= one for one in beside)


def test_several_seeds_decide_between_neighbours():
    """With noise of a third of the distance between neighbours, means of 5 seeds choose better than a single one."""
    regret = {1: 0.0, 5: 0.0}
    for trial in range(40):
        noise = np.random.default_rng(trial)
        drawn = {}

        def score(values, seed, drawn=drawn, noise=noise):
            key = values["lr"], seed
            drawn.setdefault(key, noise.normal(0, 0.6))
            return hill(0.011)(values, 0) + drawn[key]

        for seeds in regret:
            best, scores, _ = search({"lr": [1e-3, 3e-3]}, score, seeds)
            regret[seeds] -= hill(0.011)(best, 0)
            of_best = [seed for point, seed in scores if point == (best["lr"],)]
            assert of_best == [*range(seeds)]
    assert regret[5] < 0.7 * regret[1]


def test_a_diverging_value_is_an_end():
    best, scores, unbracketed = search(
        {"lr": [0.1, 0.3]}, lambda values, seed: values["lr"] if values["lr"] < 1 else 0.0
    )
    assert best == {"lr": 0.9} and unbracketed == ()


def test_where_all_diverge_the_search_goes_down():
    best, scores, unbracketed = search({"lr": [0.1, 0.3]}, lambda values, seed: 0.5 if values["lr"] < 1e-2 else 0.0)
    assert best["lr"] < 1e-2 and unbracketed == ("lr",)  # a plateau without a lower end is not bracketed
    best, scores, unbracketed = search(
        {"lr": [0.1, 0.3]}, lambda values, seed: 0.5 if 1e-3 < values["lr"] < 0.01 else 0
    )
    assert 1e-3 < best["lr"] < 0.004 and unbracketed == ()
    assert search({"lr": [1e20]}, lambda values, seed: 0.0)[2] == ("lr",)


def test_the_ends_of_a_setting_are_tried():
    best, scores, unbracketed = search(
        {"label_smoothing": [0.1, 0.2]},
        lambda values, seed: values["label_smoothing"],
        limits={"label_smoothing": (0, 1)},
    )
    assert best == {"label_smoothing": 1} and unbracketed == () and ((0.8,), 0) in scores
    best, scores, unbracketed = search(
        {"batch_size": [100, 200]},
        lambda values, seed: values["batch_size"],
        allowed=lambda one: one["batch_size"] < 500,
    )
    assert best == {"batch_size": 400} and unbracketed == ("batch_size",)
    best, scores, unbracketed = search({"n": [4.0, 8.0]}, lambda values, seed: -values["n"], limits={"n": (1.5, 100)})
    assert best == {"n": 1.5} and unbracketed == () and min(point[0] for point, _ in scores) == 1.5
