"""Sources against archives made here in exactly the published formats."""

import csv
import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from released_host import ReleasedHost

from fastmlp.datasets import beton_path, sidecar_path
from fastmlp.sources import fashion_mnist as fashion_module
from fastmlp.sources.base import ArraySource, check_digest, train_val_split
from fastmlp.sources.cifar import CIFAR, FORMATS
from fastmlp.sources.download import download
from fastmlp.sources.fashion_mnist import FashionMNIST, parse_idx
from fastmlp.sources.fit import fit_image
from fastmlp.sources.folder import ImageFolder
from fastmlp.sources.manifest import Manifest
from fastmlp.sources.names import PackedNames
from fastmlp.sources.stl10 import ARCHIVE as STL10_ARCHIVE
from fastmlp.sources.synthetic import Synthetic


def cifar_records(form, count, seed):
    """Records whose pixels encode their index: red plane = low byte, green = high byte, blue = row number."""
    records = np.zeros((count, form.label_bytes + 3072), np.uint8)
    labels = np.random.default_rng(seed).integers(0, form.num_classes, count)
    records[:, form.label_bytes - 1] = labels
    index = np.arange(count)
    planes = records[:, form.label_bytes :].reshape(count, 3, 32, 32)
    planes[:, 0] = (index % 256)[:, None, None]
    planes[:, 1] = (index // 256)[:, None, None]
    planes[:, 2] = np.arange(32)[:, None]
    return records, labels


def write_cifar_archive(path, dataset):
    form = FORMATS[dataset]
    labels = {}
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:

        def add(name, content):
            info = tarfile.TarInfo(f"{form.folder}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

        for split, files in form.files.items():
            for number, name in enumerate(files):
                records, file_labels = cifar_records(form, form.images_per_file[split], number)
                labels.setdefault(split, []).append(file_labels)
                add(name, records.tobytes())
        names = "\n".join(f"name{k}" for k in range(form.num_classes)) + "\n\n"
        add(form.names_file, names.encode())
    return {split: np.concatenate(parts) for split, parts in labels.items()}


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_cifar_reads_the_binary_archive(tmp_path, dataset):
    form = FORMATS[dataset]
    archive = tmp_path / form.url.rsplit("/", 1)[-1]
    labels = write_cifar_archive(archive, dataset)
    for split in ("train", "test"):
        source = CIFAR(dataset, split, tmp_path, any_checksum=True)  # found in its folder
        assert len(source) == {"train": 50_000, "test": 10_000}[split]
        assert source.classes[:2] == ("name0", "name1") and len(source.classes) == form.num_classes
        np.testing.assert_array_equal(source.labels, labels[split])
        per_file = form.images_per_file[split]
        for index in (0, 1, 255, 256, 9_999, len(source) - 1):
            image, label = source[index]
            assert image.shape == (32, 32, 3) and label == labels[split][index]
            place = index % per_file
            assert (image[..., 0] == place % 256).all() and (image[..., 1] == place // 256).all()
            assert (image[..., 2] == np.arange(32)[:, None]).all()  # rows stay rows

    with pytest.raises(ValueError, match="checksum differs"):
        CIFAR(dataset, "test", archive)
    unpacked = tmp_path / "unpacked"
    (unpacked / form.folder).mkdir(parents=True)
    with tarfile.open(archive) as opened:
        for member in opened:
            (unpacked / member.name).write_bytes(opened.extractfile(member).read())
    for place in (unpacked, unpacked / form.folder):
        np.testing.assert_array_equal(CIFAR(dataset, "test", place).labels, labels["test"])
    part = unpacked / form.folder / form.files["test"][0]
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ValueError, match="bytes, expected"):
        CIFAR(dataset, "test", unpacked)
    part.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {part.name}"):
        CIFAR(dataset, "test", unpacked)


def test_cifar_refuses_other_archives(tmp_path):
    damaged = tmp_path / "cifar-10-binary.tar.gz"
    damaged.write_bytes(gzip.compress(b"not a tar"))
    with pytest.raises(ValueError, match="damaged archive"):
        CIFAR("cifar10", "train", damaged, any_checksum=True)
    with tarfile.open(damaged, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("cifar-10-batches-py/data_batch_1"))
    with pytest.raises(ValueError, match="not the binary archive"):
        CIFAR("cifar10", "train", damaged, any_checksum=True)
    with pytest.raises(FileNotFoundError, match="--source"):
        CIFAR("cifar10", "train", tmp_path / "nowhere")


def idx(array):
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_fashion_mnist_from_a_folder(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
    labels = np.arange(7, dtype=np.uint8)
    contents = {"t10k-images-idx3-ubyte": idx(images), "t10k-labels-idx1-ubyte": idx(labels)}
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(contents["t10k-images-idx3-ubyte"]))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(contents["t10k-labels-idx1-ubyte"])  # unpacked
    with pytest.raises(ValueError, match="checksum differs"):
        FashionMNIST("test", tmp_path)
    sums = {name: ("", hashlib.sha256(content).hexdigest()) for name, content in contents.items()}
    monkeypatch.setattr(fashion_module, "FILES", sums)
    source = FashionMNIST("test", tmp_path)
    assert len(source) == 7 and source.classes[9] == "ankle boot"
    image, label = source[3]
    assert label == 3 and image.shape == (32, 32, 3) and image.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(image[2:30, 2:30, channel], images[3])
    assert image[:2].max() == 0 and image[:, 30:].max() == 0
    with pytest.raises(FileNotFoundError, match="train-images"):
        monkeypatch.setattr(fashion_module, "FILES", {**sums, "train-images-idx3-ubyte": ("", "")})
        FashionMNIST("train", tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8bno gzip")
    with pytest.raises(ValueError, match="damaged gzip"):
        FashionMNIST("test", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX"),
        (b"\0\0\x0d\1abcd", "not an IDX"),
        (idx(np.zeros(9, np.uint8))[:-1], "truncated"),
        (b"\0\0\x08\x03\0\0", "truncated"),
    ],
)
def test_bad_idx_files_are_refused(content, message):
    with pytest.raises(ValueError, match=message):
        parse_idx(content, "file")


def test_published_checksums_are_told_apart():
    check_digest(b"abc", hashlib.md5(b"abc").hexdigest(), "x")
    check_digest(b"abc", hashlib.sha256(b"abc").hexdigest(), "x")
    with pytest.raises(ValueError, match="x: checksum differs"):
        check_digest(b"abd", hashlib.md5(b"abc").hexdigest(), "x")


def test_download_failure_names_the_way_out(tmp_path, monkeypatch):
    import requests

    def refuse(*_, **__):
        raise requests.ConnectionError("no network")

    monkeypatch.setattr("requests.get", refuse)
    with pytest.raises(ConnectionError, match=r"cifar-10-binary\.tar\.gz by hand .* --source"):
        CIFAR("cifar10", "train", None, tmp_path)
    monkeypatch.setattr(fashion_module, "DEBIAN_FOLDERS", (tmp_path / "none",))
    with pytest.raises(ConnectionError, match="train-images-idx3-ubyte.gz"):
        FashionMNIST("train", None, tmp_path)
    for published in (*FORMATS.values(), STL10_ARCHIVE):
        assert len(bytes.fromhex(published.sha256)) == 32  # a download is always checked


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("html", "an HTML page .* came instead of the file.*by hand and name its folder with --source"),
        ("other", r"a file of another checksum came \(sha256 .*by hand and name its folder with --source"),
        ("truncated", "it broke off after"),
    ],
)
def test_downloads_come_whole_or_not_at_all(tmp_path, monkeypatch, way, message):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    content, path = b"0123456789" * 1000, tmp_path / "x.tar.gz"
    right = hashlib.sha256(content).hexdigest()
    with ReleasedHost() as host:
        url = host.url.format(id="f") + "/x.tar.gz"
        host.files["f"], host.ways["f"] = b"other" if way == "other" else content, way if way != "other" else ""
        path.write_bytes(b"what was there")
        with pytest.raises((ConnectionError, ValueError), match=message):
            download(url, right, tmp_path)
        assert path.read_bytes() == b"what was there"
        host.files["f"] = content
        host.ways.clear()
        assert download(url, right, tmp_path) == path and path.read_bytes() == content
        asked = len(host.asked)
        download(url, right, tmp_path)
        assert len(host.asked) == asked and not (tmp_path / "x.tar.gz.partial").exists()
        host.shutdown()


def test_fashion_mnist_is_also_found_where_set_up_without_root_unpacks_it(tmp_path, monkeypatch):
    assert fashion_module.DEBIAN_FOLDERS[1] == Path(sys.prefix) / "system/usr/share/datasets/fashion-mnist"
    monkeypatch.setattr(fashion_module, "DEBIAN_FOLDERS", (tmp_path / "none", tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/train-images-idx3-ubyte.gz is missing"):
        FashionMNIST("train")


def test_image_folder_labels_like_torchvision(tmp_path):
    for name, color in (("zebra", (255, 0, 0)), ("ant", (0, 255, 0)), ("Bee", (0, 0, 255))):
        (tmp_path / name / "deeper").mkdir(parents=True)
        Image.new("RGB", (5, 4), color).save(tmp_path / name / "deeper" / "ä b.png")
        Image.new("L", (4, 4), 7).save(tmp_path / name / "grey.PNG")
        (tmp_path / name / "notes.txt").write_text("no image")
    source = ImageFolder(tmp_path)
    assert source.classes == ("Bee", "ant", "zebra") and len(source) == 6
    seen = [(tuple(int(v) for v in image[0, 0]), label) for image, label in (source[i] for i in range(6))]
    red, green, blue, grey = (255, 0, 0), (0, 255, 0), (0, 0, 255), (7, 7, 7)
    assert seen == [(blue, 0), (grey, 0), (green, 1), (grey, 1), (red, 2), (grey, 2)]
    (tmp_path / "ant" / "bad.jpg").write_bytes(b"\xff\xd8\xff rubbish")
    source = ImageFolder(tmp_path)
    with pytest.raises(ValueError, match="bad.jpg: cannot be read"):
        for i in range(len(source)):
            source[i]
    with pytest.raises(FileNotFoundError, match="no images"):
        (tmp_path / "empty").mkdir()
        ImageFolder(tmp_path / "empty")


def flat_png(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value,) * 3).save(path, "PNG")


def test_the_size_wanted_reaches_the_decoder_and_the_fingerprint(tmp_path):
    (tmp_path / "a").mkdir()
    y, x = np.mgrid[0:300, 0:400]
    Image.fromarray((x // 2 + y // 4).astype(np.uint8)).save(tmp_path / "a" / "0.jpg")
    shapes, fingerprints = [], set()
    for res, fit in ((None, "square"), (32, "square"), (52, "square"), (52, "longest")):
        source = ImageFolder(tmp_path, None, res, fit)
        shapes.append(source[0][0].shape[:2])
        fingerprints.add(source.fingerprint())
    assert shapes == [(300, 400), (32, 32), (52, 52), (39, 52)] and len(fingerprints) == 4
    flat_png(tmp_path / "a" / "1.png", 0)
    assert ImageFolder(tmp_path).fingerprint() not in fingerprints


def test_folders_with_links_loops_and_odd_names(tmp_path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    odd = [b"new\nline.png", b" space .png", b"-dash.png", b"\xff\xfe.png", "\u00e4\u6f22.PNG".encode(), b"%s{}.png"]
    for value, name in enumerate(sorted(odd)):
        flat_png(elsewhere / "flat.png", value)
        folder = os.path.join(bytes(root), b"cl\xe4ss")
        os.makedirs(folder, exist_ok=True)
        os.rename(elsewhere / "flat.png", os.path.join(folder, name))
    flat_png(elsewhere / "deep" / "x.png", 77)
    (root / "linked").symlink_to(elsewhere)
    (root / "linked" / "up").symlink_to(root)  # root/linked/up/linked/up/...
    (root / "linked" / "self.png").symlink_to("self.png")
    (root / "linked" / "here").symlink_to(".")
    (root / "linked" / "folder.jpg").mkdir()
    flat_png(root / "linked" / "folder.jpg" / "y.png", 78)
    (root / "linked" / "broken.jpg").symlink_to("nowhere")
    for source in (ImageFolder(root), pickle.loads(pickle.dumps(ImageFolder(root)))):
        assert [os.fsencode(name) for name in source.classes] == [b"cl\xe4ss", b"linked"]
        assert [source[i][0][0, 0, 0] for i in range(6)] == list(range(6)) and set(source.labels[:6]) == {0}
        assert [os.path.basename(os.fsencode(source.path(i))) for i in range(6)] == sorted(odd)
        below = [os.path.relpath(source.path(i), root / "linked") for i in range(6, len(source))]
        assert below == ["broken.jpg", "deep/x.png", "folder.jpg/y.png", "self.png"]
        for place, message in ((6, "broken.jpg.*No such file"), (9, "self.png.*symbolic links")):
            with pytest.raises(ValueError, match=message):
                source[place]


def test_a_forbidden_folder_is_an_error(tmp_path):
    flat_png(tmp_path / "a" / "b" / "x.png", 1)
    user, mode = os.geteuid(), 0o755
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        folder.chmod(mode)
    (tmp_path / "a" / "b").chmod(0)
    if user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(PermissionError, match="a"):
            ImageFolder(tmp_path)
    finally:
        os.seteuid(user)
        (tmp_path / "a" / "b").chmod(mode)


def test_names_are_compact():
    words = [b"", *(b"n%08d_%d.JPEG" % (i % 1000, i) for i in range(40_000)), b"\xff\n", b""]
    names = PackedNames(words)
    assert [names[i] for i in range(len(words))] == words and names[-2] == b"\xff\n"
    again = pickle.loads(pickle.dumps(names))
    assert again.crc() == names.crc() != PackedNames(words[1:]).crc()
    assert PackedNames([b"a", b"bc"]).crc() != PackedNames([b"ab", b"c"]).crc()
    again.append(b"more")
    assert again[len(words)] == b"more" and len(again) == len(words) + 1
    with pytest.raises(IndexError):
        names[len(words)]
    assert len(pickle.dumps(names)) < sum(map(len, words)) + 9 * len(words)  # offsets are all there is beside the text
    assert len(PackedNames()) == 0 and len(pickle.loads(pickle.dumps(PackedNames()))) == 0


def test_large_folders_take_little_memory(tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(20_000):
        os.close(os.open(tmp_path / "a" / f"n00000000_{i:05d}.JPEG", os.O_CREAT | os.O_WRONLY))
    ImageFolder(tmp_path)  # what is imported late
    tracemalloc.start()
    source = ImageFolder(tmp_path)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 20_000 and size < 20_000 * 60 and len(pickle.dumps(source)) < 20_000 * 40


def test_a_fraction_of_every_class():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 4], [1000, 300, 3, 1]))
    source = ArraySource(np.zeros((len(labels), 2, 2, 3), np.uint8), labels, tuple("abcde"))
    parts = train_val_split(source, 0.1, 5)
    assert sorted([*parts["train"].indices, *parts["val"].indices]) == list(range(len(labels)))
    assert len(parts["val"]) == 130
    with pytest.raises(ValueError, match="--holdout"):
        train_val_split(source, 1.0, 0)
    with pytest.raises(ValueError, match="only 1 image"):
        train_val_split(ArraySource(source.images[:1], labels[:1], source.classes), 0.5, 0)


def test_manifests(tmp_path):
    for value in range(4):
        flat_png(tmp_path / "pictures" / f"{value}, \u00e4.png", value)
    rows = [(2, "zebra", "train"), (0, "ant", "val"), (3, "Bee", "train"), (1, "ant", "train")]
    table = tmp_path / "table.csv"
    with table.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "path", "note", "split"])
        writer.writerows([label, f"pictures/{v}, \u00e4.png", "a\nb", split] for v, label, split in rows)
    lines = tmp_path / "lines.jsonl"
    lines.write_text(
        "\n".join(
            json.dumps({"path": str(tmp_path / "pictures" / f"{v}, \u00e4.png"), "label": label, "split": split})
            for v, label, split in rows
        )
        + "\n\n"
    )
    for path in (table, lines):
        whole, val = Manifest(path), pickle.loads(pickle.dumps(Manifest(path, "val")))
        assert whole.classes == val.classes == ("Bee", "ant", "zebra") and whole.splits == ("train", "val")
        assert [(int(image[0, 0, 0]), label) for image, label in (whole[i] for i in range(4))] == [
            (2, 2),
            (0, 1),
            (3, 0),
            (1, 1),
        ]
        assert len(val) == 1 and val[0][1] == 1
    table.write_text("path,label\n0.png,10\n1.png,9\n2.png,-1\n")
    assert Manifest(table).classes == ("-1", "9", "10") and Manifest(table).labels.tolist() == [2, 1, 0]
    lines.write_text('{"path": "a", "label": 10}\n{"path": "b", "label": 9}\n')
    assert Manifest(lines).classes == ("9", "10") and Manifest(lines).splits == ()
    with pytest.raises(ValueError, match="/0.png: cannot be read as an image .No such file"):
        Manifest(table)[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "", "x.csv, line 1: the header lacks label and path"),
        ("x.csv", "file,label\n", "line 1: the header lacks path"),
        ("x.csv", "path,label\n", "x.csv names no images"),
        ("x.csv", "path,label\na.png,cat\nb.png\n", "x.csv, line 3: expected 2 columns"),
        ("x.csv", "path,label\na.png,cat,x\n", "x.csv, line 2: expected 2 columns"),
        ("x.csv", "path,label\na.png,\n", "x.csv, line 2: no label"),
        ("x.csv", "path,label\n,cat\n", "x.csv, line 2: no path"),
        ("x.csv", 'path,label\n"a"b,cat\n', "x.csv, line 2: not CSV"),
        ("x.csv", "path,label\na\0b.png,cat\n", "x.csv, line 2: (not CSV|.* cannot be the name)"),
        ("x.csv", "path,label,split\na,cat,train\nb,cat,\n", "some rows have a split"),
        ("x.jsonl", '{"path": "a", "label": 1}\n{"path": \n', "x.jsonl, line 2: not JSON"),
        ("x.jsonl", '["a", 1]\n', "x.jsonl, line 1: expected an object"),
        ("x.jsonl", '{"path": "a", "label": 1.5}\n', "line 1: label is 1.5, expected text or a whole number"),
        ("x.jsonl", '{"path": "a", "label": true}\n', "line 1: label is True"),
        ("x.jsonl", '{"path": 3, "label": 1}\n', "line 1: path is 3, expected text"),
        ("x.jsonl", '{"label": 1}\n', "line 1: no path"),
        ("x.jsonl", '{"path": "\\ud800", "label": 1}\n', "line 1: .* cannot be the name of a file"),
    ],
)
def test_bad_manifests_name_the_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        Manifest(tmp_path / name)


def test_the_script_writes_a_manifest(tmp_path, script):
    for value in range(6):
        flat_png(tmp_path / f"{value}.png", value)
    manifest, flags = tmp_path / "m.csv", ("--res", 8, "--num-workers", 1)
    for rows, splits in (
        ([f"{v}.png,c{v % 2}," + ("test" if v > 3 else "train") for v in range(6)], ("train", "test")),
        ([f"{v}.png,c{v % 2}" for v in range(6)], ("train", "val")),
    ):
        header = "path,label,split" if rows[0].count(",") == 2 else "path,label"
        manifest.write_text("\n".join([header, *rows]) + "\n")
        out = tmp_path / splits[1]
        ended = script("writers/folder.py", "--name", "pets", "--manifest", manifest, "--out", out, *flags)
        assert ended.code == 0, ended.err
        for split in splits:
            metadata = json.loads(sidecar_path(beton_path(out, "pets", split, 8)).read_text())
            assert metadata["classes"] == ["c0", "c1"] and metadata["splits"] == list(splits)
    manifest.write_text("path,label,split\n0.png,a,left\n1.png,a,right\n")
    ended = script("writers/folder.py", "--name", "pets", "--manifest", manifest, "--out", tmp_path, *flags)
    assert ended.code == 2 and "found left, right" in ended.err


def test_archives_from_environment_variables(tmp_path, script, monkeypatch):
    for script_name, variable in (("cifar", "CIFAR"), ("fashion_mnist", "FASHION_MNIST"), ("stl10", "STL10")):
        monkeypatch.setenv(variable, str(tmp_path / "nowhere"))
        ended = script(f"writers/{script_name}.py", "--out", tmp_path)
        assert ended.code == 2 and "nowhere" in ended.err and "--source" in ended.err


def test_odd_trees_are_refused(tmp_path):
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "x.png")
    (tmp_path / "train" / ".git").mkdir()
    classes = ImageFolder(tmp_path / "train").classes
    assert classes == ("a", "b")
    (tmp_path / "val" / "c").mkdir()
    with pytest.raises(ValueError, match="classes that the training images do not have: c"):
        ImageFolder(tmp_path / "val", classes)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no images"):
        ImageFolder(tmp_path / "train")


def test_synthetic_is_deterministic_and_learnable():
    train, again = Synthetic(400, 4, 8), Synthetic(400, 4, 8)
    np.testing.assert_array_equal(train[123][0], again[123][0])
    assert (train[123][0] != train[127][0]).any() and (train[1][0] != Synthetic(400, 4, 8, "test")[1][0]).any()
    assert (train[1][0] != Synthetic(400, 4, 8, seed=1)[1][0]).any()
    # Nearest class mean, fitted on the training split, gets the test split right.
    pixels = np.stack([train[i][0].ravel() for i in range(400)]).astype(float)
    means = np.stack([pixels[np.arange(400) % 4 == k].mean(0) for k in range(4)])
    test = Synthetic(100, 4, 8, "test")
    right = [np.argmin(((means - test[i][0].ravel()) ** 2).sum(1)) == test[i][1] for i in range(100)]
    assert np.mean(right) > 0.9


def test_fit_square():
    image = np.zeros((10, 20, 3), np.uint8)
    image[:, 5:15] = 200  # the centre square
    assert (fit_image(image, 4) == 200).all()
    ramp = np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2)
    small = fit_image(ramp, 8)[:, 2:6, 0].astype(int)  # antialiased: the mean of neighbours, not one of them
    assert np.abs(small - (ramp[0, 4:12:2, 0].astype(int) + 8)).max() <= 1
    same = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit_image(same, 6), same)
