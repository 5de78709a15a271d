"""The layout and the writer, against FFCV's own types, reader and loader, and under interruption."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import ffcv.loader
import ffcv.types
import numpy as np
import pytest
from failing_sources import Dying, Failing
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.reader import Reader
from ffcv.transforms import ToTensor
from ffcv.writer import DatasetWriter

from fastmlp.beton import layout
from fastmlp.beton.layout import Layout
from fastmlp.beton.writer import write_beton
from fastmlp.sources.base import ArraySource


def numbered(count, res=8, classes=7):
    """Images whose first pixel is their index in base 256."""
    images = np.random.default_rng(0).integers(0, 256, (count, res, res, 3), dtype=np.uint8)
    index = np.arange(count)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = index % 256, index // 256
    return ArraySource(images, index % classes, tuple(f"c{k}" for k in range(classes)))


def index_of(images):
    return images[:, 0, 0, 0].astype(int) + 256 * images[:, 0, 0, 1].astype(int)


def test_types_are_ffcv_s():
    assert layout.HEADER == ffcv.types.HeaderType
    assert layout.DESCRIPTOR == ffcv.types.FieldDescType
    assert layout.ALLOCATION == ffcv.types.ALLOC_TABLE_TYPE
    assert layout.METADATA == ffcv.types.get_metadata_type([RGBImageField(), IntField()])
    assert layout.VERSION == ffcv.types.CURRENT_VERSION
    assert ffcv.types.TYPE_ID_HANDLER[layout.RGB_IMAGE_FIELD] is RGBImageField
    assert ffcv.types.TYPE_ID_HANDLER[layout.INT_FIELD] is IntField


@pytest.mark.parametrize(("count", "res"), [(1, 1), (3, 64), (2730, 32), (2731, 32), (5000, 64), (349_526, 8)])
def test_layout_has_no_overlaps_and_no_image_crosses_a_page(count, res):
    plan = Layout(count, res)
    addresses = plan.addresses()
    assert addresses[0] == plan.data_start >= plan.metadata_start + count * layout.METADATA.itemsize
    assert (np.diff(addresses) >= plan.image_bytes).all()
    assert (addresses // plan.page_bytes == (addresses + plan.image_bytes - 1) // plan.page_bytes).all()
    assert addresses[-1] + plan.image_bytes <= plan.allocation_start
    np.testing.assert_array_equal(plan.addresses(count // 2, count), addresses[count // 2 :])


@pytest.mark.parametrize("os_cache", [True, False])
def test_stock_ffcv_reads_what_we_write(tmp_path, os_cache):
    source = numbered(700, res=64)  # two pages
    path = write_beton(tmp_path / "x.beton", source, 64, seed=3)
    layout.check(path)
    loader = ffcv.loader.Loader(
        str(path), 100, num_workers=1, os_cache=os_cache, drop_last=False,
        pipelines={"image": [SimpleRGBImageDecoder(), ToTensor()], "label": [IntDecoder(), ToTensor()]},
    )  # fmt: skip
    images, labels = zip(*[(x.numpy().copy(), y.numpy().copy()) for x, y in loader], strict=True)
    images, labels = np.concatenate(images), np.concatenate(labels)[:, 0]
    order = np.random.default_rng(3).permutation(700)
    np.testing.assert_array_equal(images, source.images[order])
    np.testing.assert_array_equal(labels, source.labels[order])
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts["classes"] == list(source.classes) and facts["images_per_class"] == [100] * 7


def test_our_check_accepts_what_stock_ffcv_writes(tmp_path):
    path = tmp_path / "stock.beton"
    writer = DatasetWriter(str(path), {"image": RGBImageField(), "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset(numbered(20))
    layout.check(path)


def test_bytes_do_not_depend_on_the_workers(tmp_path):
    source = numbered(3000, res=40)
    one = write_beton(tmp_path / "one.beton", source, 40).read_bytes()
    assert write_beton(tmp_path / "two.beton", source, 40, num_workers=2).read_bytes() == one
    assert write_beton(tmp_path / "other.beton", source, 40, seed=1).read_bytes() != one
    kept = Reader(str(write_beton(tmp_path / "kept.beton", source, 40, seed=None)))
    np.testing.assert_array_equal(kept.metadata["f1"], source.labels)


@pytest.mark.parametrize(("kind", "error"), [(Failing, ValueError), (Dying, OSError)])
def test_failure_in_a_worker_is_told_and_leaves_nothing(tmp_path, kind, error):
    whole = numbered(3000, res=40)
    source = kind(whole.images, whole.labels, whole.classes)
    with pytest.raises(error, match="picture50|died"):
        write_beton(tmp_path / "x.beton", source, 40, num_workers=2)
    assert list(tmp_path.iterdir()) == []


def test_the_beton_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: calls.append((name, str(a[0]))) or real(*a))
    write_beton(tmp_path / "x.beton", numbered(10), 8)
    renamed = calls.index(("replace", str(tmp_path / "x.beton.partial")))
    assert [name for name, _ in calls[:renamed]].count("fsync") == 1 and calls[-1][0] == "fsync"  # file, then folder


def test_too_small_a_disk_is_told_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="GB free"):
        write_beton(tmp_path / "x.beton", numbered(10), 8)


def test_full_disk_while_writing(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError):
            write_beton(tmp_path / "x.beton", numbered(10), 8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


SLOW_WRITER = """
import sys, time
from fastmlp.beton.writer import write_beton
from fastmlp.sources.synthetic import Synthetic
class Slow(Synthetic):
    def __getitem__(self, index):
        time.sleep(0.05)
        return super().__getitem__(index)
write_beton(sys.argv[1], Slow(2000, res=8), 8)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_writer_leaves_no_beton_and_locks_out_a_second(tmp_path, number):
    path = tmp_path / "x.beton"
    child = subprocess.Popen([sys.executable, "-c", SLOW_WRITER, str(path)], stderr=subprocess.DEVNULL)
    partial = tmp_path / "x.beton.partial"
    while not (partial.exists() and partial.stat().st_size > 1 << 20):
        assert child.poll() is None
        time.sleep(0.05)
    with pytest.raises(OSError, match="another writer"):
        write_beton(path, numbered(10), 8)
    assert partial.exists()  # the first one's
    child.send_signal(number)
    child.wait(30)
    assert not path.exists()
    write_beton(path, numbered(10), 8)  # starts afresh over what was left
    layout.check(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.beton", "x.json"]


def damage(name, content):
    whole = bytearray(content)
    if name == "empty":
        return b""
    if name == "text":
        return b"hello world, this is no beton at all, honest\n" * 20
    if name == "zeros":
        return bytes(len(whole))
    if name == "version":
        whole[0] = 3
    elif name == "unfinished":
        whole[16:24] = bytes(8)
    elif name == "cut in the data":
        return whole[: 9 << 20]
    elif name == "cut in the table":
        return whole[:-5]
    elif name == "no table":
        return whole[: int.from_bytes(whole[16:24], "little")]
    elif name == "pointer":
        whole[-16:-8] = (1 << 40).to_bytes(8, "little")
    return bytes(whole)


@pytest.mark.parametrize(
    ("name", "message"),
    [("empty", "not a beton"), ("text", "not a beton"), ("zeros", "not a beton"), ("version", "version 3, expected 2"),
     ("unfinished", "unfinished"), ("cut in the data", "truncated"), ("cut in the table", "truncated"),
     ("no table", "truncated"), ("pointer", "corrupt")],
)  # fmt: skip
def test_damaged_betons_are_refused_by_name(tmp_path, name, message):
    path = write_beton(tmp_path / "x.beton", numbered(60), 8)
    path.write_bytes(damage(name, path.read_bytes()))
    with pytest.raises(ValueError, match=message) as raised:
        layout.check(path, "python writers/x.py")
    assert str(path) in str(raised.value) and "python writers/x.py" in str(raised.value)


def test_missing_beton_names_the_writer(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape("Write it with: python writers/cifar.py")):
        layout.check(tmp_path / "x.beton", "python writers/cifar.py")
