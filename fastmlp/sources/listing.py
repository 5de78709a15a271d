"""Which files of a folder or an archive are images, and what is left out: litter, other files, formats not read."""

import os
from collections import Counter
from pathlib import PurePosixPath

from .decode import FORMATS

ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "JPEG2000": (".jp2", ".j2k"),
    "AVIF": (".avif",),
}
EXTENSIONS = tuple(ending for form in FORMATS for ending in ENDINGS[form])
UNREAD = frozenset(
    ".heic .heif .jxl .svg .eps .ps .pdf .psd .ico .tga .pcx .qoi .exr .hdr .dng .raw .cr2 .cr3 .nef .arw .orf .rw2 "
    ".raf .dcm .avif".split()
)
# Of macOS, Synology, QNAP, Windows, Linux, Python. Names that begin with a dot (.DS_Store, ._x.jpg) are litter, too.
LITTER = frozenset(
    "__macosx @eadir #recycle @recycle @recently-snapshot thumbs.db ehthumbs.db desktop.ini $recycle.bin lost+found "
    "__pycache__".split()
) | {"system volume information", "icon\r"}
HIDDEN = "hidden files or litter of a system (.*, __MACOSX, @eaDir, Thumbs.db, ...)"
DEAD_LINKS = "links to nothing"
OUTSIDE = "images outside of the folders of classes"

_BYTES_EXTENSIONS = tuple(os.fsencode(ending) for ending in EXTENSIONS)


def is_image(name: str | bytes) -> bool:
    """Return whether a file's name ends like that of an image that is read."""
    return name.lower().endswith(_BYTES_EXTENSIONS if isinstance(name, bytes) else EXTENSIONS)  # type: ignore[arg-type]


def is_litter(name: str | bytes) -> bool:
    """Return whether the name of a file or a folder is one that systems leave in folders, or is hidden."""
    return os.fsdecode(name).lower() in LITTER or name[:1] in (".", b".")


def takes(path: str, left_out: Counter[str]) -> bool:
    """Return whether a member of an archive is an image; if not, count why it is left out."""
    parts = PurePosixPath(path).parts
    if any(is_litter(part) for part in parts if part != ".."):
        left_out[HIDDEN] += 1
        return False
    if is_image(path):
        return True
    left_out[why_not(path)] += 1
    return False


def why_not(name: str) -> str:
    """Return why a file that is no image is left out."""
    ending = PurePosixPath(name).suffix.lower()
    if ending in UNREAD:
        return f"{ending} files, a format that is not read: convert them to JPEG or PNG"
    return f"{ending} files" if ending else "files without an ending"


def told(left_out: Counter[str]) -> str:
    """Return a line of all that was left out, the most first."""
    return "; ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
