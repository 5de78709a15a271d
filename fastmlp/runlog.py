"""A run's folder: its settings and environment, one JSON line per event, and the progress bar."""

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

PACKAGES = ("fastmlp", "torch", "ffcv", "numba", "numpy", "pillow")


def create_run_folder(wanted: str, stem: str) -> Path:
    """The folder `wanted`, or a new one below ./runs named after `stem` and the time."""
    if wanted:
        folder = Path(wanted)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    stem = f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
    for attempt in range(1, 1000):
        folder = Path("runs") / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # a run that started in the same second
            continue
    raise OSError(f"cannot make a run folder {Path('runs') / stem}")


class RunLog:
    """Writes to one run folder; use it as a context manager.

    Raises ValueError where the folder already holds a run, even one that has just started; nothing is overwritten.
    """

    def __init__(self, folder: Path, config: Any, device: str):
        self.folder = folder
        self.start_s = time.perf_counter()
        try:
            self._file = (folder / "log.jsonl").open("x", encoding="utf-8")
        except FileExistsError:
            raise ValueError(f"{folder} already holds a run: choose another --cfg.run_dir or delete it") from None
        (folder / "config.yaml").write_text(yaml.safe_dump({"cfg": asdict(config)}, sort_keys=False), encoding="utf-8")
        (folder / "environment.json").write_text(json.dumps(_environment(device), indent=1) + "\n", encoding="utf-8")

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, event: str, **values: Any) -> None:
        """One line: {"event", "elapsed_s", ...}. Keys carry their unit where they have one."""
        line = {"event": event, "elapsed_s": round(time.perf_counter() - self.start_s, 3), **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def read_log(folder: Path, event: str) -> list[dict[str, Any]]:
    """The lines of one kind; a last line cut short by a crash is left out."""
    lines = []
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except json.JSONDecodeError:
            continue
        if values["event"] == event:
            lines.append(values)
    return lines


def progress_bar(total_images: int) -> tqdm:
    """images/sec and time left; on a log file instead of a terminal a line every ten seconds at most."""
    return tqdm(
        total=total_images, unit=" images", unit_scale=True, dynamic_ncols=True, smoothing=0.1,
        mininterval=0.2 if sys.stderr.isatty() else 10,
    )  # fmt: skip


def _environment(device: str) -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [sys.executable, *sys.argv],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions,
        "commit": _commit(),
    }


def _commit() -> str:
    root = Path(__file__).parent.parent
    try:
        return subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
