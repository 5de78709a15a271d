"""What a model costs: parameters, FLOP, bytes, as closed formulas, and what machines offer. Free of torch.

FLOP are those of the matrix products, 2 for each multiply-accumulate. LayerNorm, GELU, biases, the loss, MixUp and
the optimiser are left out: together about 2 % of the arithmetic at width 256, less in wider models. The authors'
counter (fvcore) counts 1 for each multiply-accumulate.
"""

import re
import time
from collections.abc import Sequence

from ..arch import Arch

# Dense peak rates [FLOP/s] by torch.cuda.get_device_name(), whole name: bfloat16 and TF32 of the tensor cores
# accumulating in float32, float32 of the CUDA cores. NVIDIA's data sheets print rates with sparsity for most cards:
# half of those. None: the card has no such format. A card that is not here has no rate (a laptop's, a slice by MIG).
PEAK_FLOP_PER_S: dict[str, dict[str, float | None]] = {
    # RTX A5000 data sheet: 27.8 single precision, 222.2 tensor (bfloat16, sparse); TF32 is half of bfloat16, as in
    # "NVIDIA Ampere GA102 GPU Architecture" (white paper)
    r"(NVIDIA )?RTX A5000": {"bfloat16": 111.1e12, "tf32": 55.6e12, "float32": 27.8e12},
    # the same white paper, appendix: GeForce RTX 3090
    r"(NVIDIA )?GeForce RTX 3090": {"bfloat16": 71e12, "tf32": 35.6e12, "float32": 35.6e12},
    # "NVIDIA Ada GPU Architecture" (white paper), appendix: GeForce RTX 4090
    r"(NVIDIA )?GeForce RTX 4090": {"bfloat16": 165.2e12, "tf32": 82.6e12, "float32": 82.6e12},
    # NVIDIA A100 data sheet, all versions alike
    r"(NVIDIA )?A100(-SXM4|-PCIE)-(40|80)GB|NVIDIA A100 80GB PCIe": {
        "bfloat16": 312e12, "tf32": 156e12, "float32": 19.5e12,
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
}  # fmt: skip


def _hidden(arch: Arch) -> int:
    """Weights in the matrices of the blocks."""
    return arch.blocks * arch.width**2 * (2 * arch.expansion if arch.kind == "B" else 1)


def weights(arch: Arch, res: int, num_classes: int) -> int:
    """Elements of all matrices: multiply-accumulates of one image's forward pass."""
    return 3 * res * res * arch.width + _hidden(arch) + arch.width * num_classes


def parameters(arch: Arch, res: int, num_classes: int) -> int:
    """Weights, biases and norms."""
    biases = (arch.expansion + 1 if arch.kind == "B" else 1) * arch.width
    norms = 0 if arch.norm == "none" else 2 * arch.width
    return weights(arch, res, num_classes) + arch.width + arch.blocks * (biases + norms) + num_classes


def forward_flop_per_image(arch: Arch, res: int, num_classes: int) -> int:
    return 2 * weights(arch, res, num_classes)


def training_flop_per_image(
    arch: Arch, res: int, num_classes: int, *, exact: bool = True, body: str = "trained"
) -> int:
    """Of a forward and a backward pass.

    exact is the count for MFU, and what torch's FlopCounterMode finds: nobody needs the gradient with respect to the
    images, so the first layer costs 2x its forward pass, the others 3x. exact=False is the paper's 3x forward (C of
    its scaling laws): a fifth more for B_6-Wi_256 at 64 px and 10 classes, so that MFU could pass 100 %.

    body "frozen": a forward pass and the gradient of the head's weights; "cached": the head's two products alone.
    """
    head = 2 * arch.width * num_classes
    if body != "trained":
        return 2 * head if body == "cached" else forward_flop_per_image(arch, res, num_classes) + head
    images_gradient = 2 * 3 * res * res * arch.width
    return 3 * forward_flop_per_image(arch, res, num_classes) - (images_gradient if exact else 0)


def activation_bytes(arch: Arch, res: int, num_classes: int, micro_batch: int, dtype_bytes: int = 4) -> int:
    """What waits for the backward pass at the end of the forward pass, the images among it, eager and compiled alike.

    Of each layer the input, of LayerNorm its input and two float32 statistics, of BatchNorm its input and two float32
    statistics of each channel, of GELU its input, of the loss one float32 log-softmax (MixUp's second target may hold
    another). The peak, in the backward pass, lies at most two float32 (micro_batch, num_classes or expansion * width)
    above it; gradients of parameters are extra. dtype_bytes: 2 under bfloat16 autocast, whose copies of the weights (2
    bytes each) are extra, too. Measured on the CPU: on CUDA autocast runs LayerNorm in float32, which may hold its
    input once more.
    """
    normed = 1 if arch.norm == "none" else 2  # the norm's input, and its result
    per_block = arch.width * (normed + 2 * arch.expansion if arch.kind == "B" else normed)
    per_image = dtype_bytes * (3 * res * res + arch.blocks * per_block + arch.width)
    statistics = 4 * 2 * arch.blocks * {"layer": micro_batch, "batch": arch.width, "none": 0}[arch.norm]
    return micro_batch * (per_image + 4 * num_classes) + statistics


def optimizer_bytes(name: str, arch: Arch, res: int, num_classes: int) -> int:
    """State of lion, sgd (one float32 moment for each parameter), adamw (two) or muon (one for the matrices of the
    body, two for the rest); step counts left out."""
    total, body = parameters(arch, res, num_classes), 3 * res * res * arch.width + _hidden(arch)
    moments = {"lion": total, "sgd": total, "adamw": 2 * total, "muon": 2 * total - body}
    if name not in moments:
        raise ValueError(f"unknown optimiser {name!r}: expected {', '.join(moments)}")
    return 4 * moments[name]


def peak_flop_per_s(
    device_name: str,  # torch.cuda.get_device_name()
    precision: str,  # "bfloat16", "tf32" or "float32"
) -> float | None:
    """The card's dense peak, None where it is unknown: MFU is then "n/a" rather than a guess."""
    if precision not in ("bfloat16", "tf32", "float32"):
        raise ValueError(f"unknown precision {precision!r}: expected bfloat16, tf32 or float32")
    for pattern, rates in PEAK_FLOP_PER_S.items():
        if re.fullmatch(pattern, device_name):
            return rates[precision]
    return None


def measured_peak(
    shapes: Sequence[tuple[int, int, int]] = ((2048, 2048, 2048),),  # (m, k, n) of (m, k) @ (k, n)
    seconds: float = 0.3,
) -> float:
    """FLOP/s of float32 products on this CPU with torch's present threads: the best round over all the shapes.

    The best, since other work on the machine can only slow a round down. At least three rounds, after one to warm up.
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


def mfu(
    images_per_s: float,
    flop_per_image: float,  # training_flop_per_image(..., exact=True)
    peak: float | None,  # [FLOP/s]
) -> float | None:
    """Model FLOP utilisation, 0-1: the arithmetic that training needs over what the machine could do in that time."""
    return None if peak is None else images_per_s * flop_per_image / peak
