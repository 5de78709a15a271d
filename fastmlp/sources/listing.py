"""Which files of a folder or an archive are images, and what is left out: litter, other files, formats not read."""

import os
from collections import Counter
from pathlib import PurePosixPath

from .decode import FORMATS

ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf"),
    "AVIF": (".avif",),
}
EXTENSIONS = tuple(ending for form in FORMATS for ending in ENDINGS[form])
UNREAD = frozenset(
    ".heic .heif .hif .jxl .jxr .wdp .svg .svgz .eps .ps .ai .pdf .psd .psb .xcf .ico .cur .icns .tga .pcx .qoi .exr "
    ".hdr .pfm .dng .raw .cr2 .cr3 .crw .nef .nrw .arw .sr2 .srw .orf .rw2 .raf .pef .x3f .3fr .iiq .erf .kdc .mrw "
    ".dcm .nii .fits .npy .npz .mp4 .mov .avi .mkv .webm .avif".split()
)
PACKED = frozenset(".zip .tar .gz .tgz .bz2 .tbz .tbz2 .xz .txz .zst .tzst .lz4 .z .7z .rar".split())
# Of macOS, Synology, QNAP, Windows, Linux, Python. Names that begin with a dot (.DS_Store, ._x.jpg) are litter, too.
LITTER = frozenset(
    "__macosx @eadir #recycle @recycle @recently-snapshot @tmp @sharebin #snapshot ~snapshot thumbs.db ehthumbs.db "
    "ehthumbs_vista.db thumbs.db:encryptable desktop.ini $recycle.bin recycler recycled lost+found found.000 found.001 "
    "__pycache__ picasa.ini wpsettings.dat indexervolumeguid".split()
) | {"system volume information", "network trash folder", "temporary items", "icon\r"}
HIDDEN = "hidden files or litter of a system (.*, __MACOSX, @eaDir, Thumbs.db, ...)"
DEAD_LINKS = "links to nothing"
OUTSIDE = "images outside of the folders of classes"

_BYTES_EXTENSIONS = tuple(os.fsencode(ending) for ending in EXTENSIONS)


def is_image(name: str | bytes) -> bool:
    """Return whether a file's name ends like that of an image that is read."""
    return name.lower().endswith(_BYTES_EXTENSIONS if isinstance(name, bytes) else EXTENSIONS)  # type: ignore[arg-type]


def is_litter(name: str | bytes) -> bool:
    """Return whether the name of a file or a folder is one that systems leave in folders, or is hidden."""
    return os.fsdecode(name).lower() in LITTER or name[:1] in (".", b".") or name[:2] in ("~$", b"~$")


def is_packed(name: str) -> bool:
    """Return whether a file's name ends like that of an archive, or of a compressed file."""
    return PurePosixPath(name).suffix.lower() in PACKED


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
    if ending in PACKED:
        return f"{ending} files, which are packed: unpack them if they hold images"
    return f"{ending} files" if ending else "files without an ending"


def told(left_out: Counter[str]) -> str:
    """Return a line of all that was left out, the most first."""
    return "; ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
