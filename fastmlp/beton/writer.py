"""Write raw images into a beton: workers write pixels directly into place, the file gets its name at the end."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..atomic import no_links, write_atomic
from ..datasets import read_sidecar, sidecar_path
from ..messages import logger, progress_bar
from ..sources.base import Source
from ..sources.fit import Fit
from .changes import check_unchanged
from .checksum import checksum, checksum_file
from .inspect import BetonReader
from .journal import Journal, journals, other_identity, read_journal
from .layout import Layout
from .partial import open_partial
from .verify import verify
from .workers import Chunk, FileState, WriteJob, write_chunks

CHUNK_BYTES = 4 << 20  # of pixels per task
CHECKED_IMAGES = 32
CHECKPOINT_S, CHECKPOINT_BYTES = 2.0, 64 << 20  # between entries in the journal, whichever is first


def write_beton(
    path: str | Path,
    source: Source,
    res: int,
    *,
    metadata: dict | None = None,  # stored in the JSON file beside the beton
    seed: int | None = 0,  # of the order of the samples; None keeps the source's order
    num_workers: int = 1,
    on_error: Literal["stop", "skip"] = "stop",
    fit: Fit = "square",
    shard: tuple[int, int] | None = None,
    finish: bool = False,
    statistics: bool = False,
) -> Path | None:
    """Write every image of `source`, fitted to res px, to `path`; return `path`.

    source: a fastmlp.sources.base.Source: its length, `source[i]` -> an image (H, W, 3) uint8 and its label, `classes`.

    The same source, res, fit and seed give the same bytes for any number of workers or machines, and however often the
    writing was interrupted. Until it is complete, the file is called `path.partial`, and a journal beside it records
    what is written: the same call resumes from there. Class names and `metadata` are stored in a JSON file beside it.

    num_workers: processes that decode and resize. seed: of the order of the images, None for the source's own.
    on_error: a bad image stops the writing ("stop"), or is left out and listed in a text file beside it ("skip").
    fit: see sources.fit. shard: (i, n) writes only the i-th of n parts, if you like at the same time as others, and
    returns None; a call with `finish` then assembles the whole.
    statistics: store each channel's mean and standard deviation (0-255) in the JSON file, too, from a pass over all
    pixels.

    Raises ValueError naming a bad image or, with finish, missing parts; OSError if the disk is too small or another
    writer is writing the same file.
    """
    path = Path(path)
    layout = Layout(len(source), res, 0 if source.multi_labels is None else source.multi_labels.shape[1])
    order = sample_order(len(source), seed)
    identity = {
        "num_samples": len(source),
        "res": res,
        "seed": seed,
        "source": source.fingerprint(),
        "fit": fit,
        "chunk_bytes": CHUNK_BYTES,
    }
    whole = WriteJob(path, source, layout, order, on_error, fit)
    bounds = _bounds(len(source), max(1, CHUNK_BYTES // layout.slot_bytes))
    if _is_written(whole, identity, metadata or {}, bounds):
        _check_finished(whole, bounds)
        if statistics:
            _add_statistics(path)
        logger.warning(f"{path.name}: already written")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_partial(path, layout, identity, shard, finish) as (partial, journal):
        job = replace(whole, partial=partial)
        own_bounds = (
            bounds if shard is None else [tuple(b) for b in np.array_split(bounds, shard[1])[shard[0]].tolist()]
        )
        chunks = _written_chunks(path, identity, on_error)
        todo = [bound for bound in own_bounds if bound[0] not in chunks]
        if finish and todo:
            raise ValueError(
                f"{path}: {len(todo)} of {len(bounds)} chunks are not written yet, the first at image "
                f"{todo[0][0]:,}: run the command of its shard again"
            )
        if len(todo) < len(own_bounds):
            if not finish:
                logger.warning(f"{path.name}: resuming where it was interrupted")
            check_unchanged(
                job,
                [(bound, chunks[bound[0]].files) for bound in own_bounds if bound[0] in chunks],
                f"delete {partial} and its journal ({path.name}.journal*) to write all images anew",
            )
        _write(job, journal, own_bounds, todo, chunks, num_workers)
        if shard is not None:
            return None
        _assemble(path, job, chunks, {**(metadata or {}), "identity": identity}, statistics)
        for file in journals(path):
            file.unlink()
    _sync_folder(path.parent)
    return path


def sample_order(num_samples: int, seed: int | None) -> np.ndarray:
    """Return the source's index at each place of the beton, (num_samples,) int64: random, or as is if seed is None."""
    return np.arange(num_samples) if seed is None else np.random.default_rng(seed).permutation(num_samples)


def skipped_list(path: Path) -> Path:
    """Return the path of the text file that lists the images left out of a beton, one per line."""
    return path.with_suffix(".skipped.txt")


def _written_chunks(path: Path, identity: dict, on_error: str) -> dict[int, Chunk]:
    """Return the chunks in all journals by their first place; those with bad images only if these may be left out."""
    return {
        first: chunk
        for file in journals(path)
        for first, chunk in read_journal(file, identity).items()
        if on_error == "skip" or not chunk.bad
    }


def _bounds(count: int, size: int) -> list[tuple[int, int]]:
    return [(first, min(first + size, count)) for first in range(0, count, size)]


def _write(
    job: WriteJob,
    journal: Journal,
    own_bounds: list[tuple[int, int]],  # of this writer's chunks
    todo: list[tuple[int, int]],
    chunks: dict[int, Chunk],
    num_workers: int,
) -> None:
    """Write the chunks `todo`, those of `own_bounds` that are not written yet, and add them to `chunks`."""
    total, left = (sum(last - first for first, last in some) for some in (own_bounds, todo))
    name = job.partial.name.removesuffix(".partial")
    progress = progress_bar(
        total=total, initial=total - left, desc=name, unit=" images", unit_scale=True, mininterval=0.5
    )
    bad = sum(len(chunks[first].bad) for first, _ in own_bounds if first in chunks)
    with progress, _Checkpoints(job.partial, journal, job.layout.slot_bytes) as checkpoints:
        for chunk in write_chunks(job, todo, num_workers):
            chunks[chunk.first] = chunk
            checkpoints.add(chunk)
            bad += len(chunk.bad)
            written_mb = (progress.n + len(chunk.labels) - total + left) * job.layout.image_bytes / 1e6
            rate = written_mb / max(progress.format_dict["elapsed"], 1e-3)
            progress.set_postfix_str(f"{rate:.1f} MB/s, {bad} bad", refresh=False)
            progress.update(len(chunk.labels))


def _assemble(path: Path, job: WriteJob, chunks: dict[int, Chunk], metadata: dict, statistics: bool) -> None:
    """Write the records around the pixels, compare some images with the source, give the file its name."""
    layout = job.layout
    labels = np.concatenate([chunks[first].labels for first in sorted(chunks)])
    sizes = np.concatenate([chunks[first].sizes for first in sorted(chunks)]).astype(np.int64)
    if job.fit == "square":
        sizes = np.full((len(labels), 2), layout.res)
    skipped = {place: text for chunk in chunks.values() for place, text in chunk.bad.items()}
    written = np.delete(np.arange(len(labels)), sorted(skipped))
    if not len(written):
        raise ValueError(f"{path}: none of {len(labels)} images could be read, the first: {skipped[0]}")
    head = layout.head(len(written)) + layout.metadata(labels[written], sizes[written], written)
    table = layout.allocation_table(sizes[written], written)
    _write_parts(job.partial, [(0, head), (layout.allocation_start, table)], layout.allocation_start + len(table))
    if skipped:
        write_atomic(skipped_list(path), "".join(f"{text}\n" for text in sorted(skipped.values())))
    else:
        skipped_list(path).unlink(missing_ok=True)  # of an earlier beton
    digest = _verify(job, chunks, head, table)
    _check_pixels(job, written, labels, sizes)  # after what the disk has lost is written anew
    checksum_file(path).unlink(missing_ok=True)  # of an earlier beton
    files = [chunks[first].files for first in sorted(chunks)]
    metadata = {**metadata, "fit": job.fit, "skipped": len(skipped), "sha256": digest, "files": files}
    if statistics:
        metadata |= _statistics(job.partial)
    _write_description(path, job.source, layout, labels[written], metadata)
    os.replace(job.partial, path)
    write_atomic(checksum_file(path), f"{digest}  {path.name}\n")


def _statistics(beton: Path) -> dict[str, list[float]]:
    """Return mean and standard deviation of each channel over all pixels, (3,), 0-255 scale."""
    values = BetonReader(beton).channel_statistics()
    return {name: numbers.round(3).tolist() for name, numbers in zip(("mean", "std"), values, strict=True)}


def _add_statistics(path: Path) -> None:
    """Add the statistics to the JSON file of a finished beton, if it has none: 0.1 did not compute them."""
    stored = read_sidecar(sidecar_path(path))
    if not {"mean", "std"} <= stored.keys():
        write_atomic(sidecar_path(path), json.dumps({**stored, **_statistics(path)}, indent=1) + "\n")


def _write_parts(partial: Path, parts: list[tuple[int, bytes]], file_bytes: int) -> None:
    """Write bytes at their places, and cut the file to its size; all is on disk afterwards."""
    with open(partial, "r+b", opener=no_links) as file:
        for start, content in parts:
            file.seek(start)
            file.write(content)
        file.truncate(file_bytes)
        file.flush()
        os.fsync(file.fileno())


def _verify(job: WriteJob, chunks: dict[int, Chunk], head: bytes, table: bytes) -> str:
    """Compare the whole file with what was written; write anew what differs, once. Return the SHA-256 of the file.

    Raises OSError if it still differs, or if the source has changed.
    """
    found = verify(job.partial, job.layout, chunks, head, table)
    if not found.good:
        count = len(found.chunks) + len(found.others)
        logger.warning(f"{job.partial}: {count} parts are not what was written: writing them anew")
        for chunk in found.chunks:
            again = job.write((chunk.first, chunk.first + len(chunk.labels)))
            if (again.labels.tolist(), again.bad) != (chunk.labels.tolist(), chunk.bad):
                raise OSError(f"{job.partial}: the images have changed since they were written: delete the file")
            chunks[chunk.first] = again
        _write_parts(job.partial, found.others, job.layout.allocation_start + len(table))
        found = verify(job.partial, job.layout, chunks, head, table)
    if not found.good:
        raise OSError(f"{job.partial}: the disk does not keep what is written. Check the disk, and delete the file")
    return found.sha256


def _is_written(job: WriteJob, identity: dict, metadata: dict, bounds: list[tuple[int, int]]) -> bool:
    """Return whether the beton exists, as written from these images; if so, write its checksum file again."""
    path = job.partial
    try:
        if not sidecar_path(path).is_file():
            return False
        stored = json.loads(sidecar_path(path).read_text(encoding="utf-8"))
        if stored["identity"] != identity:
            if path.is_file():
                changed = other_identity(stored["identity"], identity)
                logger.warning(f"{path.name}: written before from other images or options ({changed}): anew")
            return False
        if job.on_error == "stop" and stored["skipped"]:
            return False
        expected = {**json.loads(json.dumps(metadata)), "num_samples": len(job.order) - stored["skipped"]}
        if not _describes(stored, expected, job.source, len(bounds)):
            logger.warning(f"{sidecar_path(path)} does not describe these images: {path.name} is written anew")
            return False
        if not path.is_file() or checksum(path) != stored["sha256"]:
            return False
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    write_atomic(checksum_file(path), f"{stored['sha256']}  {path.name}\n")
    for file in journals(path):
        file.unlink()
    return True


def _describes(stored: dict, expected: dict, source: Source, chunks: int) -> bool:
    """Return whether a sidecar tells what it would be told now, as far as it does, and a state of files per chunk."""
    files = stored.get("files", [None] * chunks)  # 0.1 did not record them
    are_states = all(state is None or [type(text) for text in state] == [str, str] for state in files)
    counts = stored["images_per_class"]
    return (
        are_states
        and len(files) == chunks
        and stored["classes"] == list(source.classes)
        and len(counts) == len(source.classes)
        and sum(counts) == expected["num_samples"]
        and all(stored.get(name, value) == value for name, value in expected.items())
    )


def _check_finished(job: WriteJob, bounds: list[tuple[int, int]]) -> None:
    """Raise ValueError if the source's files are not those that the finished beton was written from."""
    path = job.partial
    files = read_sidecar(sidecar_path(path)).get("files")
    if files is None:
        logger.warning(f"{path.name}: written by 0.1, which did not record the sizes and times of files: not compared")
        return
    states = [FileState(*state) if state else None for state in files]
    check_unchanged(job, zip(bounds, states, strict=True), f"delete {path} to write all images anew")


class _Checkpoints:
    """Adds chunks to the journal after their pixels are on disk, every CHECKPOINT_S seconds and at the end.

    Also after each CHECKPOINT_BYTES, while threads go on: at the end, the disk would be waited for.
    """

    def __init__(self, partial: Path, journal: Journal, slot_bytes: int):
        self._fd, self._journal, self._slot_bytes = no_links(partial, os.O_RDWR), journal, slot_bytes
        self._waiting: list[Chunk] = []
        self._last = time.monotonic()

    def add(self, chunk: Chunk) -> None:
        self._waiting.append(chunk)
        waiting_bytes = self._slot_bytes * sum(len(waiting.labels) for waiting in self._waiting)
        if waiting_bytes >= CHECKPOINT_BYTES or time.monotonic() - self._last > CHECKPOINT_S:
            self.save()

    def save(self) -> None:
        waiting, self._waiting = self._waiting, []  # Linux reports a failed write only once: no second try
        os.fdatasync(self._fd)
        for chunk in waiting:
            self._journal.add(chunk)
        self._journal.sync()
        self._last = time.monotonic()

    def __enter__(self) -> "_Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.save()
        finally:
            os.close(self._fd)


def _check_pixels(job: WriteJob, written: np.ndarray, labels: np.ndarray, sizes: np.ndarray) -> None:
    """Read some images again from the source and compare them with the file. Raises OSError if one differs."""
    addresses = job.layout.addresses()
    with job.partial.open("rb") as file:
        for sample in np.unique(np.linspace(0, len(written) - 1, CHECKED_IMAGES).astype(int)):
            place = written[sample]
            file.seek(int(addresses[place]))
            slot, label, size = job.slot(int(job.order[place]))
            if file.read(len(slot)) != slot.tobytes() or (label, *size) != (labels[place], *sizes[place]):
                raise OSError(
                    f"{job.partial}: image {sample} is not what was written. Check the disk, and delete the file"
                )


def _write_description(path: Path, source: Source, layout: Layout, labels: np.ndarray, metadata: dict) -> None:
    description = {
        **metadata,
        "num_samples": len(labels),
        "res": layout.res,
        "classes": list(source.classes),
        "images_per_class": np.bincount(labels, minlength=len(source.classes)).tolist(),
    }
    text = json.dumps(description, indent=1, ensure_ascii=True)  # ASCII, as names may hold any byte
    write_atomic(sidecar_path(path), text + "\n")


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power loss."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
