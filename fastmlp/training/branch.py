"""A run that branches off another where its cool-down began."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..atomic import load_torch, save_torch, write_atomic
from ..config import PretrainConfig
from .checkpoints import Checkpoints
from .run_folder import compare, differences, is_finished, locked
from .run_log import settings_text


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
    if had_one and not (best.is_file() and load_torch(best)["facts"]["test_top1"] == content["best_top1"]):
        raise ValueError(f"{best} is not the best model before the cool-down: nothing can branch off")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as alone:
        if not alone:
            raise ValueError(f"another process is at {folder}: wait for it, or branch into another folder")
        if _is_begun(folder, config):  # by now
            return config
        # The checkpoint last: open_run takes a folder without one for a run that is yet to begin.
        write_atomic(folder / "config.yaml", settings_text(config))
        write_atomic(folder / "log.jsonl", log)
        checkpoints = Checkpoints(folder)
        checkpoints.folder.mkdir(exist_ok=True)
        if had_one:
            write_atomic(folder / "best.pt", best.read_bytes())
            checkpoints.keep_best(best)
        save_torch(checkpoints.path(content["trainer"]["steps_done"]), {**content, "config": asdict(config)})
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
    content = load_torch(paths[0])  # the one that is looked for, unless the run has not come to it or went back
    there, per_epoch = content["config"], content["trainer"]["batches_per_epoch"]
    differ = compare(there, config)
    if other := differ.keys() - {"epochs", "cooldown"}:
        names = ", ".join(sorted(other))
        raise ValueError(f"a branch differs from {parent} in epochs and cooldown alone, not in {names}")
    theirs = replace(config, epochs=there["epochs"], cooldown=there["cooldown"]).step_counts(per_epoch)
    mine = config.step_counts(per_epoch)
    begins = theirs.before_cooldown
    if not theirs.cooldown or not begins:
        raise ValueError(f"{parent} keeps no checkpoint to branch off from: it has no cool-down, or nothing before it")
    if mine.before_cooldown < begins or mine.total <= begins:
        raise ValueError(
            f"a branch has to last beyond step {begins}, where {parent} began to cool down, and to cool "
            f"down no earlier: epochs {config.epochs!r} with cooldown {config.cooldown!r} are "
            f"{mine.total} steps, {mine.before_cooldown} of them before the cool-down"
        )
    if mine.warmup != theirs.warmup:
        raise ValueError(
            f"a warm-up, at most half of a run, would take {mine.warmup} steps of this one, but took "
            f"{theirs.warmup} of {parent}"
        )
    if not checkpoints.path(begins).is_file():
        raise ValueError(f"{parent} has not come to its cool-down at step {begins}: let it go on first")
    return content if checkpoints.path(begins) == paths[0] else load_torch(checkpoints.path(begins))
