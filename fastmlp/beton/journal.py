"""The journals of an unfinished beton: files beside it that record what is written, so that a command can resume."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .workers import Chunk


def journals(path: Path) -> list[Path]:
    """Return the journals of the beton `path`: one, or one per shard."""
    return sorted(path.parent.glob(path.name.replace("[", "[[]") + ".journal*"))


def read_journal(path: Path, identity: dict[str, Any]) -> tuple[dict[int, Chunk], int]:
    """Return the finished chunks by their first place, and the journal's bytes up to the last whole line.

    A torn last line counts as not written. No chunks and 0 bytes if there is no such file or its identity differs.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    chunks: dict[int, Chunk] = {}
    good_bytes = 0
    for number, line in enumerate(lines):
        entry = _parse(line)
        if entry is None or (number == 0 and entry != identity):
            break
        if number:
            sizes = np.array(entry["sizes"], "<u2").reshape(-1, 2)
            bad = {int(place): text for place, text in entry["bad"].items()}
            chunk = Chunk(entry["first"], np.array(entry["labels"], np.int64), sizes, bad)
            chunks[chunk.first] = chunk
        good_bytes += len(line) + 1
    return chunks, good_bytes


def is_journal_of(path: Path, identity: dict[str, Any]) -> bool:
    with path.open("rb") as file:
        return _parse(file.readline()) == identity


class Journal:
    """Lines of JSON: the identity of what is written, then each finished chunk; appends to an existing journal."""

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path = path
        _, good_bytes = read_journal(path, identity)
        self._file = path.open("r+b" if good_bytes else "wb")
        self._file.seek(good_bytes)
        self._file.truncate()
        if not good_bytes:
            self._file.write(json.dumps(identity).encode() + b"\n")
        self.sync()

    def add(self, chunk: Chunk) -> None:
        """Add a chunk whose pixels are on disk."""
        entry = {
            "first": chunk.first,
            "labels": chunk.labels.tolist(),
            "sizes": chunk.sizes.reshape(-1).tolist(),
            "bad": chunk.bad,
        }
        self._file.write(json.dumps(entry).encode() + b"\n")

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None
