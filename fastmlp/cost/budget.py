"""What a training run will cost: images/sec by what may bind them, hours, memory. Predictions, not measurements.

The model: on the device, matrix products at a share of the dense peak (`efficiency`), then passes over memory (what
lies between the products, and the optimiser), one after the other; beside it, all at once, the host link, the host's
loader and the disk. The slowest binds. `explain` prints every assumption. Free of torch.
"""

from dataclasses import dataclass, field, replace

from ..arch import Arch
from . import flops as compute
from .hardware import MEMORY_EFFICIENCY, Machine

GIB = 2**30
LINK_EFFICIENCY = 0.8  # of PCIe's rate; pinned memory, copies of 200 MB
RESERVED_BYTES = GIB  # of a card's memory: CUDA's own, fragments


@dataclass(frozen=True)
class TrainingJob:
    """What is to be trained."""

    arch: Arch
    res: int
    num_classes: int
    images: int  # per epoch
    batch_size: int
    epochs: float
    optimizer: str = "lion"
    micro_batch_size: int = 0  # 0: the largest that fits
    stored_res: int = 0  # of the beton, 0: res
    cached: bool = False  # the beton's pixels in the device's memory

    @property
    def image_bytes(self) -> int:
        """Of one image in the beton."""
        return 3 * (self.stored_res or self.res) ** 2


@dataclass(frozen=True)
class Host:
    """What feeds the device: rates in images/s and bytes/s; None: not known, binds nothing."""

    loader_images_per_s: float | None = None  # of all cores that load
    disk_bytes_per_s: float | None = None
    memory_bytes: float | None = None  # a beton larger than it is read from disk in each epoch


@dataclass(frozen=True)
class Budget:
    """The prediction. bounds: images/s that each part would allow alone; memory: bytes by part."""

    machine: Machine
    run: TrainingJob
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
        return self.run.images / self.images_per_s

    @property
    def days(self) -> float:
        return self.epoch_s * self.run.epochs / 86_400


def memory(run: TrainingJob, machine: Machine, micro_batch_size: int) -> dict[str, float]:
    """Bytes on the device by part, at the peak of the backward pass."""
    parameters = compute.parameters(run.arch, run.res, run.num_classes)
    half = machine.precision == "bfloat16"
    wide = max(run.num_classes, run.arch.expansion * run.arch.width if run.arch.kind == "B" else run.arch.width)
    activations = compute.activation_bytes(run.arch, run.res, run.num_classes, micro_batch_size, machine.dtype_bytes)
    batches = 3 * run.batch_size * (run.image_bytes + 3 * run.res**2 * machine.dtype_bytes)  # bytes sent and ready
    return {
        "weights": 4.0 * parameters + (2 * parameters if half else 0),  # and autocast's copies
        "gradients": 4.0 * parameters,
        "optimiser": float(compute.optimizer_bytes(run.optimizer, run.arch, run.res, run.num_classes)),
        "activations": float(activations + 2 * 4 * micro_batch_size * wide),
        "batches": float(batches),
        "cached data": float(run.images * run.image_bytes) if run.cached else 0.0,
    }


def traffic_bytes_per_image(run: TrainingJob, machine: Machine, micro_batch_size: int) -> float:
    """Between device memory and its caches for what is no matrix product.

    Each block: LayerNorm, GELU, bias and skip, forward and backward, read and write their (m) and (k m) some times;
    images are augmented, normalised and written once. Gradients are added up once per micro-batch, the optimiser passes
    once per batch over weights, gradients and its state.
    """
    arch, size = run.arch, machine.dtype_bytes
    parameters = compute.parameters(arch, run.res, run.num_classes)
    wide = arch.expansion * arch.width if arch.kind == "B" else arch.width
    per_block = size * (10 * arch.width + 6 * wide)
    images = run.image_bytes + 3 * run.res**2 * size * 2
    logits = 4 * 4 * run.num_classes
    state = compute.optimizer_bytes(run.optimizer, arch, run.res, run.num_classes)
    update = (3 * 4 * parameters + 2 * state) / run.batch_size
    gradients = 3 * 4 * parameters / micro_batch_size
    return arch.blocks * per_block + images + logits + update + gradients


def predict(run: TrainingJob, machine: Machine, host: Host | None = None) -> Budget:
    """Raises ValueError where not even two images at a time fit into the device's memory."""
    host = host or Host()
    room = machine.memory_bytes - RESERVED_BYTES
    micro_batch_size = run.micro_batch_size or min(16_384, run.batch_size)
    while (
        not run.micro_batch_size
        and micro_batch_size > 2
        and sum(memory(run, machine, micro_batch_size).values()) > room
    ):
        micro_batch_size //= 2
    parts = memory(run, machine, micro_batch_size)
    fits = sum(parts.values()) <= room
    flop = compute.training_flop_per_image(run.arch, run.res, run.num_classes)
    products_s = flop / (machine.flop_per_s * machine.efficiency)
    passes_s = traffic_bytes_per_image(run, machine, micro_batch_size) / (
        machine.memory_bytes_per_s * MEMORY_EFFICIENCY
    )
    bounds = {"device": 1 / (products_s + passes_s)}
    if machine.link_bytes_per_s and not run.cached:
        bounds["host link"] = machine.link_bytes_per_s * LINK_EFFICIENCY / (run.image_bytes + 17)  # boxes and flips
    if host.loader_images_per_s and not run.cached:
        bounds["loader"] = host.loader_images_per_s
    beton = run.images * run.image_bytes
    if host.disk_bytes_per_s and not run.cached and host.memory_bytes and beton > host.memory_bytes:
        bounds["disk"] = host.disk_bytes_per_s / run.image_bytes
    shares = {"arithmetic": 1 / products_s, "device memory": 1 / passes_s}
    budget = Budget(machine, run, bounds, parts, micro_batch_size, fits)
    return replace(budget, advice=_advice(budget, shares, room))


def _advice(budget: Budget, shares: dict[str, float], room: float) -> list[str]:
    run, advice = budget.run, []
    whole = run.images * run.image_bytes
    if not budget.fits:
        advice.append(
            f"it does not fit: {sum(budget.memory.values()) / GIB:.1f} GiB of {room / GIB:.1f}; "
            "take a smaller batch or a narrower model"
        )
    if budget.binding in ("host link", "loader", "disk") and not run.cached:
        free = room - sum(budget.memory.values())
        if whole < free:
            advice.append(f'keep the pixels on the device ({whole / GIB:.1f} GiB): cache="device"')
        elif run.stored_res in (0, run.res) and run.res > 32:
            advice.append(f"a beton of {run.res // 2} px needs a quarter of the bytes (and shows the model less)")
    if budget.binding == "loader":
        advice.append("more cores for the loader")
    if budget.binding == "disk":
        advice.append("more memory, or a faster disk; order=QUASI_RANDOM reads it in large pieces")
    if budget.binding == "device" and shares["device memory"] < shares["arithmetic"]:
        advice.append("passes over memory take longer than the products: a wider model uses the device better")
    return advice


def explain(budget: Budget) -> str:
    """The prediction and its assumptions, in lines for people."""
    run, machine = budget.run, budget.machine
    lines = [
        f"predicted for {machine.name}: {run.arch}, {run.res} px, {run.num_classes:,} classes, batch "
        f"{run.batch_size:,} in parts of {budget.micro_batch_size:,}, {run.optimizer}, {machine.precision}",
        *(
            f"  {name:14s}{rate:14,.0f} images/sec{'   <- binds' if name == budget.binding else ''}"
            for name, rate in budget.bounds.items()
        ),
        f"  an epoch of {run.images:,} images: {_duration(budget.epoch_s)}; {run.epochs:g} epochs: "
        f"{_duration(budget.epoch_s * run.epochs)}",
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
