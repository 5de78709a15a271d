"""Learning rates as pure functions of the step."""

import math


def learning_rate(
    step: int,  # from 0
    total_steps: int,
    peak: float,
    schedule: str = "constant",  # or "cosine", "linear"
    warmup_steps: int = 0,
    cooldown_steps: int = 0,
) -> float:
    """Return a step's learning rate: it rises linearly to the peak over warmup_steps, then is constant or falls to 0.

    With cooldown_steps, a constant rate falls linearly over that many last steps, from the peak at the first of them
    to 0 at total_steps. Earlier steps do not depend on total_steps, so that cool-downs of several lengths can branch
    off one run. Raises ValueError for an unknown schedule, a cool-down of a schedule that is not constant, and a
    cool-down that is longer than the steps after the warm-up.
    """
    if schedule not in ("constant", "cosine", "linear"):
        raise ValueError(f"unknown schedule {schedule!r}: expected constant, cosine or linear")
    if cooldown_steps and schedule != "constant":
        raise ValueError(
            f"a cool-down ends a constant schedule, but {schedule} falls to 0 by itself: set only one of them"
        )
    if cooldown_steps > max(0, total_steps - warmup_steps):
        raise ValueError(
            f"a cool-down of {cooldown_steps} steps does not fit into {total_steps} steps, of which "
            f"{warmup_steps} are warm-up"
        )
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if cooldown_steps:
        return peak * min(1.0, (total_steps - step) / cooldown_steps)
    if schedule == "constant":
        return peak
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)  # 0 at the peak, 1 after the last step
    return peak * (0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1 - done)
