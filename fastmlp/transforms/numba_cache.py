"""numba, imported with a folder for what it compiles, also where neither the installation nor a home is writable.

Without such a folder, `cache=True` raises RuntimeError; without a cache, each start compiles for half a minute.

And without scipy.linalg, 0.3 s: numba imports it with its first function, to learn whether it could compile np.dot.
Where np.dot is compiled, numba looks again.
"""

import os
import stat
import tempfile
from pathlib import Path

import numba
from numba.core import caching, dispatcher
from numba.np import linalg

__all__ = ["numba"]
COMPILED = ("loader", "models", "training", "transforms")  # the packages that have functions compiled by numba


def _is_writable(folder: Path) -> bool:
    """Return whether a file can be made in the folder, which is made if it is missing: as numba asks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _temporary_folder() -> str | None:
    """Return a folder of this user's for every process, None if there is none that is safe: code is loaded from it."""
    try:
        folder = Path(tempfile.gettempdir()) / f"fastmlp-numba-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
    return str(folder) if is_ours and _is_writable(folder) else None


def choose_folder(package: Path = Path(__file__).parents[1]) -> str | None:
    """Return numba's own choice as "", else a temporary folder, None if there is none either."""
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        return "" if _is_writable(Path(given)) else _temporary_folder()
    if all(_is_writable(package / name / "__pycache__") for name in COMPILED):
        return ""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return "" if os.path.isabs(home) and _is_writable(Path(home) / "numba") else _temporary_folder()


_folder = choose_folder()
if _folder:
    os.environ["NUMBA_CACHE_DIR"] = _folder  # of worker processes, too
    setattr(numba.config, "CACHE_DIR", _folder)  # noqa: B010  # an attribute that mypy does not see
elif _folder is None:
    setattr(dispatcher, "FunctionCache", lambda function: caching.NullCache())  # noqa: B010

_ensure_blas, linalg.ensure_blas = linalg.ensure_blas, lambda: None
try:
    import numba.np.arraymath
finally:
    linalg.ensure_blas = _ensure_blas
