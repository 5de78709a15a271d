"""The SHA-256 of a beton, in a file beside it that `sha256sum -c` can also read."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..messages import progress_bar

BLOCK_BYTES = 1 << 20


def checksum_file(beton: Path) -> Path:
    return beton.with_name(beton.name + ".sha256")


def checksum(path: Path) -> str:
    """Return the SHA-256 of the whole file; shows a progress bar."""
    digest = hashlib.sha256()
    for block in read_blocks(path):
        digest.update(block)
    return digest.hexdigest()


def read_blocks(path: Path, ends: Iterable[int] = ()) -> Iterator[bytes]:
    """Yield the whole file in blocks that stop at each of `ends`, byte offsets in order; shows a progress bar."""
    size, at = path.stat().st_size, 0
    with (
        path.open("rb") as file,
        progress_bar(
            total=size,
            desc=f"checksum of {path.name}",
            unit="B",
            unit_scale=True,
            mininterval=0.5,
            leave=False,
        ) as progress,
    ):
        for end in (*ends, size):
            while at < end and (block := file.read(min(BLOCK_BYTES, end - at))):
                at += len(block)
                yield block
                progress.update(len(block))


def verify_checksum(beton: Path) -> bool:
    """Return whether there is a checksum to compare with. Raises ValueError if the beton differs from it."""
    stored = checksum_file(beton)
    if not stored.exists():
        return False
    expected, found = stored.read_text(encoding="utf-8", errors="replace").partition(" ")[0], checksum(beton)
    if expected != found:
        raise ValueError(
            f"{beton} is damaged: its SHA-256 is {found}, but {stored.name} says {expected}. Write it again"
        )
    return True
