"""Images in uncompressed tar archives, read in place: nothing is unpacked."""

import os
import tarfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from ..messages import progress_bar
from .base import ImageState, state_of
from .class_names import refuse_look_alikes
from .encoded import EncodedImages
from .faults import naming
from .fit import Fit
from .listing import is_image, is_litter, is_packed, takes
from .names import PackedNames
from .split_names import splits_among

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
OPEN_FILES = 64  # max per process; ImageNet-21k consists of 21,841 archives
BLOCK = 512


class TarImages(EncodedImages):
    """Images of one or many tars, labelled by the sorted names of their classes, in the order of ImageFolder.

    Of one archive, an image's class is the name of the tar inside it that holds the image (as in
    ILSVRC2012_img_train.tar), else that of the first folder in which its images differ (train/n01440764/images/x.JPEG).
    Of a list of archives, each is a class, named by the archive without .tar (as n01440764.tar of ImageNet-21k).
    `class_of`, if given, returns the class by the image's name instead. `classes` gives the order of the labels; other
    classes are an error.

    Archives are indexed first, one header per image; images are then read by offset. Raises ValueError naming the
    archive if it is compressed, truncated or damaged, if an image is a link or has no class, or if a tar is empty.
    """

    def __init__(
        self,
        archives: Path | Sequence[Path],
        classes: tuple[str, ...] | None = None,
        res: int | None = None,
        fit: Fit = "square",
        class_of: Callable[[str], str] | None = None,  # of the image's name without folders
    ):
        self.archives = [archives] if isinstance(archives, Path) else list(archives)
        self.left_out = Counter()
        several, stems = not isinstance(archives, Path), {path.stem for path in self.archives}
        found: dict[tuple[str, ...], int] = {}  # class, or folders down to it -> its number in the order of appearance
        lacking: set[tuple[str, ...]] = set()  # folders, those of what is no image
        names, found_numbers, places, offsets, sizes = PackedNames(), array("i"), array("i"), array("q"), array("q")
        with progress_bar(
            desc=f"indexing {self.archives[0].name if len(self.archives) == 1 else 'archives'}",
            unit=" images",
            unit_scale=True,
            delay=1,
            leave=False,
        ) as progress:
            for place, path in enumerate(self.archives):
                for inside, name, offset, size in _images(path, self.left_out, lacking):
                    member = PurePosixPath(name)
                    if several and member.parent.name != path.stem and member.parent.name in stems:
                        raise ValueError(
                            f"{path}: {name} is in the folder of another class: expected one class per tar"
                        )
                    if class_of or several:
                        folders: tuple[str, ...] = (class_of(member.name) if class_of else path.stem,)
                    else:
                        folders = _folders(inside, member.parent)
                    found_numbers.append(found.setdefault(folders, len(found)))
                    places.append(place)
                    offsets.append(offset)
                    sizes.append(size)
                    names.append(os.fsencode(member.name))
                    progress.update()
                if not len(names) or places[-1] != place:
                    raise FileNotFoundError(f"{path} holds no images: remove it, or get it again")
        class_names = _class_names(self.archives[0], list(found), () if class_of or several else lacking)
        refuse_look_alikes(sorted(set(class_names)), str(self.archives[0]))
        classes = classes or tuple(sorted(set(class_names)))
        if extra := set(class_names) - set(classes):
            listed = ", ".join(sorted(extra))
            raise ValueError(f"{self.archives[0]} has classes that the training images do not have: {listed}")
        label_of = {name: label for label, name in enumerate(classes)}
        labels = np.array([label_of[name] for name in class_names], np.int32)[np.array(found_numbers)]
        by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels, minlength=len(classes))))
        order = np.array([index for part in by_class for index in sorted(part, key=names.__getitem__)])
        super().__init__(PackedNames(names[index] for index in order), labels[order], classes, res, fit)
        self.places, self.offsets, self.sizes = (np.array(numbers)[order] for numbers in (places, offsets, sizes))
        self._open: dict[int, int] = {}  # archive -> file descriptor

    def location(self, index: int) -> str:
        return f"{self.archives[self.places[index]]}: {os.fsdecode(self.names[index])}"

    def file_state(self, index: int) -> ImageState:
        # The image's size, since tar fills archives up to multiples of 10 kB.
        return state_of(self.archives[self.places[index]])._replace(content=int(self.sizes[index]))

    def read_bytes(self, index: int) -> bytes:
        size, place = int(self.sizes[index]), int(self.places[index])
        with naming(self.archives[place]):  # all errors are faults of the machine or the whole archive
            content = os.pread(self._descriptor(place), size, int(self.offsets[index]))
        if len(content) != size:  # they were there when the archive was indexed
            raise OSError(
                f"{self.location(index)}: only {len(content)} of {size} bytes are there: the archive has been truncated"
            )
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
        return {**self.__dict__, "_open": {}}  # descriptors are valid only in this process

    def __del__(self) -> None:
        for fd in self.__dict__.get("_open", {}).values():
            os.close(fd)


def _folders(inside: str, folder: PurePosixPath) -> tuple[str, ...]:
    """Return the tar inside the archive, or "", and the folders in it, as parts of a path."""
    return tuple(part for part in (inside, *folder.parts) if part not in ("", "/", ".."))


def _class_names(
    path: Path,
    folders: list[tuple[str, ...]],
    lacking: Iterable[tuple[str, ...]],  # folders without images of their own
) -> list[str]:
    """Return the class of each of the folders of images in the archive: the first part in which they differ.

    Raises ValueError if images are beside the classes, a folder beside them has no image, or they are splits.
    """
    depth = len(os.path.commonprefix(folders))
    if len(folders) == 1:
        return [folders[0][-1] if depth else path.stem]
    if any(len(parts) == depth for parts in folders):
        where = "/".join(folders[0][:depth]) or "no folder"
        raise ValueError(f"{path} holds images outside of its folders of classes, in {where}: remove them")
    names = [parts[depth] for parts in folders]
    beside = {parts[depth] for parts in lacking if len(parts) > depth and parts[:depth] == folders[0][:depth]}
    if empty := beside - set(names):
        raise ValueError(f"{path}: {min(empty)} in it holds no images: its class would be lost")
    if len({*(splits := splits_among(sorted(set(names)))).values()}) > 1:
        raise ValueError(f"{path} holds {' and '.join(splits)}, splits: unpack it, and write it with writers/folder.py")
    return names


def _images(path: Path, left_out: Counter[str], lacking: set[tuple[str, ...]]) -> Iterator[tuple[str, str, int, int]]:
    """Yield, for each image, the name of the tar inside the archive (or ""), its own name, offset and size in bytes.

    Folders, those of what is left out, and links are added to `lacking`, without litter.
    """
    with naming(path, "not a tar archive, or damaged"), path.open("rb") as file:
        for member in members(file, str(path), file.seek(0, os.SEEK_END)):
            end, inside = member.offset_data + member.size, PurePosixPath(member.name)
            litter, name = any(is_litter(part) for part in inside.parts if part != ".."), inside.name
            if not member.isreg():
                if not litter:
                    lacking.add(_folders("", inside))
            elif name.lower().endswith(".tar") and not litter:
                count = 0
                for inner in members(file, f"{path}: {member.name}", end, member.offset_data):
                    if inner.isreg() and takes(inner.name, left_out):
                        count += 1
                        yield name[:-4], inner.name, inner.offset_data, inner.size
                if not count:
                    raise ValueError(f"{path}: {member.name} holds no images: its class would be lost")
            elif is_packed(name) and not litter:
                raise ValueError(f"{path}: {member.name} in it is compressed: unpack the archive")
            elif takes(member.name, left_out):
                yield "", member.name, member.offset_data, member.size
            elif not litter:
                lacking.add(_folders("", inside.parent))


def members(file: BinaryIO, name: str, end: int, start: int = 0) -> Iterator[tarfile.TarInfo]:
    """Yield the files of the tar stored in `file` from byte `start` to `end`, its folders, and links without an ending.

    tarfile stops without an error at a damaged header, so this checks for the zeros that end an archive.
    """
    file.seek(start)
    magic = file.read(6)
    if kind := next((kind for begin, kind in COMPRESSED.items() if magic.startswith(begin)), None):
        raise ValueError(f"{name} is compressed ({kind}): images in it cannot be read by offset. Decompress it first")
    with naming(name, "not a tar archive, or damaged"):
        file.seek(start)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # otherwise it keeps all of them, 1 kB each
                if member.isdir() or (member.issym() and not PurePosixPath(member.name).suffix):
                    yield member
                    continue
                if not member.isreg() or member.issparse():
                    if is_image(member.name) and not is_litter(PurePosixPath(member.name).name):
                        raise ValueError(f"{name}: {member.name} is not a plain file (a link?): unpack the archive")
                    continue
                if member.offset_data + member.size > end:
                    raise ValueError(f"{name}: truncated within {member.name}")
                yield member  # next() seeks before it reads: the caller may use the file meanwhile
            file.seek(archive.offset)
            if archive.offset + BLOCK > end or file.read(BLOCK) != bytes(BLOCK):
                raise ValueError(f"{name}: truncated or damaged at byte {archive.offset - start:,}")
            while file.tell() < end and (part := file.read(min(1 << 20, end - file.tell()))):
                if part.count(0) < len(part):
                    raise ValueError(f"{name}: more follows its end: two archives in one file? Unpack it")
