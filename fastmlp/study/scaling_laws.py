"""Scaling laws of "Scaling MLPs": error by compute, and the model and data sizes that are optimal for a compute.

Errors are shares of wrong answers, 0-1. Compute is the paper's, in FLOP, 2 for each multiply-accumulate. The authors'
counter (fvcore) counts 1, so that every C here is twice theirs; that changes a and b but no exponent. Needs no torch.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..arch import Arch
from ..cost.flops import training_flop_per_image

MIN_SPAN = 4  # largest over smallest x; no exponent can be determined below it
ALPHA_BOUNDS = (0.01, 3.0)
NAMES = ("a", "b", "alpha", "e_inf")


def scipy_module(part: str) -> Any:
    try:
        return importlib.import_module(f"scipy.{part}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("scaling laws need SciPy: pip install 'fastmlp[plots]'") from error


def flop(arch: Arch, res: int, num_classes: int, images_seen: int) -> int:
    """Return the compute of a training run [FLOP]: the paper's C = FLOP(f) * 3 * N * T, 2 FLOP per multiply-accumulate.

    images_seen is N * T: N distinct images for T epochs. The first layer also counts 3x (cost/flops.py: exact=False).
    """
    if images_seen < 0:
        raise ValueError(f"images_seen is {images_seen}: expected 0 or more")
    return training_flop_per_image(arch, res, num_classes, exact=False) * images_seen


def _points(x: ArrayLike, y: ArrayLike, names: tuple[str, str], positive: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y as float64 arrays. Raises ValueError if they are not equal lists of finite (positive) numbers."""
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
    """Raise ValueError for fewer than `needed` distinct values or a range of less than a factor of MIN_SPAN."""
    distinct, factor = len(np.unique(x)), x.max() / x.min()
    if distinct < needed:
        raise ValueError(f"{distinct} distinct values of {name}: this fit needs {needed} or more")
    if factor < MIN_SPAN:
        raise ValueError(f"{name} spans a factor of {factor:.2f}: no exponent can be determined below {MIN_SPAN}")


def mean_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Return the mean of the seeds' values and half the width of its t-interval, which is NaN for a single seed."""
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    half = scipy_module("stats").t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(half)


def pareto_front(
    compute: ArrayLike,  # (runs,) [FLOP]
    error: ArrayLike,  # (runs,) 0-1
) -> np.ndarray:  # (front,) int
    """Return the indices of the runs that no other run beats at equal or less compute, sorted by compute.

    Errors fall strictly along the front. Of runs equal in both, the first is taken. With several seeds the front picks
    the luckiest one: average over the seeds first. Raises ValueError for lists of different lengths, empty lists, and
    numbers that are not finite.
    """
    compute, error = _points(compute, error, ("compute", "error"), positive=False)
    order = np.lexsort((error, compute))  # stable
    best_before = np.minimum.accumulate(np.concatenate([[np.inf], error[order][:-1]]))
    return order[error[order] < best_before]


def check_falls(compute: ArrayLike, error: ArrayLike) -> None:
    """Raise ValueError if errors do not fall with compute (Spearman's rank correlation, p >= 0.05).

    Pass all runs: along their front errors always fall, whatever was measured.
    """
    if not (np.ptp(error) > 0 and scipy_module("stats").spearmanr(compute, error, alternative="less").pvalue < 0.05):
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
    intervals: dict[str, tuple[float, float]]  # of the parameters that were fitted
    undetermined: dict[str, str]  # fitted parameters that the points leave open, not to be quoted, with the reason
    bootstrap: np.ndarray = field(repr=False, compare=False)  # (resamples, 4) a, b, alpha, e_inf

    def predict(self, compute: ArrayLike) -> np.ndarray:
        """Return the error, 0-1, at any compute [FLOP], in the shape of `compute`."""
        return self.a * (self.b + np.asarray(compute, np.float64)) ** -self.alpha + self.e_inf

    def band(self, compute: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Return the lower and upper error at each compute (n,) by the bootstrap: of the curve, not of another run."""
        a, b, alpha, e_inf = self.bootstrap.T[..., None]
        curves = a * (b + np.asarray(compute, np.float64)) ** -alpha + e_inf
        low, high = np.quantile(curves, [(1 - self.level) / 2, (1 + self.level) / 2], axis=0)
        return low, high

    def describe(self) -> str:
        """Return the lines of a report: each parameter with its interval, and the reason if it must not be quoted."""
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
    alpha: float | None = None,  # fixed at this value; the paper tries 0.12, 0.25 and 0.35
    e_inf: float | None = None,  # fixed at this value, 0 for none; if None, fitted, at least 0
    resamples: int = 200,
    seed: int = 0,  # of the bootstrap
    level: float = 0.95,  # of the intervals
) -> Curve:
    """Fit the paper's E(C) = a (b + C)^-alpha + E_inf by least squares of log error.

    In log error each point counts by its relative error. The intervals are percentiles of fits to resampled points.
    Pass the front (pareto_front), as the paper does, or means over seeds.

    Raises ValueError if the points cannot support the fit: not more distinct C than free parameters, C over less than
    a factor of MIN_SPAN, errors that do not fall with C (Spearman, p >= 0.05), numbers out of range. If the bootstrap
    leaves a parameter open, Curve.undetermined says so; such a curve may still describe the points well.

    Relative error of a fitted alpha = 0.25 with 2 % noise, E_inf = 0.1 and b the smallest C, median and worst of 20
    seeds:

        points over decades    8 over 3     15 over 4    25 over 6    40 over 7
        e_inf fitted           15 and 39 %  5 and 23 %   3 and 7 %    1.3 and 4.5 %
        e_inf held             3 and 9 %    1.3 and 5 %  0.8 and 3 %  0.7 and 2.3 %

    A smaller alpha is harder to determine (0.12 from 40 points: 3 and 12 %), a larger one easier. In 200 trials with 25
    points and 100 resamples the 95 % intervals contained the true value in 91 to 95 %. 200 resamples take about a
    second.
    """
    compute, error = _points(compute, error, ("compute", "error"))
    _check_options(error, alpha, e_inf, resamples, level)
    problem = _CurveProblem(compute, error, alpha, e_inf)
    _check_span(compute, "compute", int(problem.free.sum()) + 1)
    check_falls(compute, error)
    best = problem.solve(np.arange(len(compute)), problem.starts())
    (fit_a, fit_b, fit_alpha, fit_e_inf), bootstrap = (
        problem.to_parameters(best).tolist(),
        problem.to_parameters(problem.bootstrap(best, resamples, seed)),
    )
    low, high = np.quantile(bootstrap, [(1 - level) / 2, (1 + level) / 2], axis=0)
    intervals = {name: (float(low[n]), float(high[n])) for n, name in enumerate(NAMES) if problem.free[n]}
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
        _undetermined(intervals, problem.min_compute),
        bootstrap,
    )


def _check_options(error: np.ndarray, alpha: float | None, e_inf: float | None, resamples: int, level: float) -> None:
    """Raise ValueError if an option of fit_curve, or the largest error, is out of its range."""
    if error.max() > 1:
        raise ValueError(f"error goes up to {error.max():g}: expected shares of wrong answers, 0-1, not percent")
    if alpha is not None and not ALPHA_BOUNDS[0] <= alpha <= ALPHA_BOUNDS[1]:
        raise ValueError(f"alpha is held at {alpha}: expected {ALPHA_BOUNDS[0]} to {ALPHA_BOUNDS[1]}")
    if e_inf is not None and not 0 <= e_inf < error.max():
        raise ValueError(f"e_inf is held at {e_inf}: expected 0 to below the largest error, {error.max():g}")
    if resamples < 2 or not 0 < level < 1:
        raise ValueError(f"{resamples} resamples, level {level}: expected 2 or more, and a level within 0-1")


class _CurveProblem:
    """The least-squares problem of fit_curve, in the variables of its search.

    The variables are log A, log(1 + b / smallest C), alpha and e_inf, of E = A ((b + C) / (b + middle))^-alpha + e_inf.
    A is about as large as the errors for any alpha, while a ranges over dozens of orders of magnitude.
    """

    def __init__(self, compute: np.ndarray, error: np.ndarray, alpha: float | None, e_inf: float | None):
        self.compute, self.error = compute, error  # (points,) both
        self.held = np.array([np.nan, np.nan, np.nan if alpha is None else alpha, np.nan if e_inf is None else e_inf])
        self.free = np.isnan(self.held)  # (4,) bool: which variables are searched
        self.min_compute, self.middle = compute.min(), np.exp(np.log(compute).mean())
        self.lower = np.array([np.log(error.min()) - 12, 0, ALPHA_BOUNDS[0], 0])[self.free]
        max_log_b = np.log1p(compute.max() / self.min_compute)
        self.upper = np.array([np.log(error.max()) + 5, max_log_b, ALPHA_BOUNDS[1], error.max()])[self.free]

    def starts(self) -> np.ndarray:  # (starts, free)
        """Return the distinct points where the local searches begin."""
        starts = [
            (np.log(self.error.mean() / 2), log_b, alpha, share * self.error.min())
            for log_b in (0.1, 1.5)
            for alpha in (0.1, 0.3, 1.0)
            for share in (0.05, 0.6)
        ]
        return np.unique(np.array(starts)[:, self.free], axis=0)

    def predict(self, variables: np.ndarray, compute: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return errors (n,) and their derivatives (n, free) for the free variables."""
        full = self.held.copy()
        full[self.free] = variables
        log_amplitude, log_b, exponent, e_inf = full
        b = self.min_compute * np.expm1(log_b)
        log_ratio = np.log((b + compute) / (b + self.middle))
        above = np.exp(log_amplitude - exponent * log_ratio)
        by_b = -exponent * above * (1 / (b + compute) - 1 / (b + self.middle)) * (b + self.min_compute)
        derivatives = np.stack([above, by_b, -above * log_ratio, np.ones_like(compute)], 1)
        return above + e_inf, derivatives[:, self.free]

    def solve(self, which: np.ndarray, starts: np.ndarray) -> np.ndarray:  # (4,)
        """Return the variables of the best local search from `starts` on the points with indices `which`."""
        compute, log_error = self.compute[which], np.log(self.error[which])

        def residuals(variables: np.ndarray) -> np.ndarray:
            return np.log(self.predict(variables, compute)[0]) - log_error

        def jacobian(variables: np.ndarray) -> np.ndarray:
            errors, derivatives = self.predict(variables, compute)
            return derivatives / errors[:, None]

        least_squares = scipy_module("optimize").least_squares
        bounds = (self.lower, self.upper)
        found = [least_squares(residuals, start, jacobian, bounds, x_scale="jac") for start in starts]
        best = self.held.copy()
        best[self.free] = min(found, key=lambda one: one.cost).x
        return best

    def bootstrap(self, best: np.ndarray, resamples: int, seed: int) -> np.ndarray:  # (resamples, 4)
        """Return the variables of fits to resampled points, each searched from `best`."""
        rng, found = np.random.default_rng(seed), list[np.ndarray]()
        while len(found) < resamples:
            which = rng.integers(0, len(self.compute), len(self.compute))
            # With fewer distinct points than free variables, infinitely many curves fit equally well.
            if len(np.unique(self.compute[which])) >= self.free.sum():
                found.append(self.solve(which, best[None, self.free]))
        return np.array(found)

    def to_parameters(self, variables: np.ndarray) -> np.ndarray:  # (..., 4) both
        """Return a, b, alpha and e_inf for the variables of the search."""
        log_amplitude, log_b, exponent, e_inf = np.moveaxis(variables, -1, 0)
        b = self.min_compute * np.expm1(log_b)
        return np.stack([np.exp(log_amplitude) * (b + self.middle) ** exponent, b, exponent, e_inf], -1)


def _undetermined(intervals: dict[str, tuple[float, float]], min_compute: float) -> dict[str, str]:
    """Return the parameters that their intervals leave open, each with the reason."""
    reasons = {}
    for name, (low, high) in intervals.items():
        if name == "alpha" and (low <= 1.01 * ALPHA_BOUNDS[0] or high >= 0.99 * ALPHA_BOUNDS[1]):
            reasons[name] = "its interval reaches the bounds of the search"
        elif low < {"b": 1e-3 * min_compute, "e_inf": 1e-4}.get(name, 0):
            reasons[name] = "it is not told from 0"
        elif high > 10 * low:
            reasons[name] = "its interval covers more than an order of magnitude"
    return reasons


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
        """Return y at any x, in the shape of `x`."""
        return self.k * np.asarray(x, np.float64) ** self.exponent


def fit_power_law(x: ArrayLike, y: ArrayLike, level: float = 0.95) -> PowerLaw:
    """Fit a power law by least squares of log y against log x, (points,) each, above 0.

    The interval assumes independent points. On a front of few architectures P* grows in steps, whose points are not
    independent, so that the interval is too narrow. Raises ValueError for fewer than 3 distinct x, x over less than a
    factor of MIN_SPAN, y that are all equal, and numbers that are not finite and above 0.
    """
    x, y = _points(x, y, ("x", "y"))
    _check_span(x, "x", 3)
    if not np.ptp(y):
        raise ValueError(f"all y are {y[0]:g}: no power law to fit")
    fit = scipy_module("stats").linregress(np.log(x), np.log(y))
    half = scipy_module("stats").t.ppf((1 + level) / 2, len(x) - 2) * fit.stderr
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
    """Runs of the front, sorted by compute, and the power laws of their sizes."""

    front: np.ndarray  # (front,) int, indices of the runs
    compute: np.ndarray  # (front,) [FLOP]
    parameters: np.ndarray  # (front,) P*
    images: np.ndarray  # (front,) N*, images seen
    p: PowerLaw  # P* ~ C^p
    n: PowerLaw  # N* ~ C^n


def compute_optimal(
    rows: Sequence[Mapping[str, Any]],  # one per run: "parameters", "images_seen", "flop", "error" 0-1
) -> ComputeOptimal:
    """Return the best use of compute: P* ~ C^p and N* ~ C^n along the front. The paper finds p 0.35 and n 0.65.

    N* counts the images seen, N * T, as C = FLOP(f) * 3 * N * T requires. If nearly all parameters are weights, p + n
    is 1 whatever was measured. Raises ValueError as pareto_front and fit_power_law do, for the front's runs.
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
    e_inf: float = 0.0,  # the error that no size removes, subtracted from the errors
) -> PowerLaw:
    """Fit error - e_inf ~ P^-alpha_P at fixed data or N^-alpha_N at a fixed model.

    The exponents are minus the paper's alpha_P ~ 1 and alpha_N ~ 0.35. Raises ValueError if the other size differs
    between rows, if an error is e_inf or less, and as fit_power_law does.
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
