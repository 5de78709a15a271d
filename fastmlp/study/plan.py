"""The runs of a study: those of its searches, as far as they are known, and those that count. Needs no torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..arch import parse_arch
from ..beton import layout
from ..beton.inspect import BetonReader
from ..config import PretrainConfig, stored_setting
from ..cost import flops
from ..data.subset import counts, held_out_counts
from ..datasets import DatasetSpec, beton_path, get_dataset
from ..duration import Duration
from ..training.run_log import read_log
from . import scaling_laws
from .search import Point, progress
from .study_file import CHECKERS, SEARCH_SEED, Combination, Study, describe, folder_name, settings_of

DIVERGED = "diverged.txt"  # in the folder of a run whose loss was not finite
HELD_OUT = 0.1  # share of the training images that a search chooses by


@dataclass(frozen=True)
class PlannedRun:
    """One run: what it is of, its resolved settings, and those of them that are searched."""

    combination: Combination
    settings: PretrainConfig
    searched: dict[str, Any]
    is_trial: bool = False  # of a search: it has held-out images and never sees the test images
    is_settled: bool = True  # unless its search has not chosen yet

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
            "arm": self.combination.name,
            "of_arm": self.combination.arm,
            "where": self.combination.where,
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

    def top1(self, probe: str = "") -> float | None:
        """Return the top-1 on the test images, of a linear probe on the data set `probe` if given.

        Of a trial of a search it is that on its held-out training images, and nothing probes it. It is 0 for a run that
        diverged, and None for one that is not finished or not settled.
        """
        if not self.is_settled:
            return None
        if (self.folder / DIVERGED).exists():
            return 0.0
        end = self.end(probe if not self.is_trial else "")
        return end["val_top1" if self.is_trial else "eval_top1"] if end else None

    def end(self, probe: str = "") -> dict[str, Any] | None:
        """Return the last log line of the run, or of its probe; None if it is not finished."""
        folder = self.folder / f"probe-{probe}" if probe else self.folder
        ends = read_log(folder, "end") if (folder / "log.jsonl").exists() else []
        return ends[-1] if ends else None


@lru_cache
def _num_samples(beton: Path, mtime_ns: int, train_fraction: float, validation: float) -> int:
    """Return the number of images that are trained on; a beton written again has another `mtime_ns`."""
    images = np.bincount(BetonReader(beton).records["f1"])
    if validation:
        images -= held_out_counts(images, validation)
    return int(counts(images, train_fraction).sum())


@dataclass(frozen=True)
class Search:
    """The search of an arm: its trials so far, those to run next included, and its choice once they are finished."""

    combination: Combination  # whose settings its trials have
    trials: list[PlannedRun]
    best: dict[str, Any] | None
    unbracketed: tuple[str, ...]  # settings whose best value is the last that the search may try

    @property
    def name(self) -> str:
        return self.combination.name

    @cached_property
    def curve(self) -> dict[Point, list[float]]:
        """The top-1 (0-1) of each finished seed on the held-out images, by the values of the searched settings."""
        found: dict[Point, list[float]] = {}
        for trial in self.trials:
            if (top1 := trial.top1()) is not None:
                found.setdefault((*trial.searched.values(),), []).append(top1)
        return found


@dataclass(frozen=True)
class Plan:
    """The runs of a study as far as they are known."""

    searches: list[Search]
    runs: list[PlannedRun]  # those that count, with the first value of a search that has not chosen

    @property
    def trials(self) -> list[PlannedRun]:
        return [trial for search in self.searches for trial in search.trials]


def plan_runs(study: Study, out: Path, data_dir: Path) -> Plan:
    """Return the trials of the searches, in `out`, and the runs that count, which start when all searches have chosen.

    Trials that lists are continued by are known once the trials before them are finished.
    """
    combinations = study.combinations()
    if study.probe:
        get_dataset(study.probe, data_dir)  # raises for an unknown name
    searches: dict[str, Search] = {}
    chosen_by, runs = searchers(study, combinations), list[PlannedRun]()
    for combination in combinations:
        first = {name: values[0] for name, values in combination.searched.items()}
        if _plan(study, combination, first, 0, out, data_dir).metadata()["flop"] > study.max_flop:
            continue
        chosen, is_settled = first, True
        if combination.searched:
            searcher = chosen_by[combination.name]
            search = searches.get(searcher.name)
            if search is None:
                search = searches[searcher.name] = _search(study, searcher, out, data_dir)
            chosen, is_settled = search.best or chosen, search.best is not None
        planned = [_plan(study, combination, chosen, seed, out, data_dir) for seed in combination.seeds]
        runs += [replace(run, is_settled=is_settled) for run in planned]
    if too_few := [run for run in runs if run.metadata()["samples"] < study.gradients]:
        raise ValueError(f"gradients {study.gradients}: {too_few[0].folder.name} has fewer training images")
    return Plan([*searches.values()], runs)


def searchers(study: Study, combinations: Sequence[Combination]) -> dict[str, Combination]:
    """Return for each combination with a search, by its name, the one whose search it takes its values from.

    That is the one at search_at and, with a branch, of the longest run.
    """
    by_name = {one.name: one for one in combinations}
    return {one.name: by_name[_searcher_name(study, one)] for one in combinations if one.searched}


def _searcher_name(study: Study, combination: Combination) -> str:
    at = {name: study.vary[name][study.vary[name].index(value)] for name, value in study.search_at.items()}  # 1 is 1.0
    if study.branch and "epochs" in combination.varied:
        at.setdefault("epochs", max(study.vary["epochs"], key=lambda epochs: Duration.parse(epochs).amount))
    return describe(combination.arm, {**combination.varied, **at})


def _search(study: Study, combination: Combination, out: Path, data_dir: Path) -> Search:
    names = list(combination.searched)

    def trial(point: Point, seed: int) -> PlannedRun:
        values = dict(zip(names, point, strict=True))
        return _plan(study, combination, values, SEARCH_SEED + seed, out, data_dir, is_trial=True)

    def is_allowed(values: Any) -> bool:
        try:
            metadata = trial(tuple(values.values()), 0).metadata()
        except ValueError:
            return False
        return metadata["samples"] >= metadata["batch_size"]

    if trial(tuple(values[0] for values in combination.searched.values()), 0).metadata()["flop"] > study.max_flop:
        raise ValueError(f"the search of {combination.name!r} is above max_flop: name smaller runs in search_at")
    limits = {name: (CHECKERS[name].min, CHECKERS[name].max) for name in names if hasattr(CHECKERS[name], "min")}
    scores: dict[tuple[Point, int], float] = {}
    while True:  # each pass knows the trials that the finished ones lead to
        state = progress(combination.searched, scores, study.search_seeds, limits, is_allowed)
        planned = {key: trial(*key) for key in state.trials}
        known = {key: top1 for key, run in planned.items() if (top1 := run.top1()) is not None}
        if known.keys() <= scores.keys():
            best = None if state.best is None else dict(zip(names, state.best, strict=True))
            return Search(combination, [*planned.values()], best, state.unbracketed)
        scores |= known


def _plan(
    study: Study,
    combination: Combination,
    searched: dict[str, Any],
    seed: int,
    out: Path,
    data_dir: Path,
    is_trial: bool = False,
) -> PlannedRun:
    given = {**combination.settings, **searched, "seed": seed, "data_dir": str(data_dir)}
    stored = dict(stored_setting(*setting) for setting in searched.items())
    if is_trial and not given.get("validation"):
        given["validation"] = stored["validation"] = HELD_OUT
    name = "-".join(
        filter(None, [combination.stem, *(f"{key}_{value}" for key, value in {**stored, "seed": seed}.items())])
    )
    config = settings_of(study, {**given, "run_dir": str(out / folder_name(name))})
    spec = get_dataset(config.dataset, data_dir, config.res)
    return PlannedRun(combination, replace(config, res=config.res or spec.res), searched, is_trial)


def group_by_shared_start(study: Study, runs: list[PlannedRun]) -> list[list[PlannedRun]]:
    """Return the runs in groups, shortest first, in which each run resumes where the shorter one's cool-down begins.

    Runs of one group differ only in their length. Without a branch each run is a group of its own.
    """
    groups: dict[str, list[PlannedRun]] = {}
    for number, run in enumerate(runs):
        key = repr(replace(run.settings, epochs="1", cooldown="0", run_dir="")) if study.branch else str(number)
        groups.setdefault(key, []).append(run)
    return [sorted(group, key=lambda run: Duration.parse(run.settings.epochs).amount) for group in groups.values()]
