"""Plan of one training run: which width, depth, share of the data and number of epochs a card can do in some hours.

Candidates are runs that fit the card's memory and the time (or the FLOP) by fastmlp.cost. With a law fitted to your own
study (data_law) they are ranked by the error that it predicts. Without one only the paper's split of compute between
parameters and images is known, which ranks them by their size and predicts no error. Needs no torch.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..arch import Arch, parse_arch
from ..cost import flops
from ..cost.budget import Budget, Host, TrainingJob, needed_bytes, predict
from ..cost.hardware import Machine
from ..study.scaling_laws import flop
from .data_law import DataLaw

WIDTHS = tuple(2**n for n in range(6, 13))  # 64 to 4096
DEPTHS = (6, 12)  # the paper's B-MLPs
SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625)
EPOCHS = (1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200, 300, 500, 800)
MAX_EPOCHS = 800.0  # the paper's longest; no law here knows how runs over-fit beyond it
MAX_BATCH_SIZE = 16_384  # the paper's
MIN_BATCH_SIZE = 128
STEPS_PER_EPOCH = 100
CPU_MICRO_BATCH = 1024  # as training/trainer.py takes on a CPU
SAME_ERROR = 1e-4  # predicted errors that differ by less are equal: the shorter run wins

# The paper's compute-optimal exponents: P* ~ C^0.35, and N* ~ C^0.65 images seen.
P_EXPONENT, N_EXPONENT = 0.35, 0.65
# Its published runs: ImageNet-21k at 64 px, 800 epochs. None is called compute-optimal in the paper: that one of them
# is (the anchor) is a choice of ours. The largest is the default, since the paper's front ends near it.
PUBLISHED = tuple(f"B_{blocks}-Wi_{width}" for blocks in (6, 12) for width in (256, 512, 1024))
DEFAULT_ANCHOR = "B_12-Wi_1024"
PUBLISHED_RES, PUBLISHED_CLASSES, PUBLISHED_IMAGES, PUBLISHED_EPOCHS = 64, 11_230, 11_801_680, 800


@dataclass(frozen=True)
class PlannedData:
    """Training images of a data set."""

    name: str
    images: int
    num_classes: int
    res: int


@dataclass(frozen=True)
class Limit:
    """What a run may take: hours on the machine, or FLOP as scaling_laws.flop counts them. One of them is None."""

    hours: float | None = None
    flop: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.hours, self.flop) if value is not None]
        if len(given) != 1 or not 0 < given[0] < math.inf:
            raise ValueError(f"hours {self.hours}, FLOP {self.flop}: expected one of them, a number above 0")


@dataclass(frozen=True)
class Recipe:
    """Settings of the runs that are planned; those of a study, if its law ranks them."""

    optimizer: str = "lion"
    batch_size: int = 0  # 0 for suitable_batch_size
    ema: bool = False
    slowdown: float = 1.0  # measured over predicted time, of runs on the same machine


@dataclass(frozen=True)
class Candidate:
    """A run that fits. `images_seen` counts whole steps, as the trainer takes them."""

    arch: Arch
    share: float  # of the data set's images
    images: int  # unique
    epochs: float
    batch_size: int
    images_seen: int
    flop: float
    hours: float  # predicted
    budget: Budget
    error: float | None = None  # predicted, 0-1
    interval: tuple[float, float] | None = None
    beyond: Mapping[str, float] = field(default_factory=dict)  # decades beyond the study's runs, by quantity

    @property
    def parameters(self) -> int:
        job = self.budget.job
        return flops.parameters(self.arch, job.res, job.num_classes)

    @property
    def memory_bytes(self) -> float:
        """Return the memory that has to be free on the device, with the budget's margin."""
        return needed_bytes(self.budget.memory)


def paper_archs() -> list[Arch]:
    """Return B-MLPs of the paper's depths and widths 64 to 4096."""
    return [Arch("B", blocks, width) for blocks in DEPTHS for width in WIDTHS]


def study_archs(names: Iterable[str]) -> list[Arch]:
    """Return a study's kinds, depths and expansions, each in the study's widths and in 64 to 4096."""
    archs = [parse_arch(name) for name in names]
    widths = sorted({*WIDTHS, *(arch.width for arch in archs)})
    shapes = dict.fromkeys(replace(arch, width=1) for arch in archs)
    return [replace(shape, width=width) for shape in shapes for width in widths]


def suitable_batch_size(images: int) -> int:
    """Return the batch size for a number of unique images: a power of 2 with 100 steps or more in an epoch.

    It is at most 16,384, the paper's on 11.8 million images, and at least 128. A step of more images costs more and
    hardly learns more while there are few steps; on Fashion-MNIST this gives the 512 of its own settings.
    """
    exact = max(1.0, images / STEPS_PER_EPOCH)
    return min(MAX_BATCH_SIZE, max(MIN_BATCH_SIZE, 2 ** int(math.log2(exact))))


def candidates(
    data: PlannedData,
    machine: Machine,
    limit: Limit,
    archs: Sequence[Arch],
    recipe: Recipe | None = None,
    host: Host | None = None,
    shares: Sequence[float] = SHARES,
) -> list[Candidate]:
    """Return all runs of the grid that fit the machine's memory and the limit.

    The grid: archs; shares of the data; EPOCHS, and the longest run that the limit allows, at most MAX_EPOCHS. Hours
    are those of training steps, without evaluation and start.
    """
    found = []
    for arch in archs:
        for share in shares:
            images = round(share * data.images)
            batch_size = (recipe and recipe.batch_size) or suitable_batch_size(images)
            if images >= batch_size:
                found += _lengths(data, machine, limit, arch, share, recipe or Recipe(batch_size=batch_size), host)
    return found


def _lengths(
    data: PlannedData,
    machine: Machine,
    limit: Limit,
    arch: Arch,
    share: float,
    recipe: Recipe,
    host: Host | None,
) -> list[Candidate]:
    """Return the candidates of one architecture and share, of each length that fits."""
    images = round(share * data.images)
    batch_size = recipe.batch_size or suitable_batch_size(images)
    micro_batch_size = min(CPU_MICRO_BATCH, batch_size) if machine.link_bytes_per_s is None else 0
    job = TrainingJob(
        arch, data.res, data.num_classes, images, batch_size, 1.0, recipe.optimizer, micro_batch_size, ema=recipe.ema
    )
    budget = predict(job, machine, host)
    if not budget.fits:
        return []
    epoch_flop, epoch_hours = float(flop(arch, data.res, data.num_classes, images)), budget.epoch_s / 3600
    epoch_hours *= recipe.slowdown
    longest = limit.hours / epoch_hours if limit.hours is not None else (limit.flop or 0) / epoch_flop
    longest = _rounded_down(min(longest, MAX_EPOCHS))
    found = []
    for epochs in sorted({*(float(n) for n in EPOCHS if n < longest), longest}):
        steps = round(epochs * (images // batch_size))  # as duration.Duration.steps counts them
        if steps:
            found.append(
                Candidate(
                    arch,
                    share,
                    images,
                    epochs,
                    batch_size,
                    steps * batch_size,
                    float(flop(arch, data.res, data.num_classes, steps * batch_size)),
                    epochs * epoch_hours,
                    replace(budget, job=replace(job, epochs=epochs)),
                )
            )
    return found


def _rounded_down(epochs: float) -> float:
    """Return a number of epochs cut to three digits, so that it can be read and still fits."""
    if epochs <= 0:
        return 0.0
    digits = 2 - math.floor(math.log10(epochs))
    return float(math.floor(epochs * 10**digits) / 10**digits)


def rank_by_law(found: Sequence[Candidate], law: DataLaw) -> list[Candidate]:
    """Return the candidates with their predicted errors, best first; of equal ones (SAME_ERROR) the shortest."""
    if not found:
        return []
    sizes = [[getattr(one, name) for one in found] for name in ("parameters", "images_seen", "images")]
    errors, (low, high) = law.predict(*sizes), law.interval(*sizes)
    rated = [
        replace(
            one,
            error=float(errors[n]),
            interval=(float(low[n]), float(high[n])),
            beyond=law.decades_beyond(
                parameters=one.parameters,
                images_seen=one.images_seen,
                samples=one.images,
                repetitions=one.images_seen / one.images,
                flop=one.flop,
            ),
        )
        for n, one in enumerate(found)
    ]
    return sorted(rated, key=lambda one: (round((one.error or 0) / SAME_ERROR), one.hours, one.parameters))


def optimal_parameters(compute: float, anchor: str = DEFAULT_ANCHOR) -> float:
    """Return P* at a compute [FLOP], by the paper's exponent through one of its published runs, `anchor`."""
    if anchor not in PUBLISHED:
        raise ValueError(f"anchor {anchor!r}: expected one of {', '.join(PUBLISHED)}")
    arch = parse_arch(anchor)
    seen = PUBLISHED_IMAGES * PUBLISHED_EPOCHS
    own = flop(arch, PUBLISHED_RES, PUBLISHED_CLASSES, seen)
    return flops.parameters(arch, PUBLISHED_RES, PUBLISHED_CLASSES) * (compute / own) ** P_EXPONENT


def rank_by_split(found: Sequence[Candidate], limit: Limit, anchor: str = DEFAULT_ANCHOR) -> list[Candidate]:
    """Return the longest run of each architecture, the nearest to P* first.

    P* is that of the compute which the architecture would reach if it used up the limit, also where MAX_EPOCHS ends it
    earlier: a run is not the better for leaving the machine idle. The paper's law says nothing about data that is seen
    again, so that only runs on all images are ranked.
    """
    longest: dict[Arch, Candidate] = {}
    for one in found:
        if one.share == 1 and (one.arch not in longest or one.flop > longest[one.arch].flop):
            longest[one.arch] = one

    def distance(one: Candidate) -> float:
        used = one.hours / limit.hours if limit.hours is not None else one.flop / (limit.flop or 1)
        return abs(math.log(one.parameters / optimal_parameters(one.flop / used, anchor)))

    return sorted(longest.values(), key=lambda one: (distance(one), -one.flop))


def best_of_each_arch(ranked: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return the first `count` candidates of different architectures."""
    first: dict[Arch, Candidate] = {}
    for one in ranked:
        first.setdefault(one.arch, one)
    return list(first.values())[:count]
