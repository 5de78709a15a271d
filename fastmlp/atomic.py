"""Files that appear under their name whole or not at all: a temporary name, fsync, rename; torch files, checked."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any


def write_atomic(
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


def save_torch(path: Path, content: Any) -> None:
    """torch.save under a temporary name, fsync, rename: the final name never holds half a file.

    Raises OSError where the disk is full (torch.save alone would raise a RuntimeError), keeping what was there.
    """
    import torch  # takes seconds; writers do without

    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getbuffer())


def load_torch(path: Path) -> Any:
    """What write_atomically wrote, on the CPU. Raises ValueError where a byte of it differs."""
    import torch

    try:
        with zipfile.ZipFile(path) as archive:  # torch.load looks at no checksum
            if broken := archive.testzip():
                raise ValueError(f"checksum of {broken}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):  # of the machine, not of the file
        raise
    except Exception as error:  # torch.load raises what its unpickler happens to meet
        raise ValueError(f"{path} is damaged or not a file of weights ({error or type(error).__name__})") from error
