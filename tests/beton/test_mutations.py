"""Mutated betons end in an error that names them, or are read: no crash, no hang, no byte beside a buffer."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField
from ffcv.fields.decoders import CenterCropRGBImageDecoder
from ffcv.writer import DatasetWriter
from numbered_images import numbered

from fastmlp import Loader
from fastmlp.beton import layout
from fastmlp.beton.writer import write_beton
from fastmlp.loader.mapped_beton import MappedBeton
from fastmlp.transforms.ffcv_import import Compiler, ToTensor

MUTATIONS = int(os.environ.get("FASTMLP_MUTATIONS", 200))
AT_ONCE = 500  # in one child
KINDS = ("raw", "several", "jpeg", "mixed")
HANGS_AFTER_S = 300.0  # all mutations of a child together


class Mixed:
    """Samples with a field of each type."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        image = numbered(40, res=24).images[index]
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        text = np.frombuffer(b"x" * (index % 4), np.uint8)  # some are empty
        return image, index % 7, index / 3, array, text, {"index": int(index)}


def make(kind, folder):
    """Write a beton of 40 samples: of several labels by our writer, others by FFCV's on smaller pages."""
    path, source = folder / f"{kind}.beton", numbered(40, res=16)
    if kind == "several":
        source.multi_labels = np.full((40, 3), -1)
        return write_beton(path, source, 16)
    images = RGBImageField({"raw": "raw", "jpeg": "jpg", "mixed": "proportion"}[kind], compress_probability=0.5)
    fields = {"image": images, "label": IntField()}
    if kind == "mixed":
        array = NDArrayField(np.dtype("<f4"), (2, 3))
        fields |= {"score": FloatField(), "array": array, "text": BytesField(), "about": JSONField()}
    writer = DatasetWriter(str(path), fields, page_size=1 << 21, num_workers=1)
    writer.from_indexed_dataset(Mixed() if kind == "mixed" else source)
    return path


def outcomes(betons, count):
    """Return what each mutation came to; a child that dies or hangs is started again after the mutation."""
    found = []
    while len(found) < count:
        program = Path(__file__).with_name("mutated_betons.py")
        command = [sys.executable, program, str(len(found)), str(min(count, len(found) + AT_ONCE)), *betons]
        try:
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=HANGS_AFTER_S)
            said, ended = child.stdout, f"ended with {child.returncode}" if child.returncode else ""
        except subprocess.TimeoutExpired as error:
            said, ended = (error.stdout or b"").decode(), "hangs"
        found += [line.partition(" ")[2] for line in said.splitlines()]
        if ended:
            assert found, f"the child {ended} before the first mutation"
            found.append(ended)
    return found


def test_mutated_betons_are_read_or_refused_by_name(tmp_path):
    found = outcomes([make(kind, tmp_path) for kind in KINDS], MUTATIONS)
    assert found[: len(KINDS)] == ["good"] * len(KINDS)  # the betons themselves
    assert {number: what for number, what in enumerate(found) if what not in ("good", "refused")} == {}
    assert found.count("refused") > len(found) / 4  # mutations do reach what is checked


@pytest.mark.parametrize("compiled", [True, False])
def test_jpeg_of_another_size_than_its_record_is_refused(tmp_path, monkeypatch, compiled):
    """Opening reads the heads of the smallest and the largest alone; libturbojpeg would scale or write nothing."""
    path = tmp_path / "jpeg.beton"
    writer = DatasetWriter(str(path), {"image": RGBImageField("jpg"), "label": IntField()}, page_size=1 << 21)
    source = [(np.full((size, size, 3), 99, np.uint8), 0) for size in (16, 20, 24, 22)]
    writer.from_indexed_dataset(source)
    records = MappedBeton(path).metadata.copy()
    assert records["f0"]["width"].tolist() == [16, 20, 24, 22]
    records["f0"]["width"][3] = 18
    with path.open("r+b") as file:
        file.seek(layout.HEADER.itemsize + 2 * layout.DESCRIPTOR.itemsize)
        file.write(records.tobytes())
    monkeypatch.setattr(Compiler, "is_enabled", compiled)
    decoder = CenterCropRGBImageDecoder((8, 8), 1.0)
    with Loader(path, 2, num_workers=2, pipelines={"image": [decoder, ToTensor()]}) as loader:
        batches = iter(loader)
        assert len(next(batches)[0]) == 2
        with pytest.raises(ValueError, match=rf"{path} is corrupt: sample 3 is no JPEG of 18 x 22 px, as its record"):
            next(batches)
