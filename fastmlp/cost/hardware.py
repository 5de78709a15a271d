"""Peak rates, memory and links of cards, and the measured peak of this CPU."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Dense peak rates [FLOP/s] by the whole name of torch.cuda.get_device_name(): bfloat16 and TF32 of the tensor cores
# accumulating in float32, float32 of the CUDA cores. NVIDIA's data sheets print rates with sparsity for most cards;
# the dense rates here are half of those. None: the card lacks the format. A card that is not listed has no rate (a
# laptop's card, a MIG slice).
PEAK_FLOP_PER_S: dict[str, dict[str, float | None]] = {
    # RTX A5000 data sheet: 27.8 single precision, 222.2 tensor (bfloat16, sparse); TF32 is half of bfloat16, as in
    # "NVIDIA Ampere GA102 GPU Architecture" (white paper)
    r"(NVIDIA )?RTX A5000": {"bfloat16": 111.1e12, "tf32": 55.6e12, "float32": 27.8e12},
    # appendix of the same white paper: GeForce RTX 3090
    r"(NVIDIA )?GeForce RTX 3090": {"bfloat16": 71e12, "tf32": 35.6e12, "float32": 35.6e12},
    # "NVIDIA Ada GPU Architecture" (white paper), appendix: GeForce RTX 4090
    r"(NVIDIA )?GeForce RTX 4090": {"bfloat16": 165.2e12, "tf32": 82.6e12, "float32": 82.6e12},
    # NVIDIA A100 data sheet, all versions alike
    r"(NVIDIA )?A100(-SXM4|-PCIE)-(40|80)GB|NVIDIA A100 80GB PCIe": {
        "bfloat16": 312e12,
        "tf32": 156e12,
        "float32": 19.5e12,
    },
    # NVIDIA L40S data sheet
    r"NVIDIA L40S": {"bfloat16": 362.05e12, "tf32": 183e12, "float32": 91.6e12},
    # NVIDIA H100 data sheet, SXM (with sparsity 1,979 and 989)
    r"NVIDIA H100 80GB HBM3": {"bfloat16": 989.5e12, "tf32": 494.5e12, "float32": 67e12},
    # NVIDIA H100 data sheet of 2022, PCIe (with sparsity 1,513 and 756)
    r"NVIDIA H100 PCIe": {"bfloat16": 756.5e12, "tf32": 378e12, "float32": 51e12},
    # NVIDIA H200 data sheet, SXM (with sparsity 1,979 and 989)
    r"NVIDIA H200": {"bfloat16": 989.5e12, "tf32": 494.5e12, "float32": 67e12},
    # NVIDIA HGX B200 data sheet, one of eight (with sparsity 4,500 and 2,200)
    r"NVIDIA B200": {"bfloat16": 2250e12, "tf32": 1100e12, "float32": 75e12},
    # NVIDIA T4 data sheet
    r"(Tesla|NVIDIA) T4": {"bfloat16": None, "tf32": None, "float32": 8.1e12},
    # NVIDIA V100 data sheet, for NVLink and for PCIe
    r"Tesla V100-SXM[23]-(16|32)GB": {"bfloat16": None, "tf32": None, "float32": 15.7e12},
    r"Tesla V100-PCIE-(16|32)GB": {"bfloat16": None, "tf32": None, "float32": 14e12},
}


def peak_flop_per_s(
    device_name: str,  # torch.cuda.get_device_name()
    precision: str,  # "bfloat16", "tf32" or "float32"
) -> float | None:
    """Return the card's dense peak, or None if it is unknown; MFU is then "n/a" instead of a guess."""
    if precision not in ("bfloat16", "tf32", "float32"):
        raise ValueError(f"unknown precision {precision!r}: expected bfloat16, tf32 or float32")
    for pattern, rates in PEAK_FLOP_PER_S.items():
        if re.fullmatch(pattern, device_name):
            return rates[precision]
    return None


def device_peak_flop_per_s(device: Any) -> float | None:
    """Return the peak of the device in training's precision, None for an unknown GPU. A CPU's is measured, in 0.3 s."""
    from .. import device as devices

    if device.type == "cuda":
        return peak_flop_per_s(devices.describe(device), devices.precision(device))
    return measured_peak()


def measured_peak(
    shapes: Sequence[tuple[int, int, int]] = ((2048, 2048, 2048),),  # (m, k, n) of (m, k) @ (k, n), one round: all
    seconds: float = 0.3,
) -> float:
    """Return the FLOP/s of float32 products on this CPU with torch's current threads, in the best round.

    The best round is taken because other work on the machine can only slow a round down. There are at least three
    rounds after one warm-up round.
    """
    import torch

    operands = [(torch.rand(m, k), torch.rand(k, n), torch.empty(m, n)) for m, k, n in shapes]
    rounds: list[float] = []
    with torch.no_grad():
        while len(rounds) < 4 or sum(rounds) < seconds:
            started = time.perf_counter()
            for a, b, out in operands:
                torch.mm(a, b, out=out)
            rounds.append(time.perf_counter() - started)
    return sum(2 * m * k * n for m, k, n in shapes) / min(rounds[1:])


# Share of a card's dense peak that products of these shapes reach. Fitted to the paper's B-12/Wi-1024 on an RTX A5000
# (450 s per epoch of ImageNet-21k in TF32, section 4.3), whose B-6/Wi-1024 it then predicts to 5 %. Not measured for
# fastmlp, which compiles and uses bfloat16.
EFFICIENCY = 0.37
MEMORY_EFFICIENCY = 0.8  # share of the device memory's rate
CPU_EFFICIENCY = 1.0  # the CPU's peak is itself measured


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

    @property
    def dtype_bytes(self) -> int:
        return 2 if self.precision == "bfloat16" else 4


PCIE_3, PCIE_4, PCIE_5 = 15.75e9, 31.5e9, 63.0e9  # x16, PCI-SIG's rates after encoding
# Short name -> torch's name (PEAK_FLOP_PER_S has its rates and their sources), memory [bytes], memory rate [bytes/s],
# link [bytes/s]. Memory is from the same sheets; 3090 and 4090: the white papers' appendices; B200: one of the eight
# in an HGX B200.
CARDS: dict[str, tuple[str, float, float, float]] = {
    "T4": ("Tesla T4", 16e9, 320e9, PCIE_3),
    "A5000": ("NVIDIA RTX A5000", 24e9, 768e9, PCIE_4),
    "3090": ("NVIDIA GeForce RTX 3090", 24e9, 936e9, PCIE_4),
    "4090": ("NVIDIA GeForce RTX 4090", 24e9, 1008e9, PCIE_4),
    "A100": ("NVIDIA A100-SXM4-80GB", 80e9, 2039e9, PCIE_4),
    "L40S": ("NVIDIA L40S", 48e9, 864e9, PCIE_4),
    "H100": ("NVIDIA H100 80GB HBM3", 80e9, 3350e9, PCIE_5),
    "H200": ("NVIDIA H200", 141e9, 4800e9, PCIE_5),
    "B200": ("NVIDIA B200", 180e9, 7700e9, PCIE_5),
}


def card(name: str, precision: str = "auto") -> Machine:
    """Return a card of CARDS; precision "auto" is bfloat16 if the card has it, else float32.

    Raises ValueError for an unknown card and for a precision that the card lacks.
    """
    if name not in CARDS:
        raise ValueError(f"unknown card {name!r}: expected one of {', '.join(CARDS)}")
    device, memory, memory_rate, link = CARDS[name]
    if precision == "auto":
        precision = "bfloat16" if peak_flop_per_s(device, "bfloat16") else "float32"
    peak = peak_flop_per_s(device, precision)
    if peak is None:
        raise ValueError(f"{name} has no {precision}: use float32")
    return Machine(name, peak, memory, memory_rate, link, precision)


def this_machine(device: Any) -> Machine:
    """Return the card of a torch.device, or this CPU with its products and copies measured, in about a second.

    Raises ValueError for a card that is not in CARDS.
    """
    import torch

    from .. import device as devices

    if device.type == "cuda":
        names = [short for short, (name, *_) in CARDS.items() if name == devices.describe(device)]
        if not names:
            raise ValueError(
                f"{devices.describe(device)} is not among {', '.join(CARDS)}: its cost cannot be predicted"
            )
        return card(names[0], devices.precision(device))
    source = torch.rand(1 << 26)
    target, seconds = torch.empty_like(source), []
    for _ in range(4):
        started = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - started)
    copied = 2 * source.nbytes / min(seconds)
    return Machine(
        "this CPU (products and copies measured)",
        measured_peak(),
        devices.free_bytes(device),
        copied / MEMORY_EFFICIENCY,
        None,
        "float32",
        CPU_EFFICIENCY,
    )
