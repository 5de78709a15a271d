"""Mutated betons end in an error that names them, or are read: no crash, no hang, no byte beside a buffer."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField
from ffcv.writer import DatasetWriter
from numbered_images import numbered

from fastmlp.beton.writer import write_beton

MUTATIONS = int(os.environ.get("FASTMLP_MUTATIONS", 200))  # of all kinds together
KINDS = ("raw", "several", "jpeg", "mixed")
HANGS_AFTER_S = 120.0


class Mixed:
    """Samples with a field of each type."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        image = numbered(40, res=24).images[index]
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        text = np.frombuffer(b"x" * (index % 4), np.uint8)  # some are empty
        return image, index % 7, index / 3, array, text, {"index": index}


def make(kind, folder):
    """Write a beton: raw images by our writer, or others by FFCV's."""
    path, source = folder / f"{kind}.beton", numbered(40, res=16)
    if kind == "several":
        source.multi_labels = np.full((40, 3), -1)
    if kind in ("raw", "several"):
        return write_beton(path, source, 16)
    images = RGBImageField("jpg") if kind == "jpeg" else RGBImageField("proportion", compress_probability=0.5)
    fields = {"image": images, "label": IntField()}
    if kind == "mixed":
        array = NDArrayField(np.dtype("<f4"), (2, 3))
        fields |= {"score": FloatField(), "array": array, "text": BytesField(), "about": JSONField()}
    writer = DatasetWriter(str(path), fields, page_size=1 << 21, num_workers=1)
    writer.from_indexed_dataset(Mixed() if kind == "mixed" else source)
    return path


def outcomes(path, count):
    """Return what each mutation came to; a child that dies or hangs is started again after the mutation."""
    found = []
    while len(found) < count:
        command = [sys.executable, str(Path(__file__).with_name("mutated_betons.py")), path, str(len(found)), str(count)]
        try:
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=HANGS_AFTER_S)
            said, ended = child.stdout, f"ended with {child.returncode}"
        except subprocess.TimeoutExpired as error:
            said, ended = (error.stdout or b"").decode(), "hangs"
        lines = said.splitlines()
        assert lines or found, f"the child {ended} before the first mutation"
        found += [line.partition(" ")[2] for line in lines]
        if len(found) < count:
            found.append(ended)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_betons_are_read_or_refused_by_name(tmp_path, kind):
    found = outcomes(make(kind, tmp_path), max(2, MUTATIONS // len(KINDS)))
    assert found[0] == "good"  # the beton itself
    assert {number: what for number, what in enumerate(found) if what not in ("good", "refused")} == {}
    assert found.count("refused") > len(found) / 4  # mutations do reach what is checked
