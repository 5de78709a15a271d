"""Images in uncompressed tar archives, read where they lie: nothing is unpacked."""

import os
import tarfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from .encoded import EncodedImages
from .fit import Fit
from .folder import EXTENSIONS
from .names import PackedNames

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
OPEN_FILES = 64  # per process, of the 21,841 archives that ImageNet-21k consists of
BLOCK = 512


class TarImages(EncodedImages):
    """Images of one or many tars, labelled by the sorted names of their classes, in the order of ImageFolder.

    An image's class is the tar inside the tar that it lies in (as in ILSVRC2012_img_train.tar), else the folder it lies
    in, else the archive's own name without .tar (as n01440764.tar of ImageNet-21k); `label_of` may say otherwise by the
    image's name. `classes` gives the order of the labels and refuses others.

    Archives are indexed at the start, a header per image; images are then read by offset. Raises ValueError naming the
    archive for one that is compressed, truncated or damaged, and where images are links or of no class.
    """

    def __init__(
        self,
        archives: Path | Sequence[Path],
        classes: tuple[str, ...] | None = None,
        res: int | None = None,
        fit: Fit = "square",
        label_of: Callable[[str], str] | None = None,  # by the image's name without folders
    ):
        self.archives = [archives] if isinstance(archives, Path) else list(archives)
        found: dict[str, int] = {}  # class -> a number, in the order of appearance
        names, kinds, places, offsets, sizes = PackedNames(), array("i"), array("i"), array("q"), array("q")
        with tqdm(
            desc=f"indexing {self.archives[0].name if len(self.archives) == 1 else 'archives'}",
            unit=" images",
            unit_scale=True,
            delay=1,
            leave=False,
        ) as progress:
            for place, path in enumerate(self.archives):
                for inside, name, offset, size in _images(path):
                    member = PurePosixPath(name)
                    kind = label_of(member.name) if label_of else inside or member.parent.name or path.stem
                    kinds.append(found.setdefault(kind, len(found)))
                    places.append(place)
                    offsets.append(offset)
                    sizes.append(size)
                    names.append(os.fsencode(member.name))
                    progress.update()
        if not len(names):
            raise FileNotFoundError(f"{self.archives[0]} holds no images")
        classes = classes or tuple(sorted(found))
        if extra := set(found) - set(classes):
            listed = ", ".join(sorted(extra))
            raise ValueError(f"{self.archives[0]} has classes that the training images have not: {listed}")
        number = {name: index for index, name in enumerate(classes)}
        labels = np.array([number[name] for name in found], np.int32)[np.array(kinds)]
        by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels, minlength=len(classes))))
        order = np.array([index for part in by_class for index in sorted(part, key=names.__getitem__)])
        super().__init__(PackedNames(names[index] for index in order), labels[order], classes, res, fit)
        self.places, self.offsets, self.sizes = (np.array(numbers)[order] for numbers in (places, offsets, sizes))
        self._open: dict[int, int] = {}  # archive -> file descriptor

    def where(self, index: int) -> str:
        return f"{self.archives[self.places[index]]}: {os.fsdecode(self.names[index])}"

    def encoded(self, index: int) -> bytes:
        size = int(self.sizes[index])
        try:
            content = os.pread(self._descriptor(int(self.places[index])), size, int(self.offsets[index]))
        except OSError as error:
            raise ValueError(f"{self.where(index)}: cannot be read ({error.strerror})") from error
        if len(content) != size:
            raise ValueError(f"{self.where(index)}: only {len(content)} of {size} bytes are there: the archive was cut")
        return content

    def _descriptor(self, place: int) -> int:
        if place not in self._open:
            if len(self._open) >= OPEN_FILES:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[place] = os.open(self.archives[place], os.O_RDONLY)
        return self._open[place]

    def fingerprint(self) -> str:
        return f"{super().fingerprint()} {[path.name for path in self.archives]}"

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}  # descriptors are a process's own

    def __del__(self) -> None:
        for fd in self.__dict__.get("_open", {}).values():
            os.close(fd)


def _images(path: Path) -> Iterator[tuple[str, str, int, int]]:
    """Of each image in the archive: the name of the tar inside it (or ""), its own, where it begins and its bytes."""
    with path.open("rb") as file:
        for member in members(file, str(path), file.seek(0, os.SEEK_END)):
            end = member.offset_data + member.size
            if member.name.lower().endswith((".tar.gz", ".tgz")):
                raise ValueError(f"{path}: {member.name} in it is compressed: unpack the archive")
            if member.name.lower().endswith(EXTENSIONS):
                yield "", member.name, member.offset_data, member.size
            elif member.name.endswith(".tar"):
                inside = PurePosixPath(member.name).stem
                for inner in members(file, f"{path}: {member.name}", end, member.offset_data):
                    if inner.name.lower().endswith(EXTENSIONS):
                        yield inside, inner.name, inner.offset_data, inner.size


def members(file: BinaryIO, name: str, end: int, start: int = 0) -> Iterator[tarfile.TarInfo]:
    """The files of a tar that lies in `file` from byte `start` to `end`.

    tarfile ends quietly at a damaged header, so the zeros that close an archive are looked for.
    """
    file.seek(start)
    magic = file.read(6)
    if kind := next((kind for begin, kind in COMPRESSED.items() if magic.startswith(begin)), None):
        raise ValueError(f"{name} is compressed ({kind}): images cannot be read out of it by offset. Unpack it first")
    try:
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps every one, 1 kB each
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    if member.name.lower().endswith(EXTENSIONS):
                        raise ValueError(f"{name}: {member.name} is not a plain file (a link?): unpack the archive")
                    continue
                if member.offset_data + member.size > end:
                    raise ValueError(f"{name}: truncated within {member.name}")
                yield member  # next() seeks before it reads: others may use the file meanwhile
            file.seek(archive.offset)
            if archive.offset + BLOCK > end or file.read(BLOCK) != bytes(BLOCK):
                raise ValueError(f"{name}: truncated or damaged at byte {archive.offset - start:,}")
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{name}: not a tar archive, or a damaged one ({error})") from error
