"""A run's checkpoints on disk: written completely or not at all, and read without running code from the file."""

import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..atomic import load_torch, save_torch, write_atomic


class Checkpoints:
    """The `checkpoints/` folder of a run: its newest `keep` checkpoints, and that of step `spare`."""

    def __init__(self, run_folder: Path, keep: int = 2, spare: int = 0):
        self.folder, self._keep, self._spare = run_folder / "checkpoints", keep, spare

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:09d}.pt"

    @property
    def best_before_cooldown(self) -> Path:
        """The run's best.pt as it was when its cool-down began, for runs that branch off at that step."""
        return self.folder / "best_before_cooldown.pt"

    def paths(self) -> list[Path]:
        """Return the checkpoints, oldest first. Something else of such a name, such as a folder, is among them."""
        found = [path for path in self.folder.glob("step_*.pt") if re.fullmatch(r"step_\d{9,15}\.pt", path.name)]
        return sorted(found, key=_step)

    def save(self, step: int, content: dict[str, Any]) -> None:
        """Write a checkpoint, then delete those over `keep`. Raises OSError, with none deleted, if the disk is full."""
        self.folder.mkdir(exist_ok=True)
        for left in self.folder.glob("*.partial"):  # from a save that was killed
            if not left.is_dir():
                left.unlink()
        if self.path(step).is_dir():  # nothing that a run has written: it is kept, out of the way
            self.path(step).rename(f"{self.path(step)}.folder-{time.time_ns()}")
        save_torch(self.path(step), content)
        spared = (self.path(step), self.path(self._spare))
        old = [path for path in self.paths() if path not in spared and not path.is_dir()]
        for path in old[: -self._keep + 1 or None]:
            path.unlink()

    def keep_best(self, best: Path) -> None:
        """Copy the best model so far to best_before_cooldown."""
        self.folder.mkdir(exist_ok=True)
        write_atomic(self.best_before_cooldown, best.read_bytes())

    def newest(self, check: Callable[[int, dict[str, Any]], None] | None = None) -> dict[str, Any] | None:
        """Return the content of the newest checkpoint that can be read, None if there is none.

        `check` raises ValueError for a step's content that cannot be used. Warn of the checkpoints that are passed
        over, whatever is wrong with them.
        """
        for path in reversed(self.paths()):
            try:
                if not path.is_file():
                    raise ValueError(f"{path} is not a file")
                content = load_torch(path)
                if not isinstance(content, dict):
                    raise ValueError(f"{path} is damaged or not a checkpoint")
                try:
                    if check:
                        check(_step(path), content)
                except ValueError as error:
                    raise ValueError(f"{path} {error}") from error
                return content
            except (ValueError, OSError) as error:
                warnings.warn(f"{error}: trying the checkpoint before it", stacklevel=2)
        return None


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step_"))
