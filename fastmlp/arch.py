"""Names of architectures, as the paper and its released code spell them. Free of torch: typos are told at once."""

import re
from dataclasses import dataclass

_ARCH = re.compile(r"([BS])[-_](\d+)[-/]Wi[-_](\d+)(?:[-/]E[-_](\d+))?", re.ASCII)


@dataclass(frozen=True)
class Arch:
    """A parsed architecture name. kind is "B" (inverted bottleneck with skips) or "S" (plain)."""

    kind: str
    blocks: int
    width: int
    expansion: int = 4

    def __str__(self) -> str:
        suffix = f"-E_{self.expansion}" if self.kind == "B" and self.expansion != 4 else ""
        return f"{self.kind}_{self.blocks}-Wi_{self.width}{suffix}"


def parse_arch(name: str) -> Arch:
    """"B_12-Wi_1024", "B-12/Wi-1024", "B_12-Wi_1024-E_2", "S_12-Wi_1024"; raises ValueError for anything else."""
    match = _ARCH.fullmatch(name)
    sizes = [int(number or 4) for number in match.groups()[1:]] if match else []
    if match is None or min(sizes) < 1:
        raise ValueError(
            f"unknown architecture {name!r}: expected B_<blocks>-Wi_<width>, such as B_12-Wi_1024 (or B-12/Wi-1024), "
            "optionally with -E_<expansion>, or S_<blocks>-Wi_<width> for an S-MLP"
        )
    if match[1] == "S" and match[4]:
        raise ValueError(f"architecture {name!r}: an S-MLP has no expansion, leave out -E_{match[4]}")
    return Arch(match[1], *sizes)
