"""What a run writes while it trains: settings, environment, one JSON line per event, and the progress bar."""

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from ..atomic import no_links, write_atomic
from ..config import from_stored, to_stored
from ..messages import logger, progress_bar
from ..worker_pool import num_cores

PACKAGES = ("fastmlp", "torch", "ffcv", "numba", "numpy", "pillow")


class RunLog:
    """Log of one run folder, a context manager. If TensorBoard is installed, it gets the same values."""

    def __init__(self, folder: Path, config: Any, device: str, position: int = 0):
        """position: bytes of the log when the resumed checkpoint was written; the lines after it are cut off."""
        self.folder = folder
        self.start_s = time.perf_counter()
        self._file = open(folder / "log.jsonl", "a", encoding="utf-8", opener=no_links)
        missing = max(0, position - self._file.tell())
        self._file.truncate(min(position, self._file.tell()))
        self._file.seek(0, os.SEEK_END)
        if position == 0:
            write_atomic(folder / "config.yaml", settings_text(config))
        environment = folder / f"environment{len(list(folder.glob('environment*.json'))) or ''}.json"  # one per start
        write_atomic(environment, json.dumps(_environment(device), indent=1) + "\n")
        if find_spec("tensorboard"):  # a folder that cannot be made is told now, not hours later
            (folder / "tensorboard").mkdir(exist_ok=True)
        if position:
            self._tell_losses(missing)

    @cached_property
    def _board(self) -> Any:
        """TensorBoard's writer, opened with the first value: its import takes 0.3 s. None if it is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter

            return SummaryWriter(self.folder / "tensorboard")
        except ImportError:
            pass
        except UnicodeEncodeError:
            logger.warning(f"no TensorBoard for {self.folder}, whose name is not UTF-8")
        return None

    def _tell_losses(self, missing: int) -> None:
        """Write a line "lost" if lines are missing or unreadable that were on disk with the resumed checkpoint.

        Nothing of this program loses them: a failing disk does, or a hand.
        """
        path = self.folder / "log.jsonl"
        content = path.read_bytes()
        if content and not content.endswith(b"\n"):
            self._file.write("\n")  # so that the next line is one of its own
        damaged = sum(_parse(line) is None for line in content.decode("utf-8", "replace").splitlines())
        told = sum(line["unreadable_lines"] for line in read_log(self.folder, "lost"))
        damaged = max(0, damaged - told)
        if missing or damaged:
            logger.warning(f"{path} has lost lines: {missing:,} bytes, {damaged} lines unreadable")
            self.write("lost", missing_bytes=missing, unreadable_lines=damaged)

    def position(self) -> int:
        """Return the bytes written so far, after making sure that they are on disk."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if board := self.__dict__.get("_board"):  # opened
            board.close()

    def write(self, event: str, **values: Any) -> None:
        """Write one line, {"event", "elapsed_s", ...}. Keys end with the unit of their value."""
        line = {"event": event, "elapsed_s": round(time.perf_counter() - self.start_s, 3), **to_stored(values)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if "step" in values and self._board is not None:
            for key, value in to_stored(values).items():
                if key != "step" and value is not None:
                    self._board.add_scalar(f"{event}/{key}", value, values["step"])


def settings_text(config: Any) -> str:
    """Return the content of config.yaml."""
    return yaml.safe_dump({"cfg": asdict(config)}, sort_keys=False)


class NoLog(RunLog):
    """Log of a process that is not the main one: it knows the run folder and writes nothing."""

    def __init__(self, folder: Path):
        self.folder = folder

    def position(self) -> int:
        return 0

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, event: str, **values: Any) -> None:
        pass


def read_log(folder: Path, event: str) -> list[dict[str, Any]]:
    """Return the lines of one event; a last line that a crash cut short is skipped. Raises OSError if it is no file."""
    return [line for line in read_lines(folder) if line is not None and line.get("event") == event]


def read_lines(folder: Path) -> list[dict[str, Any] | None]:
    """Return every line of the log, None for one that is damaged. Raises OSError if it is no file."""
    path = folder / "log.jsonl"
    if not path.is_file():  # to read a pipe would take for ever
        raise OSError(f"{path} is not a file")
    lines = map(_parse, path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [line and from_stored(line) for line in lines]


def _parse(line: str) -> dict[str, Any] | None:
    """Return a log line's values, None if it is damaged."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def training_bar(total_images: int, done: int = 0, show_progress: bool = True) -> Any:
    """Return a tqdm bar of images/sec and time left; on a file, not a terminal, it writes at most every 10 seconds."""
    return progress_bar(
        total=total_images,
        initial=done,
        **({} if show_progress else {"disable": True}),  # else TQDM_DISABLE is obeyed
        unit=" images",
        unit_scale=True,
        dynamic_ncols=True,
        smoothing=0.1,
        mininterval=0.2 if sys.stderr and sys.stderr.isatty() else 10,
    )


def _environment(device: str) -> dict[str, Any]:
    import torch

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.argv],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed, perhaps into an environment within another repository
        return "unknown"
    try:
        return subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
