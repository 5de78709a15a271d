"""Peak rates, memory and links: of cards by their data sheets, of this CPU and any other accelerator by measurement."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

PCIE_3, PCIE_4, PCIE_5 = 15.75e9, 31.5e9, 63.0e9  # x16, PCI-SIG's rates after encoding [bytes/s]


@dataclass(frozen=True)
class Card:
    """Dense peaks [FLOP/s], memory and link of a card, from its data sheet. None: the card lacks the format."""

    device_names: str  # regular expression for the whole of torch.cuda.get_device_name()
    bfloat16: float | None  # of the tensor cores, accumulating in float32
    tf32: float | None
    float32: float  # of the CUDA cores
    memory_bytes: float
    memory_bytes_per_s: float
    link_bytes_per_s: float  # one direction

    def flop_per_s(self, precision: str) -> float | None:
        """Return the dense peak of "bfloat16", "tf32" or "float32". Raises ValueError for another precision."""
        peaks = {"bfloat16": self.bfloat16, "tf32": self.tf32, "float32": self.float32}
        if precision not in peaks:
            raise ValueError(f"unknown precision {precision!r}: expected {', '.join(peaks)}")
        return peaks[precision]


# NVIDIA's data sheets print tensor-core rates with sparsity for most cards; the dense rates here are half of those.
# Memory is from the same sheets; 3090 and 4090: the white papers' appendices. A name that is not listed
# has no peak, and is measured for a budget: a laptop's card, a MIG slice.
# fmt: off
CARDS: dict[str, Card] = {
    # NVIDIA T4 data sheet
    "T4": Card(r"(Tesla|NVIDIA) T4", None, None, 8.1e12, 16e9, 320e9, PCIE_3),
    # NVIDIA V100 data sheet, for NVLink and for PCIe; the versions of 16 and 32 GB are alike
    "V100": Card(r"Tesla V100-SXM[23]-(16|32)GB", None, None, 15.7e12, 32e9, 900e9, PCIE_3),
    "V100-PCIe": Card(r"Tesla V100-PCIE-(16|32)GB", None, None, 14e12, 32e9, 900e9, PCIE_3),
    # RTX A5000 data sheet: 27.8 single precision, 222.2 tensor (bfloat16, sparse); TF32 is half of bfloat16, as in
    # "NVIDIA Ampere GA102 GPU Architecture" (white paper)
    "A5000": Card(r"(NVIDIA )?RTX A5000", 111.1e12, 55.6e12, 27.8e12, 24e9, 768e9, PCIE_4),
    # appendix of the same white paper: GeForce RTX 3090
    "3090": Card(r"(NVIDIA )?GeForce RTX 3090", 71e12, 35.6e12, 35.6e12, 24e9, 936e9, PCIE_4),
    # "NVIDIA Ada GPU Architecture" (white paper), appendix: GeForce RTX 4090
    "4090": Card(r"(NVIDIA )?GeForce RTX 4090", 165.2e12, 82.6e12, 82.6e12, 24e9, 1008e9, PCIE_4),
    # NVIDIA A100 data sheet: the versions differ in their memory
    "A100-40GB": Card(r"(NVIDIA )?A100(-SXM4|-PCIE)-40GB", 312e12, 156e12, 19.5e12, 40e9, 1555e9, PCIE_4),
    "A100": Card(r"(NVIDIA )?A100-SXM4-80GB", 312e12, 156e12, 19.5e12, 80e9, 2039e9, PCIE_4),
    "A100-PCIe": Card(r"(NVIDIA )?A100-PCIE-80GB|NVIDIA A100 80GB PCIe", 312e12, 156e12, 19.5e12, 80e9, 1935e9, PCIE_4),
    # NVIDIA L40S data sheet
    "L40S": Card(r"NVIDIA L40S", 362.05e12, 183e12, 91.6e12, 48e9, 864e9, PCIE_4),
    # NVIDIA H100 data sheet, SXM (with sparsity 1,979 and 989)
    "H100": Card(r"NVIDIA H100 80GB HBM3", 989.5e12, 494.5e12, 67e12, 80e9, 3350e9, PCIE_5),
    # NVIDIA H100 data sheet of 2022, PCIe (with sparsity 1,513 and 756)
    "H100-PCIe": Card(r"NVIDIA H100 PCIe", 756.5e12, 378e12, 51e12, 80e9, 2000e9, PCIE_5),
    # NVIDIA H200 data sheet, SXM (with sparsity 1,979 and 989)
    "H200": Card(r"NVIDIA H200", 989.5e12, 494.5e12, 67e12, 141e9, 4800e9, PCIE_5),
    # NVIDIA HGX B200 data sheet, one of eight (with sparsity 4,500 and 2,200)
    "B200": Card(r"NVIDIA B200", 2250e12, 1100e12, 75e12, 180e9, 7700e9, PCIE_5),
}
# fmt: on


MIG_CARDS = ("A100", "H100", "H200", "B200")
MIG_MEMORY_SLICES = {1: (1, 2), 2: (2,), 3: (4,), 4: (4,), 7: (8,)}  # of 8, by the compute slices, of 7


def find_card(device_name: str) -> Card | None:
    """Return the card that torch.cuda.get_device_name() names, None if CARDS lacks it."""
    return next((one for one in CARDS.values() if re.fullmatch(one.device_names, device_name)), None)


def peak_flop_per_s(
    device_name: str,  # torch.cuda.get_device_name()
    precision: str,  # "bfloat16", "tf32" or "float32"
) -> float | None:
    """Return the card's dense peak, or None if it is unknown; MFU is then "n/a" instead of a guess."""
    found = find_card(device_name)
    return None if found is None else found.flop_per_s(precision)


def device_peak_flop_per_s(device: Any) -> float | None:
    """Return the peak of the device in training's precision, None for an unknown GPU. A CPU's is measured, in 0.3 s."""
    from .. import device as devices

    if device.type != "cpu":
        return peak_flop_per_s(devices.describe(device), devices.precision(device))
    return measured_peak()


# Share of a card's dense peak that products of these shapes reach. Fitted to the paper's B-12/Wi-1024 on an RTX A5000
# (450 s per epoch of ImageNet-21k in TF32, section 4.3), whose B-6/Wi-1024 it then predicts to 5 %. Not measured for
# fastmlp, which compiles and uses bfloat16.
EFFICIENCY = 0.37
MEASURED_EFFICIENCY = 1.0  # share of measured products
ENOUGH_S = 0.01  # of a round of products on an accelerator: starting them takes microseconds
MEMORY_EFFICIENCY = 0.8  # share of the device memory's rate
LINK_EFFICIENCY = 0.8  # share of PCIe's rate; pinned memory, copies of 200 MB


def dtype_bytes(precision: str) -> int:
    """Return the bytes of an activation: autocast computes in bfloat16, TF32 is stored as float32."""
    return 2 if precision == "bfloat16" else 4


@dataclass(frozen=True)
class Machine:
    """Card, or this CPU. Rates in FLOP/s and bytes/s; None is unknown and sets no bound."""

    name: str
    flop_per_s: float  # dense peak of the products' precision
    memory_bytes: float
    memory_bytes_per_s: float
    link_bytes_per_s: float | None  # one direction
    precision: str = "bfloat16"
    efficiency: float = EFFICIENCY
    measured: bool = False  # whether the rates are measured instead of taken from a data sheet


def card(name: str, precision: str = "auto") -> Machine:
    """Return a card of CARDS; precision "auto" is bfloat16 if the card has it, else float32.

    Raises ValueError for an unknown card and for a precision that the card lacks.
    """
    if name not in CARDS:
        raise ValueError(f"unknown card {name!r}: expected one of {', '.join(CARDS)}")
    found = CARDS[name]
    if precision == "auto":
        precision = "bfloat16" if found.bfloat16 else "float32"
    peak = found.flop_per_s(precision)
    if peak is None:
        raise ValueError(f"{name} has no {precision}: use float32")
    return Machine(name, peak, found.memory_bytes, found.memory_bytes_per_s, found.link_bytes_per_s, precision)


def mig_slice(machine: Machine, profile: str) -> Machine:
    """Return a slice of a card, such as 3g.40gb of an A100: 3 of its 7 compute slices and 40 GB, in 8 memory slices.

    "NVIDIA Multi-Instance GPU User Guide". Slices share the card's link. Raises ValueError for a card without slices
    and for a profile that the card is too small for.
    """
    if not machine.name.startswith(MIG_CARDS):
        raise ValueError(f"{machine.name} has no MIG slices: {', '.join(MIG_CARDS)} have")
    matched = re.fullmatch(r"([12347])g\.(\d+)gb", profile)
    if matched is None:
        raise ValueError(f"unknown MIG profile {profile!r}: expected one such as 3g.40gb")
    compute_slices, memory_bytes = int(matched[1]), float(matched[2]) * 1e9
    memory_slices = round(8 * memory_bytes / machine.memory_bytes)
    if memory_slices not in MIG_MEMORY_SLICES[compute_slices]:
        sizes = " or ".join(f"{machine.memory_bytes / 8e9 * n:.0f}" for n in MIG_MEMORY_SLICES[compute_slices])
        raise ValueError(f"{machine.name} has no {profile}: a slice of {compute_slices}g has about {sizes} GB")
    return replace(
        machine,
        name=f"{machine.name} {profile}",
        flop_per_s=machine.flop_per_s * compute_slices / 7,
        memory_bytes=memory_bytes,
        memory_bytes_per_s=machine.memory_bytes_per_s * memory_slices / 8,
    )


def this_machine(device: Any) -> Machine:
    """Return the rates and the memory of a torch.device, in the precision that training has on it.

    The rates of a card of CARDS are those of its data sheet. Those of the CPU and of any other accelerator, such as a
    laptop's or a MIG slice, are measured on it in about a second.
    """
    from .. import device as devices

    if device.type == "cpu":
        return _measured_machine("this CPU", device, devices.free_bytes(device))
    name, precision, memory_bytes = devices.describe(device), devices.precision(device), devices.total_bytes(device)
    found = find_card(name)
    peak = None if found is None else found.flop_per_s(precision)
    if found is None or peak is None:
        return _measured_machine(name, device, memory_bytes)
    return Machine(name, peak, memory_bytes, found.memory_bytes_per_s, found.link_bytes_per_s, precision)


def _measured_machine(name: str, device: Any, memory_bytes: float) -> Machine:
    from .. import device as devices

    return Machine(
        f"{name} (products and copies measured)",
        measured_peak(device=device),
        memory_bytes,
        copied_bytes_per_s(device) / MEMORY_EFFICIENCY,
        None if device.type == "cpu" else sent_bytes_per_s(device) / LINK_EFFICIENCY,
        devices.precision(device),
        MEASURED_EFFICIENCY,
        measured=True,
    )


def measured_peak(
    shapes: Sequence[tuple[int, int, int]] | None = None,  # (m, k, n) of (m, k) @ (k, n), one round: all
    seconds: float = 0.3,
    device: Any = None,  # torch.device; None is the CPU
) -> float:
    """Return the FLOP/s of products in training's precision on a device, in the best of at least three rounds.

    On the CPU they run with torch's current threads, by default on matrices of 2048 x 2048. On an accelerator the
    default is a forward pass through the paper's widest block, of more and more images until a round takes ENOUGH_S.
    """
    import torch

    device = torch.device("cpu") if device is None else device
    if shapes is None and device.type == "cpu":
        shapes = ((2048, 2048, 2048),)
    if shapes is not None:
        return _flop(shapes) / _round_s(shapes, seconds, device)
    for shapes in _block_shapes(device):
        round_s = _round_s(shapes, 0.0, device)
        if round_s >= ENOUGH_S:
            break
    assert shapes is not None
    return _flop(shapes) / (_round_s(shapes, seconds, device) if 3 * round_s < seconds else round_s)


def _flop(shapes: Sequence[tuple[int, int, int]]) -> int:
    return sum(2 * m * k * n for m, k, n in shapes)


def _round_s(shapes: Sequence[tuple[int, int, int]], seconds: float, device: Any) -> float:
    """Return the seconds of the products of these shapes, in the best round."""
    import torch

    from .. import device as devices

    options: dict[str, Any] = {"dtype": devices.compute_dtype(device), "device": device}
    operands = [
        (torch.rand(m, k, **options), torch.rand(k, n, **options), torch.empty(m, n, **options)) for m, k, n in shapes
    ]

    def multiply() -> None:
        with torch.no_grad():
            for a, b, out in operands:
                torch.mm(a, b, out=out)

    return _best_s(multiply, device, seconds)


def _block_shapes(device: Any) -> Iterator[Sequence[tuple[int, int, int]]]:
    """Yield the products of a forward pass through a block of width 1024, of more and more images.

    They end at 16,384, as in the paper's batches, or at as many as half of the free memory holds.
    """
    from .. import device as devices

    width, wide = 1024, 4096
    elements = devices.free_bytes(device) / 2 / devices.compute_dtype(device).itemsize
    for images in (16, 128, 1024, 2048, 4096, 8192, 16_384):
        if images > 16 and 2 * (images * (width + wide) + width * wide) > elements:
            return
        yield (images, width, wide), (images, wide, width)


def copied_bytes_per_s(device: Any) -> float:
    """Return the bytes read and written per second by copies in a device's memory."""
    import torch

    from .. import device as devices

    # Larger than any cache, and long enough on an accelerator to hide the launch: 1 GiB takes 0.6 ms at 3.35 TB/s.
    size_bytes = min(1 << 28 if device.type == "cpu" else 1 << 30, devices.free_bytes(device) // 4)
    source = torch.rand(size_bytes // 4, device=device)
    target = torch.empty(size_bytes // 4, device=device)
    return 2 * source.nbytes / _best_s(lambda: target.copy_(source), device)


def sent_bytes_per_s(device: Any) -> float:
    """Return the bytes per second from page-locked memory to an accelerator."""
    import torch

    from .. import device as devices

    size_bytes = min(1 << 26, devices.free_bytes(device) // 4)
    source = torch.from_numpy(devices.host_buffer(size_bytes, pinned=True))
    target = torch.empty(size_bytes, dtype=torch.uint8, device=device)
    return size_bytes / _best_s(lambda: target.copy_(source, non_blocking=True), device)


def _best_s(work: Callable[[], object], device: Any, seconds: float = 0.0) -> float:
    """Return the seconds of the best round of work on a device.

    The best round is taken because other work on the machine can only slow a round down. There are at least three
    rounds, which take `seconds` together, after one warm-up round, which also waits for all that was queued before.
    """
    from .. import device as devices

    rounds: list[float] = []
    while len(rounds) < 4 or sum(rounds[1:]) < seconds:
        started = time.perf_counter()
        work()
        devices.synchronize(device)
        rounds.append(time.perf_counter() - started)
    return min(rounds[1:])
