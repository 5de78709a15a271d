"""Which folder a run lives in: a new one, that of an unfinished run with the same settings, or a branch of another."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from ..atomic import write_whole
from ..config import FREE_FIELDS, PretrainConfig
from .checkpoints import Checkpoints, read_checked, write_atomically
from .run_log import read_log, settings_text


@dataclass(frozen=True)
class Run:
    """A folder that this process alone writes to, and the checkpoint to go on from, if any."""

    folder: Path
    checkpoint: dict[str, Any] | None


@contextmanager
def open_run(config: PretrainConfig, stem: str, root: Path = Path("runs")) -> Iterator[Run]:
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
            yield Run(folder, _to_go_on(folder, config))
        return
    if config.resume == "auto":
        for folder in sorted((path.parent for path in root.glob("*/config.yaml")), key=_started, reverse=True):
            if is_finished(folder) or differences(folder, config) or not Checkpoints(folder).paths():
                continue
            with locked(folder) as alone:
                if alone and not is_finished(folder) and (checkpoint := _newest(folder, config)):
                    yield Run(folder, checkpoint)
                    return
    folder = _new_folder(root, stem)
    with locked(folder):
        yield Run(folder, None)


def branch(parent: Path, config: PretrainConfig, folder: Path) -> PretrainConfig:
    """Makes `folder` a run of `config` that has come as far as the run in `parent` had where its cool-down began.

    Gives the config for session.train, which goes on from there and ends with the weights and losses, bit for bit, of a
    run of these settings from the beginning. `config` is as session.train takes it (data set and resolution resolved);
    it may differ from the parent's in `epochs`, `cooldown` and FREE_FIELDS, and must not cool down before the parent
    did. A folder that holds a run of these settings already is left as it is. Call it in one process.

    Raises ValueError where that does not hold, and where the parent has not come to its cool-down or has none.
    """
    config = replace(config, run_dir=str(folder))
    if _is_begun(folder, config):
        return config
    content = _at_cooldown(parent, config)
    log, best = (parent / "log.jsonl").read_bytes()[: content["log_bytes"]], Checkpoints(parent).best_before_cooldown
    if len(log) < content["log_bytes"]:
        raise ValueError(f"{parent / 'log.jsonl'} is shorter than it was at the cool-down: nothing can branch off")
    had_one = content["best_top1"] >= 0
    if had_one and not (best.is_file() and read_checked(best)["facts"]["test_top1"] == content["best_top1"]):
        raise ValueError(f"{best} is not the best model before the cool-down: nothing can branch off")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as alone:
        if not alone:
            raise ValueError(f"another process is at {folder}: wait for it, or branch into another folder")
        if _is_begun(folder, config):  # by now
            return config
        # The checkpoint last: open_run takes a folder without one for a run that is yet to begin.
        write_whole(folder / "config.yaml", settings_text(config))
        write_whole(folder / "log.jsonl", log)
        checkpoints = Checkpoints(folder)
        checkpoints.folder.mkdir(exist_ok=True)
        if had_one:
            write_whole(folder / "best.pt", best.read_bytes())
            checkpoints.keep_best(best)
        write_atomically(checkpoints.path(content["trainer"]["steps_done"]), {**content, "config": asdict(config)})
    return config


def _is_begun(folder: Path, config: PretrainConfig) -> bool:
    """Whether the folder holds a run of these settings with something to lose; ValueError if it is of others."""
    if (folder / "config.yaml").exists() and (differ := differences(folder, config)):
        raise ValueError(f"{folder} holds a run of other settings ({', '.join(differ)}): branch into another folder")
    return bool(Checkpoints(folder).paths()) or is_finished(folder)


def _at_cooldown(parent: Path, config: PretrainConfig) -> dict[str, Any]:
    """The parent's checkpoint where its cool-down began, if `config` may go on from it."""
    checkpoints = Checkpoints(parent)
    if not (paths := checkpoints.paths()):
        raise ValueError(f"{parent} has no checkpoint to branch off from")
    content = read_checked(paths[0])  # the one that is looked for, unless the run has not come to it or went back
    there, per_epoch = content["config"], content["trainer"]["batches_per_epoch"]
    differ = _compare(there, config)
    if other := differ.keys() - {"epochs", "cooldown"}:
        names = ", ".join(sorted(other))
        raise ValueError(f"a branch differs from {parent} in epochs and cooldown alone, not in {names}")
    theirs = replace(config, epochs=there["epochs"], cooldown=there["cooldown"]).phases(per_epoch)
    mine = config.phases(per_epoch)
    begins = theirs.before_cooldown
    if not theirs.cooldown or not begins:
        raise ValueError(f"{parent} keeps no checkpoint to branch off from: it has no cool-down, or nothing before it")
    if mine.before_cooldown < begins or mine.total <= begins:
        raise ValueError(f"a branch has to last beyond step {begins}, where {parent} began to cool down, and to cool "
                         f"down no earlier: epochs {config.epochs!r} with cooldown {config.cooldown!r} are "
                         f"{mine.total} steps, {mine.before_cooldown} of them before the cool-down")  # fmt: skip
    if mine.warmup != theirs.warmup:
        raise ValueError(f"a warm-up, at most half of a run, would take {mine.warmup} steps of this one, but took "
                         f"{theirs.warmup} of {parent}")  # fmt: skip
    if not checkpoints.path(begins).is_file():
        raise ValueError(f"{parent} has not come to its cool-down at step {begins}: let it go on first")
    return content if checkpoints.path(begins) == paths[0] else read_checked(checkpoints.path(begins))


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
    if checkpoint and (differ := _compare(checkpoint["config"], config)):
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
    return _compare(there, config)


def _compare(there: dict[str, Any], config: PretrainConfig) -> dict[str, tuple[Any, Any]]:
    """A field that the run in the folder did not know yet stands there at its default."""
    now, there = asdict(config), {**{field.name: field.default for field in fields(config)}, **there}
    names = (there.keys() | now.keys()) - FREE_FIELDS
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
