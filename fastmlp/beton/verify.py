"""The final check of a beton: every byte of the file, read from the disk, against what was written."""

import hashlib
import os
from collections import defaultdict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .checksum import read_blocks
from .layout import Layout
from .workers import Chunk, new_digest

HEAD, TABLE, GAP = -1, -2, -3  # parts of the file beside its chunks
BLOCKS_AHEAD = 8  # that wait for the second hash


@dataclass
class Verified:
    """What the file holds."""

    sha256: str
    chunks: list[Chunk] = field(default_factory=list)  # those that are not as written
    others: list[tuple[int, bytes]] = field(default_factory=list)  # what to write again, and where

    @property
    def good(self) -> bool:
        return not self.chunks and not self.others


def verify(file: Path, layout: Layout, chunks: dict[int, Chunk], head: bytes, table: bytes) -> Verified:
    """Compare the file, whose writes are synced, with the hashes of its chunks; what lies between them must be zero."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # compare the disk, not the page cache
    parts = [(len(head), HEAD)]  # end and kind of each, in order
    for chunk in sorted(chunks.values(), key=lambda chunk: chunk.first):
        for start, count in layout.runs(chunk.first, chunk.first + len(chunk.labels)):
            parts += [(start, GAP), (start + count * layout.slot_bytes, chunk.first)]
    parts += [(layout.allocation_start, GAP), (layout.allocation_start + len(table), TABLE)]

    digest, result = hashlib.sha256(), Verified("")
    digests: dict[int, Any] = defaultdict(new_digest)
    at, remaining = 0, iter(parts)
    end, kind = next(remaining)
    with ThreadPoolExecutor(1) as second:  # one, so that blocks stay in order; hashing takes longer than reading
        pending: deque[Future] = deque()
        for block in read_blocks(file, [end for end, _ in parts]):
            while at >= end:
                end, kind = next(remaining)
            if kind != GAP:
                pending.append(second.submit(digests[kind].update, block))
            elif block.strip(b"\0"):
                result.others.append((at, bytes(len(block))))
            digest.update(block)
            at += len(block)
            if len(pending) > BLOCKS_AHEAD:
                pending.popleft().result()
    result.sha256 = digest.hexdigest()
    result.chunks = [chunk for first, chunk in chunks.items() if digests[first].hexdigest() != chunk.digest]
    for start, content, kind in ((0, head, HEAD), (layout.allocation_start, table, TABLE)):
        if digests[kind].digest() != new_digest(content).digest():
            result.others.append((start, content))
    return result
