"""Parameters, FLOP and bytes of a model, as closed formulas. Needs no torch.

Only the FLOP of the matrix products are counted, 2 for each multiply-accumulate. LayerNorm, GELU, biases, the loss,
MixUp and the optimiser are left out: together about 2 % of the arithmetic at width 256, less in wider models. The
authors' counter (fvcore) counts 1 for each multiply-accumulate.
"""

from ..arch import Arch


def _hidden(arch: Arch) -> int:
    """Return the number of weights in the matrices of the blocks."""
    return arch.blocks * arch.width**2 * (2 * arch.expansion if arch.kind == "B" else 1)


def weights(arch: Arch, res: int, num_classes: int) -> int:
    """Return the number of elements of all matrices: the multiply-accumulates of one image's forward pass."""
    return 3 * res * res * arch.width + _hidden(arch) + arch.width * num_classes


def parameters(arch: Arch, res: int, num_classes: int) -> int:
    """Return the number of parameters: weights, biases and norms."""
    biases = (arch.expansion + 1 if arch.kind == "B" else 1) * arch.width
    norms = 0 if arch.norm == "none" else 2 * arch.width
    return weights(arch, res, num_classes) + arch.width + arch.blocks * (biases + norms) + num_classes


def forward_flop_per_image(arch: Arch, res: int, num_classes: int) -> int:
    """Return the FLOP of a forward pass."""
    return 2 * weights(arch, res, num_classes)


def training_flop_per_image(
    arch: Arch, res: int, num_classes: int, *, exact: bool = True, backbone: str = "trained"
) -> int:
    """Return the FLOP of a forward and a backward pass.

    exact=True is the count for MFU and the one of torch's FlopCounterMode: the gradient with respect to the images is
    not needed, so the first layer costs 2x its forward pass, the others 3x. exact=False is the paper's 3x forward (C
    of its scaling laws): a fifth more for B_6-Wi_256 at 64 px and 10 classes, so that MFU could exceed 100 %.

    backbone "frozen" counts a forward pass and the gradient of the head's weights, "cached" only the head's two
    products.
    """
    head = 2 * arch.width * num_classes
    if backbone != "trained":
        return 2 * head if backbone == "cached" else forward_flop_per_image(arch, res, num_classes) + head
    images_gradient = 2 * 3 * res * res * arch.width
    return 3 * forward_flop_per_image(arch, res, num_classes) - (images_gradient if exact else 0)


def activation_bytes(arch: Arch, res: int, num_classes: int, micro_batch_size: int, dtype_bytes: int = 4) -> int:
    """Return the bytes saved for the backward pass after the forward pass, images included, eager and compiled alike.

    Saved are the input of each layer, the input of LayerNorm and two float32 statistics, the input of BatchNorm and two
    float32 statistics of each channel, the input of GELU, and the gradient of the logits. The peak, at the loss or in
    the backward pass, is at most two (micro_batch, num_classes or expansion * width) above that. Gradients of
    parameters are extra. dtype_bytes is 2 under bfloat16 autocast, whose copies of the weights (2 bytes each) are also
    extra. On CUDA without torch.compile, autocast runs LayerNorm in float32, which may hold its input once more.
    """
    normed = 1 if arch.norm == "none" else 2  # the norm's input, and its result
    per_block = arch.width * (normed + 2 * arch.expansion if arch.kind == "B" else normed)
    per_image = dtype_bytes * (3 * res * res + arch.blocks * per_block + arch.width + num_classes)
    statistics = 4 * 2 * arch.blocks * {"layer": micro_batch_size, "batch": arch.width, "none": 0}[arch.norm]
    return micro_batch_size * per_image + statistics


def optimizer_bytes(name: str, arch: Arch, res: int, num_classes: int) -> int:
    """Return the bytes of the optimiser's state, without step counts.

    lion and sgd have one float32 moment for each parameter, adamw two, muon one for the matrices of the backbone and
    two for the rest.
    """
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
    """Return the model FLOP utilisation, 0-1: the FLOP that training needs over what the machine could do."""
    return None if peak is None else images_per_s * flop_per_image / peak
