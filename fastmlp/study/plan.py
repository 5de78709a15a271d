"""A study: many training runs described by one YAML file, planned and read back. Needs no torch.

    title: Label smoothing
    paper: a modest gain                           # what the paper finds
    base: {dataset: fashion_mnist, epochs: 10}     # settings of every run; the others are PretrainConfig's defaults
    arms:                                          # what is compared; a list of values is searched, see below
      "0.1": {label_smoothing: 0.1, lr: [1.0e-4, 3.0e-4]}
      none: {label_smoothing: 0}
    vary: {arch: [B_2-Wi_64, B_2-Wi_128]}          # with or instead of arms: every combination
    seeds: [0, 1, 2]
    compare: ["0.1, arch B_2-Wi_64 > none, arch B_2-Wi_64"]    # the paper's order, by the names in the table
    branch: 0.2                                    # share of a run that is its cool-down; lengths share one run
    probe: cifar10                                 # score a run by a linear probe on this data set
    fit: true                                      # fit E(C)
    quick: {base: {epochs: 2}, seeds: [0]}         # the fields that --quick changes

A list among an arm's settings is a search. Each value is tried once, with SEARCH_SEED, and the arm then runs with the
value of the highest top-1, so that no reported seed took part in the choice. With the setting validation, that is the
top-1 of the held-out training images, so that no test image took part either.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import cli
from ..arch import parse_arch
from ..beton import layout
from ..beton.inspect import BetonReader
from ..config import PretrainConfig, stored_setting
from ..cost import flops
from ..data.subset import counts, held_out_counts
from ..datasets import DatasetSpec, beton_path, get_dataset
from ..duration import Duration
from ..training.run_log import read_log
from ..yaml_file import read_yaml
from . import scaling_laws

SEARCH_SEED = 100
SET_BY_STUDY = {"seed", "run_dir", "data_dir", "resume", "budget"}  # settings that no file may give
MAX_RUNS = 100_000
DIVERGED = "diverged.txt"  # in the folder of a run whose loss was not finite


@dataclass(frozen=True)
class Study:
    """Content of a study's YAML file, described at the head of this module."""

    title: str
    base: dict[str, Any]
    arms: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    vary: dict[str, list] = field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2)
    paper: str = ""
    compare: Sequence[str] = ()
    branch: float = 0.0
    probe: str = ""
    fit: bool = False

    def combinations(self) -> list["Combination"]:
        """Return each arm with each combination of what varies."""
        found = []
        for arm, arm_settings in self.arms.items():
            for values in _products(self.vary):
                given = {**self.base, **(arm_settings or {}), **values}
                searched = {key: value for key, value in given.items() if isinstance(value, list)}
                fixed = {key: given[key] for key in given if key not in searched}
                stored = dict(stored_setting(*setting) for setting in values.items())
                found.append(Combination(_describe(arm, values), _describe(arm, stored), fixed, searched))
        return found


class Combination(NamedTuple):
    """An arm with one value of each setting that varies."""

    name: str  # in the table
    stem: str  # of its runs' folders: the name in the words of 0.1, so that a study that 0.1 began is resumed
    settings: dict[str, Any]  # fixed
    searched: dict[str, list]


def _describe(arm: str, values: Mapping[str, Any]) -> str:
    return ", ".join(filter(None, [str(arm), *(f"{key} {value}" for key, value in values.items())]))


@dataclass(frozen=True)
class PlannedRun:
    """One run: its arm, its resolved settings, and those of them that are searched."""

    arm: str
    settings: PretrainConfig
    searched: dict[str, Any]

    @property
    def folder(self) -> Path:
        return Path(self.settings.run_dir)

    @property
    def spec(self) -> DatasetSpec:
        return get_dataset(self.settings.dataset, self.settings.data_dir, self.settings.res)

    def metadata(self) -> dict[str, Any]:
        """Return the run's numbers known before it starts. FLOP are the paper's: 3 forward passes per image."""
        settings, spec, arch = self.settings, self.spec, parse_arch(self.settings.arch)
        beton = beton_path(settings.data_dir, spec.name, spec.train_split, settings.res)
        layout.check(beton, f"{spec.writer} --res {settings.res}")
        samples = _num_samples(beton, beton.stat().st_mtime_ns, settings.train_fraction, settings.validation)
        steps = Duration.parse(settings.epochs).steps(settings.batch_size, samples // settings.batch_size)
        images = steps * settings.batch_size
        flop = scaling_laws.flop(arch, settings.res, spec.num_classes, images)
        return {
            "arm": self.arm,
            "seed": settings.seed,
            "arch": settings.arch,
            "batch_size": settings.batch_size,
            "parameters": flops.parameters(arch, settings.res, spec.num_classes),
            "samples": samples,
            "length": settings.epochs,
            "epochs": images / samples,
            "images_seen": images,
            "flop": float(flop),
            **self.searched,
        }

    def top1(self, probe: str = "", choosing: bool = False) -> float | None:
        """Return the top-1 on the test images, of a linear probe on the data set `probe` if given.

        To choose by, it is that of the run on its held-out training images, if it has any. It is 0 for a run that
        diverged and None for a run that is not finished.
        """
        if choosing and self.settings.validation:
            probe = ""
        if (self.folder / DIVERGED).exists():
            return 0.0
        folder = self.folder / f"probe-{probe}" if probe else self.folder
        ends = read_log(folder, "end") if (folder / "log.jsonl").exists() else []
        if not ends:
            return None
        return ends[-1]["val_top1" if choosing and "val_top1" in ends[-1] else "eval_top1"]


@lru_cache
def _num_samples(beton: Path, mtime_ns: int, train_fraction: float, validation: float) -> int:
    """Return the number of images that are trained on; a beton written again has another `mtime_ns`."""
    images = np.bincount(BetonReader(beton).records["f1"])
    if validation:
        images -= held_out_counts(images, validation)
    return int(counts(images, train_fraction).sum())


def read_study(path: Path, quick: bool = False) -> Study:
    """Read a study's YAML file. Raises ValueError that names the file and the mistake in it."""
    content = read_yaml(path)
    names = {one.name for one in fields(Study)}
    if not isinstance(content, dict) or not {"title", "base"} <= set(content) <= names | {"quick"}:
        raise ValueError(f"{path}: a study has title and base, and may have {', '.join(sorted(names))}, quick")
    changes = content.pop("quick", None)
    if quick:
        if not isinstance(changes, dict):
            raise ValueError(f"{path} has no quick version: add a mapping 'quick' with the fields that it changes")
        for name, value in changes.items():
            before = content.get(name, {})
            content[name] = {**before, **value} if isinstance(value, dict) and isinstance(before, dict) else value
    try:
        study = Study(**content)
        for name, check in FIELD_CHECKS.items():
            check(getattr(study, name))
        _check_comparisons(study, _check_combinations(study))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return study


def _check_base(base: Any) -> None:
    if not isinstance(base, dict):
        raise ValueError(f"base {base!r}: expected a mapping")
    _check_settings(base)


def _check_arms(arms: Any) -> None:
    if not isinstance(arms, dict) or not arms:
        raise ValueError(f"arms {arms!r}: expected a mapping, not empty")
    if any(not isinstance(arm, str) for arm in arms):
        raise ValueError(f"arms {', '.join(map(repr, arms))}: quote names that YAML reads as numbers or truth values")
    for arm, settings in arms.items():
        if not isinstance(settings, dict | None):
            raise ValueError(f"arm {arm!r} has {settings!r}: expected a mapping of settings")
        _check_settings(settings or {})


def _check_settings(settings: dict[str, Any]) -> None:
    """Raise ValueError for an empty list of values; each setting's own checker sees its values later."""
    for name, value in settings.items():
        if value == []:
            raise ValueError(f"{name} {value!r}: expected a list of values")


def _check_vary(vary: Any) -> None:
    if not isinstance(vary, dict):
        raise ValueError(f"vary {vary!r}: expected a mapping")
    for name, values in vary.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{name} {values!r}: expected a list of values")


def _check_seeds(seeds: Any) -> None:
    if not isinstance(seeds, list | tuple) or not seeds:
        raise ValueError(f"seeds {seeds!r}: expected a list, not empty")
    if any(type(seed) is not int or seed < 0 for seed in seeds) or len({*seeds}) < len(seeds):
        raise ValueError(f"seeds {seeds}: expected different integers of at least 0")
    if SEARCH_SEED in seeds:
        raise ValueError(f"seed {SEARCH_SEED} is the seed of the search: choose others")


def _check_compare(compare: Any) -> None:
    if not isinstance(compare, list | tuple):
        raise ValueError(f"compare {compare!r}: expected a list")


def _check_branch(branch: Any) -> None:
    if not isinstance(branch, int | float) or not 0 <= branch < 1:
        raise ValueError(f"branch {branch!r}: expected a share of each run, from 0 to below 1")


def _check_fit(fit: Any) -> None:
    if not isinstance(fit, bool):
        raise ValueError(f"fit {fit!r}: expected true or false")


# Each checks one field of a Study by itself and raises ValueError; title, paper and probe are free text.
FIELD_CHECKS: dict[str, Callable[[Any], None]] = {
    "base": _check_base,
    "vary": _check_vary,
    "arms": _check_arms,
    "compare": _check_compare,
    "fit": _check_fit,
    "seeds": _check_seeds,
    "branch": _check_branch,
}


def _check_combinations(study: Study) -> list[str]:
    """Return the names of the combinations. Raises ValueError for settings that no run can have, or a shared folder."""
    runs = len(study.seeds) * math.prod(len(values) for values in study.vary.values())
    runs *= sum(
        math.prod(len(value) for value in {**study.base, **(arm or {})}.values() if isinstance(value, list))
        for arm in study.arms.values()
    )
    if runs > MAX_RUNS:
        raise ValueError(f"it has {runs:,} runs, expected at most {MAX_RUNS:,}: vary fewer settings")
    folders: dict[str, str] = {}
    for name, stem, settings, searched in study.combinations():
        for values in _products(searched):
            _settings(study, {**settings, **values})
        if taken := SET_BY_STUDY & {*settings, *searched}:
            raise ValueError(f"{', '.join(sorted(taken))}: the study sets this for each run; leave it out")
        if (before := folders.setdefault(_folder(stem), name)) != name:
            raise ValueError(f"{before!r} and {name!r} would share the folder {_folder(stem)}: rename one")
    return list(folders.values())


def _check_comparisons(study: Study, names: Sequence[str]) -> None:
    for pair in study.compare:
        both = str(pair).split(" > ")
        if len(both) != 2 or not {*both} <= {*names}:
            raise ValueError(f"compare {pair!r}: expected 'A > B' with A and B of {'; '.join(names)}")


def _settings(study: Study, given: dict[str, Any]) -> PretrainConfig:
    """Return the resolved settings of a run. Raises ValueError for a value that its checker refuses."""
    if study.branch:
        epochs = Duration.parse(given.get("epochs", PretrainConfig.epochs))
        if epochs.unit != "epochs":
            raise ValueError(f"epochs {epochs}: a study with a branch gives lengths in epochs")
        if given.get("schedule", "constant") != "constant":
            raise ValueError(f"schedule {given['schedule']}: a branch cools down from a constant one; leave it out")
        given = {**given, "cooldown": str(replace(epochs, amount=study.branch * epochs.amount))}
    return cli.from_mapping(PretrainConfig, given)


def _folder(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)


def _products(lists: dict[str, list]) -> list[dict[str, Any]]:
    """Return every combination that has one value of each list."""
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def plan_runs(study: Study, out: Path, data_dir: Path) -> tuple[list[PlannedRun], list[PlannedRun]]:
    """Return the runs of the search, in `out`, and the runs that count, which start when the search is finished.

    Until then the runs that count have the first of the searched values.
    """
    searches: list[PlannedRun] = []
    runs: list[PlannedRun] = []
    for combination in study.combinations():
        searched = combination.searched
        trials = [_plan(study, combination, values, SEARCH_SEED, out, data_dir) for values in _products(searched)]
        best = trials[0].searched
        if searched:
            searches += trials
            scores = [trial.top1(study.probe, choosing=True) for trial in trials]
            if None not in scores:
                best = trials[scores.index(max(scores))].searched  # type: ignore[type-var]
        runs += [_plan(study, combination, best, seed, out, data_dir) for seed in study.seeds]
    return searches, runs


def _plan(
    study: Study, combination: Combination, searched: dict[str, Any], seed: int, out: Path, data_dir: Path
) -> PlannedRun:
    stored = dict(stored_setting(*setting) for setting in searched.items()) | {"seed": seed}
    name = "-".join(filter(None, [combination.stem, *(f"{key}_{value}" for key, value in stored.items())]))
    run_dir = str(out / _folder(name))
    given = {**combination.settings, **searched, "seed": seed, "data_dir": str(data_dir), "run_dir": run_dir}
    config = _settings(study, given)
    spec = get_dataset(config.dataset, data_dir, config.res)
    return PlannedRun(combination.name, replace(config, res=config.res or spec.res), searched)


def group_by_shared_start(study: Study, runs: list[PlannedRun]) -> list[list[PlannedRun]]:
    """Return the runs in groups, shortest first, in which each run resumes where the shorter one's cool-down begins.

    Runs of one group differ only in their length. Without a branch each run is a group of its own.
    """
    groups: dict[str, list[PlannedRun]] = {}
    for number, run in enumerate(runs):
        key = repr(replace(run.settings, epochs="1", cooldown="0", run_dir="")) if study.branch else str(number)
        groups.setdefault(key, []).append(run)
    return [sorted(group, key=lambda run: Duration.parse(run.settings.epochs).amount) for group in groups.values()]
