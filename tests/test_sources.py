"""Sources against archives made here in exactly the published formats."""

import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from fastmlp.sources import cifar as cifar_module
from fastmlp.sources import fashion_mnist as fashion_module
from fastmlp.sources.base import check_digest, fit_square
from fastmlp.sources.cifar import CIFAR, FORMATS
from fastmlp.sources.fashion_mnist import FashionMNIST, parse_idx
from fastmlp.sources.folder import ImageFolder
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
    with pytest.raises(FileNotFoundError, match="missing"):
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
    [(b"", "not an IDX"), (b"\0\0\x0d\1abcd", "not an IDX"), (idx(np.zeros(9, np.uint8))[:-1], "truncated"),
     (b"\0\0\x08\x03\0\0", "truncated")],
)  # fmt: skip
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

    monkeypatch.setattr("pooch.retrieve", refuse)
    with pytest.raises(ConnectionError, match=r"cifar-10-binary\.tar\.gz by hand .* --source"):
        CIFAR("cifar10", "train", None, tmp_path)
    monkeypatch.setattr(fashion_module, "DEBIAN_FOLDER", tmp_path / "none")
    with pytest.raises(ConnectionError, match="train-images-idx3-ubyte.gz"):
        FashionMNIST("train", None, tmp_path)
    assert cifar_module.FORMATS["cifar10"].md5  # a download is always checked


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


def test_upright_and_16_bit_images(tmp_path):
    (tmp_path / "a").mkdir()
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255  # top left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees to show
    Image.fromarray(pixels).save(tmp_path / "a" / "0.png", exif=exif)
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "a" / "1.png")
    source = ImageFolder(tmp_path)
    assert source[0][0].shape == (6, 4, 3) and tuple(source[0][0][0, 3]) == (255, 255, 255)
    assert (source[1][0] == 0x80).all() and source[1][0].shape == (4, 4, 3)


def test_jpeg_is_decoded_as_small_as_suffices(tmp_path):
    (tmp_path / "a").mkdir()
    y, x = np.mgrid[0:300, 0:400]
    photo = np.stack([128 + 90 * np.sin(x / 30), 128 + 90 * np.cos(y / 25), (x + y) / 3], -1).astype(np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(photo).save(tmp_path / "a" / "0.jpg", quality=95)
    Image.fromarray(photo).save(tmp_path / "a" / "1.jpg", quality=95, exif=turned)
    Image.fromarray(photo[:60, :70]).save(tmp_path / "a" / "2.jpg", quality=95)
    Image.fromarray(photo).save(tmp_path / "a" / "3.png")
    whole, small = ImageFolder(tmp_path), ImageFolder(tmp_path, res=32)
    assert [small[i][0].shape[:2] for i in range(4)] == [(75, 100), (100, 75), (60, 70), (300, 400)]
    for i in range(4):
        difference = fit_square(whole[i][0], 32).astype(int) - fit_square(small[i][0], 32)
        assert np.abs(difference).mean() < 2 and (i < 2 or not difference.any())
    assert whole.fingerprint() != small.fingerprint()


def test_odd_trees_are_refused(tmp_path):
    for name in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "x.png")
    (tmp_path / "train" / ".git").mkdir()
    classes = ImageFolder(tmp_path / "train").classes
    assert classes == ("a", "b")
    (tmp_path / "val" / "c").mkdir()
    with pytest.raises(ValueError, match="classes that the training images have not: c"):
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
    assert (fit_square(image, 4) == 200).all()
    ramp = np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[None, :, None], 16, 0).repeat(3, 2)
    small = fit_square(ramp, 8)[:, 2:6, 0].astype(int)  # antialiased: the mean of neighbours, not one of them
    assert np.abs(small - (ramp[0, 4:12:2, 0].astype(int) + 8)).max() <= 1
    same = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(fit_square(same, 6), same)
