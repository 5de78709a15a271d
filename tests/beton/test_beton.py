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
from failing_sources import Dying, Failing, OneByOne
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.reader import Reader
from ffcv.transforms import ToTensor
from ffcv.writer import DatasetWriter
from numbered_images import numbered
from PIL import Image

from fastmlp.beton import layout
from fastmlp.beton.journal import Journal, read_journal
from fastmlp.beton.layout import Layout
from fastmlp.beton.workers import Chunk
from fastmlp.beton.writer import CHECKED_IMAGES, CHUNK_BYTES, write_beton
from fastmlp.sources.base import ArraySource, Subset


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
        str(path),
        100,
        num_workers=1,
        os_cache=os_cache,
        drop_last=False,
        pipelines={"image": [SimpleRGBImageDecoder(), ToTensor()], "label": [IntDecoder(), ToTensor()]},
    )
    images, labels = zip(*[(x.numpy().copy(), y.numpy().copy()) for x, y in loader], strict=True)
    images, labels = np.concatenate(images), np.concatenate(labels)[:, 0]
    order = np.random.default_rng(3).permutation(700)
    np.testing.assert_array_equal(images, source.images[order])
    np.testing.assert_array_equal(labels, source.labels[order])
    metadata = json.loads(path.with_suffix(".json").read_text())
    assert metadata["classes"] == list(source.classes) and metadata["images_per_class"] == [100] * 7


def test_our_check_accepts_what_stock_ffcv_writes(tmp_path):
    path = tmp_path / "stock.beton"
    writer = DatasetWriter(str(path), {"image": RGBImageField(), "label": IntField()}, num_workers=1)
    writer.from_indexed_dataset(numbered(20))
    layout.check(path)


def test_bytes_do_not_depend_on_the_workers(tmp_path):
    get_batch = numbered(3000, res=40)
    source = OneByOne(get_batch.images, get_batch.labels, get_batch.classes)
    one = write_beton(tmp_path / "one.beton", source, 40).read_bytes()
    assert write_beton(tmp_path / "stacked.beton", get_batch, 40, num_workers=2).read_bytes() == one
    grey = [
        write_beton(
            tmp_path / "g.beton", kind(get_batch.images[..., 0], get_batch.labels, get_batch.classes), 40
        ).read_bytes()
        for kind in (ArraySource, OneByOne)
    ]
    assert grey[0] == grey[1] != one
    assert write_beton(tmp_path / "two.beton", source, 40, num_workers=2).read_bytes() == one
    assert write_beton(tmp_path / "other.beton", source, 40, seed=1).read_bytes() != one
    kept = Reader(str(write_beton(tmp_path / "kept.beton", source, 40, seed=None)))
    np.testing.assert_array_equal(kept.metadata["f1"], source.labels)


@pytest.mark.parametrize(("kind", "error"), [(Failing, ValueError), (Dying, OSError)])
def test_after_a_failure_in_a_worker_the_same_call_goes_on(tmp_path, kind, error):
    whole = numbered(3000, res=40)
    source = kind(whole.images, whole.labels, whole.classes)
    with pytest.raises(error, match="picture50|died"):
        write_beton(tmp_path / "x.beton", source, 40, num_workers=2)
    assert {p.name for p in tmp_path.iterdir()} <= {"x.beton.partial", "x.beton.journal"}
    kind.fails = False
    try:
        mended = write_beton(tmp_path / "x.beton", source, 40, num_workers=1)
    finally:
        kind.fails = True
    assert mended.read_bytes() == write_beton(tmp_path / "y.beton", whole, 40).read_bytes()
    names = {f"{name}{end}" for name in "xy" for end in (".beton", ".beton.sha256", ".json")}
    assert {p.name for p in tmp_path.iterdir()} == names


def test_what_is_written_is_not_written_again(tmp_path):
    read = []

    class Counted(OneByOne):
        def __getitem__(self, index):
            if index == 2000 and not read:
                raise ValueError("picture2000.jpg: not mounted yet")
            if counting:
                read.append(index)
            return super().__getitem__(index)

    whole, counting = numbered(3000, res=40), False
    source = Counted(whole.images, whole.labels, whole.classes)
    with pytest.raises(ValueError, match="not mounted yet"):
        write_beton(tmp_path / "x.beton", source, 40, seed=None)
    counting = True
    write_beton(tmp_path / "x.beton", source, 40, seed=None)
    chunk = CHUNK_BYTES // Layout(3000, 40).image_bytes
    first = 2000 // chunk * chunk  # of the chunk that failed
    assert first > 0 and read[: 3000 - first] == [*range(first, 3000)] and len(read) == 3000 - first + CHECKED_IMAGES


@pytest.mark.parametrize("workers", [1, 2])
def test_skipped_images_leave_holes(tmp_path, workers):
    whole = numbered(3000, res=40)
    source = Failing(whole.images, whole.labels, whole.classes)
    path = write_beton(tmp_path / "x.beton", source, 40, seed=None, num_workers=workers, on_error="skip")
    layout.check(path)
    assert (tmp_path / "x.skipped.txt").read_text() == "picture50.jpg: cannot be read as an image\n"
    metadata = json.loads((tmp_path / "x.json").read_text())
    assert metadata["num_samples"] == 2999 == sum(metadata["images_per_class"]) and metadata["skipped"] == 1
    loader = ffcv.loader.Loader(
        str(path),
        100,
        num_workers=1,
        drop_last=False,
        pipelines={"image": [SimpleRGBImageDecoder(), ToTensor()], "label": [IntDecoder(), ToTensor()]},
    )
    images, labels = zip(*[(x.numpy().copy(), y.numpy().copy()) for x, y in loader], strict=True)
    good = np.delete(np.arange(3000), 50)
    np.testing.assert_array_equal(np.concatenate(images), whole.images[good])
    np.testing.assert_array_equal(np.concatenate(labels)[:, 0], whole.labels[good])
    sound = write_beton(tmp_path / "x.beton", whole, 40, seed=None)  # the list of another beton must not stay
    assert len(Reader(str(sound)).metadata) == 3000 and not (tmp_path / "x.skipped.txt").exists()


def test_nothing_but_bad_images(tmp_path):
    source = Failing(*(x[50:51].repeat(60, 0) for x in (numbered(60).images, numbered(60).labels)), ("a",) * 7)
    with pytest.raises(ValueError, match="none of 1 images could be read"):
        write_beton(tmp_path / "x.beton", Subset(source, np.array([50])), 8, on_error="skip")


def test_the_beton_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: calls.append((name, str(a[0]))) or real(*a))
    write_beton(tmp_path / "x.beton", numbered(10), 8)
    renamed = calls.index(("replace", str(tmp_path / "x.beton.partial")))
    assert calls[renamed - 2][0] == "fsync" and calls[-1][0] == "fsync"  # file (then its description), folder


def test_too_small_a_disk_is_told_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="GB free"):
        write_beton(tmp_path / "x.beton", numbered(10), 8)
    assert list(tmp_path.iterdir()) == []


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
from fastmlp.beton.workers import Chunk
from fastmlp.beton.writer import CHECKED_IMAGES, CHUNK_BYTES, write_beton
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
    write_beton(path, numbered(10), 8)  # of another source: starts afresh over what was left
    layout.check(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.beton", "x.beton.sha256", "x.json"]


KILLED_WRITER = """
import sys
import fastmlp.beton.writer as writer
from fastmlp.messages import shown
from fastmlp.sources.synthetic import Synthetic
writer.CHUNK_BYTES, writer.CHECKPOINT_S = 1 << 16, 0.0
with shown():
    writer.write_beton(sys.argv[1], Synthetic(20_000, res=32), 32, num_workers=int(sys.argv[2]))
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_anywhere_it_goes_on_to_the_same_bytes(tmp_path, workers):
    def start(name, **keywords):
        return subprocess.Popen([sys.executable, "-c", KILLED_WRITER, tmp_path / name, workers], **keywords)

    assert start("whole.beton", stderr=subprocess.DEVNULL).wait(60) == 0
    rng, journal = np.random.default_rng(int(workers)), tmp_path / "x.beton.journal"
    kills = int(os.environ.get("FASTMLP_KILLS", 5))
    for _ in range(kills):
        child = start("x.beton", stderr=subprocess.DEVNULL)
        enough = (journal.stat().st_size if journal.exists() else 0) + int(rng.integers(1, 40_000 // kills))
        while not (journal.exists() and journal.stat().st_size > enough):
            assert child.poll() is None
            time.sleep(0.001)
        child.kill()
        child.wait()
        assert not (tmp_path / "x.beton").exists()
    child = start("x.beton", stderr=subprocess.PIPE)
    assert "resuming where it was interrupted" in child.communicate()[1].decode() and child.returncode == 0
    assert (tmp_path / "x.beton").read_bytes() == (tmp_path / "whole.beton").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "whole.beton",
        "whole.beton.sha256",
        "whole.json",
        "x.beton",
        "x.beton.sha256",
        "x.json",
    ]


def test_inspection_tells_what_is_there(tmp_path, inspected, capsys):
    source = numbered(90, res=8)
    path = write_beton(tmp_path / "x.beton", source, 8)
    said = inspected(path, "--contact-sheet", tmp_path / "s.png")
    pixels = source.images.reshape(-1, 3).astype(float)
    for name, values in (("mean", pixels.mean(0)), ("std", pixels.std(0))):
        assert f"  {name:10s} {', '.join(f'{v:.3f}' for v in values)}" in said
    assert "every byte as written" in said and "90, " in said and "8 x 8 px, 90 raw, 0 JPEG" in said
    assert "0 to 6, 7 of them, 12 to 13 images each" in said and "13  c0" in said
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.size == (2 * (16 * 9 + 1), 2 * (4 * 9 + 1))
    subprocess.run(["sha256sum", "-c", "x.beton.sha256"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    with path.open("r+b") as file:  # one bit of one pixel
        file.seek(int(Layout(90, 8).addresses()[40]))
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(SystemExit) as ended:
        inspected(path)
    assert ended.value.code == 2 and "is damaged" in capsys.readouterr().err


def test_inspection_of_what_stock_ffcv_wrote(tmp_path, inspected):
    path = tmp_path / "stock.beton"
    DatasetWriter(str(path), {"x": IntField(), "image": RGBImageField()}, num_workers=1).from_indexed_dataset(
        [(i, numbered(1).images[0]) for i in range(5)]
    )
    said = inspected(path)
    assert "structure complete, no checksum beside it" in said and "x (int), image (image)" in said


def test_pixels_are_compared_with_the_source(tmp_path):
    class Fickle(OneByOne):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            self.images = self.images ^ 1  # another image each time
            return image, label

    source = numbered(9)
    with pytest.raises(OSError, match="not what was written"):
        write_beton(tmp_path / "x.beton", Fickle(source.images, source.labels, source.classes), 8)


@pytest.mark.parametrize("tail", [b"", b'{"first": 99', b"\x00" * 40, b"garbage\n"])
def test_a_torn_journal_counts_up_to_the_tear(tmp_path, tail):
    identity = {"seed": 1}
    path = tmp_path / "j"
    none = np.zeros((0, 2), "<u2")
    with Journal(path, identity) as journal:
        journal.add(Chunk(0, np.array([1, 2]), none))
        journal.add(Chunk(2, np.array([3, -1]), none, {3: "b.jpg: bad"}))
    with path.open("ab") as file:
        file.write(tail)
    for _ in range(2):
        with Journal(path, identity):
            pass
        chunks = read_journal(path, identity)
        assert list(chunks) == [0, 2] and chunks[2].bad == {3: "b.jpg: bad"} and chunks[2].labels.tolist() == [3, -1]
    assert read_journal(path, {"seed": 2}) == {}
    with Journal(path, {"seed": 2}):
        pass
    assert read_journal(path, identity) == {}  # the other one's


def interrupted(folder):
    """Write most of a beton; return its path, the source, which no longer fails, and the bytes of the whole."""
    whole = numbered(3000, res=40)
    source = Failing(whole.images, whole.labels, whole.classes)
    order = np.r_[np.arange(100, 3000), np.arange(100)]  # the bad image comes last
    with pytest.raises(ValueError, match="picture50"):
        write_beton(folder / "x.beton", Subset(source, order), 40, seed=None)
    expected = write_beton(folder / "whole.beton", Subset(whole, order), 40, seed=None).read_bytes()
    return folder / "x.beton", Subset(source, order), expected


def test_a_flipped_bit_in_the_journal_is_written_anew(tmp_path, monkeypatch):
    path, source, expected = interrupted(tmp_path)
    monkeypatch.setattr(Failing, "fails", False)
    remains = {file: file.read_bytes() for file in tmp_path.glob("x.beton.*")}
    (journal,) = (file for file in remains if file.suffix == ".journal")
    rng = np.random.default_rng(0)
    lines = np.flatnonzero(np.frombuffer(remains[journal], np.uint8) == ord("\n"))
    label = remains[journal].index(b'"labels": [') + 11  # of the first image: another digit is another label
    for place, bit in [
        (label, 0),
        (0, 5),
        (40, 2),
        (lines[-2], 3),
        *rng.integers(0, [len(remains[journal]), 8], (2, 2)),
    ]:
        for file, content in remains.items():
            file.write_bytes(content)
        damaged = bytearray(remains[journal])
        damaged[place] ^= 1 << bit
        journal.write_bytes(damaged)
        path.unlink(missing_ok=True)
        assert write_beton(path, source, 40, seed=None).read_bytes() == expected


@pytest.mark.parametrize("where", ["image", "gap", "head", "table"])
def test_what_the_disk_loses_is_written_anew(tmp_path, monkeypatch, capsys, where):
    path, source, expected = interrupted(tmp_path)
    monkeypatch.setattr(Failing, "fails", False)
    plan, partial = Layout(3000, 40), tmp_path / "x.beton.partial"
    places = {"image": plan.addresses()[7] + 9, "gap": plan.data_start - 5, "head": 30, "table": plan.allocation_start}
    lose, real = {int(places[where])}, os.fsync

    def fsync(fd):
        real(fd)
        for at in lose if partial.exists() and os.path.samestat(os.fstat(fd), partial.stat()) else ():
            with partial.open("r+b") as file:  # after the last sync
                file.seek(at)
                byte = file.read(1)[0]
                file.seek(at)
                file.write(bytes([byte ^ 1]))
        if keeps:
            lose.clear()

    monkeypatch.setattr(os, "fsync", fsync)
    keeps = False
    with pytest.raises(OSError, match="the disk does not keep"):
        write_beton(path, source, 40, seed=None)
    assert not path.exists()
    keeps = True
    assert write_beton(path, source, 40, seed=None).read_bytes() == expected
    assert "parts are not what was written" in capsys.readouterr().err


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
    [
        ("empty", "not a beton"),
        ("text", "not a beton"),
        ("zeros", "not a beton"),
        ("version", "version 3, expected 2"),
        ("unfinished", "unfinished"),
        ("cut in the data", "truncated"),
        ("cut in the table", "truncated"),
        ("no table", "truncated"),
        ("pointer", "corrupt"),
    ],
)
def test_damaged_betons_are_refused_by_name(tmp_path, name, message):
    path = write_beton(tmp_path / "x.beton", numbered(60), 8)
    path.write_bytes(damage(name, path.read_bytes()))
    with pytest.raises(ValueError, match=message) as raised:
        layout.check(path, "python writers/x.py")
    assert str(path) in str(raised.value) and "python writers/x.py" in str(raised.value)


def test_missing_beton_names_the_writer(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape("Write it with: python writers/cifar.py")):
        layout.check(tmp_path / "x.beton", "python writers/cifar.py")
