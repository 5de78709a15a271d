"""Durations in epochs, steps or images, converted into steps only here. Imports no torch."""

import math
import re
from dataclasses import dataclass
from typing import Any

LONGEST = 1e15  # its steps are an exact float
UNITS = ("epochs", "steps", "images")
_FORM = re.compile(r"([\d.]+(?:e[+-]?\d+)?)\s*([a-z]*)", re.ASCII)


@dataclass(frozen=True)
class Duration:
    """An amount of epochs (fractions allowed), or a whole number of optimiser steps or images."""

    amount: float
    unit: str = "epochs"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unknown unit {self.unit!r}: expected epochs, steps or images")
        if not 0 <= self.amount <= LONGEST:  # NaN fails too
            raise ValueError(f"a duration is a number from 0 to {LONGEST:g}, got {self.amount}")
        if self.unit != "epochs" and self.amount != int(self.amount):
            raise ValueError(f"a duration of {self.unit} is a whole number, got {self.amount}")

    @classmethod
    def parse(cls, text: Any) -> "Duration":
        """Parse 30, "30", "30 epochs", "0.5 epochs", "5000 steps" or "1e6 images"; ValueError for anything else."""
        match = _FORM.fullmatch(str(text).strip().lower())
        try:
            if match is None:
                raise ValueError("no number with a unit")
            unit = match[2] or "epochs"
            return cls(float(match[1]), unit if unit.endswith("s") else unit + "s")
        except ValueError as error:
            raise ValueError(
                f"{text!r} is no duration ({error}): expected a number of epochs, such as 30 or 0.5, "
                "or a number with its unit, such as '5000 steps', '1e6 images' or '0.5 epochs'"
            ) from None

    def __str__(self) -> str:
        amount = int(self.amount) if self.amount == int(self.amount) else self.amount
        return f"{amount} {self.unit}"

    def steps(self, batch_size: int, steps_per_epoch: int) -> int:
        """Return the number of optimiser steps of batch_size images: 0 only for a duration of 0, otherwise at least 1.

        Epochs are rounded to the nearest step (halves to the even one), images up to the step that completes them.
        """
        if self.unit == "epochs":
            steps = round(self.amount * steps_per_epoch)
        elif self.unit == "images":
            steps = math.ceil(self.amount / batch_size)
        else:
            steps = int(self.amount)
        return max(steps, 1) if self.amount else 0
