"""Images with parts missing, which Pillow decodes without an error; sound ones of every kind pass."""

import errno
import struct
import zlib

import numpy as np
import pytest
from encoded_images import JPEG, PHOTO, encoded
from PIL import Image
from test_decode import png

from fastmlp.sources import decode as decode_module
from fastmlp.sources.decode import decode


def marks(content, marker):
    return [at for at in range(len(content)) if content.startswith(marker, at)]


def cut_jpeg(share, **options):
    """Return a JPEG whose scan ends after a share of its bytes, but which has an end."""
    content = encoded(PHOTO, "JPEG", **options)
    scan = content.index(b"\xff\xda") + 14
    return content[: scan + int(share * (len(content) - scan - 2))] + b"\xff\xd9"


def scans(kept):
    content = encoded(PHOTO, "JPEG", progressive=True)
    return content[: marks(content, b"\xff\xda")[kept]] + b"\xff\xd9"


def restarts(**lost):
    """Return a JPEG that lacks a part between restarts, or all from one on."""
    content = encoded(PHOTO, "JPEG", restart_marker_rows=1)
    places = [
        at
        for at in range(content.index(b"\xff\xda"), len(content) - 1)
        if 0xFFD0 <= content[at] << 8 | content[at + 1] <= 0xFFD7
    ]
    if "part" in lost:
        return content[: places[lost["part"]]] + content[places[lost["part"] + 1] :]
    return content[: places[lost["after"]]] + b"\xff\xd9"


def zeros_at_the_end():
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    content = encoded(noise, "JPEG")
    return content[: len(content) // 2] + bytes(len(content) - len(content) // 2)


def rows_of_png(content, interlaced=0):
    head = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, interlaced), 0)
    return png(head, (b"IDAT", content, 0), (b"IEND", b"", 0))


ROWS = (b"\0" + bytes(range(8))) * 8


def tiff(strips, rows=4, planes=1, sizes=None):
    """Return a TIFF of 20 x 20 px in strips of `rows` rows, of grey or of planes."""
    part = 20 * rows
    entries = [(256, [20]), (257, [20]), (258, [8] * planes), (259, [1]), (262, [1 if planes == 1 else 2])]
    entries += [(273, [8 + part * n for n in range(strips)]), (277, [planes]), (278, [rows])]
    entries += [(279, sizes or [part] * strips), (284, [2 if planes > 1 else 1])]
    start = 8 + part * strips
    directory, beside = struct.pack("<H", len(entries)), b""
    at = start + 2 + 12 * len(entries) + 4
    for tag, values in entries:
        value = struct.pack(f"<{len(values)}I", *values)
        field = value if len(value) == 4 else struct.pack("<I", at + len(beside))
        beside += b"" if len(value) == 4 else value
        directory += struct.pack("<HHI", tag, 4, len(values)) + field
    pixels = b"".join(bytes([n + 1]) * part for n in range(strips))
    return b"II*\0" + struct.pack("<I", start) + pixels + directory + bytes(4) + beside


def short_jpeg_in_tiff():
    content = bytearray(encoded(PHOTO, "TIFF", compression="jpeg", strip_size=40_000))
    with_ends = marks(content, b"\xff\xd9")
    content[with_ends[0] - 30 : with_ends[0] + 2] = bytes(32)
    return bytes(content)


def tiles(lost, **options):
    content = encoded(PHOTO, "JPEG2000", tile_size=(100, 100), **options)
    starts = [*marks(content, b"\xff\x90"), len(content) - 2]
    return content[: starts[lost]] + content[starts[lost + 1] :]


@pytest.mark.parametrize(
    "content",
    [
        *(cut_jpeg(share) for share in (0, 0.3, 0.9)),
        cut_jpeg(0.5, restart_marker_rows=1),
        cut_jpeg(0.5, subsampling=0),
        encoded(PHOTO, "JPEG", exif=b"Exif\0\0" + JPEG[:4000])[:-900] + b"\xff\xd9",
        *(scans(kept) for kept in (1, 2, 9)),
        restarts(part=0),
        restarts(part=5),
        restarts(after=3),
        zeros_at_the_end(),
        JPEG.replace(struct.pack(">HH", 300, 400), struct.pack(">HH", 600, 400), 1),
        rows_of_png(zlib.compress(ROWS[:36])),
        rows_of_png(zlib.compress(ROWS[:-1])),
        rows_of_png(
            zlib.compress(b"\0".join((b"", *(bytes((n,)) * 8 for n in range(1, 8))))),
        ),
        rows_of_png(zlib.compress(ROWS[:20]), interlaced=1),
        encoded(PHOTO, "PNG")[:-4],
        encoded(PHOTO, "PNG")[:-1] + b"x",
        tiff(4),
        tiff(14, planes=3),
        tiff(10, planes=3),
        tiff(5, sizes=[80, 80, 10, 80, 80]),
        short_jpeg_in_tiff(),
        *(tiles(lost) for lost in (0, 5, 11)),
        tiles(3, no_jp2=True),
    ],
)
def test_what_is_missing_is_noticed(content):
    for res in (None, 16, 64):
        with pytest.raises(ValueError, match="x: cannot be read as an image"):
            decode(content, "x", res)


@pytest.mark.parametrize("grey", [127, 128])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"restart_marker_blocks": 3}]
)
def test_sound_jpegs_that_end_in_grey_pass(grey, mode, options):
    image = Image.new(mode, (75, 61), (grey,) * {"L": 1, "RGB": 3, "CMYK": 4}[mode])
    for res in (None, 8, 30):
        assert np.ptp(decode(encoded(image, "JPEG", **options), "x", res).reshape(-1, 3), 0).max() <= 3


def test_sound_files_of_odd_forms_pass():
    passes = zlib.compress(
        b"\0\1" * 2
        + b"\0\1\2"
        + b"\0\1\2" * 2
        + (b"\0" + b"1234") * 2
        + (b"\0" + b"1234") * 4
        + (b"\0" + b"12345678") * 4
    )
    for content in (
        tiff(5),
        tiff(15, planes=3),
        tiff(1, rows=20),
        encoded(PHOTO, "TIFF", compression="jpeg", strip_size=40_000),
        rows_of_png(zlib.compress(ROWS)),
        rows_of_png(zlib.compress(ROWS + ROWS)),
        rows_of_png(passes, interlaced=1),
        JPEG[:-2] + b"\xff\xff\xff\xd9" + b"rubbish after the end",
        encoded(PHOTO, "JPEG", exif=b"Exif\0\0" + JPEG[:4000]),
        encoded(PHOTO, "MPO", save_all=True, append_images=[Image.fromarray(PHOTO[::-1])]),
        encoded(PHOTO, "JPEG2000", tile_size=(100, 100)),
        encoded(PHOTO, "JPEG2000", tile_size=(100, 100), no_jp2=True),
        *(encoded(Image.new(mode, (7, 5)), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    ):
        for res in (None, 16):
            assert decode(content, "x", res).shape[2] == 3


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), ImportError("no plugin")])
def test_faults_of_the_machine_while_decoding_are_no_bad_image(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(decode_module.Image, "open", fail)
    with pytest.raises(OSError, match=r"x\.jpg"):
        decode(JPEG, "x.jpg")
