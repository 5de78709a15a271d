"""The two MLPs of "Scaling MLPs" (section 3), named as the paper and its released checkpoints name them."""

from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from ..arch import Arch


class BottleneckBlock(nn.Module):
    """Holds W_e, m -> expansion * m, and W_c back, as block.0 and block.2, the names of the released weights."""

    def __init__(self, width: int, expansion: int):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "batch": nn.BatchNorm1d,
    "none": lambda width: nn.Identity(),
}

# A block, LayerNorm included, as a function of its input and its parameters: compiled once, it serves all blocks.
Block = Callable[..., Tensor]


def bottleneck_block(
    z: Tensor,  # (B, m)
    gain: Tensor,  # of LayerNorm, (m,)
    shift: Tensor,
    expand: Tensor,  # (expansion * m, m)
    expand_bias: Tensor,
    collapse: Tensor,  # (m, expansion * m)
    collapse_bias: Tensor,
) -> Tensor:
    """`z + W_c gelu(W_e LN(z))`."""
    wide = F.gelu(F.linear(F.layer_norm(z, gain.shape, gain, shift), expand, expand_bias))
    return z + F.linear(wide, collapse, collapse_bias)


def simple_block(z: Tensor, gain: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`relu(W LN(z))`."""
    return F.relu(F.linear(F.layer_norm(z, gain.shape, gain, shift), weight, bias))


class MLP(nn.Module):
    """An MLP on flattened images: linear embedding, isotropic blocks behind a norm, linear head.

    The norm is LayerNorm, none, or BatchNorm: in training over the images that go through at once, a process's
    micro-batch, whose size matters therefore; in evaluation by running statistics, which are part of the state dict.

    forward takes (B, 3 * res * res) floats in C, H, W order (what the released checkpoints see), normalised per
    channel, and gives (B, num_classes) logits. `embed`, `through_blocks` and `linear_out` are its parts: MixUp works
    behind the first.
    """

    def __init__(self, arch: Arch, res: int, num_classes: int):
        super().__init__()
        self.arch, self.res, self.num_classes = arch, res, num_classes
        self.linear_in = nn.Linear(3 * res * res, arch.width)
        self.blocks = nn.ModuleList(self._block() for _ in range(arch.blocks))
        self.layernorms = nn.ModuleList(NORMS[arch.norm](arch.width) for _ in range(arch.blocks))
        self.linear_out = nn.Linear(arch.width, num_classes)

    block: Block  # of the kind of MLP, behind LayerNorm

    def _block(self) -> nn.Module:
        raise NotImplementedError

    def _behind(self, z: Tensor, normed: Tensor, block: nn.Module) -> Tensor:
        """A block, given the norm's result."""
        raise NotImplementedError

    def block_parameters(self) -> Iterator[tuple[Tensor, ...]]:
        """What `block` takes beside its input, for one block after the other."""
        for norm, block in zip(self.layernorms, self.blocks, strict=True):
            yield *norm.parameters(), *block.parameters()

    def with_head(self, num_classes: int) -> "MLP":
        """Itself, with another head, initialised by torch's global generator."""
        head = self.linear_out.weight
        self.linear_out = nn.Linear(self.arch.width, num_classes).to(head.device, head.dtype)
        self.num_classes = num_classes
        return self

    def embed(self, images: Tensor) -> Tensor:  # (B, 3 * res * res) -> (B, m)
        return self.linear_in(images)

    def through_blocks(
        self,
        z: Tensor,  # (B, m)
        block: Block | None = None,  # another implementation of it; behind LayerNorm alone
    ) -> Tensor:  # (B, m), what the head classifies
        if self.arch.norm != "layer":
            for norm, own in zip(self.layernorms, self.blocks, strict=True):
                z = self._behind(z, norm(z), own)
            return z
        for parameters in self.block_parameters():
            z = (block or self.block)(z, *parameters)
        return z

    def features(self, images: Tensor) -> Tensor:  # (B, 3 * res * res) -> (B, m)
        return self.through_blocks(self.embed(images))

    def forward(self, images: Tensor) -> Tensor:
        return self.linear_out(self.features(images))


class BMLP(MLP):
    """`z <- z + W_c gelu(W_e LN(z))`; state-dict names as in the released checkpoints."""

    block = staticmethod(bottleneck_block)

    def _block(self) -> nn.Module:
        return BottleneckBlock(self.arch.width, self.arch.expansion)

    def _behind(self, z: Tensor, normed: Tensor, block: nn.Module) -> Tensor:
        assert isinstance(block, BottleneckBlock)
        return z + block.block(normed)


class SMLP(MLP):
    """`z <- relu(W LN(z))`, as in the paper's text (the authors' own S-MLP class has another structure)."""

    block = staticmethod(simple_block)

    def _block(self) -> nn.Module:
        return nn.Linear(self.arch.width, self.arch.width)

    def _behind(self, z: Tensor, normed: Tensor, block: nn.Module) -> Tensor:
        return F.relu(block(normed))


def new_model(arch: Arch, res: int, num_classes: int) -> MLP:
    """Initialised by torch's global generator."""
    if res < 1 or num_classes < 1:
        raise ValueError(f"res and num_classes must be at least 1, got {res} and {num_classes}")
    return {"B": BMLP, "S": SMLP}[arch.kind](arch, res, num_classes)
