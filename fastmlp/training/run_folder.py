"""Which folder a run lives in: a new one, that of an unfinished run with the same settings, or a branch of another."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from ..config import RESUME_SAFE_FIELDS, PretrainConfig, translate_fields
from .checkpoints import Checkpoints
from .run_log import read_log


@dataclass(frozen=True)
class RunFolder:
    """A folder that this process alone writes to, and the checkpoint to go on from, if any."""

    folder: Path
    checkpoint: dict[str, Any] | None


@contextmanager
def open_run(config: PretrainConfig, stem: str, root: Path = Path("runs")) -> Iterator[RunFolder]:
    """The run of config.run_dir, begun or taken up again; without one the newest unfinished run below `root` that has
    these settings, else a new folder there named after `stem` and the time.

    Raises ValueError where run_dir holds a finished run, one of other settings (naming them), or one that another
    process is at.
    """
    if config.run_dir:
        folder = Path(config.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder) as alone:
            if not alone:
                raise ValueError(f"another process is at {folder}: wait for it, or choose another --cfg.run_dir")
            yield RunFolder(folder, _to_go_on(folder, config))
        return
    if config.resume == "auto":
        for folder in sorted((path.parent for path in root.glob("*/config.yaml")), key=_started, reverse=True):
            if is_finished(folder) or differences(folder, config) or not Checkpoints(folder).paths():
                continue
            with locked(folder) as alone:
                if alone and not is_finished(folder) and (checkpoint := _newest(folder, config)):
                    yield RunFolder(folder, checkpoint)
                    return
    folder = _new_folder(root, stem)
    with locked(folder):
        yield RunFolder(folder, None)


def _to_go_on(folder: Path, config: PretrainConfig) -> dict[str, Any] | None:
    if not (folder / "config.yaml").exists():
        if Checkpoints(folder).paths():
            raise ValueError(f"{folder} holds checkpoints, but no config.yaml: choose another --cfg.run_dir")
        return None
    if is_finished(folder):
        raise ValueError(f"{folder} already holds a finished run: choose another --cfg.run_dir or delete it")
    if config.resume == "never":
        raise ValueError(f"{folder} already holds a run, and --cfg.resume=never: choose another --cfg.run_dir")
    if differ := differences(folder, config):
        raise ValueError(
            f"{folder} holds an unfinished run of other settings: "
            + ", ".join(f"{name} {there!r} (now {now!r})" for name, (there, now) in differ.items())
            + ". Give the same ones to go on with it, or choose another --cfg.run_dir"
        )
    return _newest(folder, config)


def _newest(folder: Path, config: PretrainConfig) -> dict[str, Any] | None:
    checkpoints = Checkpoints(folder)
    checkpoint = checkpoints.newest()
    if checkpoint is None and checkpoints.paths():
        raise ValueError(f"not one of the checkpoints in {checkpoints.folder} can be read: delete them to begin anew")
    if checkpoint and (differ := compare(checkpoint["config"], config)):
        raise ValueError(
            f"the checkpoints in {checkpoints.folder} are of other settings ({', '.join(differ)}), though config.yaml "
            "is of these: choose another --cfg.run_dir"
        )
    return checkpoint


def is_finished(folder: Path) -> bool:
    return (folder / "log.jsonl").exists() and bool(read_log(folder, "end"))


def differences(folder: Path, config: PretrainConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that weights depend on and that the run in `folder` has otherwise: name -> (there, now)."""
    try:
        there = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["cfg"]
    except (OSError, yaml.YAMLError, TypeError, KeyError):
        return {"config.yaml": ("unreadable", "")}
    return compare(there, config)


def compare(there: dict[str, Any], config: PretrainConfig) -> dict[str, tuple[Any, Any]]:
    """A field that the run in the folder did not know yet stands there at its default."""
    defaults = {field.name: field.default for field in fields(config)}
    now, there = asdict(config), {**defaults, **translate_fields(there)}
    names = (there.keys() | now.keys()) - RESUME_SAFE_FIELDS
    return {name: (there.get(name), now.get(name)) for name in sorted(names) if there.get(name) != now.get(name)}


def _started(folder: Path) -> float:
    return (folder / "config.yaml").stat().st_mtime


def _new_folder(root: Path, stem: str) -> Path:
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
    """Whether nobody else is at it; until the end of the process at most."""
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
