"""What goes wrong while files are read: damage of one file, which may be left out, or a fault of the machine."""

import csv
import errno
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Errors of one file. Others (no permission, too many open files, a stale handle, a failing disk) concern all files,
# and are raised.
FILE_ERRORS = (
    errno.ENOENT,
    errno.ELOOP,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENXIO,
    errno.ENOTDIR,
)
# What Python's readers of archives and texts raise for damaged content. RuntimeError: a password is needed, or a
# recursion too deep; KeyError: a link to nothing; OverflowError and IndexError: numbers out of range.
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    csv.Error,
    struct.error,
    EOFError,
    KeyError,
    IndexError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)


@contextmanager
def naming(path: str | Path, what: str = "damaged archive") -> Iterator[None]:
    """Give each error of reading a file its name: ValueError "path: what (cause)" for damage, OSError for a fault.

    Errors that name the file already pass as they are.
    """
    try:
        yield
    except (*DAMAGE, ValueError, OSError) as error:
        if not isinstance(error, DAMAGE) and (str(path) in str(error) or getattr(error, "filename", None) is not None):
            raise
        # Damage is an OSError, too: without a number from gzip and bz2, EINVAL from a seek to before the first byte.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise OSError(error.errno, error.strerror, str(path)) from error
        cause = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: {what} ({cause})") from error
