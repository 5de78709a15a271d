"""Images listed in a text file: CSV with a header, or a JSON object on each line."""

import csv
import functools
import itertools
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np

from .class_names import refuse_look_alikes
from .faults import naming
from .fit import Fit
from .folder import ImageFiles
from .names import PackedNames
from .split_names import THIRD_SPLIT, split_of

SPLITS = ("train", "val", "test", "")  # "" if the manifest has none


class Manifest(ImageFiles):
    """One split of a manifest: `path` (relative to the manifest), `label` (name or number of a class), maybe `split`.

    Classes are all labels of the manifest, of any split, sorted: by number if all are whole numbers, else by name.
    Images are in the order of the file. `splits` has the two or three splits, or none; they are recognised
    as in split_of. Raises ValueError naming the line, FileNotFoundError if there is no manifest.
    """

    def __init__(self, path: str | Path, split: str | None = None, res: int | None = None, fit: Fit = "square"):
        """Read the rows of `split`, or all rows if it is None."""
        path = Path(path)
        names, lines, keys = PackedNames(), array("q"), array("q")
        numbers, split_numbers = array("i"), array("i")
        labels: dict[str, int] = {}
        splits: dict[str, int] = {}
        folder = os.fsencode(path.parent)
        for row, line in _rows(path):
            location = f"{path}, line {line}"
            image, label, row_split = (_text(row.get(field), field, location) for field in ("path", "label", "split"))
            if not image or not label.strip():
                raise ValueError(f"{location}: no {'label' if image else 'path'}")
            if any(ord(letter) < 32 for letter in label):
                raise ValueError(f"{location}: the label {label!r} holds a control character")
            name = _file_name(image, location)
            names.append(name)
            keys.append(hash(_real_path(os.path.join(folder, name))))
            lines.append(line)
            numbers.append(labels.setdefault(label, len(labels)))
            split_numbers.append(splits.setdefault(row_split, len(splits)))
        if not labels:
            raise ValueError(f"{path} names no images")
        of_rows = _splits(path, list(splits))
        parts = np.array([SPLITS.index(part) for part in of_rows])[np.array(split_numbers)]
        self.splits = tuple(part for part in SPLITS if part and part in of_rows)
        self.notices = _check_repeated(
            path, names, np.array(keys), np.array(lines), np.array(numbers), parts, [*labels]
        )
        refuse_look_alikes(labels, str(path))
        classes = _ordered(path, list(labels))
        label_of = {name: label for label, name in enumerate(classes)}
        ordered = np.array([label_of[label] for label in labels], np.int32)[np.array(numbers)]
        if split is not None:
            kept = np.flatnonzero(parts == SPLITS.index(split))
            if not len(kept):
                raise ValueError(f"{path} names no images of the split {split!r}")
            names, ordered = PackedNames(names[index] for index in kept.tolist()), ordered[kept]
        super().__init__(path.parent, (b"",) * len(classes), names, ordered, classes, res, fit)
        if len(self.splits) == 3:
            self.notices += (THIRD_SPLIT,)


def _real_path(path: bytes) -> bytes:
    """Return the path with the links of its folder resolved, so that no image is there twice by way of one."""
    folder, name = os.path.split(path)
    return os.path.normpath(os.path.join(_real_folder(folder), name))


@functools.lru_cache(1 << 16)
def _real_folder(folder: bytes) -> bytes:
    return os.path.realpath(folder)


def _splits(path: Path, names: list[str]) -> list[str]:
    """Return the split that each name in the column `split` means, "" for none."""
    found = [split_of(name) if name else "" for name in names]
    if "" in found and len(found) > 1:
        raise ValueError(f"{path}: some rows have a split, others do not")
    if found != [""] and (None in found or "train" not in found or len({*found}) < 2):
        raise ValueError(f"{path}: expected the splits train and val (or test), found {', '.join(sorted(names))}")
    return [split or "" for split in found]


def _check_repeated(
    path: Path,
    names: PackedNames,
    keys: np.ndarray,  # equal for equal paths
    lines: np.ndarray,
    numbers: np.ndarray,  # of the labels
    parts: np.ndarray,  # of the splits
    labels: list[str],
) -> tuple[str, ...]:
    """Raise ValueError if a path is there with two labels or in two splits; return a notice if some are there twice."""
    order = np.argsort(keys, kind="stable")
    repeated = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    for first, second in zip(order[repeated].tolist(), order[repeated + 1].tolist(), strict=True):
        where = f"{path}, line {lines[second]}: {os.fsdecode(names[second])!r}, as in line {lines[first]},"
        if numbers[first] != numbers[second]:
            raise ValueError(
                f"{where} but with the label {labels[numbers[second]]!r} instead of {labels[numbers[first]]!r}"
            )
        if parts[first] != parts[second]:
            raise ValueError(f"{where} but in another split: the model would be evaluated on what it was trained on")
        if parts[first] == SPLITS.index(""):
            raise ValueError(
                f"{where} which could put one into each split: remove one of them, or add a column `split`"
            )
    return (f"{path} lists {len(repeated):,} images more than once",) if len(repeated) else ()


def _ordered(path: Path, labels: list[str]) -> tuple[str, ...]:
    """Return the labels sorted: by number if all are numbers, else by name."""
    values = {label: value for label in labels if (value := _number(label)) is not None}
    if len(values) < len(labels):
        return tuple(sorted(labels))
    for label, value in values.items():
        if not value.is_finite() or value != value.to_integral_value():
            raise ValueError(f"{path}: the label {label!r} is no class: expected whole numbers, or names")
    ordered = sorted(labels, key=values.__getitem__)
    for label, following in itertools.pairwise(ordered):
        if values[label] == values[following]:
            raise ValueError(f"{path}: the labels {label!r} and {following!r} are the same number: write it one way")
    return tuple(ordered)


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each row and the number of its line."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a regular file")
    # surrogateescape: a file name may hold any bytes.
    with naming(path, "cannot be read"), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if path.suffix.lower() in (".jsonl", ".json", ".ndjson"):
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _json_row(line, f"{path}, line {number}"), number
            return
        delimiter, spaced = _form(file.readline(131_072))
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter, skipinitialspace=spaced, strict=True)
        try:
            reader.fieldnames = [_field(name) for name in reader.fieldnames or ()]
            if missing := {"path", "label"} - set(reader.fieldnames or ()):
                raise ValueError(
                    f"{path}, line 1: the header lacks {' and '.join(sorted(missing))}: expected a line such as "
                    "path,label or path,label,split"
                )
            if repeated := [name for name, count in Counter(reader.fieldnames or ()).items() if name and count > 1]:
                raise ValueError(f"{path}, line 1: the header has {repeated[0]!r} twice")
            for row in reader:
                if None in row or None in row.values():
                    count = len(reader.fieldnames or ())
                    raise ValueError(f"{path}, line {reader.line_num}: expected {count} columns, as in the header")
                yield row, reader.line_num
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.reader.line_num}: not CSV ({error})") from error


def _form(header: str) -> tuple[str, bool]:
    """Return what separates the columns, a comma, semicolon or tab, and whether blanks follow it."""
    for delimiter in ",;\t":
        if {"path", "label"} <= {_field(name.strip('"')) for name in header.split(delimiter)}:
            return delimiter, f"{delimiter} " in header
    return ",", False


def _field(name: str) -> str:
    return name.strip().lower()


def _only_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if repeated := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"{repeated[0]!r} is there twice")
    return dict(pairs)


def _json_row(line: str, location: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_only_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{location}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f'{location}: expected an object such as {{"path": "a.jpg", "label": "cat"}}')
    return row


def _text(value: Any, field: str, location: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if field == "path" or isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(
            f"{location}: {field} is {value!r}, expected text" + (" or a whole number" * (field == "label"))
        )
    return str(value)


def _file_name(image: str, location: str) -> bytes:
    try:
        if "\0" not in image:
            return os.fsencode(image)
    except UnicodeEncodeError:
        pass
    raise ValueError(f"{location}: {image!r} cannot be the name of a file")


def _number(label: str) -> Decimal | None:
    try:
        return None if "_" in label else Decimal(label)
    except InvalidOperation:
        return None
