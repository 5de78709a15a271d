"""Names of architectures, as the paper and its released code spell them. Imports no torch."""

import re
from dataclasses import dataclass

_ARCH = re.compile(
    r"([BS])[-_](\d{1,9})[-/]Wi[-_](\d{1,9})(?:[-/]E[-_](\d{1,9}))?(?:[-/]N[-_](layer|batch|none))?", re.ASCII
)

MAX_BLOCKS = 1_000  # a model of 1,000 blocks takes two seconds to build


@dataclass(frozen=True)
class Arch:
    """A parsed architecture name. kind is "B" (inverted bottleneck with skips) or "S" (plain).

    norm is the normalisation before each block: "layer", "batch" (over the images of one pass) or "none".
    """

    kind: str
    blocks: int
    width: int
    expansion: int = 4
    norm: str = "layer"

    def __str__(self) -> str:
        suffix = f"-E_{self.expansion}" if self.kind == "B" and self.expansion != 4 else ""
        norm = f"-N_{self.norm}" if self.norm != "layer" else ""
        return f"{self.kind}_{self.blocks}-Wi_{self.width}{suffix}{norm}"


def parse_arch(name: str) -> Arch:
    """Parse a name such as "B_12-Wi_1024", "B-12/Wi-1024", "B_12-Wi_1024-E_2" or "S_12-Wi_1024-N_batch".

    Raises ValueError for anything else.
    """
    match = _ARCH.fullmatch(name)
    blocks, width, expansion = (int(number or 4) for number in match.groups()[1:4]) if match else (0, 0, 0)
    if match is None or min(blocks, width, expansion) < 1:
        raise ValueError(
            f"unknown architecture {name[:80]!r}: expected B_<blocks>-Wi_<width>, such as B_12-Wi_1024 (or "
            "B-12/Wi-1024), optionally with -E_<expansion>, or S_<blocks>-Wi_<width> for an S-MLP, both "
            "optionally with -N_batch or -N_none for another norm than LayerNorm"
        )
    if match[1] == "S" and match[4]:
        raise ValueError(f"architecture {name!r}: an S-MLP has no expansion, leave out -E_{match[4]}")
    if blocks > MAX_BLOCKS:
        raise ValueError(f"architecture {name!r}: expected at most {MAX_BLOCKS:,} blocks")
    return Arch(match[1], blocks, width, expansion, match[5] or "layer")
