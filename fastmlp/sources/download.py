"""Downloads: a file gets its name whole and checked, or not at all; errors say what came instead."""

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import unescape
from pathlib import Path

from ..atomic import no_links
from ..messages import logger, progress_bar
from .base import ALGORITHMS, digest_of

TIMEOUT_S = 30.0  # without a byte
CHUNK_BYTES = 1 << 16
HTML = re.compile(rb"\s*<(!doctype html|html|head|title|body)", re.IGNORECASE)


def download(
    url: str,
    expected: str,  # hexadecimal: MD5 if of 32 digits, SHA-256 if of 64
    folder: str | Path,
) -> Path:
    """Download a data set's file into `folder`, check it, and return its path; a file already right is kept.

    Raises ConnectionError or ValueError as fetch does.
    """
    algorithm, path = ALGORITHMS[len(expected)], Path(folder) / url.rsplit("/", 1)[-1]

    def check(file: Path) -> None:
        if (found := digest_of(file, algorithm)) != expected:
            raise ValueError(f"a file of another checksum came ({algorithm} {found}, expected {expected})")

    fetch(url, path, check, f"Download {path.name} by hand and name its folder with --source")
    return path


def fetch(
    url: str,
    path: Path,
    check: Callable[[Path], object],  # of a file under another name; raises ValueError that says what came
    by_hand: str,  # the end of an error's line: how to get the file otherwise
) -> None:
    """Download `url` to `path` with a progress bar, unless a file that passes the check is there.

    A process that wants a file of the same folder meanwhile waits. Raises ConnectionError if the whole file does not
    come, ValueError if it is an HTML page or does not pass the check; neither leaves or changes a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        if path.is_file() and _passes(path, check):
            return
        partial = path.with_name(path.name + ".partial")
        try:
            try:
                _download(url, partial)
            except ConnectionError as error:
                raise ConnectionError(f"cannot download {url}: {error}. {by_hand}") from error
            try:
                _refuse_html(partial)
                check(partial)
            except ValueError as error:
                raise ValueError(f"{url}: {error}. {by_hand}") from error
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _passes(path: Path, check: Callable[[Path], object]) -> bool:
    try:
        check(path)
        return True
    except ValueError:
        return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of downloads, waiting for a process that has it."""
    with open(folder / ".lock", "a", opener=no_links) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning(f"waiting for another process that downloads to {folder}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(url: str, partial: Path) -> None:
    """Write what the address answers to a file. Raises ConnectionError saying why not all of it came."""
    import pooch
    import requests  # of pooch's requirements

    name = partial.name.removesuffix(".partial")
    with (
        open(partial, "wb", opener=no_links) as file,
        # pooch sets the total.
        progress_bar(desc=name, total=1, unit="B", unit_scale=True, leave=False, delay=1) as bar,
    ):
        try:
            # Not compressed on the way: sizes are those of the file.
            load = pooch.HTTPDownloader(
                progressbar=bar, chunk_size=CHUNK_BYTES, timeout=TIMEOUT_S, headers={"Accept-Encoding": "identity"}
            )
            load(url, file, None)
        except requests.RequestException as error:
            raise ConnectionError(_what_came(error, file.tell())) from error
        file.flush()
        os.fsync(file.fileno())


def _what_came(error: Exception, received: int) -> str:
    """Return what a failed download is about, in words."""
    import requests

    if isinstance(error, requests.HTTPError) and (answer := error.response) is not None:
        return f"{answer.url if answer.history else 'the server'} answered {answer.status_code} {answer.reason}"
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"nothing came for {TIMEOUT_S:g} s after {received:,} bytes"
    if isinstance(error, requests.TooManyRedirects):
        return "it leads from one address to the next without an end"
    if received or isinstance(error, requests.exceptions.ChunkedEncodingError):
        return f"it broke off after about {received:,} bytes"
    return f"no connection ({type(error).__name__})"


def _refuse_html(path: Path) -> None:
    """Raise ValueError if a page for people came instead of a file, as from a host whose quota is used up."""
    with path.open("rb") as file:
        start = file.read(4096)
    if HTML.match(start):
        title = re.search(rb"<title[^>]*>(.*?)</title>", start, re.IGNORECASE | re.DOTALL)
        text = " ".join(unescape(title[1].decode("utf-8", "replace")).split())[:80] if title else ""
        raise ValueError(f"an HTML page{f' ({text!r})' if text else ''} came instead of the file")
