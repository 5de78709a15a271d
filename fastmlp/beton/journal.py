"""The journals of an unfinished beton: files beside it that record what is written, so that a command can resume."""

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..atomic import no_links
from .workers import Chunk, FileState


def journals(path: Path) -> list[Path]:
    """Return the journals of the beton `path`: one, or one per shard."""
    return sorted(path.parent.glob(path.name.replace("[", "[[]") + ".journal*"))


def read_journal(path: Path, identity: dict[str, Any]) -> dict[int, Chunk]:
    """Return the finished chunks by their first place.

    A line that is torn or damaged, or of another identity, counts as not written.
    """
    chunks: dict[int, Chunk] = {}
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
        entry = _parse(line, identity)
        if entry is not None and "first" in entry:
            sizes = np.array(entry["sizes"], "<u2").reshape(-1, 2)
            bad = {int(place): text for place, text in entry["bad"].items()}
            labels = np.array(entry["labels"], np.int64)
            files = FileState(*entry["files"]) if entry["files"] else None
            chunks[entry["first"]] = Chunk(entry["first"], labels, sizes, bad, entry["digest"], files)
    return chunks


def is_journal_of(path: Path, identity: dict[str, Any]) -> bool:
    return any(_parse(line, identity) is not None for line in path.read_bytes().split(b"\n")[:-1])


def stored_identity(path: Path) -> Any:
    """Return the identity in a journal's first line, which may be damaged: for messages only."""
    try:
        return json.loads(path.read_bytes().partition(b"\n")[0].partition(b" ")[2])
    except (ValueError, RecursionError):
        return None


def other_identity(stored: Any, now: dict[str, Any]) -> str:
    """Return what differs between two identities, in words."""
    words = {"num_samples": "images", "source": "names, labels or classes"}
    stored = stored if isinstance(stored, dict) else {}
    differ = [name for name, value in now.items() if stored.get(name) != value]
    return ", ".join(
        words[name] if name == "source" else f"{words.get(name, name)} {stored.get(name)!r}, now {now[name]!r}"
        for name in differ
    )


class Journal:
    """Lines of JSON with checksums: the identity of what is written, then each finished chunk.

    Appends to an existing journal of the same identity, after its last whole line.
    """

    def __init__(self, path: Path, identity: dict[str, Any]):
        self._identity = identity
        resumes = path.exists() and is_journal_of(path, identity)
        self._file = open(path, "r+b" if resumes else "wb", opener=no_links)
        if resumes:
            self._file.seek(path.read_bytes().rfind(b"\n") + 1)
            self._file.truncate()
        else:
            self._write(identity)
        self.sync()

    def _write(self, entry: dict[str, Any]) -> None:
        text = json.dumps(entry).encode()
        self._file.write(_checksum(text, self._identity) + b" " + text + b"\n")

    def add(self, chunk: Chunk) -> None:
        """Add a chunk whose pixels are on disk."""
        self._write(
            {
                "first": chunk.first,
                "labels": chunk.labels.tolist(),
                "sizes": chunk.sizes.reshape(-1).tolist(),
                "bad": chunk.bad,
                "digest": chunk.digest,
                "files": chunk.files,
            }
        )

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()


def _checksum(text: bytes, identity: dict[str, Any]) -> bytes:
    """Return a checksum of a line that also tells what it is part of."""
    return hashlib.sha256(json.dumps(identity).encode() + text).hexdigest()[:16].encode()


def _parse(line: bytes, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the entry of a line, None if the line is damaged or of another identity."""
    checksum, _, text = line.partition(b" ")
    return json.loads(text) if checksum == _checksum(text, identity) else None
