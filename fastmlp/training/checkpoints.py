"""A run's checkpoints on disk: written completely or not at all, and read without running code from the file."""

import warnings
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
        """Return the files of the checkpoints, oldest first."""
        return sorted(self.folder.glob("step_*.pt"))

    def save(self, step: int, content: dict[str, Any]) -> None:
        """Write a checkpoint, then delete those over `keep`. Raises OSError, with none deleted, if the disk is full."""
        self.folder.mkdir(exist_ok=True)
        for left in self.folder.glob("*.partial"):  # from a save that was killed
            left.unlink()
        save_torch(self.path(step), content)
        spared = (self.path(step), self.path(self._spare))
        for old in [path for path in self.paths() if path not in spared][: -self._keep + 1 or None]:
            old.unlink()

    def keep_best(self, best: Path) -> None:
        """Copy the best model so far to best_before_cooldown."""
        self.folder.mkdir(exist_ok=True)
        write_atomic(self.best_before_cooldown, best.read_bytes())

    def newest(self) -> dict[str, Any] | None:
        """Return the content of the newest undamaged checkpoint, None if there is none. Warn of damaged ones."""
        for path in reversed(self.paths()):
            try:
                return load_torch(path)
            except ValueError as error:
                warnings.warn(f"{error}: trying the checkpoint before it", stacklevel=2)
        return None
