"""Files that change between an interrupted run and the next, or after the beton is complete."""

import json
import os
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from fastmlp.beton import writer
from fastmlp.beton.writer import write_beton
from fastmlp.sources.base import Subset
from fastmlp.sources.folder import ImageFolder
from fastmlp.sources.tar import TarImages
from fastmlp.sources.tiny_imagenet import tiny_imagenet

COUNT, RES = 60, 16


def picture(path, color):
    Image.fromarray(np.full((RES, RES, 3), color, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Bitmaps, all of one size, in two classes; a chunk of the beton is ten of them."""
    monkeypatch.setattr(writer, "CHUNK_BYTES", 10 * 3 * RES * RES)
    for number in range(COUNT):
        path = tmp_path / "images" / f"class{number % 2}" / f"{number:03d}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(path, number)
    return tmp_path / "images"


def write(folder, source=ImageFolder, **keywords):
    return write_beton(folder.parent / "x.beton", source(folder), RES, **keywords)


def interrupt(folder):
    """Write half of the beton, the first class."""
    last = folder / "class1" / "059.bmp"
    content = last.read_bytes()
    last.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"059\.bmp"):
        write(folder, seed=None)
    last.write_bytes(content)


def replace_one(folder, form="BMP"):
    path = folder / "class0" / "004.bmp"
    Image.fromarray(np.full((RES, RES, 3), 200, np.uint8)).save(path, form)


@pytest.mark.parametrize("form", ["BMP", "PNG"])  # of the same size, or of another
def test_a_change_before_resuming_is_named(folder, form):
    interrupt(folder)
    replace_one(folder, form)
    with pytest.raises(
        ValueError, match=r"class0/004\.bmp has changed .* or delete .*x\.beton\.partial and its journal"
    ):
        write(folder, seed=None)
    picture(folder / "class0" / "004.bmp", 4)
    path = write(folder, seed=None)
    assert path.read_bytes() == write_beton(folder.parent / "y.beton", ImageFolder(folder), RES, seed=None).read_bytes()


@pytest.mark.parametrize("form", ["BMP", "PNG"])
def test_a_change_after_completion_is_named(folder, form, capsys):
    write(folder)
    assert write(folder) and "already written" in capsys.readouterr().err
    replace_one(folder, form)
    with pytest.raises(ValueError, match=r"class0/004\.bmp has changed .* or delete .*x\.beton to write"):
        write(folder)
    (folder.parent / "x.beton").unlink()
    write(folder)
    (folder / "class0" / "004.bmp").unlink()
    (folder / "class0" / "004.bmp").symlink_to("gone")
    with pytest.raises(ValueError, match=r"class0/004\.bmp has changed"):
        write(folder)


def test_a_copied_folder_goes_on_with_a_notice(folder, capsys):
    write(folder)
    for path in folder.rglob("*.bmp"):
        os.utime(path, (1, 1))
    write(folder)
    said = capsys.readouterr().err
    assert "60 images were compared and are the same: going on" in said and "already written" in said


def test_more_than_a_few_chunks_with_other_times_are_compared_in_part(folder, capsys, monkeypatch):
    monkeypatch.setattr("fastmlp.beton.changes.COMPARED_CHUNKS", 2)
    interrupt(folder)
    for path in folder.rglob("*.bmp"):
        os.utime(path, (1, 1))
    write(folder, seed=None)
    assert "20 images were compared and are the same" in capsys.readouterr().err


def test_what_0_1_wrote_is_accepted_with_a_notice(folder, capsys):
    path = write(folder)
    sidecar = path.with_suffix(".json")
    sidecar.write_text(json.dumps({name: x for name, x in json.loads(sidecar.read_text()).items() if name != "files"}))
    replace_one(folder)
    write(folder)
    assert "written by 0.1, which did not record" in capsys.readouterr().err


def test_images_in_a_tar_and_a_part_of_the_images(folder):
    def pack():
        with tarfile.open(folder.parent / "images.tar", "w") as archive:
            archive.add(folder, "images")

    def images(_):
        return Subset(TarImages(folder.parent / "images.tar"), np.arange(COUNT - 1))

    pack()
    write(folder, images)
    replace_one(folder)
    pack()
    with pytest.raises(ValueError, match=r"images\.tar: .*004\.bmp has changed"):
        write(folder, images)


def touch_all(folder):
    for path in folder.rglob("*.bmp"):
        os.utime(path, (10**9, 10**9))


def swap(a, b):
    a.rename(a.parent / "aside")
    b.rename(a)
    (a.parent / "aside").rename(b)


def swap_files(folder):
    swap(folder / "class0" / "004.bmp", folder / "class0" / "006.bmp")


def replace_with_its_time(folder):
    replace_one(folder)
    os.utime(folder / "class0" / "004.bmp", (10**9, 10**9))


def link_to_another(folder):
    replace_with_its_time(folder)
    (folder / "class0" / "004.bmp").rename(folder.parent / "another.bmp")
    (folder / "class0" / "004.bmp").symlink_to(folder.parent / "another.bmp")


def swap_classes(folder):
    """Whose images have the same names: renaming a folder changes nothing about its files."""
    for number in range(1, COUNT, 2):
        (folder / "class1" / f"{number:03d}.bmp").rename(folder / "class1" / f"{number - 1:03d}.bmp")
    touch_all(folder)
    write_beton(folder.parent / "x.beton", ImageFolder(folder), RES)
    swap(folder / "class0", folder / "class1")


@pytest.mark.parametrize("change", [swap_files, replace_with_its_time, link_to_another, swap_classes])
def test_changes_that_keep_sizes_and_times_are_named(folder, change):
    touch_all(folder)
    write(folder)
    change(folder)
    with pytest.raises(ValueError, match=r"class\d/\d\d\d\.bmp has changed"):
        write(folder)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_changed_image_in_an_archive_of_the_same_size(folder, kind, monkeypatch):
    """Only two chunks are compared if times differ: the archive's own records must tell which image has changed."""
    monkeypatch.setattr("fastmlp.beton.changes.COMPARED_CHUNKS", 2)
    archive = folder.parent / f"images.{kind}"

    def pack():
        paths = sorted(folder.rglob("*.bmp"))
        if kind == "tar":
            with tarfile.open(archive, "w") as opened:
                for path in paths:
                    opened.add(path, f"{path.parent.name}/{path.name}")
            return TarImages(archive)
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr("wnids.txt", "class0\nclass1\n")
            opened.writestr("val/val_annotations.txt", "")
            for path in paths:
                opened.write(path, f"train/{path.parent.name}/images/{path.stem}.JPEG")
        return tiny_imagenet("train", archive)

    write_beton(folder.parent / "x.beton", pack(), RES)
    size = archive.stat().st_size
    replace_one(folder, "PNG" if kind == "tar" else "BMP")
    source = pack()
    assert archive.stat().st_size == size
    with pytest.raises(ValueError, match=r"004\..* has changed"):
        write_beton(folder.parent / "x.beton", source, RES)


def test_other_images_are_told_before_they_are_written(folder, capsys):
    write(folder)
    (folder / "class0" / "004.bmp").unlink()
    write(folder)
    assert "images 60, now 59, names, labels or classes): anew" in capsys.readouterr().err
    (folder.parent / "x.beton").unlink()
    interrupt(folder)
    picture(folder / "class0" / "004.bmp", 4)
    write(folder, seed=None)
    said = capsys.readouterr().err
    assert "an interrupted run with other images or options (images 59, now 60, names, labels or classes) is" in said


@pytest.mark.parametrize(
    "change",
    [{"files": value} for value in (5, "text", [1], [["a"]] * 6, [["a", 1]] * 6, [None], None)]
    + [{"classes": ["class0", "klass1"]}, {"images_per_class": [60]}, {"split": "val"}, {"num_samples": 59}],
)
def test_a_damaged_sidecar_is_written_anew(folder, change, capsys):
    def again():
        return write_beton(folder.parent / "x.beton", ImageFolder(folder), RES, metadata={"split": "train", "x": (1,)})

    sidecar = again().with_suffix(".json")
    whole = sidecar.read_bytes()
    sidecar.write_text(json.dumps({**json.loads(whole), **change}))
    again()
    assert sidecar.read_bytes() == whole and "already written" not in capsys.readouterr().err
    again()
    assert "already written" in capsys.readouterr().err
