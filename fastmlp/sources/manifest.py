"""Images listed in a text file: CSV with a header, or a JSON object on each line."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .faults import naming
from .fit import Fit
from .folder import ImageFiles
from .names import PackedNames


class Manifest(ImageFiles):
    """One split of a manifest: `path` (relative to the manifest), `label` (name or number of a class), maybe `split`.

    Classes are all labels of the manifest, of any split, sorted: by number if all are whole numbers, else by name.
    Images are in the order of the file. Raises ValueError naming the line, FileNotFoundError if there is no manifest.
    """

    def __init__(self, path: str | Path, split: str | None = None, res: int | None = None, fit: Fit = "square"):
        """Read the rows of `split`, or all rows if it is None."""
        path = Path(path)
        names, kept, splits = PackedNames(), [], set()
        all_labels: set[str] = set()
        for row, location in _rows(path):
            image, label, row_split = (_text(row.get(field), field, location) for field in ("path", "label", "split"))
            if not image or not label:
                raise ValueError(f"{location}: no {'label' if image else 'path'}")
            all_labels.add(label)
            splits.add(row_split)
            if split is None or row_split == split:
                names.append(_file_name(image, location))
                kept.append(label)
        if not kept:
            raise ValueError(f"{path} names no images" + (f" of the split {split!r}" if split and all_labels else ""))
        self.splits = tuple(sorted(splits - {""}))
        if self.splits and "" in splits:
            raise ValueError(f"{path}: some rows have a split, others do not")
        classes = tuple(sorted(all_labels, key=int if all(_is_whole(label) for label in all_labels) else None))
        label_of = {name: label for label, name in enumerate(classes)}
        labels = np.array([label_of[label] for label in kept], np.int32)
        super().__init__(path.parent, (b"",) * len(classes), names, labels, classes, res, fit)


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each row and its location, such as "m.csv, line 2"."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: not a regular file")
    # surrogateescape: a file name may hold any bytes.
    with naming(path, "cannot be read"), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
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
                location = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise ValueError(f"{location}: expected {len(reader.fieldnames or ())} columns, as in the header")
                yield row, location
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.reader.line_num}: not CSV ({error})") from error


def _json_row(line: str, location: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
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


def _is_whole(label: str) -> bool:
    return label.removeprefix("-").isdecimal() and str(int(label)) == label
