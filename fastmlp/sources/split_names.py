"""Recognise splits by their names, in any case and usual spelling."""

import re
import unicodedata
from collections.abc import Iterable

SPELLINGS = {
    "train": ("train", "training", "trn", "trainset"),
    "val": ("val", "vali", "valid", "validation", "validate", "validating", "dev", "holdout"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "evaluate"),
}
THIRD_SPLIT = "val evaluates while training; test is written, too: recipes/evaluate.py --cfg.split=test"
_ROLES = {spelling: split for split, spellings in SPELLINGS.items() for spelling in spellings}
_FILLERS = {"", "set", "data", "dataset", "split", "images", "image", "imgs", "img", "seg", "folder", "v", "samples"}


def split_of(name: str) -> str | None:
    """Return the split that a name means, in any case: "Train", "valid", "test_set", "TrainingImages", "val2017"."""
    words = _words(name)
    return _ROLES.get(words[0]) if len(words) == 1 else None


def splits_among(names: Iterable[str]) -> dict[str, str]:
    """Return the names that mean splits, each with its split.

    If none does by itself, names that are the same but for the word of the split do, such as pets_train and pets_test.
    """
    names = tuple(names)
    if named := {name: split for name in names if (split := split_of(name))}:
        return named
    alike: dict[tuple[str, ...], dict[str, str]] = {}  # by the other words
    for name in names:
        words = _words(name)
        if len(roles := [_ROLES[word] for word in words if word in _ROLES]) == 1:
            alike.setdefault(tuple(word for word in words if word not in _ROLES), {})[name] = roles[0]
    return {name: split for group in alike.values() if {"train"} < {*group.values()} for name, split in group.items()}


def _words(name: str) -> list[str]:
    """Return the words of a name in the order of their first use, each once, without those that mean nothing."""
    parts = re.split(r"[\W_\d]+|(?<=[a-z])(?=[A-Z])", unicodedata.normalize("NFKC", name))
    words = (re.sub(r"(?<=.)(set|data)$", "", part.lower()) for part in parts)
    return [word for word in dict.fromkeys(words) if word not in _FILLERS]
