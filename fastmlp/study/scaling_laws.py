"""Scaling laws of "Scaling MLPs": error by compute, and how large a model and how much data that buys.

Errors are shares of wrong answers, 0-1. Compute is the paper's, in FLOP, 2 for each multiply-accumulate: the authors'
counter (fvcore) counts 1, which doubles every C here and moves a and b but no exponent. Free of torch.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..arch import Arch
from ..cost.flops import training_flop_per_image

LEAST_SPAN = 4  # largest over smallest x, below which no exponent is told
ALPHA_BOUNDS = (0.01, 3.0)
NAMES = ("a", "b", "alpha", "e_inf")


def _scipy(part: str) -> Any:
    try:
        return importlib.import_module(f"scipy.{part}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("scaling laws need SciPy: pip install 'fastmlp[plots]'") from error


def flop(arch: Arch, res: int, num_classes: int, images_seen: int) -> int:
    """Compute of a training run [FLOP], the paper's C = FLOP(f) * 3 * N * T with 2 FLOP per multiply-accumulate.

    images_seen is N * T: N distinct images for T epochs. The first layer counts 3x, too (compute.py: exact=False).
    """
    if images_seen < 0:
        raise ValueError(f"images_seen is {images_seen}: expected 0 or more")
    return training_flop_per_image(arch, res, num_classes, exact=False) * images_seen


def _points(x: ArrayLike, y: ArrayLike, names: tuple[str, str], positive: bool = True) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(f"{names[0]} has shape {x.shape}, {names[1]} {y.shape}: expected two equal lists of numbers")
    for values, name in zip((x, y), names, strict=True):
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0 if positive else True)))
        if len(bad):
            expected = "a finite number above 0" if positive else "a finite number"
            raise ValueError(f"{name} of point {bad[0]} is {values[bad[0]]}: expected {expected}")
    return x, y


def _check_span(x: np.ndarray, name: str, needed: int) -> None:
    distinct, factor = len(np.unique(x)), x.max() / x.min()
    if distinct < needed:
        raise ValueError(f"{distinct} distinct values of {name}: this fit needs {needed} or more")
    if factor < LEAST_SPAN:
        raise ValueError(f"{name} spans a factor of {factor:.2f}: no exponent can be told below {LEAST_SPAN}")


def mean_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Mean of some seeds and half its t-interval, which is NaN for a single seed."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    half = _scipy("stats").t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(half)


def pareto_front(
    compute: ArrayLike,  # (runs,) [FLOP]
    error: ArrayLike,  # (runs,) 0-1
) -> np.ndarray:  # (front,) int
    """Indices of the runs that no other beats at less or equal compute, by compute; errors fall strictly along it.

    Of runs alike in both the first is taken. It picks the luckiest of several seeds: average those before.
    Raises ValueError for lists of different lengths, none at all, and numbers that are not finite.
    """
    compute, error = _points(compute, error, ("compute", "error"), positive=False)
    order = np.lexsort((error, compute))  # stable
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], error[order][:-1]]))
    return order[error[order] < best_before]


def check_falls(compute: ArrayLike, error: ArrayLike) -> None:
    """Raises ValueError where errors do not fall with compute (Spearman's rank correlation, p >= 0.05).

    Ask it of all runs: along their front errors fall whatever was measured.
    """
    if not (np.ptp(error) > 0 and _scipy("stats").spearmanr(compute, error, alternative="less").pvalue < 0.05):
        raise ValueError("error does not fall with compute (Spearman's rank correlation, p >= 0.05): nothing to fit")


@dataclass(frozen=True)
class Curve:
    """E(C) = a (b + C)^-alpha + e_inf, C in FLOP, b in FLOP, a in FLOP^alpha, e_inf 0-1."""

    a: float
    b: float
    alpha: float
    e_inf: float
    r2: float  # of log error
    relative_rms: float  # of E(C) / error - 1
    points: int
    level: float  # of the intervals and the band
    intervals: dict[str, tuple[float, float]]  # of the parameters that were free
    undetermined: dict[str, str]  # those of them that the points do not tell, not to be quoted, each with the reason
    bootstrap: np.ndarray = field(repr=False, compare=False)  # (resamples, 4) a, b, alpha, e_inf

    def predict(self, compute: ArrayLike) -> np.ndarray:
        """Error, 0-1, at any compute [FLOP], in its shape."""
        return self.a * (self.b + np.asarray(compute, np.float64)) ** -self.alpha + self.e_inf

    def band(self, compute: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest error at each compute (n,), by the bootstrap: of the curve, not of a further run."""
        a, b, alpha, e_inf = self.bootstrap.T[..., None]
        curves = a * (b + np.asarray(compute, np.float64)) ** -alpha + e_inf
        low, high = np.quantile(curves, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)
        return low, high

    def describe(self) -> str:
        """Lines for a report: each parameter with its interval, and why one is not to be quoted."""
        lines = []
        for name in NAMES:
            line = f"{name} = {getattr(self, name):.4g}"
            if name in self.intervals:
                low, high = self.intervals[name]
                line += f" ({100 * self.level:g} % interval {low:.4g} to {high:.4g})"
            else:
                line += " (held)"
            lines.append(line + (f", UNDETERMINED: {self.undetermined[name]}" if name in self.undetermined else ""))
        lines.append(f"{self.points} points, R^2 of log error {self.r2:.4f}, relative RMS {self.relative_rms:.2%}")
        return "\n".join(lines)


def fit_curve(
    compute: ArrayLike,  # (points,) [FLOP]
    error: ArrayLike,  # (points,) above 0, at most 1
    *,
    alpha: float | None = None,  # held there; the paper tries 0.12, 0.25 and 0.35
    e_inf: float | None = None,  # held there, 0 for none; else fitted, at least 0
    resamples: int = 200,
    seed: int = 0,  # of the bootstrap
    level: float = 0.95,  # of the intervals
) -> Curve:
    """Fits the paper's E(C) = a (b + C)^-alpha + E_inf by least squares of log error, so that each point counts by
    its relative error; intervals are percentiles of fits to resampled points. Give it the front (pareto_front), as
    the paper does, or means over seeds.

    Raises ValueError where the points cannot carry the fit: fewer distinct C than parameters and one, C over less
    than a factor of LEAST_SPAN, errors that do not fall with C (Spearman, p >= 0.05), numbers out of range. Where the
    bootstrap leaves a parameter open, the curve says so (undetermined): it may still describe the points well.

    How far alpha = 0.25 is missed with 2 % of noise, E_inf = 0.1 and b the smallest C, median and worst of 20 seeds:

        points over decades    8 over 3     15 over 4    25 over 6    40 over 7
        e_inf fitted           15 and 39 %  5 and 23 %   3 and 7 %    1.3 and 4.5 %
        e_inf held             3 and 9 %    1.3 and 5 %  0.8 and 3 %  0.7 and 2.3 %

    A smaller alpha is harder to tell (0.12 of 40 points: 3 and 12 %), a larger one easier. Of 200 trials with 25 points
    and 100 resamples the 95 % intervals held the truth in 91 to 95 %. 200 resamples take about a second.
    """
    compute, error = _points(compute, error, ("compute", "error"))
    if error.max() > 1:
        raise ValueError(f"error goes up to {error.max():g}: expected shares of wrong answers, 0-1, not percent")
    if alpha is not None and not ALPHA_BOUNDS[0] <= alpha <= ALPHA_BOUNDS[1]:
        raise ValueError(f"alpha is held at {alpha}: expected {ALPHA_BOUNDS[0]} to {ALPHA_BOUNDS[1]}")
    if e_inf is not None and not 0 <= e_inf < error.max():
        raise ValueError(f"e_inf is held at {e_inf}: expected 0 to below the largest error, {error.max():g}")
    if resamples < 2 or not 0 < level < 1:
        raise ValueError(f"{resamples} resamples, level {level}: expected 2 or more, and a level within 0-1")
    held = np.array([np.nan, np.nan, np.nan if alpha is None else alpha, np.nan if e_inf is None else e_inf])
    free = np.isnan(held)
    _check_span(compute, "compute", int(free.sum()) + 1)
    check_falls(compute, error)
    least_squares = _scipy("optimize").least_squares

    # Searched are log A, log(1 + b / smallest C), alpha and e_inf, of E = A ((b + C) / (b + middle))^-alpha + e_inf:
    # A is about as large as the errors whatever alpha is, where a goes over dozens of orders of magnitude.
    smallest, middle = compute.min(), np.exp(np.log(compute).mean())
    lowest = np.array([np.log(error.min()) - 12, 0, ALPHA_BOUNDS[0], 0])[free]
    most_b = np.log1p(compute.max() / smallest)
    highest = np.array([np.log(error.max()) + 5, most_b, ALPHA_BOUNDS[1], error.max()])[free]

    def search(which: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """The best of the local searches, on these points."""
        c, log_error = compute[which], np.log(error[which])

        def model(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """Errors (n,) and their derivatives (n, free)."""
            full = held.copy()
            full[free] = some
            log_amplitude, log_b, exponent, least = full
            b = smallest * np.expm1(log_b)
            log_ratio = np.log((b + c) / (b + middle))
            above = np.exp(log_amplitude - exponent * log_ratio)
            by_b = -exponent * above * (1 / (b + c) - 1 / (b + middle)) * (b + smallest)
            return above + least, np.stack([above, by_b, -above * log_ratio, np.ones_like(c)], 1)[:, free]

        def residuals(some: np.ndarray) -> np.ndarray:
            return np.log(model(some)[0]) - log_error

        def jacobian(some: np.ndarray) -> np.ndarray:
            errors, derivatives = model(some)
            return derivatives / errors[:, None]

        found = [least_squares(residuals, start, jacobian, (lowest, highest), x_scale="jac") for start in starts]
        best = held.copy()
        best[free] = min(found, key=lambda one: one.cost).x
        return best

    def natural(found: np.ndarray) -> np.ndarray:  # (..., 4) a, b, alpha, e_inf
        log_amplitude, log_b, exponent, least = np.moveaxis(found, -1, 0)
        b = smallest * np.expm1(log_b)
        return np.stack([np.exp(log_amplitude) * (b + middle) ** exponent, b, exponent, least], -1)

    starts = [
        (np.log(error.mean() / 2), log_b, start_alpha, share * error.min())
        for log_b in (0.1, 1.5)
        for start_alpha in (0.1, 0.3, 1.0)
        for share in (0.05, 0.6)
    ]
    best = search(np.arange(len(compute)), np.unique(np.array(starts)[:, free], axis=0))
    rng, again = np.random.default_rng(seed), list[np.ndarray]()
    while len(again) < resamples:
        which = rng.integers(0, len(compute), len(compute))
        if len(np.unique(compute[which])) >= free.sum():  # of fewer, endlessly many curves are as good
            again.append(search(which, best[None, free]))
    (fit_a, fit_b, fit_alpha, fit_e_inf), bootstrap = natural(best).tolist(), natural(np.array(again))
    low, high = np.quantile(bootstrap, [(1 - level) / 2, (1 + level) / 2], axis=0)
    intervals = {name: (float(low[n]), float(high[n])) for n, name in enumerate(NAMES) if free[n]}
    undetermined = {}
    for name, (least, most) in intervals.items():
        if name == "alpha" and (least <= 1.01 * ALPHA_BOUNDS[0] or most >= 0.99 * ALPHA_BOUNDS[1]):
            undetermined[name] = "its interval reaches the bounds of the search"
        elif least < {"b": 1e-3 * smallest, "e_inf": 1e-4}.get(name, 0):
            undetermined[name] = "it is not told from 0"
        elif most > 10 * least:
            undetermined[name] = "its interval covers more than an order of magnitude"
    predicted = fit_a * (fit_b + compute) ** -fit_alpha + fit_e_inf
    off, spread = np.log(predicted / error), np.log(error) - np.log(error).mean()
    return Curve(
        fit_a,
        fit_b,
        fit_alpha,
        fit_e_inf,
        float(1 - (off**2).sum() / (spread**2).sum()),
        float(((predicted / error - 1) ** 2).mean() ** 0.5),
        len(compute),
        level,
        intervals,
        undetermined,
        bootstrap,
    )


@dataclass(frozen=True)
class PowerLaw:
    """y = k x^exponent."""

    k: float
    exponent: float
    interval: tuple[float, float]  # of the exponent, by Student's t
    r2: float  # of log y
    points: int
    level: float

    def predict(self, x: ArrayLike) -> np.ndarray:
        return self.k * np.asarray(x, np.float64) ** self.exponent


def fit_power_law(x: ArrayLike, y: ArrayLike, level: float = 0.95) -> PowerLaw:
    """Least squares of log y by log x, (points,) each, above 0.

    The interval takes the points for independent: on a front of few architectures P* climbs in steps, whose points
    are not, so that it is too narrow. Raises ValueError for fewer than 3 distinct x, x over less than a factor of
    LEAST_SPAN, y that are all the same, and numbers that are not finite and above 0.
    """
    x, y = _points(x, y, ("x", "y"))
    _check_span(x, "x", 3)
    if not np.ptp(y):
        raise ValueError(f"all y are {y[0]:g}: no power law to fit")
    fit = _scipy("stats").linregress(np.log(x), np.log(y))
    half = _scipy("stats").t.ppf((1 + level) / 2, len(x) - 2) * fit.stderr
    return PowerLaw(
        float(np.exp(fit.intercept)),
        float(fit.slope),
        (float(fit.slope - half), float(fit.slope + half)),
        float(fit.rvalue**2),
        len(x),
        level,
    )


@dataclass(frozen=True)
class ComputeOptimal:
    """The runs of the front, by compute, and how their sizes grow with it."""

    front: np.ndarray  # (front,) int, indices of the runs
    compute: np.ndarray  # (front,) [FLOP]
    parameters: np.ndarray  # (front,) P*
    images: np.ndarray  # (front,) N*, images seen
    p: PowerLaw  # P* ~ C^p
    n: PowerLaw  # N* ~ C^n


def compute_optimal(
    rows: Sequence[Mapping[str, Any]],  # one per run: "parameters", "images_seen", "flop", "error" 0-1
) -> ComputeOptimal:
    """How to spend compute: P* ~ C^p and N* ~ C^n along the front; the paper finds p 0.35 and n 0.65.

    N* are the images seen, N * T, as C = FLOP(f) * 3 * N * T asks: where nearly all parameters are weights, p + n is 1
    whatever was measured. Raises ValueError as pareto_front and fit_power_law do, of the front's runs.
    """
    compute, error, parameters, images = (
        np.array([row[key] for row in rows], np.float64) for key in ("flop", "error", "parameters", "images_seen")
    )
    front = pareto_front(compute, error)
    c, p, n = compute[front], parameters[front], images[front]
    return ComputeOptimal(front, c, p, n, fit_power_law(c, p), fit_power_law(c, n))


def fit_error_law(
    rows: Sequence[Mapping[str, Any]],  # one per run: "parameters", "samples", "error" 0-1
    along: str,  # "parameters" or "samples" (distinct training images)
    e_inf: float = 0.0,  # what no size takes away, subtracted from the errors
) -> PowerLaw:
    """error - e_inf ~ P^-alpha_P at fixed data or N^-alpha_N at a fixed model: the exponents are minus the paper's
    alpha_P ~ 1 and alpha_N ~ 0.35.

    Raises ValueError where the other size is not the same in all rows, an error is e_inf or less, and as
    fit_power_law does.
    """
    if along not in ("parameters", "samples"):
        raise ValueError(f"along is {along!r}: expected 'parameters' or 'samples'")
    other = "samples" if along == "parameters" else "parameters"
    fixed = sorted({row[other] for row in rows})
    if len(fixed) != 1:
        raise ValueError(f"the rows have {other} {fixed}: expected a single value, the law is along {along}")
    above = np.array([row["error"] for row in rows], np.float64) - e_inf
    if (above <= 0).any():
        raise ValueError(f"an error is {above.min() + e_inf:g}, not above e_inf, {e_inf:g}")
    return fit_power_law([row[along] for row in rows], above)
