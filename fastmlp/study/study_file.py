"""A study: many training runs described by one YAML file. Needs no torch.

    title: Label smoothing
    paper: a modest gain                           # what the paper finds
    base: {dataset: fashion_mnist, epochs: 10}     # settings of every run; the others are PretrainConfig's defaults
    arms:                                          # what is compared; a list of values is searched, see below
      "0.1": {label_smoothing: 0.1, lr: [1.0e-4, 3.0e-4]}
      none: {label_smoothing: 0}
    vary: {arch: [B_2-Wi_64, B_2-Wi_128]}          # with or instead of arms: every combination
    seeds: [0, 1, 2, 3, 4]
    more_seeds: {arch B_2-Wi_64: [5, 6]}           # further seeds of the combinations with these parts in their names
    compare: ["0.1, arch B_2-Wi_64 > none, arch B_2-Wi_64"]    # claims, by the names in the table: see verdicts.py
    search_seeds: 1                                # seeds that choose a searched value, 100 and up
    search_at: {train_fraction: 0.25}              # search once for all values of what varies, at this one
    max_flop: 1.0e+13                              # leave out the runs that take more
    branch: 0.2                                    # share of a run that is its cool-down; lengths share one run
    probe: cifar10                                 # score a run by a linear probe on this data set
    fit: true                                      # fit E(C)
    fewer_images: ["A > B"]                        # arms of which A needs fewer images to B's loss: images_to_loss.py
    gradients: 4096                                # images whose gradient's singular values are measured at the end
    quick: {base: {epochs: 2}, seeds: [0]}         # the fields that --quick changes

A list among an arm's settings is a search: search.py says which values are tried. The runs of a search hold out a tenth
of the training images, the same share of each class, choose by it and never see a test image. The runs that count train
on all training images with the chosen value, and no seed of theirs took part in the choice. With a branch, one value is
chosen for all lengths, which share a run: at the longest, unless search_at has another.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from .. import cli
from ..config import PretrainConfig, stored_setting
from ..duration import Duration
from ..yaml_file import read_yaml

CHECKERS = {one.name: one.metadata["checker"] for one in fields(PretrainConfig)}
SEARCH_SEED = 100  # the first of a search
MAX_SEARCH_SEEDS = 20
SET_BY_STUDY = {"seed", "run_dir", "data_dir", "resume", "budget"}  # settings that no file may give
MAX_RUNS = 100_000


@dataclass(frozen=True)
class Study:
    """Content of a study's YAML file, described at the head of this module."""

    title: str
    base: dict[str, Any]
    arms: dict[str, dict[str, Any]] = field(default_factory=lambda: {"": {}})
    vary: dict[str, list] = field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    more_seeds: dict[str, list[int]] = field(default_factory=dict)
    paper: str = ""
    compare: Sequence[str] = ()
    search_seeds: int = 1
    search_at: dict[str, Any] = field(default_factory=dict)
    max_flop: float = math.inf
    branch: float = 0.0
    probe: str = ""
    fit: bool = False
    fewer_images: Sequence[str] = ()
    gradients: int = 0

    def combinations(self) -> list["Combination"]:
        """Return each arm with each combination of what varies."""
        found = []
        for arm, arm_settings in self.arms.items():
            for values in products(self.vary):
                given = {**self.base, **(arm_settings or {}), **values}
                searched = {key: _typed(key, value) for key, value in given.items() if isinstance(value, list)}
                fixed = {key: given[key] for key in given if key not in searched}
                stored = dict(stored_setting(*setting) for setting in values.items())
                name = describe(arm, values)
                seeds = [*self.seeds]
                for words, more in self.more_seeds.items():
                    seeds += more if are_parts(words, name) else []
                found.append(Combination(arm, values, name, describe(arm, stored), fixed, searched, seeds))
        return found


class Combination(NamedTuple):
    """An arm with one value of each setting that varies."""

    arm: str
    varied: dict[str, Any]
    name: str  # in the table
    stem: str  # of its runs' folders: the name in the words of 0.1, so that a study that 0.1 began is resumed
    settings: dict[str, Any]  # fixed
    searched: dict[str, list]
    seeds: list[int]

    @property
    def where(self) -> str:
        """What varies besides the arm and the length."""
        return describe("", {name: value for name, value in self.varied.items() if name != "epochs"})


def are_parts(words: str, name: str) -> bool:
    """Return whether all parts of `words`, between commas, are parts of a combination's name."""
    return {*words.split(", ")} <= {*name.split(", ")}


def _typed(name: str, values: list) -> list:
    """Return a setting's values, texts as its checker reads them: to YAML 1e-3 is one. It refuses a wrong one later."""
    checker = CHECKERS.get(name)
    try:
        return [checker.check(value) if checker and isinstance(value, str) else value for value in values]
    except (ValueError, TypeError, KeyError):
        return values


def describe(arm: str, values: Mapping[str, Any]) -> str:
    """Return the name of an arm with values of what varies."""
    return ", ".join(filter(None, [str(arm), *(f"{key} {value}" for key, value in values.items())]))


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


def _check_more_seeds(more: Any) -> None:
    if not isinstance(more, dict) or any(not isinstance(words, str) for words in more):
        raise ValueError(f"more_seeds {more!r}: expected a mapping of words in a name to seeds")
    for seeds in more.values():
        _check_seeds(seeds)


def _check_search_seeds(count: Any) -> None:
    if type(count) is not int or not 1 <= count <= MAX_SEARCH_SEEDS:
        raise ValueError(f"search_seeds {count!r}: expected a number of 1 to {MAX_SEARCH_SEEDS}")


def _check_search_at(values: Any) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"search_at {values!r}: expected a mapping of settings that vary to one of their values")


def _check_pairs(pairs: Any) -> None:
    if not isinstance(pairs, list | tuple):
        raise ValueError(f"{pairs!r}: expected a list of 'A > B'")


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{text!r}: expected a text; quote it")


def _check_gradients(images: Any) -> None:
    if type(images) is not int or not 0 <= images <= 10**6:
        raise ValueError(f"gradients {images!r}: expected a number of images, 0 for none")


def _check_branch(branch: Any) -> None:
    if not isinstance(branch, int | float) or not 0 <= branch < 1:
        raise ValueError(f"branch {branch!r}: expected a share of each run, from 0 to below 1")


def _check_max_flop(flop: Any) -> None:
    if isinstance(flop, bool) or not isinstance(flop, int | float) or not flop > 0:
        raise ValueError(f"max_flop {flop!r}: expected a number above 0")


def _check_fit(fit: Any) -> None:
    if not isinstance(fit, bool):
        raise ValueError(f"fit {fit!r}: expected true or false")


# Each checks one field of a Study by itself and raises ValueError.
FIELD_CHECKS: dict[str, Callable[[Any], None]] = {
    "title": _check_text,
    "paper": _check_text,
    "probe": _check_text,
    "base": _check_base,
    "vary": _check_vary,
    "arms": _check_arms,
    "compare": _check_pairs,
    "fewer_images": _check_pairs,
    "fit": _check_fit,
    "seeds": _check_seeds,
    "more_seeds": _check_more_seeds,
    "search_seeds": _check_search_seeds,
    "search_at": _check_search_at,
    "gradients": _check_gradients,
    "branch": _check_branch,
    "max_flop": _check_max_flop,
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
    for one in study.combinations():
        for values in products(one.searched):
            settings_of(study, {**one.settings, **values})
        if taken := SET_BY_STUDY & {*one.settings, *one.searched}:
            raise ValueError(f"{', '.join(sorted(taken))}: the study sets this for each run; leave it out")
        if "epochs" in one.searched:
            raise ValueError(f"epochs {one.searched['epochs']}: a length is not searched; give the list to vary")
        if folder_name(one.stem) in folders and folders[folder_name(one.stem)] == one.name:
            raise ValueError(f"{one.name!r} is there twice: a value is repeated in vary")
        if (before := folders.setdefault(folder_name(one.stem), one.name)) != one.name:
            raise ValueError(f"{before!r} and {one.name!r} would share the folder {folder_name(one.stem)}: rename one")
        if both := {*one.seeds} & {*range(SEARCH_SEED, SEARCH_SEED + study.search_seeds)}:
            raise ValueError(f"seed {min(both)} is a seed of the search: choose others")
        if len({*one.seeds}) < len(one.seeds):
            raise ValueError(f"{one.name!r} has the seeds {one.seeds}: expected different ones")
    for name, value in study.search_at.items():
        if value not in study.vary.get(name, []):
            raise ValueError(f"search_at has {name} {value!r}: expected one of {study.vary.get(name, [])} in vary")
    if unknown := [words for words in study.more_seeds if not any(are_parts(words, name) for name in folders.values())]:
        raise ValueError(f"more_seeds {unknown[0]!r}: expected words of {'; '.join(folders.values())}")
    return list(folders.values())


def _check_comparisons(study: Study, names: Sequence[str]) -> None:
    for field_name, known in (("compare", names), ("fewer_images", list(study.arms))):
        for pair in getattr(study, field_name):
            both = str(pair).split(" > ")
            if len(both) != 2 or not {*both} <= {*known}:
                raise ValueError(f"{field_name} {pair!r}: expected 'A > B' with A and B of {'; '.join(known)}")
    if study.fewer_images and len(study.vary.get("epochs", ())) < 2:
        raise ValueError("fewer_images: expected several lengths, vary: {epochs: [...]}")


def settings_of(study: Study, given: dict[str, Any]) -> PretrainConfig:
    """Return the resolved settings of a run. Raises ValueError for a value that its checker refuses."""
    if study.branch:
        epochs = Duration.parse(given.get("epochs", PretrainConfig.epochs))
        if epochs.unit != "epochs":
            raise ValueError(f"epochs {epochs}: a study with a branch gives lengths in epochs")
        if given.get("schedule", "constant") != "constant":
            raise ValueError(f"schedule {given['schedule']}: a branch cools down from a constant one; leave it out")
        given = {**given, "cooldown": str(replace(epochs, amount=study.branch * epochs.amount))}
    return cli.from_mapping(PretrainConfig, given)


def folder_name(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name)


def products(lists: dict[str, list]) -> list[dict[str, Any]]:
    """Return every combination that has one value of each list."""
    return [dict(zip(lists, values, strict=True)) for values in product(*lists.values())]
