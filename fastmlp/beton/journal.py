"""What of an unfinished beton is written: the file beside it that lets the same command go on where it was ended."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any


class Journal:
    """Lines of JSON: what is being written, then each finished chunk. A torn last line counts as not written.

    A journal of anything else, or one whose beton is gone, is begun anew.
    """

    def __init__(self, path: Path, identity: dict[str, Any], resumable: bool):
        """resumable: whether the file that an existing journal speaks of is there, with all of its pixels' places."""
        self.path = path
        self.chunks: dict[int, dict[str, Any]] = {}  # by the position of their first image
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() and resumable else []
        good_bytes = 0
        for number, line in enumerate(lines):
            entry = _parse(line)
            if entry is None or (number == 0 and entry != identity):
                break
            if number:
                self.chunks[entry["first"]] = entry
            good_bytes += len(line) + 1
        self._file = path.open("r+b" if good_bytes else "wb")
        self._file.seek(good_bytes)
        self._file.truncate()
        if not good_bytes:
            self._file.write(json.dumps(identity).encode() + b"\n")
        self.sync()

    def add(self, first: int, labels: list[int], bad: dict[int, str]) -> None:
        """A chunk whose pixels are on disk. `bad`: by position, what is wrong with images that are left out."""
        self.chunks[first] = {"first": first, "labels": labels, "bad": {str(at): text for at, text in bad.items()}}
        self._file.write(json.dumps(self.chunks[first]).encode() + b"\n")

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
