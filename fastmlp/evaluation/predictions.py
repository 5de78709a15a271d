"""Each image's prediction in two files: predictions.csv has a row for each, predictions.json tells of which beton."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..atomic import in_one_line, write_atomic
from ..messages import logger
from ..models.weights import class_names
from ..plots import printable
from .evaluate import DetailedScores

HEADER = ("sample", "label", "predicted", "probability", "right")


class Evaluated(Protocol):
    """The part of Split and of CachedFeatures that tells which beton they are of."""

    @property
    def path(self) -> Path: ...

    @property
    def fingerprint(self) -> int: ...


@dataclass(frozen=True)
class StoredPredictions:
    """What the files hold, in the order of the beton."""

    labels: np.ndarray  # (N,) int64, places in `classes`
    predicted: np.ndarray  # (N,) int64, -1 if a logit was NaN
    probability: np.ndarray  # (N,) float64, of the predicted class, rounded to four digits
    right: np.ndarray  # (N,) bool
    classes: list[str]
    beton: str = ""  # its path, "" if only predictions.csv is there
    fingerprint: int | None = None  # of the beton


def prediction_rows(found: DetailedScores, classes: Sequence[str]) -> list[tuple]:
    """Return HEADER and one row per image, in the order of the beton."""
    samples = zip(found.labels.tolist(), found.predicted.tolist(), found.probability.tolist(), strict=True)
    return [
        HEADER,
        *(
            (
                sample,
                classes[label],
                classes[predicted] if predicted >= 0 else "",
                f"{probability:.4f}",
                int(label == predicted),
            )
            for sample, (label, predicted, probability) in enumerate(samples)
        ),
    ]


def to_csv(rows: Sequence[tuple]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return _writable(text.getvalue())


def _writable(text: str) -> str:
    """Return a text as it is in files: csv quotes no carriage return, and then cannot read it."""
    return printable(text).replace("\r", "\\r")


def write_predictions(folder: Path, found: DetailedScores, names: Sequence[str], evaluated: Evaluated) -> list[str]:
    """Write both files into the folder and return their names. Raises OSError if the disk is full."""
    classes = _distinct([_writable(name) for name in class_names(names, found.num_classes)])
    about = {
        "beton": str(evaluated.path),
        "fingerprint": evaluated.fingerprint,
        "images": len(found.labels),
        "classes": classes,
    }
    files = {
        "predictions.csv": to_csv(prediction_rows(found, classes)),
        "predictions.json": json.dumps(about, indent=1) + "\n",
    }
    for name, text in files.items():
        write_atomic(folder / name, text)
    return list(files)


def _distinct(names: list[str]) -> list[str]:
    """Return names by which classes can be told apart when they are read: "" and duplicates get their number."""
    counts = Counter(names)
    return [
        f"{name} ({number})".lstrip() if not name or counts[name] > 1 else name for number, name in enumerate(names)
    ]


def keep_predictions(folder: Path, found: DetailedScores, names: Sequence[str], evaluated: Evaluated) -> list[str]:
    """Return the names of the written files; if that fails, say so and return []: a run must not be lost."""
    try:
        return write_predictions(folder, found, names, evaluated)
    except OSError as error:
        logger.warning(f"predictions.csv is not written: {in_one_line(error)}")
        return []


def read_predictions(folder: Path) -> StoredPredictions | None:
    """Return what write_predictions wrote, None if the folder has no predictions.csv.

    Without predictions.json the classes are those that occur. Raises ValueError naming a damaged file.
    """
    path, about_path = folder / "predictions.csv", folder / "predictions.json"
    if not path.is_file():
        return None
    about = _read_about(about_path) if about_path.is_file() else {}
    try:
        header, *rows = csv.reader(io.StringIO(path.read_bytes().decode("utf-8")))
        samples, labels, predicted, probability, right = zip(*rows, strict=True)
        if tuple(header) != HEADER or list(samples) != list(map(str, range(len(rows)))):
            raise ValueError("its columns or samples are not those of an evaluation")
        if len(rows) != about.get("images", len(rows)):
            raise ValueError(f"{len(rows)} images instead of {about['images']}")
        classes = about.get("classes") or sorted({*labels, *predicted} - {""})
        places = {name: place for place, name in enumerate(classes)}
        return StoredPredictions(
            np.array([places[name] for name in labels], np.int64),
            np.array([places[name] if name else -1 for name in predicted], np.int64),
            np.array(probability, np.float64),
            np.array(right, np.int64) == 1,
            classes,
            about.get("beton", ""),
            about.get("fingerprint"),
        )
    except (ValueError, KeyError, csv.Error) as error:
        raise ValueError(f"{path} is damaged or not of predictions ({error}): delete it, or evaluate again") from error


def _read_about(path: Path) -> dict:
    types = {"beton": str, "fingerprint": int, "images": int, "classes": list}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if all(type(about[name]) is kind for name, kind in types.items()) and all(
            isinstance(name, str) for name in about["classes"]
        ):
            return about
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ValueError(f"{path} is damaged: delete it, or evaluate again")
