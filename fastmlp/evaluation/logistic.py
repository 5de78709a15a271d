"""Linear probes: L2-regularised multinomial logistic regression on frozen features, by L-BFGS.

The protocol is that of Kornblith et al. (2019, arXiv 1805.08974) and of CLIP (arXiv 2103.00020, appendix A.3), which
choose the strength of L2 on a held-out part of the training set. Features are standardised here, so that their scales
do not matter.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from ..device import host_buffer
from ..messages import progress_bar
from .evaluate import topk_correct

# Elements of a chunk of features or logits; its temporaries take a few times 4 MiB on the CPU, 256 MiB elsewhere.
CHUNK = {"cpu": 2**20}
CHUNK_ELSEWHERE = 2**26
HOLD_OUT_CHUNK = 4096  # held-out samples that are classified at once
HISTORY = 10  # of L-BFGS
MAX_ITERATIONS = 1000
CANDIDATES = tuple(10.0**power for power in range(0, -7, -1))  # from strong to weak


@contextmanager
def _full_precision() -> Iterator[None]:
    """Turn off TF32, if the caller's script allows it: its rounding would mislead line searches."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class _Problem:
    """Loss on some rows of the features, a chunk at a time, for the weights of columns of mean 0 and std 1."""

    def __init__(self, features: Tensor, labels: Tensor, num_classes: int, rows: Tensor | None = None):
        self.features, self.labels, self.num_classes, self.rows = features, labels, num_classes, rows
        self.count = len(features) if rows is None else len(rows)
        self.dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        sums = torch.zeros(2, features.shape[1], dtype=torch.float64, device=features.device)
        pivot = features[0].double()  # deviations from a sample, not from 0: exactly 0 in constant columns
        for x, _ in self.chunks():
            deviations = x.double() - pivot
            sums += torch.stack([deviations.sum(0), deviations.square_().sum(0)])
        if not sums.isfinite().all():
            bad = (~sums.isfinite().all(0)).nonzero()[0].item()
            raise ValueError(
                f"features: column {bad} (at least) is not finite: check for overflow, for example in float16"
            )
        mean, square = sums / self.count
        std = (square - mean.square()).clamp(min=0).sqrt()
        # Rounded to the dtype of the chunks: the bias must subtract exactly what the chunks subtract.
        self.mean = (mean + pivot).to(self.dtype)
        # Columns that are constant to float32's rounding get weights of 0.
        self.scale = torch.where(std > 1e-6 * self.mean.abs(), 1 / std, 0.0)

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield features (n, m) and labels (n,) of consecutive rows."""
        size = CHUNK.get(self.features.device.type, CHUNK_ELSEWHERE) // max(self.features.shape[1], self.num_classes)
        for start in range(0, self.count, max(1, size)):
            stop = min(start + max(1, size), self.count)
            rows = slice(start, stop) if self.rows is None else self.rows[start:stop]
            yield self.features[rows].to(self.dtype), self.labels[rows]

    def loss_and_gradient(self, p: Tensor, l2: float) -> tuple[Tensor, Tensor]:
        """Return the loss, () float64, and the gradient, (num_classes, m + 1), biases last.

        Sums over chunks are in float64.
        """
        scaled = (p[:, :-1] * self.scale).to(self.dtype)  # scale p instead of the chunks: one pass over them less
        loss = torch.zeros((), dtype=torch.float64, device=p.device)
        gradient = torch.zeros(p.shape, dtype=torch.float64, device=p.device)
        for x, y in self.chunks():
            x = x - self.mean
            logits = torch.addmm(p[:, -1], x, scaled.T)
            logits -= logits.logsumexp(1, keepdim=True)
            loss -= logits.gather(1, y[:, None]).sum(dtype=torch.float64)
            errors = logits.exp_().scatter_add_(1, y[:, None], logits.new_full((len(y), 1), -1.0))
            gradient[:, :-1] += errors.T @ x
            gradient[:, -1] += errors.sum(0)
        gradient[:, :-1] *= self.scale
        gradient /= self.count
        gradient[:, :-1] += l2 * p[:, :-1]
        return loss / self.count + l2 / 2 * p[:, :-1].double().square().sum(), gradient.to(self.dtype)

    def minimise(self, p: Tensor, l2: float, max_iterations: int, tolerance: float, show_progress: bool) -> Tensor:
        """Return the best p, (num_classes, m + 1), of a search that starts from p.

        The search itself runs on the host, since torch's L-BFGS reads about 30 numbers in each iteration, and an
        accelerator would have to finish its work for each. For 1000 classes of 1024 features an iteration takes it
        22 ms (2 cores).
        """
        host = _host_copy(p.to(self.dtype))
        optimizer = torch.optim.LBFGS(
            [host],
            max_iter=max_iterations,
            max_eval=3 * max_iterations,
            history_size=HISTORY,
            line_search_fn="strong_wolfe",
            tolerance_grad=tolerance / math.sqrt(p.numel()),
            tolerance_change=1e-12,
        )
        hidden = {} if show_progress else {"disable": True}  # else TQDM_DISABLE is obeyed
        with progress_bar(total=max_iterations, desc=f"l2={l2:g}", unit=" iterations", delay=1, **hidden) as bar:

            def closure() -> Tensor:
                bar.update(optimizer.state[host].get("n_iter", 0) - bar.n)
                loss, host.grad = _to_host(*self.loss_and_gradient(host.to(p.device, non_blocking=True), l2))
                return loss

            optimizer.step(closure)
        p = host.to(p.device)
        norm = self.loss_and_gradient(p, l2)[1].norm().item()
        if not norm <= tolerance:
            warnings.warn(
                f"logistic regression with l2={l2:g} has not converged after {optimizer.state[host]['n_iter']} "
                f"iterations: the gradient's norm is {norm:.2g}, the tolerance {tolerance:g}. Raise l2, max_iterations "
                "or tolerance",
                stacklevel=4,
            )
        return p

    def on_raw_features(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """Return weight (num_classes, m) and bias (num_classes,) for features that are not standardised."""
        weight = p[:, :-1] * self.scale
        return weight.to(self.dtype), (p[:, -1] - weight @ self.mean.double()).to(self.dtype)


def _host_copy(p: Tensor) -> Tensor:
    """Return a copy on the host, from page-locked memory for an accelerator."""
    buffer = torch.from_numpy(host_buffer(p.nbytes, pinned=p.device.type != "cpu"))
    return buffer.view(p.dtype).view(p.shape).copy_(p)


def _to_host(loss: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return loss, () float64, and gradient on the host, in one transfer."""
    if gradient.device.type == "cpu":
        return loss, gradient
    both = torch.cat([gradient.double().view(-1), loss.view(1)]).cpu()
    return both[-1], both[:-1].view(gradient.shape).to(gradient.dtype)


def fit_logistic(
    features: Tensor,  # (N, m)
    labels: Tensor,  # (N,) int64
    num_classes: int,
    l2: float,
    *,
    max_iterations: int = MAX_ITERATIONS,
    tolerance: float = 1e-4,  # of the gradient's norm
    show_progress: bool = True,  # as a bar
) -> tuple[Tensor, Tensor]:
    """Return weight (num_classes, m) and bias (num_classes,), for `features @ weight.T + bias`.

    They minimise the mean cross-entropy + l2 / 2 * |weight|^2 over columns scaled to mean 0 and standard deviation 1;
    biases are not penalised. Warns if the search ended before the gradient's norm fell below `tolerance`. Raises
    ValueError if features are not finite, labels are out of range, or l2 is not above 0.
    """
    _check(features, labels, num_classes, l2)
    with _full_precision(), torch.no_grad():
        problem = _Problem(features, labels, num_classes)
        start = torch.zeros(num_classes, features.shape[1] + 1, device=features.device)
        return problem.on_raw_features(problem.minimise(start, l2, max_iterations, tolerance, show_progress))


def choose_l2(
    features: Tensor,  # (N, m)
    labels: Tensor,  # (N,) int64
    num_classes: int,
    *,
    seed: int = 0,
    holdout: float = 0.1,
    candidates: Sequence[float] = CANDIDATES,
    tolerance: float = 1e-3,
    show_progress: bool = True,
) -> tuple[float, dict[float, float]]:
    """Return the l2 of the lowest loss on a held-out share of each class, the strongest of equals; and each l2's top-1.

    The loss scatters less than top-1: of 200 held-out images these chose l2s whose test top-1 differed by 2 points.
    Goes from strong to weak until two in a row are worse than the best: weak ones take hundreds of iterations.

    Raises ValueError as fit_logistic, and if no sample would be held out or left.
    """
    _check(features, labels, num_classes, *candidates)
    rest, held_out = (samples.to(features.device) for samples in _hold_out(labels, holdout, seed))
    top1: dict[float, float] = {}
    losses: dict[float, float] = {}
    with _full_precision(), torch.no_grad():
        problem = _Problem(features, labels, num_classes, rest)
        p = torch.zeros(num_classes, features.shape[1] + 1, device=features.device)
        for l2 in sorted(candidates, reverse=True):  # each search starts from the result of the one before
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # even before the optimum the top-1 ranks the candidates
                p = problem.minimise(p, l2, MAX_ITERATIONS, tolerance, show_progress)
            weight, bias = problem.on_raw_features(p)
            totals = torch.zeros(2, dtype=torch.float64, device=features.device)
            for rows in held_out.split(HOLD_OUT_CHUNK):
                logits = torch.addmm(bias, features[rows].to(weight.dtype), weight.T)
                loss = F.cross_entropy(logits, labels[rows], reduction="sum")
                totals += torch.stack([topk_correct(logits, labels[rows], 1), loss])
            top1[l2], losses[l2] = (totals / len(held_out)).tolist()
            if len(losses) > 2 and min(list(losses.values())[-2:]) > min(losses.values()):
                break
    return min(losses, key=lambda l2: (losses[l2], -l2)), top1


def _hold_out(labels: Tensor, holdout: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the other samples and of the held-out ones, the same share of each class, at random."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = shuffled[torch.argsort(labels.cpu()[shuffled], stable=True)]
    kept = torch.ones(len(labels), dtype=torch.bool)
    step = 1 / holdout if 0 < holdout < 1 else 0.0
    if step:
        kept[(torch.arange(len(labels) * holdout) * step + step / 2).long().clamp(max=len(labels) - 1)] = False
    rest, held_out = by_class[kept], by_class[~kept]
    if not len(rest) or not len(held_out):
        raise ValueError(f"holdout={holdout} of {len(labels)} samples leaves no sample on one side")
    return rest, held_out


def _check(features: Tensor, labels: Tensor, num_classes: int, *l2: float) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(labels) < 2:
        raise ValueError(
            f"features {tuple(features.shape)} and labels {tuple(labels.shape)}: expected (N, m) and "
            "(N,), at least two samples"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels {labels.min()}..{labels.max()} are outside of the {num_classes} classes")
    if not l2 or not all(0 < one < math.inf for one in l2):
        raise ValueError(f"l2={', '.join(map(str, l2)) or 'nothing'}: expected numbers above 0")
