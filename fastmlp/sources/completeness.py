"""Damage that Pillow decodes without an error: parts of an image that are missing, and come black or grey."""

import io
import re
import struct
import zlib

from PIL import Image, ImageFile

# After a JPEG's scan: none of 0 or of restarts. A "+" after \xff would take 25 times as long.
_NEXT_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])", re.DOTALL)
_RESTARTS = re.compile(rb"\xff([\xd0-\xd7])")
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive: those that libjpeg decodes
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG, by its kind of colour
_JPEG_IN_TIFF = 7
_INFLATED = 1 << 20


def check_file(content: bytes, image: ImageFile.ImageFile) -> None:
    """Raise ValueError if the file lacks parts of the image, which is open, its pixels not loaded yet."""
    if image.format == "PNG":
        _png_pixels(content)
    elif image.format == "TIFF":
        _check_tiff(content, image)
    elif image.format == "JPEG2000":
        _check_jpeg2000(content)


def check_loaded(content: bytes, image: ImageFile.ImageFile) -> None:
    """Raise ValueError if parts of a PNG or a JPEG, whose pixels are loaded, were not in its file."""
    if image.format == "PNG":
        last = image.getpixel((image.width - 1, image.height - 1))
        if content[28] or not any(last if isinstance(last, tuple) else (last,)):  # interlaced, or as Pillow leaves it
            _check_png(content)
    elif image.format in ("JPEG", "MPO"):
        _check_blocks(content, image)


def _check_blocks(content: bytes, image: ImageFile.ImageFile) -> None:
    """Raise ValueError if parts of a JPEG, or its last blocks, were not in its file.

    libjpeg leaves them grey. Extra bytes before the end of the file change them then, and nothing otherwise. They are
    tried only if the last pixel has that grey, or the last bit is none of the ones that fill a last byte: not for 9 of
    10 sound files.
    """
    end = _check_jpeg(content)
    if not end:
        return
    last = image.getpixel((image.width - 1, image.height - 1))
    grey = all(value in (127, 128) for value in (last if isinstance(last, tuple) else (last,)))
    filled = content[end - 1] & 1 or content[end - 2 : end] == b"\xff\0"
    if filled and not grey:
        return
    restarts = len(_RESTARTS.findall(content, content.rfind(b"\xff\xda", 0, end), end))
    more = b"".join(b"\x5a" * 64 + bytes((0xFF, 0xD0 + (restarts + place) % 8)) for place in range(64))
    longer = Image.open(io.BytesIO(content[:end] + more + b"\xff\xd9"), formats=("JPEG",))
    if image.decoderconfig:  # drafted: (scale, 0)
        longer.draft(None, (longer.width // image.decoderconfig[0], longer.height // image.decoderconfig[0]))
    longer.load()
    if longer.size == image.size and longer.tobytes() != image.tobytes():
        raise ValueError("truncated within its pixels")


def _png_pixels(content: bytes) -> list[memoryview]:
    """Return the compressed pixels; compare the checksums of all chunks, of which Pillow skips those of pixels."""
    view, at, kind = memoryview(content), 8, b""
    pixels: list[memoryview] = []
    while kind != b"IEND":
        if at + 12 > len(content):
            raise ValueError("truncated PNG file")
        size, kind = struct.unpack_from(">I4s", content, at)
        end = at + 8 + size
        if end + 4 > len(content):
            raise ValueError("truncated PNG file")
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", content, end)[0]:
            raise ValueError(f"wrong checksum of the chunk {kind!r}")
        if kind == b"IDAT":
            pixels.append(view[at + 8 : end])
        at = end + 4
    return pixels


def _check_png(content: bytes) -> None:
    """Raise ValueError if rows of a PNG are missing. Takes as long as decoding it."""
    expected = _png_bytes(*struct.unpack_from(">IIBBxxB", content, 16))
    inflate, found = zlib.decompressobj(), 0
    for part in _png_pixels(content):
        rest: bytes | memoryview = part
        while rest and found <= expected and not inflate.eof:
            found += len(inflate.decompress(rest, _INFLATED))
            rest = inflate.unconsumed_tail
    if found < expected:
        raise ValueError("its pixels are incomplete")


def _png_bytes(width: int, height: int, depth: int, colour: int, interlaced: int) -> int:
    """Return the size of the pixels of a PNG, with the byte before each row."""
    total = 0
    for x, y, dx, dy in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = (width - x + dx - 1) // dx, (height - y + dy - 1) // dy
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * depth * _CHANNELS[colour] + 7) // 8)
    return total


def _check_jpeg(content: bytes) -> int:
    """Walk through the segments and scans of a JPEG; return where the marker of its end is, 0 if not Huffman-coded."""
    at, missing = 2, {}  # missing: component -> its coefficients that no scan has brought in full
    while True:
        if not (marker := _NEXT_MARKER.search(content, at)):
            raise ValueError("truncated: the JPEG has no end")
        kind, at = marker[1][0], marker.end()
        if kind == _EOI:
            break
        if kind == 1:  # TEM has no length
            continue
        if at + 2 > len(content) or kind == _SOI:
            raise ValueError("truncated: another JPEG begins before its end" if kind == _SOI else "truncated JPEG")
        body = content[at + 2 : at + int.from_bytes(content[at : at + 2], "big")]
        at += 2 + len(body)
        if kind in _FRAMES and len(body) >= 6:
            missing = {component: (1 << 64) - 1 for component in body[6::3]}
            progressive = kind == 0xC2
        elif kind == _SOS and body and missing:
            components, (first, last, bits) = body[1 : 1 + 2 * body[0] : 2], body[-3:]
            done = ((2 << last) - (1 << first) if not bits & 15 else 0) if progressive else (1 << 64) - 1
            for component in components:
                missing[component] = missing.get(component, 0) & ~done
            _check_restarts(content, at)
    if any(missing.values()):
        raise ValueError("truncated: the JPEG lacks scans")
    return marker.start() if missing else 0


def _check_restarts(content: bytes, at: int) -> None:
    """Raise ValueError if the markers between the parts of the scan at `at` are not in order."""
    end = _NEXT_MARKER.search(content, at)
    numbers = [match[1][0] & 7 for match in _RESTARTS.finditer(content, at, end.start() if end else len(content))]
    if numbers != [place % 8 for place in range(len(numbers))]:
        raise ValueError("parts of the JPEG are missing or damaged")


def _check_tiff(content: bytes, image: ImageFile.ImageFile) -> None:
    """Raise ValueError if strips or tiles do not cover the image, or one that is a JPEG has no end."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    width, height = int(tags[256]), int(tags[257])  # as stored, whatever the orientation
    if any(tile.codec_name != "libtiff" for tile in image.tile):  # libtiff itself asks for every strip
        covered, starts = 0, 0
        for tile in image.tile:
            left, top, right, below = tile.extents or (0, 0, width, height)
            starts += (left, top) == (0, 0)
            covered += (min(right, width) - left) * (min(below, height) - top)
        planes = tags.get(277, 1) if tags.get(284, 1) == 2 else 1  # channels that are stored one after the other
        if covered < width * height * planes or starts < planes:
            raise ValueError("strips or tiles of the TIFF are missing")
        row_bytes = (width * sum(_numbers(tags.get(258, 1))) + 7) // 8
        sizes = _numbers(tags.get(279))
        if tags.get(259, 1) == 1 and sizes and sum(sizes) < row_bytes * height:
            raise ValueError("strips of the TIFF are too short")
    if tags.get(259) == _JPEG_IN_TIFF:
        for starts_tag, sizes_tag in ((273, 279), (324, 325)):
            for start, size in zip(_numbers(tags.get(starts_tag)), _numbers(tags.get(sizes_tag)), strict=True):
                if b"\xff\xd9" not in content[start : start + size][-16:]:
                    raise ValueError("a strip or tile of the TIFF is truncated")


def _numbers(value: object) -> tuple[int, ...]:
    return () if value is None else value if isinstance(value, tuple) else (int(value),)  # type: ignore[call-overload]


def _check_jpeg2000(content: bytes) -> None:
    """Raise ValueError if the codestream lacks a tile, which OpenJPEG leaves black."""
    at = content.find(b"\xff\x4f\xff\x51")  # the marker of the start, and that of the size
    if at < 0:
        return
    right, below, _, _, width, height, left, top = struct.unpack_from(">8I", content, at + 8)
    expected = -(-(right - left) // width) * -(-(below - top) // height)
    tiles = set()
    at += 4 + int.from_bytes(content[at + 4 : at + 6], "big")
    while at + 12 <= len(content):
        marker, length = struct.unpack_from(">HH", content, at)
        if marker == 0xFFD9:
            break
        if marker == 0xFF90:  # a part of a tile: its number, and its length with this header, 0 for all that follows
            tiles.add(struct.unpack_from(">H", content, at + 4)[0])
            part = struct.unpack_from(">I", content, at + 6)[0]
            if not part:
                break
            at += part
        else:
            at += 2 + length
    if len(tiles) < expected:
        raise ValueError(f"only {len(tiles)} of {expected} tiles are there")
