"""Law of the error by parameters, images seen and unique images, for data that is seen again: E(P, D, U).

E = e_inf + A P^-alpha + B D'^-beta, where D' is the number of unique images that would teach as much as D images seen
of U unique ones: D' = U (1 + r (1 - exp(-(D/U - 1) / r))) for D > U, else D. Seen for the first time, an image counts
fully; all repetitions together never count for more than r times the data. "Scaling Data-Constrained Language Models"
(Muennighoff et al. 2023, arXiv 2305.16264), equation 5. Errors are shares of wrong answers, 0-1. Needs no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..study.scaling_laws import ALPHA_BOUNDS, MIN_SPAN, check_falls, scipy_module

MIN_CELLS = 8  # the law has 6 variables
MIN_SIZES = 3  # of P, and of D
R_BOUNDS = (0.01, 1000.0)
# Studies of few epochs hardly tell r, and a fit alone would then take repeated images for new ones. r is drawn towards
# the published value, by as much as a cell weighs that is off by 2 % where r is off by a factor of e^1.5.
PUBLISHED_R, PRIOR_LOG_SD, PRIOR_WEIGHT = 15.39, 1.5, 0.02  # of text, appendix A there
NAMES = ("a", "alpha", "b", "beta", "r", "e_inf")
LEVEL = 0.95
QUANTITIES = ("parameters", "images_seen", "samples", "repetitions", "flop")


@dataclass(frozen=True)
class Cell:
    """Runs of one arm, architecture, batch size, number of unique images and length, which differ in their seed."""

    arch: str
    parameters: int  # P
    images_seen: int  # D
    samples: int  # U
    flop: float
    errors: tuple[float, ...]  # 0-1, of each seed

    @property
    def error(self) -> float:
        return float(np.mean(self.errors))

    @property
    def repetitions(self) -> float:
        """Return how often each unique image was seen."""
        return self.images_seen / self.samples


def cells_of(rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """Return the cells of a study's rows (report.rows), sorted by compute."""
    of_cell: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        key = (row["arch"], row["images_seen"], row["samples"], row["flop"], row.get("of_arm"), row["batch_size"])
        of_cell.setdefault(key, []).append(row)
    cells = [
        Cell(
            own[0]["arch"],
            own[0]["parameters"],
            own[0]["images_seen"],
            own[0]["samples"],
            own[0]["flop"],
            tuple(row["error"] for row in own),
        )
        for own in of_cell.values()
    ]
    return sorted(cells, key=lambda cell: cell.flop)


def effective_images(images_seen: ArrayLike, samples: ArrayLike, r: ArrayLike) -> np.ndarray:
    """Return D', the unique images that are worth `images_seen` of `samples` unique ones, in their common shape."""
    seen, unique, r = (np.asarray(values, np.float64) for values in (images_seen, samples, r))
    repetitions = np.maximum(seen / unique - 1, 0)
    return np.minimum(seen, unique) - unique * r * np.expm1(-repetitions / r)


@dataclass(frozen=True)
class DataLaw:
    """A fitted E(P, D, U). a and b are in units of P^alpha and D'^beta; e_inf is 0-1; r in multiples of the data."""

    a: float
    alpha: float
    b: float
    beta: float
    r: float
    e_inf: float
    relative_rms: float  # of E / error - 1, over the cells
    cells: int
    intervals: dict[str, tuple[float, float]]
    undetermined: dict[str, str]  # parameters that are not to be quoted, with the reason; predictions may still be good
    ranges: dict[str, tuple[float, float]]  # smallest and largest of QUANTITIES among the fitted cells
    bootstrap: np.ndarray = field(repr=False, compare=False)  # (resamples, 6) by NAMES
    misfit: np.ndarray = field(repr=False, compare=False)  # (cells,) log of a cell's mean error over the law's
    scatter: np.ndarray = field(repr=False, compare=False)  # (n,) log of a seed's error over its cell's mean, 0 if none

    def predict(
        self, parameters: ArrayLike, images_seen: ArrayLike, samples: ArrayLike
    ) -> np.ndarray:  # 0-1, in the common shape of the arguments
        """Return the error of runs."""
        own = np.array([getattr(self, name) for name in NAMES])
        return np.minimum(_errors(own, parameters, images_seen, samples), 1.0)

    def interval(
        self, parameters: ArrayLike, images_seen: ArrayLike, samples: ArrayLike, *, seeds: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the lower and upper error, at 95 %, of the mean of so many other runs (n,).

        It covers the bootstrap's laws, how far cells are off their law, and the scatter of seeds.

        It assumes that the law holds there; no interval knows what happens beyond the data (`decades_beyond`).
        """
        p, d, u = (np.atleast_1d(np.asarray(x, np.float64)) for x in (parameters, images_seen, samples))
        rng = np.random.default_rng(0)
        errors = _errors(self.bootstrap.T[..., None], p, d, u)  # (resamples, n)
        off = rng.choice(self.misfit, (len(errors), 20, 1))
        off = off + rng.choice(self.scatter, (len(errors), 20, seeds)).mean(-1, keepdims=True)
        errors = errors[:, None] * np.exp(off)
        low, high = np.quantile(errors.reshape(-1, errors.shape[-1]), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return np.minimum(low, 1.0), np.minimum(high, 1.0)

    def decades_beyond(self, **values: float) -> dict[str, float]:
        """Return how many decades each value (of QUANTITIES) is beyond the fitted cells; 0 within them."""
        beyond = {}
        for name, value in values.items():
            low, high = self.ranges[name]
            beyond[name] = float(max(np.log10(value / high), np.log10(low / value), 0.0))
        return beyond

    def describe(self) -> str:
        """Return the lines of a report: each parameter with its interval, and the reason if it must not be quoted."""
        lines = ["E(P, D, U) = e_inf + a P^-alpha + b D'^-beta, D' = U (1 + r (1 - exp(-(D/U - 1) / r)))"]
        for name in NAMES:
            low, high = self.intervals[name]
            line = f"  {name} = {getattr(self, name):.4g} (95 % interval {low:.4g} to {high:.4g})"
            lines.append(line + (f", UNDETERMINED: {self.undetermined[name]}" if name in self.undetermined else ""))
        lines.append(f"  fitted to {self.cells} cells, relative RMS {self.relative_rms:.2%}")
        return "\n".join(lines)


def _errors(law: np.ndarray, parameters: ArrayLike, images_seen: ArrayLike, samples: ArrayLike) -> np.ndarray:
    """Return the errors by a law's parameters, (6, ...) in the order of NAMES."""
    a, alpha, b, beta, r, e_inf = law
    p = np.asarray(parameters, np.float64)
    return e_inf + a * p**-alpha + b * effective_images(images_seen, samples, r) ** -beta


def fit_data_law(cells: Sequence[Cell], resamples: int = 200, seed: int = 0) -> DataLaw:
    """Fit E(P, D, U) to the cells' mean errors by least squares of log error.

    The intervals are 95 % percentiles of fits to resampled cells, with resampled seeds and another value that r is
    drawn to. Raises ValueError for fewer than MIN_CELLS cells or MIN_SIZES sizes or lengths, for sizes or lengths over
    less than a factor of MIN_SPAN, for errors that are not above 0 and at most 1, and if errors do not fall with
    compute.
    """
    check_cells(cells)
    if resamples < 2:
        raise ValueError(f"{resamples} resamples: expected 2 or more")
    problem = _Problem(cells)
    log_errors = np.log([cell.error for cell in cells])
    every = np.arange(len(cells))
    log_r = math.log(PUBLISHED_R)
    best = problem.solve(every, log_errors, problem.starts(), log_r)
    rng, found = np.random.default_rng(seed), list[np.ndarray]()
    while len(found) < resamples:
        which = rng.integers(0, len(cells), len(cells))
        if len(np.unique(which)) >= len(NAMES):
            drawn = [np.mean(rng.choice(cells[i].errors, len(cells[i].errors))) for i in which]
            found.append(problem.solve(which, np.log(drawn), [best], log_r + PRIOR_LOG_SD * rng.standard_normal()))
    law, bootstrap = problem.to_parameters(best), problem.to_parameters(np.array(found))
    low, high = np.quantile(bootstrap, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    predicted = problem.predict(best, every)[0]
    # The fit took up a part of the scatter: as many degrees of freedom as it has variables.
    inflation = (len(cells) / max(len(cells) - len(NAMES), 1)) ** 0.5
    scatter = [np.log(np.array(cell.errors) / cell.error) for cell in cells if len(cell.errors) > 1]
    scatter = [one * (len(one) / (len(one) - 1)) ** 0.5 for one in scatter]  # the mean took up a part of it, too
    intervals = {name: (float(low[n]), float(high[n])) for n, name in enumerate(NAMES)}
    return DataLaw(
        **dict(zip(NAMES, law.tolist(), strict=True)),
        relative_rms=float(np.mean((predicted / np.exp(log_errors) - 1) ** 2) ** 0.5),
        cells=len(cells),
        intervals=intervals,
        undetermined=_undetermined(intervals, problem.are_repeated),
        ranges={
            name: (min(getattr(cell, name) for cell in cells), max(getattr(cell, name) for cell in cells))
            for name in QUANTITIES
        },
        bootstrap=bootstrap,
        misfit=(log_errors - np.log(predicted)) * inflation,
        scatter=np.concatenate(scatter) if scatter else np.zeros(1),
    )


def check_cells(cells: Sequence[Cell]) -> None:
    """Raise ValueError if the cells cannot carry the law."""
    if len(cells) < MIN_CELLS:
        raise ValueError(
            f"{len(cells)} different runs (size, share of the data, length): the law has {len(NAMES)} variables and "
            f"needs {MIN_CELLS} or more"
        )
    for name, what in (("parameters", "sizes of the model"), ("images_seen", "lengths in images")):
        values = {getattr(cell, name) for cell in cells}
        if len(values) < MIN_SIZES or max(values) < MIN_SPAN * min(values):
            raise ValueError(
                f"{len(values)} {what}, from {min(values):,} to {max(values):,}: the law needs {MIN_SIZES} or more "
                f"over a factor of {MIN_SPAN}"
            )
    bad = [cell for cell in cells if not all(0 < error <= 1 for error in cell.errors)]
    if bad:
        raise ValueError(f"{bad[0].arch} has errors {bad[0].errors}: expected shares of wrong answers, 0-1, above 0")
    check_falls([cell.flop for cell in cells], [cell.error for cell in cells])


def _undetermined(intervals: Mapping[str, tuple[float, float]], are_repeated: bool) -> dict[str, str]:
    """Return the parameters that their intervals leave open, each with the reason."""
    reasons = {}
    for name, (low, high) in intervals.items():
        bounds = {"alpha": ALPHA_BOUNDS, "beta": ALPHA_BOUNDS, "r": R_BOUNDS}.get(name)
        if name == "r" and not are_repeated:
            reasons[name] = "no run saw an image twice, the published value is assumed"
        elif bounds and (low <= 1.01 * bounds[0] or high >= 0.99 * bounds[1]):
            reasons[name] = "its interval reaches the bounds of the search"
        elif name == "e_inf" and low < 1e-4:
            reasons[name] = "it is not told from 0"
        elif high > 10 * low:
            reasons[name] = "its interval covers more than an order of magnitude"
    return reasons


class _Problem:
    """The least-squares problem, in the variables of its search: log A, alpha, log B, beta, log r, e_inf.

    P and D' are in units of their geometric means, so that A and B are about as large as errors for any exponent.
    """

    def __init__(self, cells: Sequence[Cell]):
        p, d, u = (np.array([getattr(cell, name) for cell in cells], np.float64) for name in QUANTITIES[:3])
        self.are_repeated = bool((d > u).any())
        self.log_p_unit, self.log_d_unit = np.log(p).mean(), np.log(d).mean()
        self.log_p, self.seen, self.unique = np.log(p) - self.log_p_unit, d, u
        self.error = np.array([cell.error for cell in cells])
        max_log, log_r = np.log(self.error.max()) + 3, np.log(R_BOUNDS)
        self.lower = np.array([-14, ALPHA_BOUNDS[0], -14, ALPHA_BOUNDS[0], log_r[0], 0])
        self.upper = np.array([max_log, ALPHA_BOUNDS[1], max_log, ALPHA_BOUNDS[1], log_r[1], self.error.max()])

    def starts(self) -> list[np.ndarray]:
        """Return the points where the local searches begin."""
        third, min_error = np.log(self.error.mean() / 3), self.error.min()
        return [
            np.array([third, alpha, third, beta, np.log(r), min_error / 3])
            for alpha, beta in ((0.2, 0.2), (0.7, 0.3), (0.3, 0.7))
            for r in (1.0, 15.0)
        ]

    def predict(self, variables: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the errors of the cells `which` (n,) and their derivatives (n, 6)."""
        log_a, alpha, log_b, beta, log_r, e_inf = variables
        log_p, seen, unique, r = self.log_p[which], self.seen[which], self.unique[which], np.exp(log_r)
        effective = effective_images(seen, unique, r)
        ratio = np.maximum(seen / unique - 1, 0) / r
        by_log_r = unique * r * (-np.expm1(-ratio) - ratio * np.exp(-ratio)) / effective  # of log D'
        log_d = np.log(effective) - self.log_d_unit
        size, data = np.exp(log_a - alpha * log_p), np.exp(log_b - beta * log_d)
        derivatives = [size, -log_p * size, data, -log_d * data, -beta * by_log_r * data, np.ones_like(size)]
        return e_inf + size + data, np.stack(derivatives, 1)

    def solve(
        self, which: np.ndarray, log_errors: np.ndarray, starts: Sequence[np.ndarray], prior_log_r: float
    ) -> np.ndarray:  # (6,)
        """Return the variables of the best local search on the cells `which` with `log_errors`, (n,) both."""
        pull = PRIOR_WEIGHT / PRIOR_LOG_SD * (np.array(NAMES) == "r")

        def residuals(variables: np.ndarray) -> np.ndarray:
            off = np.log(self.predict(variables, which)[0]) - log_errors
            return np.append(off, pull @ (variables - prior_log_r))

        def jacobian(variables: np.ndarray) -> np.ndarray:
            errors, derivatives = self.predict(variables, which)
            return np.vstack([derivatives / errors[:, None], pull])

        least_squares, margin = scipy_module("optimize").least_squares, 1e-9 * (self.upper - self.lower)
        inside = [np.clip(start, self.lower + margin, self.upper - margin) for start in starts]

        def search(start: np.ndarray, tolerance: float) -> Any:
            options = {"x_scale": "jac", "max_nfev": 60, "method": "dogbox"}  # half of the steps of "trf"
            options |= {"ftol": tolerance, "xtol": tolerance, "gtol": tolerance}
            return least_squares(residuals, start, jacobian, (self.lower, self.upper), **options)

        if len(inside) > 1:
            inside = [min((search(start, 1e-4) for start in inside), key=lambda one: one.cost).x]
        return search(inside[0], 1e-7).x

    def to_parameters(self, variables: np.ndarray) -> np.ndarray:  # (..., 6) both
        """Return a, alpha, b, beta, r and e_inf for the variables of the search."""
        log_a, alpha, log_b, beta, log_r, e_inf = np.moveaxis(variables, -1, 0)
        a, b = np.exp(log_a + alpha * self.log_p_unit), np.exp(log_b + beta * self.log_d_unit)
        return np.stack([a, alpha, b, beta, np.exp(log_r), e_inf], -1)
