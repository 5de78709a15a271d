"""Published .tar.gz archives of binary files, as CIFAR and STL-10 come: find one, check it, read files into memory."""

import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .base import check_digest
from .download import download
from .faults import naming

MAX_BYTES = 1 << 30  # of a file; the largest, STL-10's test_X.bin, has 221 MB


@dataclass(frozen=True, kw_only=True)
class PublishedArchive:
    """Where a .tar.gz comes from, and the folder that it unpacks to."""

    url: str
    sha256: str  # as recorded in TensorFlow Datasets' url_checksums; the authors publish only MD5s, or nothing
    folder: str  # in the archive
    names_file: str  # in the folder: the names of the classes, read for every split

    def locate(self, source: str | Path | None, cache: str | Path) -> Path:
        """Return the path of the archive or of its unpacked folder.

        `source` is either, or a folder that holds either; if it is None, the archive is downloaded into `cache`.
        Raises FileNotFoundError if neither is found.
        """
        if source is None:
            return download(self.url, self.sha256, cache)
        source, archive = Path(source), self.url.rsplit("/", 1)[-1]
        for location in (source, source / self.folder, source / archive):
            if location.is_file() or (location / self.names_file).is_file():
                return location
        if (source / self.folder).is_dir():
            return source / self.folder  # incomplete: read_files says what it lacks
        raise FileNotFoundError(
            f"{source}: neither {archive} nor the folder {self.folder} is there. Get the archive from {self.url} "
            "(the binary version) and name it, or the folder that holds it, with --source"
        )

    def read_files(self, location: Path, wanted: tuple[str, ...], any_checksum: bool) -> dict[str, bytes]:
        """Return the contents of the files `wanted` from the unpacked folder or the archive at `location`.

        An archive must have the published checksum unless `any_checksum`. Raises FileNotFoundError or ValueError
        naming `location` and what is wrong.
        """
        if location.is_dir():
            return _read_folder(location, wanted)
        if not any_checksum:
            check_digest(location, self.sha256, location)
        contents = _read_tar(location, wanted)
        if missing := [name for name in wanted if name not in contents]:
            raise ValueError(f"{location}: not the binary archive of {self.folder} (it lacks {', '.join(missing)})")
        return contents


def _read_folder(folder: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    if missing := [name for name in wanted if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: unpack the whole binary archive there")
    contents = {}
    for name in wanted:
        with naming(folder / name):
            contents[name] = (folder / name).read_bytes()
    return contents


def _read_tar(path: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """Return those of the wanted files that the archive holds. Nothing is unpacked to disk."""
    contents: dict[str, bytes] = {}
    with naming(path), tarfile.open(path) as archive:
        for member in archive:  # in the order of the archive: to look one up would decompress STL-10's 2.6 GB first
            name = PurePosixPath(member.name).name
            if name in wanted and member.isreg() and (file := archive.extractfile(member)):
                if member.size > MAX_BYTES:  # a bomb: a compressed archive may claim and hold anything
                    raise ValueError(f"{path}: {member.name} has {member.size:,} bytes, more than {MAX_BYTES:,}")
                contents[name] = file.read()
            if len(contents) == len(wanted):
                break
    return contents
