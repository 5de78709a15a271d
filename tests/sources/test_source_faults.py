"""Damage of one file is a ValueError that names it; a fault of the machine stops the run, and names the file, too."""

import errno
import gzip
import io
import json
import os
import random
import tarfile
import zipfile

import numpy as np
import pytest
import test_imagenet as files
from encoded_images import JPEG

from fastmlp.beton.writer import write_beton
from fastmlp.sources import fashion_mnist, imagenet
from fastmlp.sources.cifar import CIFAR
from fastmlp.sources.decode import read_file
from fastmlp.sources.fashion_mnist import FashionMNIST
from fastmlp.sources.faults import naming
from fastmlp.sources.folder import ImageFolder
from fastmlp.sources.manifest import Manifest
from fastmlp.sources.tar import TarImages
from fastmlp.sources.tiny_imagenet import tiny_imagenet

SICK = "/proc/self/mem"  # a regular file; to read its first byte is an input/output error


def read_all(source):
    for index in range(len(source)):
        source[index]


def class_tars(root):
    for wnid, contents in files.train_files().items():
        (root / f"{wnid}.tar").write_bytes(files.tar(contents))
    return TarImages(sorted(root.glob("*.tar")), None, 8)


def in_zip(root):
    return tiny_imagenet("train", files.write_tiny(root), 8)


def in_folders(root):
    files.train_tree(root)
    return ImageFolder(root / "train", None, 8)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT])
@pytest.mark.parametrize(
    ("make", "function", "name"),
    [
        (class_tars, "os.pread", r"n0144\d+\.tar"),
        (class_tars, "os.open", r"n0144\d+\.tar"),
        (in_zip, "zipfile.ZipFile.read", r"tiny-imagenet-200\.zip"),
        (in_zip, "zipfile.ZipFile.__init__", r"tiny-imagenet-200\.zip"),
        (in_folders, "os.open", r"train/n0\d+/n0\d+_\d\.JPEG"),
    ],
)
def test_a_fault_while_reading_stops_the_run(tmp_path, monkeypatch, make, function, name, number):
    source = make(tmp_path)

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(function, fail)
    with pytest.raises(OSError, match=rf"{os.strerror(number)}.*{name}") as caught:
        source[0]
    assert caught.value.errno == number
    monkeypatch.undo()
    monkeypatch.setattr(type(source), "read_bytes", lambda self, index: fail())
    with pytest.raises(OSError, match=os.strerror(number)):  # not left out as a bad image
        write_beton(tmp_path / "x.beton", source, 8, on_error="skip")


@pytest.mark.parametrize("make", [class_tars, in_zip])
def test_an_archive_that_vanishes_stops_the_run(tmp_path, make):
    source = make(tmp_path)
    for path in (*tmp_path.glob("*.tar"), *tmp_path.glob("*.zip")):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"\.(tar|zip)"):
        source[0]


def test_too_many_open_files_stop_the_run(tmp_path):
    import resource

    sources = []
    for make in (class_tars, in_zip, in_folders):
        (tmp_path / make.__name__).mkdir()
        sources.append(make(tmp_path / make.__name__))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    os.close(lowest)
    held = []
    try:
        while True:
            try:
                held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                break
        for source in sources:
            with pytest.raises(OSError, match=r"Too many open files: .*n0\d+|Too many open files: .*zip"):
                source[0]
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def sick_idx(root):
    for kind in ("images-idx3", "labels-idx1"):
        (root / f"t10k-{kind}-ubyte.gz").symlink_to(SICK)
    FashionMNIST("test", root)


def sick_cifar(root):
    (root / "cifar-10-batches-bin").mkdir()
    for name in ("test_batch.bin", "batches.meta.txt"):
        (root / "cifar-10-batches-bin" / name).symlink_to(SICK)
    CIFAR("cifar10", "test", root)


def sick_cifar_archive(root):
    (root / "cifar-10-binary.tar.gz").symlink_to(SICK)
    CIFAR("cifar10", "test", root)


def sick_tiny(root):
    files.write_tiny(root)
    zipfile.ZipFile(root / "tiny-imagenet-200.zip").extractall(root)
    (root / "tiny-imagenet-200.zip").unlink()
    (root / "tiny-imagenet-200" / "wnids.txt").unlink()
    (root / "tiny-imagenet-200" / "wnids.txt").symlink_to(SICK)
    tiny_imagenet("train", root)


def sick_manifest(root):
    (root / "m.csv").symlink_to(SICK)
    Manifest(root / "m.csv")


def sick_labels(root):
    (root / "val.txt").symlink_to(SICK)
    imagenet.validation_labels(root / "val.txt", files.WNIDS)


def sick_real(root):
    files.val_tree(root)
    (root / "real.json").symlink_to(SICK)
    imagenet.val(root, files.WNIDS, real=root / "real.json")


def sick_image(root):
    (root / "x.jpg").symlink_to(SICK)
    read_file(str(root / "x.jpg"))


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (sick_idx, "t10k-images-idx3-ubyte.gz"),
        (sick_cifar, "test_batch.bin"),
        (sick_cifar_archive, "cifar-10-binary.tar.gz"),
        (sick_tiny, "wnids.txt"),
        (sick_manifest, "m.csv"),
        (sick_labels, "val.txt"),
        (sick_real, "real.json"),
        (sick_image, "x.jpg"),
    ],
)
def test_an_error_of_the_disk_names_the_file(tmp_path, read, name):
    with pytest.raises(OSError, match=f"Input/output error: .*{name}") as caught:
        read(tmp_path)
    assert caught.value.errno == errno.EIO


def test_an_error_of_the_disk_while_an_archive_is_indexed(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "x.tar").write_bytes(files.tar({"a.jpg": JPEG}))
    archive = files.write_tiny(tmp_path)
    monkeypatch.setattr("tarfile.TarFile.next", fail)
    monkeypatch.setattr("zipfile.ZipFile.namelist", fail)
    with pytest.raises(OSError, match=r"Input/output error: .*x\.tar"):
        TarImages(tmp_path / "x.tar")
    with pytest.raises(OSError, match=r"Input/output error: .*tiny-imagenet-200\.zip"):
        tiny_imagenet("train", archive)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("a"),
        RecursionError("too deep"),
        OverflowError("large"),
        NotImplementedError("compression type 9"),
        EOFError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        gzip.BadGzipFile("no gzip"),
        OSError("Invalid data stream"),
        OSError(errno.EINVAL, "Invalid argument"),
        ValueError("negative seek value -5"),
    ],
)
def test_damage_names_the_file(error):
    with pytest.raises(ValueError, match=r"^a/b\.zip: damaged archive \(.+\)$"), naming("a/b.zip"):
        raise error


def changed_zip(path, offset, content):
    """Write the zip with other bytes at an offset of each entry's record in its directory."""
    archive = bytearray(path.read_bytes())
    at = -1
    while (at := archive.find(b"PK\x01\x02", at + 1)) >= 0:
        archive[at + offset : at + offset + len(content)] = content
    path.write_bytes(archive)


@pytest.mark.parametrize(
    ("offset", "content"),
    [(10, b"\x61\0"), (10, b"\x0c\0"), (10, b"\x0e\0"), (8, b"\1\0"), (6, b"\xff\0"), (42, b"\xff\xff\xff\x7f")],
)
def test_zips_that_python_cannot_read_are_named(tmp_path, offset, content):
    """Compression PPMd, wrong bzip2 and LZMA, a password, a version of the future, a wrong offset."""
    archive = files.write_tiny(tmp_path)
    changed_zip(archive, offset, content)
    with pytest.raises(ValueError, match=r"tiny-imagenet-200\.zip: "):
        read_all(tiny_imagenet("train", archive))


def devkit(**members):
    """Return the devkit's tar with some members replaced: content, or the name that a link leads to."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.devkit_files().items():
            content = members.get(name.rsplit("/")[-1].split(".")[0], content)
            if isinstance(content, bytes):
                files.add(archive, name, content)
                continue
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, content
            archive.addfile(link)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        devkit(meta="nowhere"),
        devkit(meta="meta.mat"),
        devkit(ILSVRC2012_validation_ground_truth="/etc/passwd"),
        pytest.param(gzip.compress(devkit(), mtime=0)[:-400], id="content3"),  # its bytes hold the time
        gzip.compress(devkit(), mtime=0)[:300],
        devkit()[:3000],
        devkit(meta=b""),
        devkit(ILSVRC2012_validation_ground_truth=b"\xff\xfe\0\0"),
        devkit(ILSVRC2012_validation_ground_truth=b"9" * 5000),
        b"ImageId,PredictionString\nILSVRC2012_val_00000001," + b"x" * 140_000,
        b"9" * 5000 + b"\n",
        b"ILSVRC2012_val_00000001.JPEG " + b"9" * 5000 + b"\n",
        b'"' + b"a,\n" * 70_000,
    ],
)
def test_bad_lists_of_labels_are_named(tmp_path, content):
    (tmp_path / "truth").write_bytes(content)
    with pytest.raises(ValueError, match=r"truth[:/ ]"):
        imagenet.validation_labels(tmp_path / "truth", files.WNIDS)


@pytest.mark.parametrize(
    "content",
    [
        b"[[1e30]]",
        b"[[1" + b"0" * 30 + b"]]",
        b"[[1" + b"0" * 5000 + b"]]",
        b"[[1.5]]",
        b"[[true]]",
        b"[[null]]",
        b'[["1"]]',
        b'["12"]',
        b'[{"1": 2}]',
        b"[" * 100_000,
        b"[[" + b"0," * 99 + b"0]]",
        b"[[NaN]]",
        b"\xff\xfe",
        b"",
    ],
)
def test_a_bad_real_json_is_named(tmp_path, content):
    files.val_tree(tmp_path)
    (tmp_path / "real.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"real\.json: "):
        imagenet.val(tmp_path, files.WNIDS, real=tmp_path / "real.json")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", b"path,label\na.png," + b"x" * 140_000),
        ("m.csv", b"\xff\xfep\0a\0t\0h\0,\0l\0a\0b\0e\0l\0\n\0"),
        ("m.jsonl", b'{"path": ' + b"[" * 100_000),
        ("m.jsonl", b'{"path": "a", "label": ' + b"9" * 5000 + b"}"),
        ("m.jsonl", b'{"path": "a", "label": 1e400}'),
    ],
)
def test_bad_manifests_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}[:,] "):
        read_all(Manifest(tmp_path / name))


def test_a_manifest_that_would_block_is_refused(tmp_path):
    os.mkfifo(tmp_path / "m.csv")
    with pytest.raises(ValueError, match=r"m\.csv: not a regular file"):
        Manifest(tmp_path / "m.csv")


def test_texts_in_other_encodings_are_named(tmp_path, script):
    (tmp_path / "classes.txt").write_bytes(b"n01440764\n\xff\xfe\n")
    ended = script("writers/imagenet21k.py", "--source", tmp_path, "--classes", tmp_path / "classes.txt")
    assert ended.code == 2 and "classes.txt: not a text file" in ended.err
    files.write_tiny(tmp_path)
    zipfile.ZipFile(tmp_path / "tiny-imagenet-200.zip").extractall(tmp_path)
    (tmp_path / "tiny-imagenet-200" / "wnids.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"wnids\.txt: cannot be read"):
        tiny_imagenet("train", tmp_path / "tiny-imagenet-200")


def test_links_in_an_archive_of_arrays_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "nowhere"
        archive.addfile(link)
    with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz: .*it lacks test_batch\.bin"):
        CIFAR("cifar10", "test", tmp_path, any_checksum=True)


def test_an_idx_file_cannot_claim_many_dimensions():
    content = b"\0\0\x08\x40" + np.full(64, 2**31, ">u4").tobytes()
    with pytest.raises(ValueError, match="x: an IDX file of 64 dimensions"):
        fashion_mnist.parse_idx(content, "x")


def test_damaged_archives_end_in_one_line_that_names_them(tmp_path):
    rng = random.Random(0)
    tar = files.tar({f"{wnid}.tar": files.tar(contents) for wnid, contents in files.train_files().items()})
    packed = files.write_tiny(tmp_path).read_bytes()
    devkit_tar = gzip.compress(devkit())
    real = json.dumps([[2], [0, 1], [], [1, 0, 2]]).encode()
    files.val_tree(tmp_path)
    readers = {
        "x.tar": (tar, lambda path: read_all(TarImages(path, None, 8))),
        "x.zip": (packed, lambda path: read_all(tiny_imagenet("train", path, 8))),
        "devkit.tar.gz": (devkit_tar, lambda path: imagenet.validation_labels(path, files.WNIDS)),
        "real.json": (real, lambda path: imagenet.val(tmp_path, files.WNIDS, real=path)),
    }
    refused = 0
    for _ in range(40):
        for name, (content, read) in readers.items():
            damaged = bytearray(content)
            for _ in range(rng.choice((1, 1, 4))):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            if rng.random() < 0.2:
                del damaged[rng.randrange(len(damaged)) :]
            (tmp_path / name).write_bytes(damaged)
            try:
                read(tmp_path / name)
            except (ValueError, FileNotFoundError) as error:
                refused += 1
                assert name in str(error) and "\n" not in str(error)
    assert refused > 40


def test_damaged_forms_of_tars_are_refused(tmp_path):
    def written(build):
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            for name in ("cat/0.jpg", "dog/0.jpg"):
                files.add(archive, name, JPEG)
            build(archive)
        return tmp_path / "x.tar"

    def special(name, kind, target=""):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        return lambda archive: archive.addfile(member)

    for build, message in (
        (special("cow", tarfile.DIRTYPE), "cow in it holds no images"),
        (special("cow", tarfile.SYMTYPE, "cat"), "cow in it holds no images"),
        (special("cow/0.jpg", tarfile.LNKTYPE, "cat/0.jpg"), "not a plain file"),
        (special("cow/0.jpg", tarfile.CHRTYPE), "not a plain file"),
    ):
        with pytest.raises(ValueError, match=rf"x\.tar: .*{message}"):
            TarImages(written(build))
    litter = special(".cache", tarfile.DIRTYPE), lambda archive: files.add(archive, "__MACOSX/cow.tar", b"rubbish")
    for build in (*litter, special("cat", tarfile.DIRTYPE)):
        assert TarImages(written(build)).classes == ("cat", "dog")
    path = tmp_path / "x.tar"
    path.write_bytes(path.read_bytes() + files.tar({"cow/0.jpg": JPEG}))
    with pytest.raises(ValueError, match=r"x\.tar: more follows its end: two archives"):
        TarImages(path)


def test_archives_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    for module, size in (("archive", 4000), ("fashion_mnist", 100), ("imagenet", 100), ("tiny_imagenet", 30)):
        monkeypatch.setattr(f"fastmlp.sources.{module}.MAX_BYTES", size)
    contents = {f"cifar-10-batches-bin/{name}": bytes(5000) for name in ("test_batch.bin", "batches.meta.txt")}
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(gzip.compress(files.tar(contents)))
    with pytest.raises(
        ValueError, match=r"cifar-10-binary\.tar\.gz: .*test_batch\.bin has 5,000 bytes, more than 4,000"
    ):
        CIFAR("cifar10", "test", tmp_path, any_checksum=True)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(1 << 20)))
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte.gz: checksum differs"):
        FashionMNIST("test", tmp_path)
    (tmp_path / "truth").write_bytes(devkit(meta=bytes(200)))
    with pytest.raises(ValueError, match="truth: .*meta.mat has more than 100 bytes"):
        imagenet.validation_labels(tmp_path / "truth", files.WNIDS)
    archive = files.write_tiny(tmp_path)
    with pytest.raises(ValueError, match=r"val_annotations\.txt has .* bytes, more than 30"):
        tiny_imagenet("train", archive)


def changed_text(archive, ending, change):
    with zipfile.ZipFile(archive) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(archive, "w") as new:
        for name, content in members.items():
            new.writestr(name, change(content) if name.endswith(ending) else content)


def test_labels_of_tiny_imagenet_that_contradict_are_refused(tmp_path):
    archive = files.write_tiny(tmp_path)
    changed_text(archive, "wnids.txt", lambda text: text + text)
    with pytest.raises(ValueError, match=r"tiny-imagenet-200\.zip: .*wnids\.txt names n\d+ more than once"):
        tiny_imagenet("train", archive)
    archive = files.write_tiny(tmp_path)
    changed_text(archive, "annotations.txt", lambda text: text + b"val_0.JPEG\tn00000000\nval_0.JPEG\tn00000001\n")
    with pytest.raises(ValueError, match=r"val_annotations\.txt gives val_0\.JPEG the classes"):
        tiny_imagenet("val", archive)
    archive = files.write_tiny(tmp_path)
    with zipfile.ZipFile(archive) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(archive, "w") as new:  # litter first
        new.writestr("__MACOSX/wnids.txt", b"rubbish")
        for name, content in members.items():
            new.writestr(name, content)
    assert len(tiny_imagenet("train", archive)) == 12


def test_no_permission_stops_the_run_and_is_no_bad_image(tmp_path, monkeypatch):
    source = in_folders(tmp_path)
    for number in (errno.EACCES, errno.EPERM, errno.ENOTCONN, errno.ENOSPC):

        def fail(*_, number=number, **__):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr("fastmlp.sources.decode.os.open", fail)
            with pytest.raises(OSError, match=r"n0\d+_\d\.JPEG") as caught:
                source[0]
        assert caught.value.errno == number
