"""Runs of recipes as processes of their own, and searches over them, for studies whose runs are of several recipes."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..training.run_log import read_log
from .search import Progress, progress

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def run_recipe(command: tuple[str, ...], folder: Path) -> dict[str, Any] | None:
    """Return the last log line of a run of `command`, a recipe and its flags, which runs if it is not finished.

    The run's folder is `folder`. Returns None if its loss became infinite: the learning rate is too high. Raises
    ValueError with what it said if it failed otherwise.
    """
    if not (folder / "log.jsonl").exists() or not read_log(folder, "end"):
        recipe, *flags = command
        program = [sys.executable, str(RECIPES / f"{recipe}.py"), *flags, f"--cfg.run_dir={folder}"]
        done = subprocess.run(program, capture_output=True, text=True)
        if "loss is not finite" in done.stderr:
            return None
        if done.returncode:
            raise ValueError(f"{' '.join(program)} failed:\n{done.stderr[-2000:]}")
    (end,) = read_log(folder, "end")
    return end


def search_rate(
    rates: Sequence[float],
    held_out_top1: Callable[[float, int], float],  # of a rate and the number of a seed, 0-1
    seeds: int,
) -> tuple[float, Progress]:
    """Return the rate that search.py chooses by runs that are evaluated on held-out images, and where it ended."""
    scores: dict[tuple[tuple[float, ...], int], float] = {}
    while (state := progress({"lr": rates}, scores, seeds)).best is None:
        scores |= {trial: held_out_top1(trial[0][0], trial[1]) for trial in state.trials if trial not in scores}
    return state.best[0], state
