"""Images as the bytes of their files."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

Y, X = np.mgrid[0:300, 0:400]
PHOTO = np.stack([128 + 90 * np.sin(X / 30), 128 + 90 * np.cos(Y / 25), (X + Y) / 3], -1).astype(np.uint8)


def encoded(image, form, **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


def png_claiming(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


JPEG = encoded(PHOTO, "JPEG")
