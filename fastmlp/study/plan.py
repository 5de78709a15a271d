"""A study: many training runs described by one YAML file, planned and read back. Free of torch.

    title: Label smoothing
    paper: a modest gain                           # what the paper finds
    base: {dataset: fashion_mnist, epochs: 10}     # settings of every run; others are PretrainConfig's defaults
    arms:                                          # what is compared; a list of values is searched, see below
      "0.1": {label_smoothing: 0.1, lr: [1.0e-4, 3.0e-4]}
      none: {label_smoothing: 0}
    vary: {arch: [B_2-Wi_64, B_2-Wi_128]}          # besides, or in the place of arms: every combination
    seeds: [0, 1, 2]
    compare: ["0.1, arch B_2-Wi_64 > none, arch B_2-Wi_64"]    # the paper's order, by the names in the table
    branch: 0.2                                    # share of a run that is its cool-down; lengths share one run
    probe: cifar10                                 # judge by a linear probe on this data set
    fit: true                                      # fit E(C)
    quick: {base: {epochs: 2}, seeds: [0]}         # what --quick changes

A list among an arm's settings is a search: each value is tried once, with SEARCH_SEED, and the arm then runs with the
one of the highest top-1, so that no seed that is reported took part in the choice.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .. import cli
from ..arch import parse_arch
from ..beton import layout
from ..beton.inspect import BetonReader
from ..config import PretrainConfig
from ..cost import flops as compute
from ..data.subset import counts
from ..datasets import DatasetSpec, beton_path, get_dataset
from ..duration import Duration
from ..training.run_log import read_log
from . import scaling_laws as scaling

SEARCH_SEED = 100
DIVERGED = "diverged.txt"  # in the folder of a run whose loss was not finite


@dataclass(frozen=True)
class Study:
    """What a study's file says; see the head of this module."""

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

    def combinations(self) -> list[tuple[str, dict[str, Any], dict[str, list]]]:
        """Name, settings and what is searched, of each arm with each combination of what varies."""
        found = []
        for arm, of_arm in self.arms.items():
            for values in _products(self.vary):
                given = {**self.base, **(of_arm or {}), **values}
                searched = {key: value for key, value in given.items() if isinstance(value, list)}
                name = ", ".join(filter(None, [str(arm), *(f"{key} {value}" for key, value in values.items())]))
                found.append((name, {key: given[key] for key in given if key not in searched}, searched))
        return found


@dataclass(frozen=True)
class PlannedRun:
    """One run: the arm that it belongs to, its resolved settings, and those of them that were searched."""

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
        """What the run is in numbers, known before it begins. FLOP are the paper's: 3 forward passes an image."""
        settings, spec, arch = self.settings, self.spec, parse_arch(self.settings.arch)
        beton = beton_path(settings.data_dir, spec.name, spec.train_split, settings.res)
        layout.check(beton, f"{spec.writer} --res {settings.res}")
        samples = _samples(beton, beton.stat().st_mtime_ns, settings.train_fraction)
        steps = Duration.parse(settings.epochs).steps(settings.batch_size, samples // settings.batch_size)
        images = steps * settings.batch_size
        flop = scaling.flop(arch, settings.res, spec.num_classes, images)
        return {
            "arm": self.arm,
            "seed": settings.seed,
            "arch": settings.arch,
            "batch_size": settings.batch_size,
            "parameters": compute.parameters(arch, settings.res, spec.num_classes),
            "samples": samples,
            "length": settings.epochs,
            "epochs": images / samples,
            "images_seen": images,
            "flop": float(flop),
            **self.searched,
        }

    def top1(self, probe: str = "") -> float | None:
        """On the test images; of a linear probe on the data set `probe`, if there is one. 0 for a run that diverged,
        None for one that is not done."""
        if (self.folder / DIVERGED).exists():
            return 0.0
        folder = self.folder / f"probe-{probe}" if probe else self.folder
        ends = read_log(folder, "end") if (folder / "log.jsonl").exists() else []
        return ends[-1]["eval_top1"] if ends else None


@lru_cache
def _samples(beton: Path, changed: int, fraction: float) -> int:
    return int(counts(np.bincount(BetonReader(beton).records["f1"]), fraction).sum())


def read_study(path: Path, quick: bool = False) -> Study:
    """Raises ValueError naming the file and what is wrong in it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    names = {one.name for one in fields(Study)}
    if not isinstance(content, dict) or not {"title", "base"} <= set(content) <= names | {"quick"}:
        raise ValueError(f"{path}: a study has title and base, and may have {', '.join(sorted(names))}, quick")
    changes = content.pop("quick", None)
    if quick and not isinstance(changes, dict):
        raise ValueError(f"{path} tells no quick version: give it a mapping 'quick' of what changes")
    for name, value in changes.items() if quick else ():
        content[name] = {**content.get(name, {}), **value} if isinstance(value, dict) else value
    try:
        study = Study(**content)
        _check(study)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return study


def _check(study: Study) -> None:
    """Raises ValueError for what would not be a study."""
    for names, kind, expected in (
        (("base", "vary"), dict, "a mapping"),
        (("arms",), dict, "a mapping, not empty"),
        (("compare",), (list, tuple), "a list"),
        (("fit",), bool, "true or false"),
        (("seeds",), (list, tuple), "a list, not empty"),
    ):
        for name in names:
            value = getattr(study, name)
            if not isinstance(value, kind) or (not value and expected.endswith("not empty")):
                raise ValueError(f"{name} {value!r}: expected {expected}")
    if any(not isinstance(arm, str) for arm in study.arms):
        raise ValueError(f"arms {', '.join(map(repr, study.arms))}: quote names that YAML takes for numbers or truths")
    if any(type(seed) is not int or seed < 0 for seed in study.seeds) or len({*study.seeds}) < len(study.seeds):
        raise ValueError(f"seeds {study.seeds}: expected different numbers from 0 on")
    if SEARCH_SEED in study.seeds:
        raise ValueError(f"seed {SEARCH_SEED} is that of the search: choose others")
    if not isinstance(study.branch, int | float) or not 0 <= study.branch < 1:
        raise ValueError(f"branch {study.branch!r}: expected a share of each run from 0 to below 1")
    for fields_of in (study.base, study.vary, *study.arms.values()):
        if not isinstance(fields_of, dict | None):
            raise ValueError(f"{fields_of!r}: an arm's settings are a mapping")
        for name, value in (fields_of or {}).items():
            if value == [] or (fields_of is study.vary and not isinstance(value, list)):
                raise ValueError(f"{name} {value!r}: expected a list of values")
    folders: dict[str, str] = {}
    for name, settings, searched in study.combinations():
        for values in _products(searched):
            _settings(study, {**settings, **values})
        if taken := {"seed", "run_dir", "data_dir", "resume", "budget"} & {*settings, *searched}:
            raise ValueError(f"{', '.join(sorted(taken))}: set for each run by itself; leave it out")
        if (before := folders.setdefault(_folder(name), name)) != name:
            raise ValueError(f"{before!r} and {name!r} would share the folder {_folder(name)}: rename one")
    for pair in study.compare:
        both = str(pair).split(" > ")
        if len(both) != 2 or not {*both} <= {*folders.values()}:
            raise ValueError(f"compare {pair!r}: expected 'A > B' with A and B of {'; '.join(folders.values())}")


def _settings(study: Study, given: dict[str, Any]) -> PretrainConfig:
    if study.branch:
        epochs = Duration.parse(given.get("epochs", PretrainConfig.epochs))
        if epochs.unit != "epochs":
            raise ValueError(f"epochs {epochs}: with branch, lengths are in epochs")
        if given.get("schedule", "constant") != "constant":
            raise ValueError(f"schedule {given['schedule']}: a branch cools down from a constant one, leave it out")
        given = {**given, "cooldown": str(replace(epochs, amount=study.branch * epochs.amount))}
    return cli.from_mapping(PretrainConfig, given)


def _folder(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)


def _products(lists: dict[str, list]) -> list[dict[str, Any]]:
    """Every combination, one value of each list."""
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def plan_runs(study: Study, out: Path, data_dir: Path) -> tuple[list[PlannedRun], list[PlannedRun]]:
    """The runs of the search, in `out`, and those that count, which begin where the former are done.

    Until then the latter have the first of the values on trial.
    """
    searches: list[PlannedRun] = []
    runs: list[PlannedRun] = []
    for arm, settings, searched in study.combinations():
        trials = [_plan(study, arm, settings, values, SEARCH_SEED, out, data_dir) for values in _products(searched)]
        best = trials[0].searched
        if searched:
            searches += trials
            tops = [trial.top1(study.probe) for trial in trials]
            if None not in tops:
                best = trials[tops.index(max(tops))].searched  # type: ignore[type-var]
        runs += [_plan(study, arm, settings, best, seed, out, data_dir) for seed in study.seeds]
    return searches, runs


def _plan(study: Study, arm: str, settings: dict, searched: dict, seed: int, out: Path, data_dir: Path) -> PlannedRun:
    name = "-".join(filter(None, [arm, *(f"{key}_{value}" for key, value in {**searched, "seed": seed}.items())]))
    given = {**settings, **searched, "seed": seed, "data_dir": str(data_dir), "run_dir": str(out / _folder(name))}
    config = _settings(study, given)
    spec = get_dataset(config.dataset, data_dir, config.res)
    return PlannedRun(arm, replace(config, res=config.res or spec.res), searched)


def chains(study: Study, runs: list[PlannedRun]) -> list[list[PlannedRun]]:
    """The runs, grouped where a longer one goes on from the start of a shorter one's cool-down, shortest first."""
    found: dict[str, list[PlannedRun]] = {}
    for number, run in enumerate(runs):
        alike = repr(replace(run.settings, epochs="1", cooldown="0", run_dir="")) if study.branch else str(number)
        found.setdefault(alike, []).append(run)
    return [sorted(chain, key=lambda run: Duration.parse(run.settings.epochs).amount) for chain in found.values()]
