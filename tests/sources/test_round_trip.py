"""Every source, in its published format, through the writer and back: by stock FFCV's loader and by ours."""

import gzip
import hashlib
import os

import ffcv.loader
import numpy as np
import pytest
import test_imagenet as imagenet_files
import test_sources as source_files
from encoded_images import JPEG, PHOTO, encoded, png_claiming
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.transforms import ToTensor
from PIL import Image

from fastmlp.beton.writer import write_beton
from fastmlp.loader.loader import Loader
from fastmlp.sources import fashion_mnist, imagenet
from fastmlp.sources.base import Subset
from fastmlp.sources.cifar import CIFAR, FORMATS
from fastmlp.sources.fashion_mnist import FashionMNIST
from fastmlp.sources.fit import fit_image
from fastmlp.sources.folder import ImageFolder
from fastmlp.sources.manifest import Manifest
from fastmlp.sources.stl10 import STL10
from fastmlp.sources.synthetic import Synthetic
from fastmlp.sources.tar import TarImages
from fastmlp.sources.tiny_imagenet import tiny_imagenet


def cifar(dataset):
    def make(root, _):
        source_files.write_cifar_archive(root / FORMATS[dataset].url.rsplit("/", 1)[-1], dataset)
        return Subset(CIFAR(dataset, "test", root, any_checksum=True), np.arange(0, 10_000, 97))

    return make


def fashion(root, monkeypatch):
    contents = {
        "t10k-images-idx3-ubyte": source_files.idx(np.random.default_rng(0).integers(0, 256, (50, 28, 28), np.uint8)),
        "t10k-labels-idx1-ubyte": source_files.idx((np.arange(50) % 10).astype(np.uint8)),
    }
    for name, content in contents.items():
        (root / f"{name}.gz").write_bytes(gzip.compress(content))
    sums = {name: ("", hashlib.sha256(content).hexdigest()) for name, content in contents.items()}
    monkeypatch.setattr(fashion_mnist, "FILES", sums)
    return FashionMNIST("test", root)


def trained(make):
    def source(root, _):
        make(root)
        return imagenet.train(root, 16)

    return source


def validated(make):
    def source(root, _):
        imagenet_files.train_tree(root)
        make(root)
        lines = [f"ILSVRC2012_val_{n:08d}.JPEG {k}\n" for n, k in enumerate(imagenet_files.VAL_LABELS, 1)]
        (root / "val.txt").write_text("".join(lines))
        return imagenet.val(root, imagenet_files.WNIDS, 16)

    return source


def stl(root, monkeypatch):
    files = imagenet_files.stl10_files(monkeypatch)
    (root / "stl10_binary.tar.gz").write_bytes(gzip.compress(imagenet_files.tar(files), 1))
    return STL10("train", root, any_checksum=True)


def tiny(root, _):
    return tiny_imagenet("val", imagenet_files.write_tiny(root), 16)


def class_tars(root, _):
    for wnid, files in imagenet_files.train_files().items():
        (root / f"{wnid}.tar").write_bytes(imagenet_files.tar(files))
    return TarImages(sorted(root.glob("*.tar")), None, 16)


def manifest(root, _):
    for value in range(5):
        source_files.flat_png(root / f"{value}.png", value)
    (root / "m.csv").write_text("path,label\n" + "".join(f"{v}.png,{'ab'[v % 2]}\n" for v in (3, 1, 4, 0, 2)))
    return Manifest(root / "m.csv", None, 16)


SOURCES = {
    "cifar10": cifar("cifar10"),
    "cifar100": cifar("cifar100"),
    "fashion_mnist": fashion,
    "synthetic": lambda *_: Synthetic(40, 5, 16),
    "stl10": stl,
    "tiny_imagenet": tiny,
    "manifest": manifest,
    "imagenet train tree": trained(imagenet_files.train_tree),
    "imagenet train tar": trained(imagenet_files.train_tar),
    "imagenet val tree": validated(imagenet_files.val_tree),
    "imagenet val flat": validated(imagenet_files.val_flat),
    "imagenet val tar": validated(imagenet_files.val_tar),
    "imagenet21k tars": class_tars,
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_sample_comes_back(tmp_path, monkeypatch, name):
    source = SOURCES[name](tmp_path, monkeypatch)
    path = write_beton(tmp_path / "x.beton", source, 16, seed=2)
    order = np.random.default_rng(2).permutation(len(source))
    wanted = [source[int(i)] for i in order]
    for kind in (ffcv.loader.Loader, Loader):
        loader = kind(
            str(path),
            7,
            num_workers=1,
            drop_last=False,
            pipelines={"image": [SimpleRGBImageDecoder(), ToTensor()], "label": [IntDecoder(), ToTensor()]},
        )
        read = [pair for x, y in loader for pair in zip(x.numpy().copy(), y.flatten().tolist(), strict=True)]
        assert len(read) == len(source)
        for (image, label), (expected, expected_label) in zip(read, wanted, strict=True):
            np.testing.assert_array_equal(image, fit_image(expected, 16))
            assert label == expected_label


BAD = {
    "empty.jpg": b"",
    "text.jpg": b"just some text",
    "cut.jpg": JPEG[:2000],
    "end.jpg": JPEG[:-20],
    "cut.png": encoded(PHOTO, "PNG")[:1500],
    "bomb.png": png_claiming(50_000, 50_000),
    "cut \u00e4.webp": encoded(PHOTO, "WEBP")[:900],
}
GOOD = {
    "rgb.png": Image.fromarray(PHOTO),
    "grey.jpg": Image.fromarray(PHOTO).convert("L"),
    "cmyk.jpg": Image.fromarray(PHOTO).convert("CMYK"),
    "palette.png": Image.fromarray(PHOTO).convert("P"),
    "alpha.png": Image.fromarray(PHOTO).convert("RGBA"),
    "two\nlines.png": Image.fromarray(PHOTO),
}


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_images_stop_the_writing_or_are_left_out(tmp_path, workers, monkeypatch):
    monkeypatch.setattr("fastmlp.beton.writer.CHUNK_BYTES", 5000)  # several chunks, so that both processes work
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name, image in GOOD.items():
        image.save(tmp_path / "images" / "a" / name)
    sound = write_beton(tmp_path / "good.beton", ImageFolder(tmp_path / "images", None, 16), 16, seed=None)
    for name, content in BAD.items():
        (tmp_path / "images" / "a" / name).write_bytes(content)
    (tmp_path / "images" / "a" / "folder.jpg").symlink_to("nowhere.jpg")
    bad = sorted([*BAD, "folder.jpg"])
    source = ImageFolder(tmp_path / "images", None, 16)
    with pytest.raises(ValueError, match=r"images/a/[\w. ]+: cannot be read as an image \(") as caught:
        write_beton(tmp_path / "stop.beton", source, 16, num_workers=workers)
    assert any(name in str(caught.value) for name in bad) and not (tmp_path / "stop.beton").exists()
    path = write_beton(tmp_path / "skip.beton", source, 16, seed=None, num_workers=workers, on_error="skip")
    listed = (tmp_path / "skip.skipped.txt").read_text().splitlines()
    assert [os.path.basename(line.split(": cannot")[0]) for line in listed] == bad
    both = []
    for beton in (sound, path):
        loader = ffcv.loader.Loader(
            str(beton), 100, num_workers=1, drop_last=False, pipelines={"image": [SimpleRGBImageDecoder(), ToTensor()]}
        )
        both.append(next(iter(loader))[0].numpy().copy())
    np.testing.assert_array_equal(*both)
