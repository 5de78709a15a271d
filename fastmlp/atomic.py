"""Atomic writes: a temporary name, fsync, rename, so that a name never holds half a file; torch files, checked."""

import errno
import io
import os
import zipfile
from pathlib import Path
from typing import Any

MAX_ENTRIES = 50_000  # of a torch file; a checkpoint of 1,000 blocks has 24,000
DOS_FOLDER = 0x10  # the bit in a zip entry's external attributes
# What torch.save's files began with before version 1.6, a pickled number of 80 bits: no zip archive, no checksums.
OLD_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."


def no_links(path: str | Path, flags: int) -> int:
    """Open a file that is not a symbolic link, and return its descriptor; an `opener` for open().

    Whoever may write to a shared folder could put a link there that leads to any file of the user.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(f"{path} is a symbolic link, through which nothing is written: delete it") from error


def write_atomic(
    path: Path,
    content: Any,  # bytes, a buffer of them, or text
) -> None:
    """Write `content` to `path`. Raises OSError naming `path` if the disk is full, and keeps the previous file."""
    partial = path.with_name(path.name + ".partial")
    if isinstance(content, str):
        content = content.encode("utf-8", errors="surrogateescape")  # file names may hold any byte
    try:
        with open(partial, "wb", opener=no_links) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)
        raise


def save_torch(path: Path, content: Any) -> None:
    """Save `content` with torch.save and write_atomic.

    Raises OSError if the disk is full (torch.save to the file would raise RuntimeError), and keeps the previous file.
    """
    import torch  # takes seconds, and writers do not need it

    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getbuffer())


def load_torch(path: Path) -> Any:
    """Return what save_torch wrote, on the CPU. Raises ValueError if a byte of the file has changed.

    Nothing larger than the file is unpacked: its entries must be stored as they are, without overlaps. Files of torch
    before 1.6 have no checksums: of these, only missing bytes are noticed.
    """
    import torch

    try:
        with path.open("rb") as file:
            if file.read(len(OLD_MAGIC)) == OLD_MAGIC:
                file.seek(0)
                return torch.load(file, map_location="cpu", weights_only=True)
        with zipfile.ZipFile(path) as archive:  # torch.load does not check the checksums
            entries = archive.infolist()
            if len(entries) > MAX_ENTRIES:
                raise ValueError(f"{len(entries):,} tensors, expected at most {MAX_ENTRIES:,}")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("it is compressed; torch.save does not do that")
            # torch leaves memory as it was, without an error, for what it takes as a folder.
            if folders := [entry.filename for entry in entries if entry.is_dir() or entry.external_attr & DOS_FOLDER]:
                raise ValueError(f"{folders[0]} is marked as a folder")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ValueError("its parts are larger than the file")
            if broken := archive.testzip():
                raise ValueError(f"checksum of {broken}")
        with path.open("rb") as file:  # torch takes no path that is not UTF-8
            return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # the machine's fault, not the file's
            raise
        raise ValueError(f"{path} is damaged: bytes are missing in its middle") from error  # a negative offset
    except Exception as error:  # torch.load raises any type that its unpickler meets
        raise ValueError(f"{path} is damaged or not a file of weights ({in_one_line(error)})") from error


def in_one_line(error: Exception, length: int = 200) -> str:
    """Return the text of a library's error as a part of one of ours: torch's has whole paragraphs."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else f"{text[: length - 3]}..."
