"""The two MLPs of "Scaling MLPs" (section 3), named as the paper and its released checkpoints name them."""

import torch.nn.functional as F
from torch import Tensor, nn

from .arch import Arch, parse_arch


class BottleneckBlock(nn.Module):
    """`W_c gelu(W_e z)`, m -> expansion * m -> m. Parameters are block.0 and block.2, as in the released weights."""

    def __init__(self, width: int, expansion: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width)
        )

    def forward(self, z: Tensor) -> Tensor:  # (B, m) -> (B, m)
        return self.block(z)


class MLP(nn.Module):
    """An MLP on flattened images: linear embedding, isotropic blocks behind LayerNorm, linear head.

    forward takes (B, 3 * res * res) floats in C, H, W order (what the released checkpoints see), normalised per
    channel, and gives (B, num_classes) logits. `embed` and `classify` are its two halves: MixUp works between.
    """

    def __init__(self, arch: Arch, res: int, num_classes: int):
        super().__init__()
        self.arch, self.res, self.num_classes = arch, res, num_classes
        self.linear_in = nn.Linear(3 * res * res, arch.width)
        self.blocks = nn.ModuleList(self._block() for _ in range(arch.blocks))
        self.layernorms = nn.ModuleList(nn.LayerNorm(arch.width) for _ in range(arch.blocks))
        self.linear_out = nn.Linear(arch.width, num_classes)

    def _block(self) -> nn.Module:
        raise NotImplementedError

    def embed(self, images: Tensor) -> Tensor:  # (B, 3 * res * res) -> (B, m)
        return self.linear_in(images)

    def classify(self, z: Tensor) -> Tensor:  # (B, m) -> (B, num_classes)
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.embed(images))


class BMLP(MLP):
    """`z <- z + W_c gelu(W_e LN(z))`; state-dict names as in the released checkpoints."""

    def _block(self) -> nn.Module:
        return BottleneckBlock(self.arch.width, self.arch.expansion)

    def classify(self, z: Tensor) -> Tensor:
        for block, norm in zip(self.blocks, self.layernorms, strict=True):
            z = z + block(norm(z))
        return self.linear_out(z)


class SMLP(MLP):
    """`z <- relu(W LN(z))`, as in the paper's text (the authors' own S-MLP class has another structure)."""

    def _block(self) -> nn.Module:
        return nn.Linear(self.arch.width, self.arch.width)

    def classify(self, z: Tensor) -> Tensor:
        for block, norm in zip(self.blocks, self.layernorms, strict=True):
            z = F.relu(block(norm(z)))
        return self.linear_out(z)


def build_model(arch: str, res: int = 64, num_classes: int = 11230) -> MLP:
    """The model of that name, initialised by torch's global generator. Raises ValueError for an unknown name."""
    parsed = parse_arch(arch)
    if res < 1 or num_classes < 1:
        raise ValueError(f"res and num_classes must be at least 1, got {res} and {num_classes}")
    return {"B": BMLP, "S": SMLP}[parsed.kind](parsed, res, num_classes)
