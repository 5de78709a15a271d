"""The folder of a run: a new one, or that of an unfinished run with the same settings, which is then resumed."""

import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Any

from ..config import EARLIER_DEFAULTS, RESUME_SAFE_FIELDS, PretrainConfig, translate_fields
from ..messages import logger
from ..yaml_file import read_yaml
from .checkpoints import Checkpoints
from .run_log import read_log

# The types of what a checkpoint holds, and of what its "trainer" holds.
CHECKPOINT_TYPES: dict[str, type | UnionType] = {
    "config": dict,
    "train_beton": object,
    "trainer": dict,
    "train_s": float | int,
    "best_top1": float | int,
    "loss_steps": int,
    "log_bytes": int,
}
TRAINER_TYPES: dict[str, type | UnionType] = {
    "steps_done": int,
    "model": dict,
    "optimizer": dict,
    "ema": list,
    "loss_sum": object,
    "micro_batch": int,
    "threads": int,
    "processes": int,
    "body": str,
    "batches_per_epoch": int,
}


@dataclass(frozen=True)
class RunFolder:
    """A run's folder, which only the main process writes to, and the checkpoint to resume from, if any."""

    folder: Path
    checkpoint: dict[str, Any] | None


@contextmanager
def open_run(config: PretrainConfig, stem: str, root: Path = Path("runs")) -> Iterator[RunFolder]:
    """Yield the folder of a run, locked against other processes, and the checkpoint to resume from.

    The folder is config.run_dir. Without a run_dir it is the newest unfinished run below `root` with the same settings,
    if there is one that has a checkpoint, else a new folder there, named `stem` and the time. Raises ValueError if
    run_dir holds a finished run, a run with other settings (which it names), or a run that another process is using.
    """
    if config.run_dir:
        folder = Path(config.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder) as acquired:
            if not acquired:
                raise ValueError(f"another process is using {folder}: wait for it, or choose another --cfg.run_dir")
            yield RunFolder(folder, _checkpoint_to_resume(folder, config))
        return
    if config.resume == "auto":
        for folder in sorted((path.parent for path in root.glob("*/config.yaml")), key=_start_time, reverse=True):
            with ExitStack() as stack:
                try:
                    checkpoint = _unfinished(folder, config, stack)
                except (ValueError, OSError) as error:  # one bad folder must not keep all others from running
                    warnings.warn(f"{error}. The run in {folder} is not resumed", stacklevel=2)
                    checkpoint = None
                if checkpoint:
                    yield RunFolder(folder, checkpoint)
                    return
    folder = _new_folder(root, stem)
    with locked(folder):
        yield RunFolder(folder, None)


def _unfinished(folder: Path, config: PretrainConfig, stack: ExitStack) -> dict[str, Any] | None:
    """Return the newest checkpoint of an unfinished run with these settings, and lock its folder; None if it is none.

    Tell of one that differs only in what this version does otherwise by default. Raises ValueError or OSError if the
    folder, or all of its checkpoints, cannot be read.
    """
    stored = stored_settings(folder)
    differ = compare(stored, config)
    defaults = {field.name: field.default for field in fields(config)}
    is_earlier = all((EARLIER_DEFAULTS.get(name), defaults.get(name)) == pair for name, pair in differ.items())
    if not is_earlier or is_finished(folder) or not Checkpoints(folder).paths():
        return None
    if differ:
        flags = " ".join(f"--cfg.{name}={before}" for name, (before, _) in differ.items())
        logger.warning(f"to resume {folder}, which has the defaults of an earlier version, add {flags}")
        return None
    acquired = stack.enter_context(locked(folder))
    return _newest_checkpoint(folder, config) if acquired and not is_finished(folder) else None


def _checkpoint_to_resume(folder: Path, config: PretrainConfig) -> dict[str, Any] | None:
    """Return the newest checkpoint of the run in config.run_dir, None to begin; raise ValueError if it must not be."""
    if not (folder / "config.yaml").exists():
        if Checkpoints(folder).paths():
            raise ValueError(f"{folder} has checkpoints, but no config.yaml: choose another --cfg.run_dir")
        return None
    if is_finished(folder):
        raise ValueError(f"{folder} already has a finished run: choose another --cfg.run_dir or delete it")
    if config.resume == "never":
        raise ValueError(f"{folder} already has a run, and --cfg.resume=never: choose another --cfg.run_dir")
    if differ := differences(folder, config):
        raise ValueError(
            f"{folder} has an unfinished run with other settings: "
            + ", ".join(f"{name} {stored!r} (now {now!r})" for name, (stored, now) in differ.items())
            + ". Give the same settings to resume it, or choose another --cfg.run_dir"
        )
    return _newest_checkpoint(folder, config)


def _newest_checkpoint(folder: Path, config: PretrainConfig) -> dict[str, Any] | None:
    """Return the newest undamaged checkpoint of these settings, None if there is no checkpoint.

    Raises ValueError if there are only others.
    """

    def check(step: int, content: dict[str, Any]) -> None:
        wrong = _wrong_types(content, CHECKPOINT_TYPES) or _wrong_types(content["trainer"], TRAINER_TYPES)
        if wrong or content["trainer"]["steps_done"] != step:
            raise ValueError(f"is damaged or not a checkpoint of step {step}" + (f" ({wrong})" if wrong else ""))
        if differ := compare(dict(content["config"]), config):
            raise ValueError(f"has other settings ({', '.join(differ)}) than the run's config.yaml")

    checkpoints = Checkpoints(folder)
    checkpoint = checkpoints.newest(check)
    if checkpoint is None and checkpoints.paths():
        raise ValueError(f"none of the checkpoints in {checkpoints.folder} can be used: delete them to start again")
    return checkpoint


def _wrong_types(content: dict[str, Any], types: dict[str, type | UnionType]) -> str:
    """Return the names of the values that are missing or not of these types."""
    return ", ".join(name for name, kind in types.items() if name not in content or not isinstance(content[name], kind))


def is_finished(folder: Path) -> bool:
    """Return whether the run in the folder has written its last log line."""
    return os.path.lexists(folder / "log.jsonl") and bool(read_log(folder, "end"))


def differences(folder: Path, config: PretrainConfig) -> dict[str, tuple[Any, Any]]:
    """Return the settings that the weights depend on and that differ from the stored run: name -> (stored, now)."""
    try:
        return compare(stored_settings(folder), config)
    except (OSError, ValueError):
        return {"config.yaml": ("unreadable", "")}


def stored_settings(folder: Path) -> dict[str, Any]:
    """Return what config.yaml holds. Raises OSError, or ValueError if it is not that of a run."""
    content = read_yaml(folder / "config.yaml")
    stored = content.get("cfg") if isinstance(content, dict) else None
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        raise ValueError(f"{folder / 'config.yaml'} does not hold the settings of a run")
    return stored


def compare(stored: dict[str, Any], config: PretrainConfig) -> dict[str, tuple[Any, Any]]:
    """Return the settings that the weights depend on and that differ: name -> (stored, now).

    Settings stored by an earlier version get today's names, and what it did for each field that it did not have.
    """
    defaults = {field.name: EARLIER_DEFAULTS.get(field.name, field.default) for field in fields(config)}
    now, stored = asdict(config), {**defaults, **translate_fields(stored)}
    names = (stored.keys() | now.keys()) - RESUME_SAFE_FIELDS
    return {name: (stored.get(name), now.get(name)) for name in sorted(names) if stored.get(name) != now.get(name)}


def _start_time(folder: Path) -> float:
    try:
        return (folder / "config.yaml").stat().st_mtime
    except OSError:  # removed in this moment, or on a disk that fails: reading it will tell
        return 0.0


def _new_folder(root: Path, stem: str) -> Path:
    """Make and return a folder named `stem` and the time, with a number after it if there is one already."""
    stem = f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
    for attempt in range(1, 1000):
        folder = root / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # a run that started in the same second
            continue
    raise OSError(f"cannot make a run folder {root / stem}")


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Lock the folder and yield True, or yield False if another process has it locked. A lock ends with its process."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)
