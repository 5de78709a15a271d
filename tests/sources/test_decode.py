"""Every kind of image file that a folder of a million holds, good and bad."""

import errno
import os
import struct
import zlib

import numpy as np
import pytest
from encoded_images import JPEG, PHOTO, encoded, png_claiming
from PIL import Image

from fastmlp.sources import decode as decode_module
from fastmlp.sources.decode import FORMATS, decode, read_file
from fastmlp.sources.fit import fit_image, fitted

RAMP = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5


@pytest.mark.parametrize("form", ["PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_lossless_formats_come_exactly(form):
    options = {"lossless": True} if form == "WEBP" else {}
    np.testing.assert_array_equal(decode(encoded(RAMP, form, **options), "misnamed.jpg"), RAMP)


def test_grey_and_bilevel():
    grey = RAMP[..., 0]
    np.testing.assert_array_equal(decode(encoded(grey, "PNG"), "x"), grey[..., None].repeat(3, 2))
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(grey > 100), "PNG"), "x")[..., 1], (grey > 100) * 255)
    flat = decode(encoded(np.full((64, 64), 77, np.uint8), "JPEG"), "x", 8)
    assert flat.shape == (8, 8, 3) and (flat == 77).all()


def test_16_bits_keep_their_upper_byte():
    deep = np.array([[0, 255, 256], [32768, 65280, 65535]], np.uint16)
    expected = (deep >> 8).astype(np.uint8)
    for form in ("PNG", "TIFF"):
        np.testing.assert_array_equal(decode(encoded(deep, form), "x"), expected[..., None].repeat(3, 2))
    pgm = b"P5 3 2 65535\n" + deep.astype(">u2").tobytes()  # Pillow gives 32-bit integers
    np.testing.assert_array_equal(decode(pgm, "x")[..., 0], expected)
    with pytest.raises(ValueError, match="x.tif: cannot be read as an image .floating-point"):
        decode(encoded(np.zeros((2, 2), np.float32), "TIFF"), "x.tif")


def test_cmyk_and_adobes_inverted_cmyk():
    red = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    content = encoded(red, "JPEG", quality=100)  # Pillow writes Adobe's marker, so inverted
    assert b"Adobe" in content
    assert np.abs(decode(content, "x").astype(int) - (255, 0, 0)).max() <= 2
    plain = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")
    assert (decode(plain, "x") == (255, 0, 0)).all()


def test_transparency_shows_white():
    image = np.zeros((1, 3, 4), np.uint8)
    image[0] = [(255, 0, 0, 0), (255, 0, 0, 255), (0, 0, 0, 51)]  # hidden red, red, a breath of black
    expected = [[(255, 255, 255), (255, 0, 0), (204, 204, 204)]]
    np.testing.assert_array_equal(decode(encoded(image, "PNG"), "x"), expected)
    np.testing.assert_array_equal(decode(encoded(image, "WEBP", lossless=True, exact=True), "x"), expected)
    grey = np.array([[[9, 0], [9, 255]]], np.uint8)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(grey, "LA"), "PNG"), "x")[..., 0], [[255, 9]])
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.putdata([0, 1])
    np.testing.assert_array_equal(decode(encoded(palette, "PNG"), "x"), [[(200, 0, 0), (0, 0, 200)]])
    expected = [[(255, 255, 255), (0, 0, 200)]]
    np.testing.assert_array_equal(decode(encoded(palette, "PNG", transparency=0), "x"), expected)
    np.testing.assert_array_equal(decode(encoded(palette, "GIF", transparency=0), "x"), expected)
    # A table of alphas, of which Pillow warns.
    np.testing.assert_array_equal(decode(encoded(palette, "PNG", transparency=b"\0\xff"), "x"), expected)
    keyed = encoded(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8), "PNG", transparency=(1, 2, 3))
    np.testing.assert_array_equal(decode(keyed, "x"), [[(255, 255, 255), (4, 5, 6)]])


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_animations_give_their_first_frame(form):
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue", "white")]
    options = {"lossless": True} if form == "WEBP" else {}
    content = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=40, **options)
    assert (decode(content, "x") == (255, 0, 0)).all()


def test_exif_turns_images_upright():
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:16, :16] = 255  # top left
    corners = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    for orientation, corner in corners.items():
        for form in ("PNG", "JPEG", "TIFF", "LZW", "WEBP", "AVIF", "JPEG with XMP", "TIFF with XMP"):
            if form == "AVIF" and form not in FORMATS:
                continue
            content = oriented(pixels, form, orientation)
            seen = decode(content, "x")
            assert seen.shape[:2] == ((40, 64) if orientation < 5 else (64, 40)), form
            assert seen[corner].min() > 245 and (seen > 128).mean() == pytest.approx(256 / 2560), form
            small = decode(content, "x", 32, "longest")
            assert small.shape[:2] == ((20, 32) if orientation < 5 else (32, 20)), form
            assert small[corner].min() > 245 and (small > 128).mean() == pytest.approx(64 / 640, abs=0.01), form
    odd = encoded(pixels, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0")
    assert decode(odd, "x").shape == (40, 64, 3)
    assert decode(encoded(pixels, "JPEG", exif=b"Exif\0\0rubbish"), "x").shape == (40, 64, 3)


def oriented(pixels, form, orientation):
    """Return the bytes of an image with an orientation: in XMP, the tag of a TIFF, or EXIF."""
    if form.endswith("with XMP"):
        packet = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
        options = {"tiffinfo": {700: packet}} if form.startswith("TIFF") else {"xmp": packet}
        return encoded(pixels, form.split()[0], **options)
    options = {"LZW": {"compression": "tiff_lzw"}, "WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(form, {})
    return encoded(pixels, form.replace("LZW", "TIFF"), exif=only_orientation(orientation), **options)


@pytest.mark.parametrize(
    ("res", "fit", "expected"),
    [
        (64, "square", (150, 200)),
        (32, "square", (75, 100)),
        (64, "longest", (150, 200)),
        (50, "longest", (75, 100)),
        (52, "longest", (75, 100)),
        (53, "longest", (150, 200)),
        (16, "square", (38, 50)),
        (200, "square", (300, 400)),
    ],
)
def test_jpeg_is_decoded_no_larger_than_suffices(monkeypatch, res, fit, expected):
    decoded = []
    fit_picture = decode_module.fit_picture
    monkeypatch.setattr(decode_module, "fit_picture", lambda *of: decoded.append(of[0]) or fit_picture(*of))
    small = decode(encoded(PHOTO, "JPEG", quality=95), "x", res, fit)  # of 400 x 300
    height, width = expected
    assert decoded[0].size == (width, height) and small.shape[:2] == fitted(300, 400, res, fit)
    assert expected == (300, 400) or min(height / small.shape[0], width / small.shape[1]) >= 1.87
    np.testing.assert_array_equal(small, fit_image(np.asarray(decoded[0]), res, fit))
    assert fit_image(small, res, fit) is small  # nothing is left to do for who scales once more
    difference = np.abs(small.astype(int) - fit_image(PHOTO, res, fit))
    assert difference.mean() < (2 if res > 16 else 2.5)  # 300 is not whole eighths


def test_the_side_that_binds(monkeypatch):
    monkeypatch.setattr(decode_module, "fit_picture", lambda picture, *_: picture)
    wide = encoded(np.zeros((40, 4000, 3), np.uint8), "JPEG")
    assert decode(wide, "x", 20).shape[:2] == (40, 4000)  # a square takes the short one
    assert decode(wide, "x", 64, "longest").shape[:2] == (5, 500)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(PHOTO, "JPEG", exif=exif), "x", 32).shape[:2] == (100, 75)
    assert decode(encoded(PHOTO, "PNG"), "x", 32).shape == (300, 400, 3)


@pytest.mark.parametrize("height", [189, 190, 191, 194, 195, 196, 197])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_size_is_that_of_the_whole_image_fitted(height, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    shape = fitted(height, 257, 31, "longest")  # of a draft, whose sides are rounded up, it could be another
    content = encoded(PHOTO[:height, :257], "JPEG", exif=exif)
    assert decode(content, "x", 31, "longest").shape[:2] == (shape if orientation == 1 else shape[::-1])


@pytest.mark.parametrize("fit", ["square", "longest"])
def test_every_mode_is_scaled_like_its_pixels(fit):
    deep = PHOTO[..., 0].astype(np.uint16) * 200
    for form, image in (
        ("PNG", PHOTO),
        ("GIF", PHOTO),
        ("PNG", PHOTO[..., 0]),
        ("TIFF", deep),
        ("PNG", np.dstack([PHOTO, PHOTO[..., 0]])),
        ("PNG", PHOTO[:5, :3]),
        ("PNG", PHOTO[:20, :20]),
    ):
        content = encoded(image, form)
        np.testing.assert_array_equal(decode(content, "x", 20, fit), fit_image(decode(content, "x"), 20, fit))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "the file is empty"),
        (b"just some text", "unknown format"),
        (b"\xff\xd8\xff rubbish", ""),
        (JPEG[:2000], "truncated"),
        (JPEG[:-20], "truncated"),
        (encoded(PHOTO, "PNG")[:1500], ""),
        (encoded(PHOTO, "WEBP")[:900], ""),
        (encoded(PHOTO, "GIF")[:9000], "truncated"),
        (encoded(PHOTO, "BMP")[:9000], "truncated"),
        (encoded(PHOTO, "TIFF")[:9000], ""),
        (png_claiming(50_000, 50_000), "decompression bomb"),
        (png_claiming(0, 5), ""),
    ],
)
def test_bad_files_are_named(content, cause):
    for res in (None, 64):
        with pytest.raises(ValueError, match=rf"^dir/ä b\.jpg: cannot be read as an image \(.*{cause}") as caught:
            decode(content, "dir/ä b.jpg", res)
        assert "0x" not in str(caught.value)  # addresses would differ from run to run


def test_no_cut_passes_unnoticed():
    for form, least in (("JPEG", 4), ("PNG", 4), ("BMP", 1), ("GIF", 4)):  # of bytes that are missing at the end
        content = encoded(PHOTO[:60, :80], form)
        for end in range(0, len(content) - least, 37):
            with pytest.raises(ValueError, match="x: cannot be read as an image"):
                decode(content[:end], "x", 16)


def png(*chunks):
    """Return a PNG of chunks (kind, content, error of the checksum)."""
    parts = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) ^ wrong)
        for kind, content, wrong in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


HEAD = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0), 0)
ROWS = zlib.compress(b"".join(b"\0" + bytes(range(row, row + 8)) for row in range(8)))
END = (b"IEND", b"", 0)


@pytest.mark.parametrize(
    "chunks",
    [
        [HEAD, (b"IDAT", ROWS, 1), END],
        [HEAD, (b"IDAT", ROWS[:9], 1), (b"IDAT", ROWS[9:], 0), END],
        [HEAD, (b"IDAT", ROWS[:9], 0), (b"IDAT", ROWS[9:], 1), END],
        [HEAD, (b"IDAT", ROWS[:-4] + b"1234", 0), END],  # the checksum of the rows
        [HEAD, (b"tEXt", b"a\0b", 1), (b"IDAT", ROWS, 0), END],
        [HEAD, (b"IDAT", ROWS, 0), (b"eXIf", b"II*\0\x08\0\0\0\0\0", 1), END],
        [HEAD, (b"IDAT", ROWS[:20], 0), END],
        [HEAD, (b"IDAT", ROWS, 0)],
    ],
)
def test_a_damaged_png_is_no_good_image(chunks):
    good = decode(png(HEAD, (b"IDAT", ROWS, 0), (b"eXIf", b"rubbish", 0), END), "x")
    assert good[..., 0].tolist() == [list(range(row, row + 8)) for row in range(8)]
    for res in (None, 4):
        with pytest.raises(ValueError, match=r"^x: cannot be read as an image"):
            decode(png(*chunks), "x", res)


def test_no_flipped_bit_of_a_png_changes_pixels_unnoticed():
    content = encoded(PHOTO[:12, :14], "PNG", exif=only_orientation(1))
    sound = decode(content, "x")
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            np.testing.assert_array_equal(decode(bytes(damaged), "x"), sound)
        except ValueError:
            pass


def test_metadata_is_read_after_the_pixels(monkeypatch):
    """A format whose metadata needs the pixels must not hide that these are bad."""
    pixels_loaded = []
    getexif = Image.Image.getexif

    def watched(image):
        pixels_loaded.append(image._im is not None)
        return getexif(image)

    monkeypatch.setattr(Image.Image, "getexif", watched)
    for form in FORMATS:
        decode(encoded(PHOTO[:32, :32], form), "x", 16)
    assert len(pixels_loaded) >= len(FORMATS) and all(pixels_loaded)


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n",
        b"\xc5\xd0\xd3\xc6"
        + struct.pack("<II", 32, 80)
        + bytes(20)
        + b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
        b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH", 0, 0, 8, 8, 72) + bytes(6) + b"\x01\0\x09\0" + bytes(20),
        b"%PDF-1.4\n%%EOF\n",
        b"\x89HDF\r\n\x1a\n" + bytes(40),
        b"BUFR" + bytes(40),
        b"GRIB" + bytes(3) + b"\x01" + bytes(40),
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"SIMPLE  =                    T" + b" " * 50,
    ],
)
def test_an_image_starts_no_program(monkeypatch, content):
    monkeypatch.setattr("subprocess.Popen", lambda *command, **_: pytest.fail(f"started {command}"))
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("called Ghostscript"))
    for name in ("x.eps", "x.png"):
        with pytest.raises(ValueError, match=rf"^{name}: cannot be read as an image \(unknown format\)"):
            decode(content, name, 8)


def test_any_rubbish_is_a_value_error():
    rng = np.random.default_rng(0)
    for form in FORMATS:
        content = np.frombuffer(encoded(PHOTO[:30, :40], form), np.uint8)
        for _ in range(60):
            damaged = content.copy()
            damaged[rng.integers(0, min(len(damaged), 300), 4)] = rng.integers(0, 256, 4)
            try:
                assert decode(damaged.tobytes(), "x", 16).shape[2] == 3
            except ValueError as error:
                assert str(error).startswith("x: cannot be read")


def test_large_photographs_pass_and_bombs_do_not(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # instead of 89 million: warns above, refuses above twice
    assert decode(JPEG, "x", 32).shape == (32, 32, 3)  # 120,000 pixels; warnings are errors here
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    with pytest.raises(ValueError, match="x: cannot be read as an image .*decompression bomb"):
        decode(JPEG, "x", 32)


def test_a_lack_of_memory_is_no_bad_image(monkeypatch):
    def scarce(*_):
        raise MemoryError

    monkeypatch.setattr(decode_module, "_upright_rgb", scarce)
    with pytest.raises(MemoryError):
        decode(JPEG, "x")


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")  # to open it would wait for a writer
    (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for name, cause in (
        ("folder.jpg", "not a regular file"),
        ("pipe.jpg", "not a regular file"),
        ("broken.jpg", "No such file"),
        ("loop.jpg", "symbolic links"),
        ("no.jpg", "No such"),
    ):
        with pytest.raises(ValueError, match=rf"{name}: cannot be read as an image \(.*{cause}"):
            read_file(str(tmp_path / name))
    (tmp_path / "good").write_bytes(b"abc")
    assert read_file(bytes(tmp_path / "good")) == b"abc"


def test_a_forbidden_file_is_named(tmp_path):
    (tmp_path / "x.jpg").write_bytes(JPEG)
    (tmp_path / "x.jpg").chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(PermissionError, match="Permission denied: .*x.jpg"):  # stops the run: no bad image
            read_file(str(tmp_path / "x.jpg"))
    finally:
        os.seteuid(user)


def test_sound_images_with_odd_exif_and_tiny_ones_come_upright():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera's name"
    content = bytearray(encoded(PHOTO, "JPEG", exif=exif))
    for seed in range(200):  # rubbish behind the orientation
        rng, odd = np.random.default_rng(seed), bytearray(content)
        at = odd.index(b"Exif")
        odd[at + 30 : at + 40] = rng.integers(0, 256, 10, np.uint8).tobytes()
        assert decode(bytes(odd), "x").ndim == 3
    turned = encoded(np.zeros((33, 40, 3), np.uint8), "JPEG", exif=only_orientation(6))
    assert decode(turned, "x", 3, "longest").shape == (3, 2, 3)  # 40 x 33 px once upright: 3 x 2.475


def only_orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def test_a_sick_file_system_is_no_bad_image(tmp_path, monkeypatch):
    def stale(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("os.open", stale)
    with pytest.raises(OSError, match="Stale"):
        read_file(str(tmp_path / "x.jpg"))
