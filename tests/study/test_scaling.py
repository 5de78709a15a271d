"""Scaling laws recovered from known curves, against slow references; the figures, by the text in them."""

import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from fastmlp.arch import parse_arch
from fastmlp.models.weights import build_model
from fastmlp.study import figures, scaling_laws
from fastmlp.study.scaling_laws import (
    compute_optimal,
    fit_curve,
    fit_error_law,
    fit_power_law,
    mean_interval,
    pareto_front,
)

A, B, E_INF = 0.75, 1e13, 0.1  # amplitude at C = 0, the smallest C, the error that remains


def noisy(alpha, points, decades, seed, e_inf=E_INF, noise=0.02):
    """Return compute and errors from 0.85 down, each with 2 % noise."""
    compute = B * np.logspace(0, decades, points)
    error = A * ((B + compute) / B) ** -alpha + e_inf
    return compute, error * np.exp(noise * np.random.default_rng(seed).standard_normal(points))


@pytest.mark.parametrize("name", ["B_2-Wi_16", "S_3-Wi_20"])
def test_flop_are_the_paper_s_formula_on_what_torch_counts(name):
    with FlopCounterMode(display=False) as forward:
        build_model(name, 4, 7)(torch.rand(1, 48))
    assert scaling_laws.flop(parse_arch(name), 4, 7, 600 * 5) == forward.get_total_flops() * 3 * 600 * 5
    assert scaling_laws.flop(parse_arch(name), 4, 7, 0) == 0
    with pytest.raises(ValueError, match="images_seen is -1"):
        scaling_laws.flop(parse_arch(name), 4, 7, -1)


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_no_run_beats(seed):
    rng = np.random.default_rng(seed)
    compute, error = rng.integers(1, 9, 30) / 1.0, rng.integers(1, 12, 30) / 12  # many ties and duplicates
    runs = list(zip(compute, error, strict=True))
    unbeaten = {(c, e) for c, e in runs if not any((d <= c and f < e) or (d < c and f <= e) for d, f in runs)}
    front = pareto_front(compute, error)
    assert [(compute[i], error[i]) for i in front] == sorted(unbeaten)
    assert all(i == runs.index(runs[i]) for i in front)  # of equal runs the first


@pytest.mark.parametrize(
    ("compute", "error", "message"),
    [
        ([1, 2], [0.5, np.nan], "error of point 1 is nan"),
        ([np.inf, 2], [0.5, 0.4], "compute of point 0 is inf"),
        ([], [], "shape"),
        ([1, 2], [0.5], "shape"),
    ],
)
def test_no_front_of_bad_numbers(compute, error, message):
    with pytest.raises(ValueError, match=message):
        pareto_front(compute, error)


# Largest error of alpha over 20 seeds: 4.2 and 3.9 %; with alpha 0.12, which changes little over 7 decades, 11 %.
@pytest.mark.parametrize("alpha", [0.25, 0.35])
@pytest.mark.parametrize("seed", range(4))
def test_all_four_parameters_are_recovered_from_40_points_over_7_decades(alpha, seed):
    curve = fit_curve(*noisy(alpha, 40, 7, seed), resamples=2)
    assert curve.alpha == pytest.approx(alpha, rel=0.05)
    assert curve.e_inf == pytest.approx(E_INF, abs=0.01)
    assert curve.b == pytest.approx(B, rel=0.5)
    assert 0.01 < curve.relative_rms < 0.03 and curve.r2 > 0.99


@pytest.mark.parametrize("alpha", [0.12, 0.35, 1.0])
def test_without_noise_all_is_exact(alpha):
    compute = B * np.logspace(-1, 4, 12)
    curve = fit_curve(compute, A * ((B + compute) / B) ** -alpha + E_INF, resamples=2)
    found, true = (curve.a, curve.b, curve.alpha, curve.e_inf), (A * B**alpha, B, alpha, E_INF)
    np.testing.assert_allclose(found, true, rtol=1e-3)
    assert curve.relative_rms < 1e-6 and curve.r2 == pytest.approx(1)


@pytest.mark.parametrize("alpha", [0.12, 0.25, 0.35])
@pytest.mark.parametrize("seed", range(3))
def test_alpha_is_recovered_with_e_inf_held(alpha, seed):
    curve = fit_curve(*noisy(alpha, 25, 6, seed), e_inf=E_INF, resamples=2)
    assert curve.alpha == pytest.approx(alpha, rel=0.05) and curve.e_inf == E_INF
    no_e_inf = fit_curve(*noisy(alpha, 25, 6, seed, e_inf=0), e_inf=0, resamples=2)
    assert no_e_inf.alpha == pytest.approx(alpha, rel=0.05)


@pytest.mark.parametrize("alpha", [0.12, 0.25, 0.35])
def test_e_inf_is_recovered_with_alpha_held(alpha):
    curve = fit_curve(*noisy(alpha, 25, 6, 0), alpha=alpha, resamples=2)
    assert curve.alpha == alpha and set(curve.intervals) == {"a", "b", "e_inf"}
    assert curve.e_inf == pytest.approx(E_INF, abs=0.02)


@pytest.mark.parametrize("unit", [1e-10, 1.0, 1e7])  # C of 1e3 to 1e9, 1e13 to 1e19, 1e20 to 1e26
def test_the_unit_of_compute_moves_a_and_b_alone(unit):
    compute, error = noisy(0.25, 20, 6, 5)
    one, other = fit_curve(compute, error, resamples=4), fit_curve(unit * compute, error, resamples=4)
    assert other.alpha == pytest.approx(one.alpha, rel=1e-4) and other.e_inf == pytest.approx(one.e_inf, rel=1e-3)
    assert other.b == pytest.approx(unit * one.b, rel=1e-3)
    np.testing.assert_allclose(other.predict(unit * compute), one.predict(compute), rtol=1e-5)
    np.testing.assert_allclose(other.band(unit * compute), one.band(compute), rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_no_point_of_a_fine_grid_fits_better(seed):
    compute, error = noisy(0.35, 9, 5, seed)
    curve = fit_curve(compute, error, resamples=2)
    axes = np.linspace(0.25, 0.5, 51), B * np.linspace(0.2, 2.6, 49), np.linspace(0.06, 0.14, 41)
    alpha, b, e_inf = np.meshgrid(*axes)
    powers = (b[..., None] + compute) ** -alpha[..., None]
    a = (error / powers).mean(-1)
    for _ in range(12):  # Newton's method for log a, on log error
        predicted = a[..., None] * powers + e_inf[..., None]
        slope = a[..., None] * powers / predicted
        a *= np.exp(-np.clip((np.log(predicted / error) * slope).sum(-1) / (slope**2).sum(-1), -0.5, 0.5))
    squares = (np.log((a[..., None] * powers + e_inf[..., None]) / error) ** 2).sum(-1)
    best = np.unravel_index(squares.argmin(), squares.shape)
    ours = (np.log(curve.predict(compute) / error) ** 2).sum()
    assert squares[best] * 0.95 < ours <= squares[best] * (1 + 1e-6)
    np.testing.assert_allclose(curve.predict(compute), a[best] * powers[best] + e_inf[best], rtol=0.01)
    assert curve.alpha == pytest.approx(alpha[best], abs=0.02) and curve.e_inf == pytest.approx(e_inf[best], abs=0.01)


def test_intervals_cover_the_truth():
    held = [fit_curve(*noisy(0.25, 12, 4, seed), alpha=0.25, resamples=40, seed=seed) for seed in range(40)]
    low, high = np.array([curve.intervals["e_inf"] for curve in held]).T
    assert 0.8 <= np.mean((low <= E_INF) & (E_INF <= high)) and np.mean(high - low) < 0.04
    at = 1e15
    truth = A * ((B + at) / B) ** -0.25 + E_INF
    inside = [low <= truth <= high for low, high in (np.ravel(curve.band([at])) for curve in held)]
    assert 0.8 <= np.mean(inside)


def test_a_seed_decides_the_bootstrap():
    points = noisy(0.25, 12, 4, 0)
    one, same, other = (fit_curve(*points, alpha=0.25, resamples=5, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.bootstrap, same.bootstrap)
    assert one.alpha == other.alpha and one.e_inf == other.e_inf and (one.bootstrap != other.bootstrap).any()
    assert one.bootstrap.shape == (5, 4)
    wide = fit_curve(*points, alpha=0.25, resamples=5, seed=1, level=0.5)
    assert np.ptp(wide.intervals["e_inf"]) < np.ptp(one.intervals["e_inf"])


def test_what_the_points_do_not_tell_is_said():
    curve = fit_curve(*noisy(0.12, 8, 3, 0), resamples=40)
    assert curve.undetermined["e_inf"] == "it is not told from 0" and "order of magnitude" in curve.undetermined["a"]
    assert "UNDETERMINED: it is not told from 0" in curve.describe() and "8 points" in curve.describe()
    few = fit_curve(*noisy(0.12, 6, 1.5, 1, noise=0.05), resamples=40)
    assert few.undetermined["alpha"] == "its interval reaches the bounds of the search"
    sure = fit_curve(*noisy(0.35, 40, 7, 0), resamples=20)
    assert not sure.undetermined and "UNDETERMINED" not in sure.describe()
    assert "alpha = 0.35 (held)" in fit_curve(*noisy(0.35, 9, 4, 0), alpha=0.35, resamples=2).describe()


C6, FALLING = np.logspace(10, 14, 6), np.array([0.9, 0.7, 0.5, 0.4, 0.35, 0.3])


@pytest.mark.parametrize(
    ("compute", "error", "options", "message"),
    [
        (C6[:4], FALLING[:4], {}, "4 distinct values of compute: this fit needs 5"),
        (C6[[0, 1, 2, 3, 3, 3]], FALLING, {}, "4 distinct values of compute"),
        (C6[:3], FALLING[:3], {"alpha": 0.2}, "3 distinct values of compute: this fit needs 4"),
        (C6[:2], FALLING[:2], {"alpha": 0.2, "e_inf": 0}, "2 distinct values of compute: this fit needs 3"),
        (np.linspace(1, 3.9, 6) * 1e12, FALLING, {}, "a factor of 3.90: no exponent"),
        (C6, FALLING[::-1], {}, "does not fall"),
        (C6, np.full(6, 0.5), {}, "does not fall"),
        (C6, [0.5, 0.6, 0.4, 0.5, 0.6, 0.45], {}, "does not fall"),
        (C6, [0.9, 0.7, np.nan, 0.4, 0.35, 0.3], {}, "error of point 2 is nan"),
        (C6, [0.9, 0.7, 0.5, 0.4, 0.35, 0], {}, "error of point 5 is 0"),
        (C6, 100 * FALLING, {}, "not percent"),
        (C6 - 1e10, FALLING, {}, "compute of point 0 is 0"),
        (C6[:5], FALLING, {}, "shape"),
        (C6, FALLING, {"alpha": -0.1}, "alpha is held at -0.1"),
        (C6, FALLING, {"e_inf": -0.1}, "e_inf is held at -0.1"),
        (C6, FALLING, {"e_inf": 0.9}, "e_inf is held at 0.9"),
        (C6, FALLING, {"resamples": 1}, "1 resamples"),
        (C6, FALLING, {"level": 95}, "level 95"),
    ],
)
def test_no_curve_through_points_that_carry_none(compute, error, options, message):
    with pytest.raises(ValueError, match=message):
        fit_curve(compute, error, **options)


def test_the_fewest_points_and_the_least_span_pass():
    assert fit_curve(np.geomspace(1, 4.001, 5) * 1e12, FALLING[:5], resamples=2).points == 5
    assert fit_curve(C6[:3], FALLING[:3], alpha=0.25, e_inf=0, resamples=2).points == 3


@pytest.mark.parametrize("exponent", [0.35, 0.65, -1.0])
def test_a_power_law_and_its_interval(exponent):
    x = np.logspace(3, 7, 12)
    assert fit_power_law(x, 5 * x**exponent).k == pytest.approx(5)
    inside = []
    for seed in range(100):
        law = fit_power_law(x, 5 * x**exponent * np.exp(0.02 * np.random.default_rng(seed).standard_normal(12)))
        assert law.exponent == pytest.approx(exponent, rel=0.05) and law.r2 > 0.99
        np.testing.assert_allclose(law.predict(x), 5 * x**exponent, rtol=0.08)
        inside.append(law.interval[0] <= exponent <= law.interval[1])
    assert 88 <= sum(inside) <= 99
    slope, variance = np.polyfit(np.log(x), np.log(law.predict(x)), 1)[0], law.interval[1] - law.interval[0]
    assert slope == pytest.approx(law.exponent) and 0 < variance < 0.03


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1, 9], [1, 2], "2 distinct values of x"),
        ([1, 1, 9], [1, 2, 3], "2 distinct"),
        ([1, 2, 3.9], [1, 2, 3], "3.90"),
        ([1, 2, 9], [4, 4, 4], "all y are 4"),
        ([1, 2, 9], [1, 0, 3], "y of point 1 is 0"),
        ([1, -2, 9], [1, 2, 3], "x of point 1 is -2"),
        ([1, 2, 9], [1, 2], "shape"),
    ],
)
def test_no_power_law_through_points_that_carry_none(x, y, message):
    with pytest.raises(ValueError, match=message):
        fit_power_law(x, y)


def study(sizes, images):
    """Return runs whose error is a sum of powers of P and N: 0.07 (P / 1e5)^-0.65 + 0.13 (N / 1e7)^-0.35."""
    return [
        {
            "arm": "$base",
            "seed": 0,
            "arch": f"B_2-Wi_{round(p**0.5)}",
            "parameters": p,
            "samples": n,
            "epochs": 1.0,
            "images_seen": n,
            "flop": 6 * p * n,
            "error": 0.07 * (p / 1e5) ** -0.65 + 0.13 * (n / 1e7) ** -0.35,
            "batch_size": 256,
        }
        for p in np.logspace(*sizes).round().astype(int).tolist()
        for n in np.logspace(*images).round().astype(int).tolist()
    ]


def test_the_front_s_sizes_grow_as_their_terms_balance():
    # d/dP of P^-x + (C/P)^-y is 0 where x P^-x = y N^-y, so P* ~ C^(y / (x + y)): the paper's 0.35.
    rows = [row for row in study((3, 7, 25), (4, 10, 37)) if 1e9 < row["flop"] < 1e16]
    optimal = compute_optimal(rows)
    assert optimal.p.exponent == pytest.approx(0.35, rel=0.05) and optimal.n.exponent == pytest.approx(0.65, rel=0.05)
    assert (np.diff(optimal.compute) > 0).all() and len(optimal.front) == optimal.p.points > 20
    for n, i in enumerate(optimal.front):
        row = rows[i]["flop"], rows[i]["parameters"], rows[i]["images_seen"]
        assert row == (optimal.compute[n], optimal.parameters[n], optimal.images[n])


def test_error_by_size_alone():
    rows = [dict(row, error=0.05 + 30 * row["parameters"] ** -1.0) for row in study((3, 5, 5), (4, 4, 1))]
    assert fit_error_law(rows, "parameters", e_inf=0.05).exponent == pytest.approx(-1)
    assert fit_error_law(rows, "parameters").exponent > -0.5
    rows = [dict(row, error=2 * row["samples"] ** -0.35) for row in study((4, 4, 1), (3, 7, 5))]
    assert fit_error_law(rows, "samples").exponent == pytest.approx(-0.35)
    with pytest.raises(ValueError, match=r"parameters \[\d+, \d+\]: expected a single value"):
        fit_error_law([*rows, dict(rows[0], parameters=1)], "samples")
    with pytest.raises(ValueError, match="not above e_inf, 0.3"):
        fit_error_law(rows, "samples", e_inf=0.3)
    with pytest.raises(ValueError, match="along is 'epochs'"):
        fit_error_law(rows, "epochs")


def test_mean_and_interval_of_seeds():
    mean, half = mean_interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3) and half == pytest.approx(
        4.302653 * 1.527525 / 3**0.5
    )  # t of 2 degrees of freedom, from a table
    assert mean_interval([3.0])[0] == 3 and np.isnan(mean_interval([3.0])[1])


def test_without_scipy_the_command_that_mends_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fastmlp\[plots\]'"):
        fit_curve(C6, FALLING)


def texts(paths):
    """Return the texts of an SVG, after a check that the PNG beside it has ink on white."""
    png, svg = paths
    assert (png.suffix, svg.suffix) == (".png", ".svg") and png.stem == svg.stem
    with Image.open(png) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.min() < 50 and 0.01 < np.mean(pixels < 250) < 0.6
    return ["".join(e.itertext()).strip() for e in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_error_against_compute_is_drawn(tmp_path):
    rows = [row for row in study((4, 7, 6), (5, 9, 8)) if row["error"] < 1]
    front = pareto_front([row["flop"] for row in rows], [row["error"] for row in rows])
    curve = fit_curve([rows[i]["flop"] for i in front], [rows[i]["error"] for i in front], alpha=0.25, resamples=4)
    labels = texts(figures.error_against_compute(rows, tmp_path / "a.b", curve))
    assert (tmp_path / "a.b.png").exists()
    for arch in {row["arch"] for row in rows}:
        assert sum(line.startswith(f"{arch}, ") for line in labels) == 1
    assert {"Pareto front", "95 % band", f"a (b + C)^-0.25 + {curve.e_inf:.3f}", "test error [%]"} <= set(labels)
    plain = texts(figures.error_against_compute(rows[:1], tmp_path / "one"))
    assert "95 % band" not in plain and "10M images" not in plain and "Pareto front" in plain
    with pytest.raises(ValueError, match="error 0: a log axis"):
        figures.error_against_compute([dict(rows[0], error=0.0)], tmp_path / "none")


def test_sizes_against_compute_are_drawn(tmp_path):
    optimal = compute_optimal(study((4, 6, 5), (6, 8, 5)))
    labels = texts(figures.compute_optimal_sizes(optimal, tmp_path / "sizes"))
    for letter, law in (("P", optimal.p), ("N", optimal.n)):
        assert sum(line.startswith(f"{letter}* ~ C^({law.exponent:.2f} ±") for line in labels) == 1


def seeds_of(arms):
    return [
        {"arm": arm, "seed": seed, "arch": "B_2-Wi_32", "batch_size": size, "error": error + 0.01 * seed}
        for arm, error in arms.items()
        for size in (64, 128, 4096)
        for seed in range(3)
    ]


ARMS = {"base": 0.4, "no $augmentation$": 0.6, "_AdamW & <LN>": 0.45}


def test_error_against_batch_size_is_drawn(tmp_path):
    rows = seeds_of(ARMS)
    labels = texts(figures.error_against_batch_size(rows, tmp_path / "batch"))
    assert all(labels.count(arm) == 1 for arm in ARMS) and {"64", "128", "4,096"} <= set(labels)
    labels = texts(figures.error_against_batch_size(rows, tmp_path / "batch", by="arch"))
    assert "B_2-Wi_32" in labels and "base" not in labels


def test_ablation_bars_are_drawn(tmp_path):
    rows = [row for row in seeds_of(ARMS) if row["batch_size"] == 64]
    rows.append({"arm": "once", "error": 1.0})
    labels = texts(figures.ablation_bars(rows, tmp_path / "bars"))
    assert all(labels.count(arm) == 1 for arm in [*ARMS, "once"])
    half = mean_interval([59, 58, 60])[1]
    assert f"59.0 ± {half:.1f} (3)" in labels and "0.0 (1)" in labels
    again = figures.ablation_bars(rows, tmp_path / "again")
    assert again[1].read_bytes() == (tmp_path / "bars.svg").read_bytes()


@pytest.mark.parametrize("draw", ["error_against_compute", "error_against_batch_size", "ablation_bars"])
def test_nothing_to_draw(draw, tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        getattr(figures, draw)([], tmp_path / "none")
