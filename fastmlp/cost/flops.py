"""What a model costs: parameters, FLOP, bytes, as closed formulas, and what machines offer. Free of torch.

FLOP are those of the matrix products, 2 for each multiply-accumulate. LayerNorm, GELU, biases, the loss, MixUp and
the optimiser are left out: together about 2 % of the arithmetic at width 256, less in wider models. The authors'
counter (fvcore) counts 1 for each multiply-accumulate.
"""

from ..arch import Arch


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
    arch: Arch, res: int, num_classes: int, *, exact: bool = True, backbone: str = "trained"
) -> int:
    """Of a forward and a backward pass.

    exact is the count for MFU, and what torch's FlopCounterMode finds: nobody needs the gradient with respect to the
    images, so the first layer costs 2x its forward pass, the others 3x. exact=False is the paper's 3x forward (C of
    its scaling laws): a fifth more for B_6-Wi_256 at 64 px and 10 classes, so that MFU could pass 100 %.

    body "frozen": a forward pass and the gradient of the head's weights; "cached": the head's two products alone.
    """
    head = 2 * arch.width * num_classes
    if backbone != "trained":
        return 2 * head if backbone == "cached" else forward_flop_per_image(arch, res, num_classes) + head
    images_gradient = 2 * 3 * res * res * arch.width
    return 3 * forward_flop_per_image(arch, res, num_classes) - (images_gradient if exact else 0)


def activation_bytes(arch: Arch, res: int, num_classes: int, micro_batch_size: int, dtype_bytes: int = 4) -> int:
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
    statistics = 4 * 2 * arch.blocks * {"layer": micro_batch_size, "batch": arch.width, "none": 0}[arch.norm]
    return micro_batch_size * (per_image + 4 * num_classes) + statistics


def optimizer_bytes(name: str, arch: Arch, res: int, num_classes: int) -> int:
    """State of lion, sgd (one float32 moment for each parameter), adamw (two) or muon (one for the matrices of the
    body, two for the rest); step counts left out."""
    total, backbone = parameters(arch, res, num_classes), 3 * res * res * arch.width + _hidden(arch)
    moments = {"lion": total, "sgd": total, "adamw": 2 * total, "muon": 2 * total - backbone}
    if name not in moments:
        raise ValueError(f"unknown optimiser {name!r}: expected {', '.join(moments)}")
    return 4 * moments[name]


def mfu(
    images_per_s: float,
    flop_per_image: float,  # training_flop_per_image(..., exact=True)
    peak: float | None,  # [FLOP/s]
) -> float | None:
    """Model FLOP utilisation, 0-1: the arithmetic that training needs over what the machine could do in that time."""
    return None if peak is None else images_per_s * flop_per_image / peak
