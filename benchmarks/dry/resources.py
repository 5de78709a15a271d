"""What a compiled kernel takes, of the configurations that Inductor chooses from."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """Of a kernel, the worst of the configurations that Inductor chooses from by timing them on the card.

    Configurations that spill are left out if there are others: Inductor does not time those that spill much
    (torch/_inductor/runtime/triton_heuristics.py, spill_threshold).
    """

    configs: int
    spilling_configs: int
    registers: int  # of a thread
    spill_bytes: int  # of a thread: its stack and local memory
    shared_bytes: int  # of a block


def worst(
    found: Sequence[tuple[int, int, int]],  # registers, spill_bytes, shared_bytes of each configuration
) -> Resources:
    good = [one for one in found if not one[1]]
    registers, spill_bytes, shared_bytes = (max(column) for column in zip(*(good or found), strict=True))
    return Resources(len(found), len(found) - len(good), registers, spill_bytes, shared_bytes)
