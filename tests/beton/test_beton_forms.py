"""Betons of images that are not square, of several labels, and written in parts: through FFCV's loader and ours."""

import os
import subprocess
import sys
import time

import ffcv.loader
import numpy as np
import pytest
import torch
from failing_sources import Failing, OneByOne
from ffcv.fields.decoders import IntDecoder, NDArrayDecoder
from ffcv.fields.rgb_image import CenterCropRGBImageDecoder
from ffcv.reader import Reader
from ffcv.transforms import ToTensor
from numbered_images import index_of, numbered

from fastmlp.beton import layout, writer
from fastmlp.beton.writer import write_beton
from fastmlp.data.split import Split
from fastmlp.datasets import DatasetSpec
from fastmlp.loader.loader import Loader
from fastmlp.sources.base import Source, Subset
from fastmlp.sources.fit import fit_image
from fastmlp.sources.synthetic import Synthetic
from fastmlp.transforms.augment_params import Augment


class Shapes(Source):
    """Images of many shapes, one colour each: red and green tell the index."""

    classes = ("a", "b", "c")

    def __init__(self, count, several=0):
        rng = np.random.default_rng(0)
        self.sizes = rng.integers(20, 90, (count, 2))
        if several:
            self.multi_labels = np.full((count, several), -1)
            for labels in self.multi_labels:
                some = rng.choice(3, rng.integers(0, several + 1), replace=False)
                labels[: len(some)] = some

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        return np.full((*self.sizes[index], 3), (index % 256, index // 256, 9), np.uint8), index % 3


SPEC = DatasetSpec("x", 3, {}, (0.0,) * 3, (1.0,) * 3, 32, "python writers/x.py")


def test_longest_keeps_every_shape_for_ffcv_and_for_us(tmp_path):
    source = Shapes(300)
    path = write_beton(tmp_path / "x_test_32.beton", source, 32, fit="longest", seed=1)
    layout.check(path)
    order = np.random.default_rng(1).permutation(300)
    records = Reader(str(path)).metadata
    longer = source.sizes[order].max(1, keepdims=True)
    expected = np.maximum(1, np.rint(source.sizes[order] * 32 / longer)).astype(int)
    np.testing.assert_array_equal(records["f0"]["height"], expected[:, 0])
    np.testing.assert_array_equal(records["f0"]["width"], expected[:, 1])
    stock = ffcv.loader.Loader(
        str(path),
        100,
        num_workers=1,
        drop_last=False,
        pipelines={"image": [CenterCropRGBImageDecoder((8, 8), 1.0), ToTensor()], "label": [IntDecoder(), ToTensor()]},
    )
    images = np.concatenate([x.numpy().copy() for x, _ in stock])
    np.testing.assert_array_equal(index_of(images), order)
    split = Split(SPEC, "test", "evaluate", data_dir=tmp_path, res=32, batch_size=128)
    seen = [(x.clone(), y.clone()) for x, y in split.batches(0)]
    images = torch.cat([x for x, _ in seen]).unflatten(1, (3, 32, 32))
    np.testing.assert_array_equal(images[:, 0, 7, 9] + 256 * images[:, 1, 30, 2], order)
    np.testing.assert_array_equal(torch.cat([y for _, y in seen]), order % 3)


def test_evaluation_takes_the_centre_square_of_what_is_longest(tmp_path):
    class One(Source):
        classes = ("a",)
        image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return self.image, 0

    write_beton(tmp_path / "x_test_64.beton", One(), 64, fit="longest")
    split = Split(SPEC, "test", "evaluate", data_dir=tmp_path, res=64, batch_size=1)
    ours = next(iter(split.batches(0)))[0].clone()
    square = torch.from_numpy(One.image[:, 8:56].transpose(2, 0, 1).copy())[None].float()
    slow = torch.nn.functional.interpolate(square, (64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, slow.flatten(1), rtol=0, atol=2e-2)
    training = Split(SPEC, "test", "train", data_dir=tmp_path, res=64, batch_size=1, augment=Augment("random_resized"))
    assert next(iter(training.batches(0)))[0].shape == (1, 3 * 64 * 64)


@pytest.mark.parametrize("fit", ["square", "longest"])
def test_several_labels_an_image(tmp_path, fit, inspected):
    source = Shapes(70, several=3)
    path = write_beton(tmp_path / "x_test_32.beton", Subset(source, np.arange(60)), 32, fit=fit, num_workers=2)
    layout.check(path)
    order = np.random.default_rng(0).permutation(60)
    for kind in (ffcv.loader.Loader, Loader):
        pipelines = {
            "image": [CenterCropRGBImageDecoder((8, 8), 1.0), ToTensor()],
            "label": [IntDecoder(), ToTensor()],
            "multi_label": [NDArrayDecoder(), ToTensor()],
        }
        loader = kind(str(path), 25, num_workers=1, drop_last=False, pipelines=pipelines)
        seen = [[part.numpy().copy() for part in batch] for batch in loader]
        images, labels, several = (np.concatenate(parts) for parts in zip(*seen, strict=True))
        np.testing.assert_array_equal(index_of(images), order)
        np.testing.assert_array_equal(labels[:, 0], order % 3)
        np.testing.assert_array_equal(several, source.multi_labels[order])
    split = Split(SPEC, "test", "evaluate", data_dir=tmp_path, res=32, batch_size=60)
    np.testing.assert_array_equal(next(iter(split.batches(0)))[1], order % 3)
    none = int((source.multi_labels[:60] < 0).all(1).sum())
    said = inspected(path, "--contact-sheet", tmp_path / "sheet.png")
    assert f"{none:,} images without a label" in said and (tmp_path / "sheet.png").exists()


def test_fit_image_longest():
    image = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    assert fit_image(image, 64, "longest").shape == (48, 64, 3)
    assert fit_image(image.transpose(1, 0, 2), 64, "longest").shape == (64, 48, 3)
    assert fit_image(image[:1], 64, "longest").shape == (1, 64, 3)
    np.testing.assert_array_equal(fit_image(image[:48, :64], 64, "longest"), image[:48, :64])
    grown = fit_image(np.full((3, 4, 3), 7, np.uint8), 64, "longest")
    assert grown.shape == (48, 64, 3) and (grown == 7).all()


@pytest.fixture
def source():
    whole = numbered(3000, res=40)
    return OneByOne(whole.images, whole.labels, whole.classes)


def test_shards_come_to_the_same_bytes(tmp_path, source):
    whole = write_beton(tmp_path / "whole.beton", source, 40)
    path = tmp_path / "x.beton"
    assert write_beton(path, source, 40, shard=(2, 3)) is None
    assert write_beton(path, source, 40, shard=(0, 3), num_workers=2) is None
    with pytest.raises(ValueError, match="chunks are not written yet, the first at image"):
        write_beton(path, source, 40, finish=True)
    assert not path.exists()
    with pytest.raises(ValueError, match=r"other options \(seed 0, now 5\)\. .* delete x\.beton\.partial"):
        write_beton(path, source, 40, seed=5, shard=(1, 3))
    assert write_beton(path, source, 40, shard=(1, 3)) is None
    before = os.stat(tmp_path / "x.beton.journal.1-of-3").st_mtime_ns
    assert write_beton(path, source, 40, shard=(1, 3)) is None  # again: nothing left to do
    assert write_beton(path, source, 40, finish=True) == path
    assert path.read_bytes() == whole.read_bytes() and before
    names = {f"{name}{end}" for name in ("whole", "x") for end in (".beton", ".beton.sha256", ".json")}
    assert {p.name for p in tmp_path.iterdir()} == names


def test_a_plain_run_takes_over_shards(tmp_path, source):
    write_beton(tmp_path / "x.beton", source, 40, shard=(1, 2))
    read = []

    class Counted(OneByOne):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    again = Counted(source.images, source.labels, source.classes)
    again.fingerprint = source.fingerprint
    taken = write_beton(tmp_path / "x.beton", again, 40)
    assert len(read) < 1800  # two of three chunks, and those that are compared
    assert taken.read_bytes() == write_beton(tmp_path / "y.beton", source, 40).read_bytes()


def test_a_bad_image_in_a_shard(tmp_path, source):
    failing = Failing(source.images, source.labels, source.classes)
    keywords = {"seed": None, "on_error": "skip"}
    whole = write_beton(tmp_path / "whole.beton", failing, 40, **keywords)
    for number in range(2):
        write_beton(tmp_path / "x.beton", failing, 40, shard=(number, 2), **keywords)
    path = write_beton(tmp_path / "x.beton", failing, 40, finish=True, **keywords)
    assert path.read_bytes() == whole.read_bytes() and "picture50" in (tmp_path / "x.skipped.txt").read_text()
    with pytest.raises(ValueError, match="picture50"):
        write_beton(tmp_path / "z.beton", failing, 40, shard=(0, 2), seed=None)


def test_more_shards_than_chunks(tmp_path):
    for number in range(3):
        assert write_beton(tmp_path / "x.beton", numbered(10), 8, shard=(number, 3)) is None
    path = write_beton(tmp_path / "x.beton", numbered(10), 8, finish=True)
    assert path.read_bytes() == write_beton(tmp_path / "y.beton", numbered(10), 8).read_bytes()


SHARD = """
import sys
import fastmlp.beton.writer as writer
from fastmlp.sources.synthetic import Synthetic
writer.CHUNK_BYTES, writer.CHECKPOINT_S = 1 << 16, 0.0
number = int(sys.argv[2])
what = {"finish": True} if number < 0 else {"shard": (number, 3)}
writer.write_beton(sys.argv[1], Synthetic(9000, res=32), 32, **what)
"""


def test_shards_at_the_same_time_and_killed(tmp_path, monkeypatch):
    def start(number):
        command = [sys.executable, "-c", SHARD, tmp_path / "x.beton", str(number)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    rng = np.random.default_rng(0)
    children = {number: start(number) for number in range(3)}
    victims = int(os.environ.get("FASTMLP_KILLS", 3))
    while children:
        time.sleep(float(rng.uniform(0.2, 1.0)))
        if victims:
            number = int(rng.choice(list(children)))
            children[number].kill()
            children[number].wait()
            children[number] = start(number)
            victims -= 1
            time.sleep(1.0)
        for number, child in list(children.items()):
            if child.poll() is not None:
                assert child.returncode == 0
                del children[number]
    finisher = start(-1)
    assert finisher.wait(60) == 0
    monkeypatch.setattr(writer, "CHUNK_BYTES", 1 << 16)
    whole = write_beton(tmp_path / "whole.beton", Synthetic(9000, res=32), 32)
    assert whole.read_bytes() == (tmp_path / "x.beton").read_bytes()


def test_one_shard_is_written_by_one(tmp_path, source):
    class Second(OneByOne):
        def __getitem__(self, index):
            if index == 3 and not tried:
                tried.append(True)
                with pytest.raises(OSError, match="another writer"):
                    write_beton(tmp_path / "x.beton", source, 40, seed=None, shard=(0, 2))
                with pytest.raises(OSError, match="another writer"):
                    write_beton(tmp_path / "x.beton", source, 40, seed=None)
            return super().__getitem__(index)

    tried = []
    write_beton(tmp_path / "x.beton", Second(source.images, source.labels, source.classes), 40, seed=None, shard=(0, 2))
    assert tried


def test_longest_of_arrays_in_memory(tmp_path, source):
    whole = numbered(50)
    single = OneByOne(whole.images, whole.labels, whole.classes)
    paths = [write_beton(tmp_path / f"{n}.beton", kind, 8, fit="longest") for n, kind in enumerate((whole, single))]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert (Reader(str(paths[0])).metadata["f0"]["width"] == 8).all()


def test_what_shards_have_written_is_not_lost_to_other_options(tmp_path, source):
    path = tmp_path / "x.beton"
    with pytest.raises(ValueError, match="nothing to finish"):
        write_beton(path, source, 40, finish=True)
    assert not list(tmp_path.iterdir())
    write_beton(path, source, 40, shard=(0, 2))
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    fewer = Subset(source, np.arange(1600))
    for other, keywords in (
        (source, {"finish": True, "seed": 4}),
        (fewer, {"shard": (1, 2)}),
        (fewer, {"finish": True}),
        (source, {"fit": "longest"}),
        (fewer, {}),
    ):
        with pytest.raises(ValueError, match="other images or other options"):
            write_beton(path, other, 40, **keywords)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    write_beton(path, source, 40, shard=(1, 2))
    whole = write_beton(path, source, 40, finish=True).read_bytes()
    assert whole == write_beton(tmp_path / "y.beton", source, 40).read_bytes()


def test_a_shard_of_other_images_beside_a_running_one_is_refused(tmp_path, source):
    class Beside(OneByOne):
        def __getitem__(self, index):
            if index == 3 and not tried:
                tried.append(True)
                with pytest.raises(ValueError, match="other images or other options"):
                    write_beton(tmp_path / "x.beton", Subset(source, np.arange(1600)), 40, seed=None, shard=(1, 2))
            return super().__getitem__(index)

    tried = []
    write_beton(tmp_path / "x.beton", Beside(source.images, source.labels, source.classes), 40, seed=None, shard=(0, 2))
    assert tried


def test_a_finished_beton_is_not_written_again(tmp_path, source, capsys):
    path = write_beton(tmp_path / "x.beton", source, 40)
    before = path.stat().st_mtime_ns
    (tmp_path / "x.beton.sha256").unlink()  # killed before it was written
    for keywords in ({}, {"shard": (0, 2)}, {"finish": True}):
        assert write_beton(path, source, 40, **keywords) == path and path.stat().st_mtime_ns == before
    assert "already written" in capsys.readouterr().err and (tmp_path / "x.beton.sha256").exists()
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    write_beton(path, source, 40)  # a damaged one is
    content[-1000] ^= 1
    assert path.read_bytes() == content


def test_after_a_bad_image_skipping_goes_on_and_stopping_again_stops(tmp_path, source):
    read = []

    class Counted(Failing):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    failing = Counted(source.images, source.labels, source.classes)
    order = np.r_[np.arange(100, 3000), np.arange(100)]  # the bad image comes last
    with pytest.raises(ValueError, match="picture50"):
        write_beton(tmp_path / "x.beton", Subset(failing, order), 40, seed=None)
    read.clear()
    path = write_beton(tmp_path / "x.beton", Subset(failing, order), 40, seed=None, on_error="skip")
    assert len(read) < 1000
    whole = write_beton(tmp_path / "y.beton", Subset(failing, order), 40, seed=None, on_error="skip")
    assert path.read_bytes() == whole.read_bytes()
    with pytest.raises(ValueError, match="picture50"):
        write_beton(tmp_path / "x.beton", Subset(failing, order), 40, seed=None)
    assert path.exists()


def test_a_failed_sync_leaves_its_chunk_out_of_the_journal(tmp_path, source, monkeypatch):
    real, calls = os.fdatasync, []

    def once(fd):
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")  # Linux tells of it once
        real(fd)

    monkeypatch.setattr(os, "fdatasync", once)
    monkeypatch.setattr(writer, "CHECKPOINT_S", 0.0)
    with pytest.raises(OSError, match="Input/output"):
        write_beton(tmp_path / "x.beton", source, 40)
    assert len((tmp_path / "x.beton.journal").read_bytes().splitlines()) == 2  # the head, and what was synced


@pytest.mark.parametrize("end", ["beton.partial", "beton.journal", "beton.journal.0-of-2", "json.partial"])
def test_nothing_is_written_through_a_symbolic_link(tmp_path, source, end):
    (tmp_path / "precious").write_text("keep me")
    (tmp_path / f"x.{end}").symlink_to("precious")
    with pytest.raises((OSError, ValueError), match=r"is a symbolic link|of other images"):
        write_beton(tmp_path / "x.beton", source, 40)
    assert (tmp_path / "precious").read_text() == "keep me"


def test_every_option_tells_writers_apart(tmp_path, source):
    fingerprints = {
        Synthetic(9, 3, 8, **keywords).fingerprint() for keywords in ({}, {"noise": 3}, {"seed": 5}, {"split": "test"})
    }
    assert len(fingerprints) == 4
    assert Subset(source, np.arange(9)).fingerprint() != Subset(source, np.arange(1, 10)).fingerprint()
