"""The two MLPs of "Scaling MLPs" (section 3), named as the paper and its released checkpoints name them."""

from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..arch import Arch


class BottleneckBlock(nn.Module):
    """The parameters of a bottleneck block, named as in the released weights.

    block.0 is W_e, m -> expansion * m, and block.2 is W_c, expansion * m -> m.
    """

    def __init__(self, width: int, expansion: int):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "batch": nn.BatchNorm1d,
    "none": lambda width: nn.Identity(),
}

# A block, LayerNorm included, as a function of its input and its parameters, so that all blocks share one compilation.
Block = Callable[..., Tensor]


def bottleneck_block(
    z: Tensor,  # (B, m)
    ln_weight: Tensor,  # (m,)
    ln_bias: Tensor,
    expand: Tensor,  # (expansion * m, m)
    expand_bias: Tensor,
    collapse: Tensor,  # (m, expansion * m)
    collapse_bias: Tensor,
) -> Tensor:
    """Return `z + W_c gelu(W_e LN(z))`, (B, m)."""
    act = F.gelu(F.linear(F.layer_norm(z, ln_weight.shape, ln_weight, ln_bias), expand, expand_bias))
    return z + F.linear(act, collapse, collapse_bias)


def simple_block(z: Tensor, ln_weight: Tensor, ln_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `relu(W LN(z))`, (B, m)."""
    return F.relu(F.linear(F.layer_norm(z, ln_weight.shape, ln_weight, ln_bias), weight, bias))


class MLP(nn.Module):
    """An MLP on flattened images: linear embedding, isotropic blocks with a norm before each, linear head.

    The norm is LayerNorm, BatchNorm or none. BatchNorm normalises in training over one process's micro-batch, so that
    the size of micro-batches matters; in evaluation by its running statistics, which are part of the state dict.

    forward takes (B, 3 * res * res) floats in C, H, W order (what the released checkpoints were trained on), normalised
    per channel, and returns (B, num_classes) logits. `embed`, `forward_blocks` and `linear_out` are its parts; MixUp
    works between the first two. `resampling` tells how images are resized to `res`, "bilinear" or "area"
    (transforms/resample.py); it is saved and loaded with the weights. `metadata` is what load_model read with
    them: mean, std, classes, data set.
    """

    def __init__(self, arch: Arch, res: int, num_classes: int):
        super().__init__()
        self.resampling = "bilinear"
        self.metadata: dict[str, Any] = {}
        self.arch, self.res, self.num_classes = arch, res, num_classes
        self.linear_in = nn.Linear(3 * res * res, arch.width)
        self.blocks = nn.ModuleList(self._new_block() for _ in range(arch.blocks))
        self.layernorms = nn.ModuleList(NORMS[arch.norm](arch.width) for _ in range(arch.blocks))
        self.linear_out = nn.Linear(arch.width, num_classes)

    block: Block  # of this kind of MLP, LayerNorm included

    def _new_block(self) -> nn.Module:
        raise NotImplementedError

    def _apply_block(self, z: Tensor, normed: Tensor, block: nn.Module) -> Tensor:
        """Return the block's output, (B, m), given its input and the normalised input."""
        raise NotImplementedError

    def block_parameters(self) -> Iterator[tuple[Tensor, ...]]:
        """Iterate over the blocks: the arguments that `block` takes after its input."""
        for norm, block in zip(self.layernorms, self.blocks, strict=True):
            yield *norm.parameters(), *block.parameters()

    def replace_head(self, num_classes: int) -> "MLP":
        """Replace the head in place by a new one, initialised by torch's global generator; return the model.

        Of its metadata only the normalisation and the fit stay.
        """
        head = self.linear_out.weight
        self.linear_out = nn.Linear(self.arch.width, num_classes).to(head.device, head.dtype)
        self.num_classes = num_classes
        self.metadata = {name: self.metadata[name] for name in ("mean", "std", "fit") if name in self.metadata}
        return self

    def embed(self, images: Tensor) -> Tensor:  # (B, 3 * res * res) -> (B, m)
        return self.linear_in(images)

    def forward_blocks(
        self,
        z: Tensor,  # (B, m)
        block: Block | None = None,  # another implementation of self.block; only used with LayerNorm
    ) -> Tensor:  # (B, m), what the head classifies
        if self.arch.norm != "layer":
            for norm, own_block in zip(self.layernorms, self.blocks, strict=True):
                z = self._apply_block(z, norm(z), own_block)
            return z
        for parameters in self.block_parameters():
            z = (block or self.block)(z, *parameters)
        return z

    def features(self, images: Tensor) -> Tensor:  # (B, 3 * res * res) -> (B, m)
        return self.forward_blocks(self.embed(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.linear_out(self.features(images))


class BMLP(MLP):
    """`z <- z + W_c gelu(W_e LN(z))`; state-dict names as in the released checkpoints."""

    block = staticmethod(bottleneck_block)

    def _new_block(self) -> nn.Module:
        return BottleneckBlock(self.arch.width, self.arch.expansion)

    def _apply_block(self, z: Tensor, normed: Tensor, block: nn.Module) -> Tensor:
        assert isinstance(block, BottleneckBlock)
        return z + block.block(normed)


class SMLP(MLP):
    """`z <- relu(W LN(z))`, as in the paper's text (the authors' own S-MLP class has another structure)."""

    block = staticmethod(simple_block)

    def _new_block(self) -> nn.Module:
        return nn.Linear(self.arch.width, self.arch.width)

    def _apply_block(self, z: Tensor, normed: Tensor, block: nn.Module) -> Tensor:
        return F.relu(block(normed))


def new_model(arch: Arch, res: int, num_classes: int) -> MLP:
    """Return a model initialised by torch's global generator. Raises ValueError if res or num_classes is below 1."""
    if res < 1 or num_classes < 1:
        raise ValueError(f"res and num_classes must be at least 1, got {res} and {num_classes}")
    return {"B": BMLP, "S": SMLP}[arch.kind](arch, res, num_classes)
