"""Predicted cost of a training run: images/sec, the part that limits them, hours, memory. Not measurements.

The model: the device first computes the matrix products at a share of the dense peak (`efficiency`), then makes its
passes over memory (the operations between the products, and the optimiser). The host link, the host's loader, the disk
and the exchange of gradients between several devices work in parallel with the device. The slowest of them limits the
run (it binds). `explain` prints every assumption.

Passes over memory and the peak of memory are counted: they are those of the kernels that torch.compile writes for an
A5000 (benchmarks/dry_run.py), for which nothing was timed. Needs no torch.
"""

from dataclasses import dataclass, field, replace

from ..arch import Arch
from . import flops
from .hardware import LINK_EFFICIENCY, MEMORY_EFFICIENCY, Machine, dtype_bytes

GIB = 2**30
RESERVED_BYTES = GIB  # of a card's memory, for CUDA itself and for fragmentation
# A step has to fit with 15 % more than its counted bytes: cuBLAS takes workspaces, torch's allocator keeps free blocks,
# and without torch.compile autocast's LayerNorm holds its input once more, in float32. Not measured.
MEMORY_MARGIN = 1.15
MAX_MICRO_BATCH_SIZE = 16_384
LOADER_SLOTS = 3  # batches that the loader of a split keeps buffers for (batches_ahead=1)
EVALUATION_BATCH_SIZE = 8192  # on an accelerator
LARGEST = 2**50  # what is computed of such numbers is still finite
PARAM_BYTES = 17  # crop box and flip of an image, sent with it


@dataclass(frozen=True)
class TrainingJob:
    """Training run whose cost is predicted. Raises ValueError for sizes below 1 or beyond LARGEST."""

    arch: Arch
    res: int
    num_classes: int
    images: int  # per epoch
    batch_size: int
    epochs: float
    optimizer: str = "lion"
    micro_batch_size: int = 0  # 0 for the largest that fits
    stored_res: int = 0  # of the beton, 0 for res
    cached: bool = False  # whether the beton's pixels are in the device's memory
    ema: bool = False  # whether there is a moving average of the weights
    num_devices: int = 1  # which share each batch, with a process for each

    def __post_init__(self) -> None:
        for name in ("res", "num_classes", "images", "batch_size", "num_devices"):
            if not 1 <= getattr(self, name) <= LARGEST:
                given = str(getattr(self, name))[:20]
                raise ValueError(f"{name}={given}: expected at least 1 and at most {LARGEST:,}")
        if not 0 < self.epochs <= LARGEST:
            raise ValueError(f"epochs={self.epochs}: expected a number above 0, at most {LARGEST:,}")

    @property
    def image_bytes(self) -> int:
        """Return the bytes of one image in the beton."""
        return 3 * (self.stored_res or self.res) ** 2

    @property
    def local_batch_size(self) -> int:
        """Return the images of a batch on one device."""
        return -(-self.batch_size // self.num_devices)


@dataclass(frozen=True)
class Host:
    """Rates at which the host can feed the device, in images/s and bytes/s; None is unknown and sets no bound."""

    loader_images_per_s: float | None = None  # of all the loader's cores together
    disk_bytes_per_s: float | None = None
    memory_bytes: float | None = None  # a larger beton is read from disk in each epoch


@dataclass(frozen=True)
class Budget:
    """Predicted cost. bounds: the images/s that each part would allow by itself, of all devices together; memory: bytes
    on a device by part; pinned_bytes: page-locked memory of the host.
    """

    machine: Machine
    job: TrainingJob
    bounds: dict[str, float]
    memory: dict[str, float]
    micro_batch_size: int
    fits: bool
    pinned_bytes: float = 0.0
    advice: list[str] = field(default_factory=list)

    @property
    def binding(self) -> str:
        return min(self.bounds, key=lambda name: self.bounds[name])

    @property
    def images_per_s(self) -> float:
        return self.bounds[self.binding]

    @property
    def epoch_s(self) -> float:
        return self.job.images / self.images_per_s

    @property
    def days(self) -> float:
        return self.epoch_s * self.job.epochs / 86_400


def memory(job: TrainingJob, precision: str, micro_batch_size: int) -> dict[str, float]:
    """Return the bytes on each device by part, at the peak of a step. `precision` is a Machine's.

    The peak is at the loss, with the logits and their gradient beside all activations, or in the last block's backward
    pass. With one micro-batch, gradients take the place of activations as these are freed.
    """
    arch, size, batch_size = job.arch, dtype_bytes(precision), job.local_batch_size
    parameters = flops.parameters(arch, job.res, job.num_classes)
    pixels = 3 * job.res**2
    wide = arch.expansion * arch.width if arch.kind == "B" else arch.width
    stored = flops.activation_bytes(arch, job.res, job.num_classes, micro_batch_size, size)
    stored -= micro_batch_size * pixels * size  # the batch's own images
    activations = stored + micro_batch_size * size * max(job.num_classes, wide + arch.width)
    gradients = 4 * parameters if micro_batch_size < batch_size else max(0, 4 * parameters - activations)
    batches = batch_size * (job.image_bytes + PARAM_BYTES + pixels * size) + EVALUATION_BATCH_SIZE * job.image_bytes
    copies = (
        2 * (parameters - pixels * arch.width) if precision == "bfloat16" else 0
    )  # autocast's, for the backward pass
    return {
        "weights": 4.0 * parameters + copies,
        "gradients": float(gradients),
        "exchanged gradients": 4.0 * parameters if job.num_devices > 1 else 0.0,  # DistributedDataParallel's buckets
        "optimiser": float(flops.optimizer_bytes(job.optimizer, arch, job.res, job.num_classes)),
        "moving average": 4.0 * parameters if job.ema else 0.0,
        "activations": float(activations),
        "batches": float(LOADER_SLOTS * batches),
        "cached data": float(job.images * job.image_bytes) if job.cached else 0.0,
    }


def pinned_bytes(job: TrainingJob) -> float:
    """Return the page-locked memory of the host: batches of the loaders of training and evaluation, of each device."""
    images = job.local_batch_size + EVALUATION_BATCH_SIZE
    return job.num_devices * LOADER_SLOTS * images * (job.image_bytes + PARAM_BYTES)


def needed_bytes(parts: dict[str, float]) -> float:
    """Return the bytes that have to be free for these parts of `memory`, which is more than their sum."""
    return MEMORY_MARGIN * sum(parts.values())


def fitting_micro_batch(job: TrainingJob, precision: str, room_bytes: float) -> int:
    """Return the micro-batch size of the budget and of the trainer; 0 if not even 2 images fit.

    It is the batch, at most 16,384 images, halved until a whole step fits into room_bytes with MEMORY_MARGIN: weights,
    gradients, optimiser, moving average, activations and logits, the loader's batches and cached pixels. Halves are
    even, since MixUp pairs neighbours.
    """
    size = min(MAX_MICRO_BATCH_SIZE, job.local_batch_size)
    while needed_bytes(memory(job, precision, size)) > room_bytes:
        if size <= 2:
            return 0
        size = 2 * -(-size // 4)
    return size


def traffic_bytes_per_image(job: TrainingJob, machine: Machine, micro_batch_size: int) -> float:
    """Return the bytes between device memory and its caches for everything except the matrix products.

    Counted in the kernels for an A5000, with MixUp; m is the width. Images are augmented, normalised and written once.
    The embedding is mixed by passes without a compiler. The loss reads the logits twice, if a row is too long for
    registers, and writes their gradient, which the head's bias reads. Autocast converts each weight, and its gradient,
    once per micro-batch. Gradients of several micro-batches are added up. The optimiser passes over weights, gradients
    and its state once per batch, the moving average over itself and weights.
    """
    arch, size, batch_size = job.arch, dtype_bytes(machine.precision), job.local_batch_size
    parameters, pixels = flops.parameters(arch, job.res, job.num_classes), 3 * job.res**2
    images = job.image_bytes + pixels * size
    embedding = 17 * arch.width * size
    logits = (4 if job.num_classes > 1024 else 3) * job.num_classes * size
    converted = 12 * parameters / micro_batch_size if machine.precision == "bfloat16" else 0
    added = 12 * parameters * (1 / micro_batch_size - 1 / batch_size)
    average = 3 * 4 * parameters if job.ema else 0
    state = flops.optimizer_bytes(job.optimizer, arch, job.res, job.num_classes)
    update = (3 * 4 * parameters + 2 * state + average) / batch_size
    return images + embedding + arch.blocks * _block_bytes(arch, size) + logits + converted + added + update


def _block_bytes(arch: Arch, size: int) -> int:
    """Return the bytes of a block's passes for an image, forward and backward; `size` is that of an activation."""
    width = arch.width
    if arch.kind == "S":
        return size * 11 * width
    wide = arch.expansion * width
    # Inductor joins the sums over the batch (gradients of LayerNorm and of the biases) with other passes if there are
    # enough columns; where it begins to depends on the card and the batch, too (up to 10 % of these bytes).
    return size * ((12 if width < 512 else 10) * width + (6 if wide < 4096 else 5) * wide)


def predict(job: TrainingJob, machine: Machine, host: Host | None = None) -> Budget:
    """Return the predicted cost. If not even 2 images at a time fit in the device's memory, Budget.fits is False."""
    host = host or Host()
    room = machine.memory_bytes - RESERVED_BYTES
    micro_batch_size = job.micro_batch_size or fitting_micro_batch(job, machine.precision, room)
    micro_batch_size = micro_batch_size or min(2, job.local_batch_size)
    parts = memory(job, machine.precision, micro_batch_size)
    fits = needed_bytes(parts) <= room
    flop = flops.training_flop_per_image(job.arch, job.res, job.num_classes)
    products_s = flop / (machine.flop_per_s * machine.efficiency)
    passes_s = traffic_bytes_per_image(job, machine, micro_batch_size) / (
        machine.memory_bytes_per_s * MEMORY_EFFICIENCY
    )
    bounds = {"device": job.num_devices / (products_s + passes_s)}
    if machine.link_bytes_per_s:
        link = machine.link_bytes_per_s * LINK_EFFICIENCY
        if not job.cached:
            bounds["host link"] = job.num_devices * link / (job.image_bytes + PARAM_BYTES)
        if job.num_devices > 1:  # a ring over the host link; cards that NVLink joins are faster
            exchanged = 2 * 4 * flops.parameters(job.arch, job.res, job.num_classes)
            share = (job.num_devices - 1) / job.num_devices
            bounds["gradient exchange"] = job.batch_size * link / (exchanged * share)
    if host.loader_images_per_s and not job.cached:
        bounds["loader"] = host.loader_images_per_s
    beton_bytes = job.images * job.image_bytes
    if host.disk_bytes_per_s and not job.cached and host.memory_bytes and beton_bytes > host.memory_bytes:
        bounds["disk"] = host.disk_bytes_per_s / job.image_bytes
    shares = {"arithmetic": 1 / products_s, "device memory": 1 / passes_s}
    pinned = pinned_bytes(job) if machine.link_bytes_per_s else 0.0
    budget = Budget(machine, job, bounds, parts, micro_batch_size, fits, pinned)
    return replace(budget, advice=_advice(budget, shares, room))


def _advice(budget: Budget, shares: dict[str, float], room: float) -> list[str]:
    """Return what would make the run fit or speed it up; `room` is the device's memory for the run [bytes]."""
    job, advice = budget.job, []
    beton_bytes = job.images * job.image_bytes
    if not budget.fits:
        advice.append(
            f"it does not fit: {needed_bytes(budget.memory) / GIB:.1f} GiB, with a margin of {MEMORY_MARGIN - 1:.0%}, "
            f"of {room / GIB:.1f}; take a smaller batch or a narrower model"
        )
    if budget.binding in ("host link", "loader", "disk") and not job.cached:
        free = room - needed_bytes(budget.memory)
        if beton_bytes < free:
            advice.append(f'keep the pixels on the device ({beton_bytes / GIB:.1f} GiB): cache="device"')
        elif job.stored_res in (0, job.res) and job.res > 32:
            advice.append(
                f"a beton of {job.res // 2} px needs a quarter of the bytes (and shows the model less detail)"
            )
    if budget.binding == "gradient exchange":
        advice.append("exchanging gradients takes longer than computing them: a larger batch, or fewer devices")
    if budget.binding == "loader":
        advice.append("more cores for the loader")
    if budget.binding == "disk":
        advice.append("more memory, or a faster disk; order=QUASI_RANDOM reads it in large pieces")
    if budget.binding == "device" and shares["device memory"] < shares["arithmetic"]:
        advice.append("passes over memory take longer than the products: a wider model uses the device better")
    return advice


def explain(budget: Budget) -> str:
    """Return the prediction and its assumptions as text."""
    job, machine = budget.job, budget.machine
    name = machine.name if job.num_devices == 1 else f"{job.num_devices} x {machine.name}"
    lines = [
        f"predicted for {name}: {job.arch}, {job.res} px, {job.num_classes:,} classes, batch "
        f"{job.batch_size:,} in micro-batches of {budget.micro_batch_size:,}, {job.optimizer}, {machine.precision}",
        *(
            f"  {name:18s}{rate:14,.0f} images/sec{'   <- binds' if name == budget.binding else ''}"
            for name, rate in budget.bounds.items()
        ),
        f"  an epoch of {job.images:,} images: {_duration(budget.epoch_s)}; {job.epochs:g} epochs: "
        f"{_duration(budget.epoch_s * job.epochs)}",
        "  memory: "
        + ", ".join(f"{name} {size / GIB:.2f}" for name, size in budget.memory.items() if size)
        + f"; {sum(budget.memory.values()) / GIB:.2f} of {machine.memory_bytes / GIB:.2f} GiB",
        *([f"  page-locked memory of the host: {budget.pinned_bytes / GIB:.2f} GiB"] if budget.pinned_bytes else []),
        *(f"  advice: {text}" for text in budget.advice),
        f"  {_rates(machine)}",
        "  counted in the kernels compiled for an A5000, not timed: bytes between the products, memory of a step",
    ]
    return "\n".join(lines)


def _rates(machine: Machine) -> str:
    """Return the rates that the prediction counts on, and where they are from."""
    products, link = machine.flop_per_s / 1e12, machine.link_bytes_per_s
    if machine.measured:
        text = f"measured: products of {machine.efficiency * products:.4g} TFLOP/s"
        text += f", copies of {MEMORY_EFFICIENCY * machine.memory_bytes_per_s / 1e9:,.4g} GB/s"
        return text + (f", {LINK_EFFICIENCY * link / 1e9:.4g} GB/s to the device" if link else "")
    text = f"assumed: {machine.efficiency:.0%} of the dense peak of {products:.4g} TFLOP/s"
    text += f", {MEMORY_EFFICIENCY:.0%} of {machine.memory_bytes_per_s / 1e9:,.0f} GB/s"
    return text + (f", {LINK_EFFICIENCY:.0%} of a link of {link / 1e9:.4g} GB/s" if link else "")


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
