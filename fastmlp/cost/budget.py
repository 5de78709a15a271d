"""Predicted cost of a training run: images/sec, the part that limits them, hours, memory. Not measurements.

The model: the device first computes the matrix products at a share of the dense peak (`efficiency`), then makes its
passes over memory (the operations between the products, and the optimiser). The host link, the host's loader and the
disk work in parallel with the device. The slowest of them limits the run (it binds). `explain` prints every assumption.
Needs no torch.
"""

from dataclasses import dataclass, field, replace

from ..arch import Arch
from . import flops
from .hardware import MEMORY_EFFICIENCY, Machine

GIB = 2**30
LINK_EFFICIENCY = 0.8  # of PCIe's rate; pinned memory, copies of 200 MB
RESERVED_BYTES = GIB  # of a card's memory, for CUDA itself and for fragmentation


@dataclass(frozen=True)
class TrainingJob:
    """Training run whose cost is predicted."""

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

    @property
    def image_bytes(self) -> int:
        """Return the bytes of one image in the beton."""
        return 3 * (self.stored_res or self.res) ** 2


@dataclass(frozen=True)
class Host:
    """Rates at which the host can feed the device, in images/s and bytes/s; None is unknown and sets no bound."""

    loader_images_per_s: float | None = None  # of all the loader's cores together
    disk_bytes_per_s: float | None = None
    memory_bytes: float | None = None  # a larger beton is read from disk in each epoch


@dataclass(frozen=True)
class Budget:
    """Predicted cost. bounds: the images/s that each part would allow by itself; memory: bytes by part."""

    machine: Machine
    job: TrainingJob
    bounds: dict[str, float]
    memory: dict[str, float]
    micro_batch_size: int
    fits: bool
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


def memory(job: TrainingJob, machine: Machine, micro_batch_size: int) -> dict[str, float]:
    """Return the bytes on the device by part, at the peak of the backward pass."""
    parameters = flops.parameters(job.arch, job.res, job.num_classes)
    half = machine.precision == "bfloat16"
    wide = max(job.num_classes, job.arch.expansion * job.arch.width if job.arch.kind == "B" else job.arch.width)
    activations = flops.activation_bytes(job.arch, job.res, job.num_classes, micro_batch_size, machine.dtype_bytes)
    batches = 3 * job.batch_size * (job.image_bytes + 3 * job.res**2 * machine.dtype_bytes)  # as sent, and converted
    return {
        "weights": 4.0 * parameters + (2 * parameters if half else 0),  # and autocast's copies
        "gradients": 4.0 * parameters,
        "optimiser": float(flops.optimizer_bytes(job.optimizer, job.arch, job.res, job.num_classes)),
        "activations": float(activations + 2 * 4 * micro_batch_size * wide),
        "batches": float(batches),
        "cached data": float(job.images * job.image_bytes) if job.cached else 0.0,
    }


def traffic_bytes_per_image(job: TrainingJob, machine: Machine, micro_batch_size: int) -> float:
    """Return the bytes between device memory and its caches for everything except the matrix products.

    In each block LayerNorm, GELU, bias and skip read and write their (m) and (k m) values several times, forward and
    backward. Images are augmented, normalised and written once. Gradients are accumulated once per micro-batch. The
    optimiser passes over weights, gradients and its state once per batch.
    """
    arch, size = job.arch, machine.dtype_bytes
    parameters = flops.parameters(arch, job.res, job.num_classes)
    wide = arch.expansion * arch.width if arch.kind == "B" else arch.width
    per_block = size * (10 * arch.width + 6 * wide)
    images = job.image_bytes + 3 * job.res**2 * size * 2
    logits = 4 * 4 * job.num_classes
    state = flops.optimizer_bytes(job.optimizer, arch, job.res, job.num_classes)
    update = (3 * 4 * parameters + 2 * state) / job.batch_size
    gradients = 3 * 4 * parameters / micro_batch_size
    return arch.blocks * per_block + images + logits + update + gradients


def predict(job: TrainingJob, machine: Machine, host: Host | None = None) -> Budget:
    """Return the predicted cost. If not even 2 images at a time fit in the device's memory, Budget.fits is False."""
    host = host or Host()
    room = machine.memory_bytes - RESERVED_BYTES
    micro_batch_size = job.micro_batch_size or min(16_384, job.batch_size)
    while (
        not job.micro_batch_size
        and micro_batch_size > 2
        and sum(memory(job, machine, micro_batch_size).values()) > room
    ):
        micro_batch_size //= 2
    parts = memory(job, machine, micro_batch_size)
    fits = sum(parts.values()) <= room
    flop = flops.training_flop_per_image(job.arch, job.res, job.num_classes)
    products_s = flop / (machine.flop_per_s * machine.efficiency)
    passes_s = traffic_bytes_per_image(job, machine, micro_batch_size) / (
        machine.memory_bytes_per_s * MEMORY_EFFICIENCY
    )
    bounds = {"device": 1 / (products_s + passes_s)}
    if machine.link_bytes_per_s and not job.cached:
        bounds["host link"] = (
            machine.link_bytes_per_s * LINK_EFFICIENCY / (job.image_bytes + 17)
        )  # 17 bytes of crop box and flip
    if host.loader_images_per_s and not job.cached:
        bounds["loader"] = host.loader_images_per_s
    beton_bytes = job.images * job.image_bytes
    if host.disk_bytes_per_s and not job.cached and host.memory_bytes and beton_bytes > host.memory_bytes:
        bounds["disk"] = host.disk_bytes_per_s / job.image_bytes
    shares = {"arithmetic": 1 / products_s, "device memory": 1 / passes_s}
    budget = Budget(machine, job, bounds, parts, micro_batch_size, fits)
    return replace(budget, advice=_advice(budget, shares, room))


def _advice(budget: Budget, shares: dict[str, float], room: float) -> list[str]:
    """Return what would make the run fit or speed it up; `room` is the device's memory for the run [bytes]."""
    job, advice = budget.job, []
    beton_bytes = job.images * job.image_bytes
    if not budget.fits:
        advice.append(
            f"it does not fit: {sum(budget.memory.values()) / GIB:.1f} GiB of {room / GIB:.1f}; "
            "take a smaller batch or a narrower model"
        )
    if budget.binding in ("host link", "loader", "disk") and not job.cached:
        free = room - sum(budget.memory.values())
        if beton_bytes < free:
            advice.append(f'keep the pixels on the device ({beton_bytes / GIB:.1f} GiB): cache="device"')
        elif job.stored_res in (0, job.res) and job.res > 32:
            advice.append(
                f"a beton of {job.res // 2} px needs a quarter of the bytes (and shows the model less detail)"
            )
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
    lines = [
        f"predicted for {machine.name}: {job.arch}, {job.res} px, {job.num_classes:,} classes, batch "
        f"{job.batch_size:,} in micro-batches of {budget.micro_batch_size:,}, {job.optimizer}, {machine.precision}",
        *(
            f"  {name:14s}{rate:14,.0f} images/sec{'   <- binds' if name == budget.binding else ''}"
            for name, rate in budget.bounds.items()
        ),
        f"  an epoch of {job.images:,} images: {_duration(budget.epoch_s)}; {job.epochs:g} epochs: "
        f"{_duration(budget.epoch_s * job.epochs)}",
        "  memory: "
        + ", ".join(f"{name} {size / GIB:.2f}" for name, size in budget.memory.items() if size)
        + f"; {sum(budget.memory.values()) / GIB:.2f} of {machine.memory_bytes / GIB:.2f} GiB",
        *(f"  advice: {text}" for text in budget.advice),
        f"  assumed: {machine.efficiency:.0%} of the dense peak of {machine.flop_per_s / 1e12:.4g} TFLOP/s, "
        f"{MEMORY_EFFICIENCY:.0%} of {machine.memory_bytes_per_s / 1e9:,.0f} GB/s"
        + (
            f", {LINK_EFFICIENCY:.0%} of a link of {machine.link_bytes_per_s / 1e9:.4g} GB/s"
            if machine.link_bytes_per_s
            else ""
        ),
    ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
