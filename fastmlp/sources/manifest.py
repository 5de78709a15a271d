"""Images listed in a text file: CSV with a header, or a JSON object on each line."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .fit import Fit
from .folder import ImageFiles
from .names import PackedNames


class Manifest(ImageFiles):
    """One split of a manifest: `path` (relative to the manifest), `label` (a class's name or number), maybe `split`.

    Classes are all labels of the manifest, of every split, sorted: by number where all are whole numbers, else by name.
    Order as in the file. Raises ValueError naming the manifest's line, FileNotFoundError without the manifest.
    """

    def __init__(self, path: str | Path, split: str | None = None, res: int | None = None, fit: Fit = "square"):
        """split: keeps the rows of that split; None: all rows."""
        path = Path(path)
        names, given, splits = PackedNames(), [], set()
        every: set[str] = set()
        for row, where in _rows(path):
            image, label, of = (_text(row.get(field), field, where) for field in ("path", "label", "split"))
            if not image or not label:
                raise ValueError(f"{where}: no {'label' if image else 'path'}")
            every.add(label)
            splits.add(of)
            if split is None or of == split:
                names.append(_file_name(image, where))
                given.append(label)
        if not given:
            raise ValueError(f"{path} names no images" + (f" of the split {split!r}" if split and every else ""))
        self.splits = tuple(sorted(splits - {""}))
        if self.splits and "" in splits:
            raise ValueError(f"{path}: some rows have a split, others none")
        classes = tuple(sorted(every, key=int if all(_is_whole(label) for label in every) else None))
        number = {name: index for index, name in enumerate(classes)}
        labels = np.array([number[label] for label in given], np.int32)
        super().__init__(path.parent, (b"",) * len(classes), names, labels, classes, res, fit)


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Each row, and where it stands."""
    # surrogateescape: a file name may hold any bytes.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if path.suffix.lower() in (".jsonl", ".json", ".ndjson"):
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _json_row(line, f"{path}, line {number}"), f"{path}, line {number}"
            return
        reader = csv.DictReader(file, strict=True)
        try:
            if missing := {"path", "label"} - set(reader.fieldnames or ()):
                raise ValueError(f"{path}, line 1: the header lacks {' and '.join(sorted(missing))}")
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise ValueError(f"{where}: expected {len(reader.fieldnames or ())} columns, as in the header")
                yield row, where
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.reader.line_num}: not CSV ({error})") from error


def _json_row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f'{where}: expected an object such as {{"path": "a.jpg", "label": "cat"}}')
    return row


def _text(value: Any, field: str, where: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if field == "path" or isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{where}: {field} is {value!r}, expected text" + (" or a whole number" * (field == "label")))
    return str(value)


def _file_name(image: str, where: str) -> bytes:
    try:
        if "\0" not in image:
            return os.fsencode(image)
    except UnicodeEncodeError:
        pass
    raise ValueError(f"{where}: {image!r} cannot be the name of a file")


def _is_whole(label: str) -> bool:
    return label.removeprefix("-").isdecimal() and str(int(label)) == label
