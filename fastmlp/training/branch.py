"""Branches: runs that share their steps with another run up to the start of its cool-down."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..atomic import load_torch, save_torch, write_atomic
from ..config import PretrainConfig
from .checkpoints import Checkpoints
from .run_folder import compare, differences, is_finished, locked
from .run_log import settings_text


def branch(parent: Path, config: PretrainConfig, folder: Path) -> PretrainConfig:
    """Copy the state of the run in `parent` at the start of its cool-down into `folder`, as a run of `config`.

    Returns the config for training.run.run_training, which resumes at that step and ends with the weights and losses,
    bit for bit, of a run with these settings from its first step. `config` is as it takes it (data set and resolution
    resolved). It may differ from the parent's in `epochs`, `cooldown` and RESUME_SAFE_FIELDS, and must not cool down
    before the parent did. A folder that already has a run with these settings is not changed. Call it in one process.

    Raises ValueError if one of these conditions does not hold, or if the parent has no cool-down or has not reached it.
    """
    config = replace(config, run_dir=str(folder))
    if _is_begun(folder, config):
        return config
    content = _at_cooldown(parent, config)
    log, best = (parent / "log.jsonl").read_bytes()[: content["log_bytes"]], Checkpoints(parent).best_before_cooldown
    if len(log) < content["log_bytes"]:
        raise ValueError(
            f"{parent / 'log.jsonl'} is shorter than it was when the cool-down began: nothing can branch off"
        )
    has_best = content["best_top1"] >= 0
    chosen_by = "val_top1" if config.validation else "test_top1"
    if has_best and not (best.is_file() and load_torch(best)["facts"][chosen_by] == content["best_top1"]):
        raise ValueError(f"{best} is not the best model before the cool-down: nothing can branch off")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) as acquired:
        if not acquired:
            raise ValueError(f"another process is using {folder}: wait for it, or branch into another folder")
        if _is_begun(folder, config):  # another process made it in the meantime
            return config
        # The checkpoint last: to open_run a folder without a checkpoint is a run that has not begun.
        write_atomic(folder / "config.yaml", settings_text(config))
        write_atomic(folder / "log.jsonl", log)
        checkpoints = Checkpoints(folder)
        checkpoints.folder.mkdir(exist_ok=True)
        if has_best:
            write_atomic(folder / "best.pt", best.read_bytes())
            checkpoints.keep_best(best)
        save_torch(checkpoints.path(content["trainer"]["steps_done"]), {**content, "config": asdict(config)})
    return config


def _is_begun(folder: Path, config: PretrainConfig) -> bool:
    """Return whether the folder has checkpoints or a finished run; raise ValueError if they are of other settings."""
    if (folder / "config.yaml").exists() and (differ := differences(folder, config)):
        raise ValueError(f"{folder} has a run with other settings ({', '.join(differ)}): branch into another folder")
    return bool(Checkpoints(folder).paths()) or is_finished(folder)


def _at_cooldown(parent: Path, config: PretrainConfig) -> dict[str, Any]:
    """Return the parent's checkpoint at the start of its cool-down, if `config` can resume from it."""
    checkpoints = Checkpoints(parent)
    if not (paths := checkpoints.paths()):
        raise ValueError(f"{parent} has no checkpoint to branch off from")
    content = load_torch(paths[0])  # that of the cool-down, unless the run has not reached it or went back before it
    stored, per_epoch = content["config"], content["trainer"]["batches_per_epoch"]
    differ = compare(stored, config)
    if other := differ.keys() - {"epochs", "cooldown"}:
        names = ", ".join(sorted(other))
        raise ValueError(f"a branch can differ from {parent} only in epochs and cooldown, not in {names}")
    theirs = replace(config, epochs=stored["epochs"], cooldown=stored["cooldown"]).step_counts(per_epoch)
    mine = config.step_counts(per_epoch)
    cooldown_start_step = theirs.before_cooldown
    if not theirs.cooldown or not cooldown_start_step:
        raise ValueError(f"{parent} keeps no checkpoint to branch off from: it has no cool-down, or no step before it")
    if mine.before_cooldown < cooldown_start_step or mine.total <= cooldown_start_step:
        raise ValueError(
            f"a branch must be longer than {cooldown_start_step} steps, after which {parent} began to cool down, and "
            f"must not cool down earlier: epochs {config.epochs!r} with cooldown {config.cooldown!r} are "
            f"{mine.total} steps, {mine.before_cooldown} of them before the cool-down"
        )
    if mine.warmup != theirs.warmup:
        raise ValueError(
            f"the warm-up, at most half of a run, would take {mine.warmup} steps of this run, but took "
            f"{theirs.warmup} steps of {parent}"
        )
    at_start = checkpoints.path(cooldown_start_step)
    if not at_start.is_file():
        raise ValueError(f"{parent} has not reached its cool-down at step {cooldown_start_step}: resume it first")
    return content if at_start == paths[0] else load_torch(at_start)
