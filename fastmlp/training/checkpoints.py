"""A run's checkpoints on disk: written whole or not at all, read without running code."""

import warnings
from pathlib import Path
from typing import Any

from ..atomic import load_torch, save_torch, write_atomic


class Checkpoints:
    """The newest `keep` checkpoints of a run, and that of step `spare`, in `checkpoints/` of its folder."""

    def __init__(self, run_folder: Path, keep: int = 2, spare: int = 0):
        self.folder, self._keep, self._spare = run_folder / "checkpoints", keep, spare

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:09d}.pt"

    @property
    def best_before_cooldown(self) -> Path:
        """The run's best.pt as it was where its cool-down began, for runs that branch off there."""
        return self.folder / "best_before_cooldown.pt"

    def paths(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("step_*.pt"))

    def save(self, step: int, content: dict[str, Any]) -> None:
        """Raises OSError where the disk is full; what was there stays."""
        self.folder.mkdir(exist_ok=True)
        for left in self.folder.glob("*.partial"):  # of a save that was killed
            left.unlink()
        save_torch(self.path(step), content)
        stay = (self.path(step), self.path(self._spare))
        for old in [path for path in self.paths() if path not in stay][: -self._keep + 1 or None]:
            old.unlink()

    def keep_best(self, best: Path) -> None:
        self.folder.mkdir(exist_ok=True)
        write_atomic(self.best_before_cooldown, best.read_bytes())

    def newest(self) -> dict[str, Any] | None:
        """The content of the newest one that is whole; None where there is none. A notice names damaged ones."""
        for path in reversed(self.paths()):
            try:
                return load_torch(path)
            except ValueError as error:
                warnings.warn(f"{error}: it is passed over", stacklevel=2)
        return None
