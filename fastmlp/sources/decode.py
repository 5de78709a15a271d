"""Decode an image file to RGB, JPEG at the smallest sufficient scale; any file that cannot be read is a ValueError."""

import io
import os
import stat
import warnings
from importlib.util import find_spec

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from .completeness import check_file, check_loaded
from .faults import FILE_ERRORS, naming
from .fit import Fit, fit_picture, fitted

# Pillow knows 43 formats. Those left out are drawn by other programs (PostScript by Ghostscript) or have a reader that
# only names them (WMF, HDF5); the rest is too rare to be worth its bugs. MPO comes as JPEG.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "JPEG2000")
if find_spec("PIL.AvifImagePlugin"):  # since Pillow 11.3
    FORMATS += ("AVIF",)

# Min side of a drafted JPEG, relative to the wanted one. With 1.9 instead of 2, 500 x 375 px, the commonest size in
# ImageNet, are still decoded at a quarter (125 x 94) for 64 x 48 px: 580 instead of 396 images/sec on one core, and
# pixels that differ from full decoding by 1.0 instead of 0.9 of 255 on average.
DRAFT_SIDES = 1.9
ORIENTATION = 0x0112  # EXIF tag; values of 5 and above are rotated by 90 degrees
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(
    content: bytes,  # of one image file
    name: str,  # for errors
    res: int | None = None,
    fit: Fit = "square",
) -> np.ndarray:
    """Return the first image, upright, (height, width, 3) uint8, RGB. Raises ValueError "name: cannot be read as ...".

    If `res` is given, the image is scaled as by fit_image, and JPEG is decoded at 1/2, 1/4 or 1/8 if that is enough;
    None gives the full size. From photographs of 500 x 375 px to 64 px this gives, compared with full decoding, 3.7
    times the images/sec and pixels that differ by 1.6 of 255 on average ("square"), 5.0 times and 1.0 ("longest").

    Transparent pixels become white instead of the colour stored under them. 16-bit grey keeps its upper byte. The
    format, one of FORMATS, is told by the content, not by the file's name. Errors: floating-point pixels, which have no
    known white, a truncated file, an image of which parts are missing (completeness.py), a PNG with a wrong checksum,
    and more than 179 million pixels (Pillow's limit for decompression bombs).
    """
    if not content:
        raise _unreadable(name, "the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images or odd EXIF data: if it can be decoded, it is good
            with _open(content) as image:
                if res is None:
                    return np.asarray(_upright_rgb(content, image))
                width, height = image.size
                drafted_height, drafted_width = fitted(height, width, res, fit)
                sides = int(DRAFT_SIDES * drafted_width), int(DRAFT_SIDES * drafted_height)
                drafted = image.draft(None, sides) is not None  # only JPEG can be
                picture = _upright_rgb(content, image)
                if not drafted:
                    width, height = picture.size
                elif _orientation(image) >= 5:
                    width, height = height, width
                return np.asarray(fit_picture(picture, fitted(height, width, res, fit), fit))
    except UnidentifiedImageError:
        raise _unreadable(name, "unknown format") from None
    except MemoryError as error:
        raise MemoryError(f"{name}: not enough memory to decode this image") from error
    except ImportError as error:  # of one of Pillow's plugins, which it loads as it meets their formats
        raise OSError(f"{name}: Pillow cannot be loaded ({error})") from error
    except Exception as error:  # Pillow's plugins raise many types: struct.error, KeyError, SyntaxError, ...
        if isinstance(error, OSError) and error.errno is not None:  # of the machine: damage has no number
            raise OSError(error.errno, error.strerror, name) from error
        raise _unreadable(name, str(error) or type(error).__name__) from error


def read_file(path: str | bytes) -> bytes:
    """Return the bytes of a file.

    Raises ValueError if it cannot be read, is a folder, or a pipe, which would block; OSError for a machine's fault.
    """
    name = os.fsdecode(path)
    with naming(name):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise _unreadable(name, "not a regular file")
                with open(fd, "rb", closefd=False) as file:
                    return file.read()
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno not in FILE_ERRORS:
                raise
            raise _unreadable(name, error.strerror or str(error)) from error


def _open(content: bytes) -> ImageFile.ImageFile:
    """Return the image, its pixels not loaded yet. Raises UnidentifiedImageError if its format is not in FORMATS."""
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    check_file(content, image)
    return image


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # a good image with invalid EXIF
        return 1
    return value if value in UPRIGHT else 1


def _upright_rgb(content: bytes, image: ImageFile.ImageFile) -> Image.Image:
    # Loaded before any metadata is read: to find an EXIF chunk after the pixels of a PNG, Pillow loads it, whose error
    # would pass for one of the EXIF. A TIFF is turned upright as it is loaded, and has no orientation afterwards.
    image.load()
    check_loaded(content, image)
    return _to_rgb(image)


def picture_to_rgb(picture: Image.Image, name: str) -> Image.Image:
    """Return a Pillow image upright and in RGB, as `decode` does with a file. Raises ValueError "name: cannot ..."."""
    try:
        picture.load()  # first: to find EXIF data Pillow loads a PNG, and the second load of a damaged one is no error
        return _to_rgb(picture)
    except MemoryError:
        raise
    except Exception as error:  # of a file that Pillow reads only now: its plugins raise many types
        raise _unreadable(name, str(error) or "its file is closed") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    upright = image
    if (orientation := _orientation(image)) in UPRIGHT:  # ImageOps.exif_transpose fails on odd EXIF
        upright = image.transpose(UPRIGHT[orientation])
    if upright.mode == "F":
        raise ValueError("floating-point pixels")
    if upright.mode.startswith("I"):  # 16 bits, which convert() would clip to 255
        grey = (np.clip(np.asarray(upright), 0, 65535) >> 8).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright)
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _unreadable(name: str, cause: str) -> ValueError:
    return ValueError(f"{name}: cannot be read as an image ({cause})")
