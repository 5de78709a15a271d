"""Mutated image files are decoded or refused by name: no crash, no other error, nothing of another size."""

import os

import numpy as np
import pytest
from encoded_images import PHOTO, encoded

from fastmlp.sources.decode import FORMATS, decode

MUTATIONS = int(os.environ.get("FASTMLP_MUTATIONS", 100))  # of each form; scripts/torture.sh: 1,500
SMALL = PHOTO[:48, :64]
FORMS = [(form, {}) for form in FORMATS] + [
    ("JPEG", {"progressive": True}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("PNG", {"optimize": True}),
]


def mutate(content, rng):
    """Flip a bit, change, double, cut out or zero a few bytes, or cut the end off."""
    changed, at = bytearray(content), int(rng.integers(len(content)))
    length = int(rng.integers(1, 9))
    kind = rng.integers(6)
    if kind == 0:
        changed[at] ^= 1 << rng.integers(8)
    elif kind == 1:
        changed[at : at + length] = rng.bytes(length)
    elif kind == 2:
        changed[at:at] = changed[at : at + length]
    elif kind == 3:
        del changed[at : at + length]
    elif kind == 4:
        changed[at : at + 8 * length] = bytes(len(changed[at : at + 8 * length]))
    else:
        del changed[at:]
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")  # Pillow's, about odd metadata
@pytest.mark.parametrize(("form", "options"), FORMS, ids=lambda value: str(value))
def test_mutated_images_are_decoded_or_refused_by_name(form, options):
    content = encoded(SMALL, form, **options)
    assert decode(content, "x").shape == SMALL.shape
    rng, refused = np.random.default_rng(len(content)), 0
    for _ in range(MUTATIONS):
        mutated = mutate(content, rng)
        try:
            image = decode(mutated, "folder/x", 16)
        except ValueError as error:
            assert str(error).startswith("folder/x: cannot be read as")
            refused += 1
        else:
            assert image.dtype == np.uint8 and image.shape[2] == 3 and 0 < max(image.shape[:2]) <= 32
    assert refused > MUTATIONS / 10
