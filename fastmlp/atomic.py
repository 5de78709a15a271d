"""Files that appear under their name whole or not at all: a temporary name, fsync, rename."""

import os
from pathlib import Path
from typing import Any


def write_whole(
    path: Path,
    content: Any,  # bytes, a buffer of them, or text
) -> None:
    """Raises OSError naming `path` where the disk is full; what was there stays."""
    partial = path.with_name(path.name + ".partial")
    if isinstance(content, str):
        content = content.encode("utf-8", errors="surrogateescape")  # file names may hold any byte
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
