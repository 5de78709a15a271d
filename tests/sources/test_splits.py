"""Folders as people have them: what is meant is recognised, told before anything is written, or refused."""

import io
import json
import os
import tarfile
import zipfile

import numpy as np
import pytest
import test_imagenet as files
from encoded_images import PHOTO, encoded
from PIL import Image

from fastmlp.datasets import beton_path, sidecar_path
from fastmlp.sources import imagenet
from fastmlp.sources.base import ArraySource, train_val_split
from fastmlp.sources.decode import FORMATS
from fastmlp.sources.folder import ImageFolder, image_files
from fastmlp.sources.listing import ENDINGS, HIDDEN
from fastmlp.sources.manifest import Manifest
from fastmlp.sources.split_names import split_of
from fastmlp.sources.splits import open_folder
from fastmlp.sources.summary import summary
from fastmlp.sources.tar import TarImages
from fastmlp.sources.tiny_imagenet import tiny_imagenet

PNG = encoded(np.full((4, 4, 3), 7, np.uint8), "PNG")


def tree(root, *paths):
    """Make files: images, other files empty, "x/" an empty folder, "x -> y" a link."""
    for path in paths:
        path, _, target = path.partition(" -> ")
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if target:
            (root / path).symlink_to(target)
        elif path.endswith("/"):
            (root / path).mkdir(exist_ok=True)
        else:
            (root / path).write_bytes(PNG if path.lower().endswith((".png", ".jpg", ".gif")) else b"")
    return root


def opened(root):
    """Return the images of each split, with their classes, as open_folder finds them."""
    sources = open_folder(root, 8, "square")
    return {
        split: [f"{source.classes[label]}/{os.fsdecode(source.names[i])}" for i, label in enumerate(source.labels)]
        for split, source in sources.items()
    }


@pytest.mark.parametrize("split", ["train", "val", "test", None])
def test_names_of_splits(split):
    names = {
        "train": "train Train TRAIN training Training_Set train-images trainset train2017 seg_train traindata",
        "val": "val Val VALID valid validation Validation-Set val2017 val_images dev valset",
        "test": "test Test testing TEST_SET test-data testset seg_test eval evaluation",
        None: "cat trains training_dog retrain contest 2017 _ images tests_cats train_val untrained validator testudo",
    }[split]
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


IMAGES = ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
TRAIN = list(IMAGES)


@pytest.mark.parametrize(
    ("train", "val", "split"),
    [
        ("train", "val", "val"),
        ("Train", "Val", "val"),
        ("TRAIN", "VALID", "val"),
        ("training", "validation", "val"),
        ("Training Set", "Test Set", "test"),
        ("seg_train/seg_train", "seg_test/seg_test", "test"),
        ("pets/Train", "pets/Test", "test"),
        ("a/b/pets/train/images", "a/b/pets/valid/images", "val"),
        ("pets_train", "pets_test", "test"),
        ("train_pets", "dev_pets", "val"),
        ("flowers-Train", "flowers-Validation", "val"),
        ("trainImages", "testImages", "test"),
        ("train.v1", "val.v1", "val"),
        ("Big Cats Training Set (2)", "Big Cats Testing Set (2)", "test"),
        ("\uff34rain", "\uff36al", "val"),
    ],
)
def test_splits_in_any_spelling(tmp_path, train, val, split):
    tree(tmp_path, *(f"{part}/{path}" for part in (train, val) for path in IMAGES), ".DS_Store", "__MACOSX/x/y.png")
    assert opened(tmp_path) == {"train": TRAIN, split: TRAIN}


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["pets/cat/0.png", "pets/dog/0.png"], ["cat/0.png", "dog/0.png"]),
        (["a/b/cat/0.png", "a/b/dog/0.png", "a/README"], ["cat/0.png", "dog/0.png"]),
        (["cat/x/0.png", "cat/y/0.png", "dog/0.png"], ["cat/x/0.png", "cat/y/0.png", "dog/0.png"]),
        (["car/0.png", "bus/0.png", "train/0.png"], ["bus/0.png", "car/0.png", "train/0.png"]),
        (["cat/0.png", "dog/0.png", "stray.png", "notes.txt"], ["cat/0.png", "dog/0.png"]),
        (["pets/cat/0.png", "pets/dog/0.png", "pets/self -> ."], ["cat/0.png", "dog/0.png"]),
    ],
)
def test_classes_and_folders_around_them(tmp_path, paths, expected):
    if paths[-1].endswith(" -> ."):  # a link back to its own folder is an empty class
        with pytest.raises(ValueError, match="self holds no images"):
            opened(tree(tmp_path, *paths))
        return
    assert opened(tree(tmp_path, *paths)) == {"": expected}


def test_a_third_split_is_written_and_told(tmp_path, script):
    parts = ("train", "valid", "test")
    tree(tmp_path / "pets", *(f"{part}/{path}" for part in parts for path in IMAGES), "extra/x.png", "readme.txt")
    flags = ("--name", "pets", "--res", 8, "--num-workers", 1, "--out", tmp_path)
    ended = script("writers/folder.py", "--source", tmp_path / "pets", *flags)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0] == "pets: train 4 images, val 4 images, test 4 images; 2 classes: cat, dog"
    assert "1 files in the folder extra (it is no split)" in lines[1] and "1 .txt files" in lines[1]
    assert "notice: valid is taken as the split val" in lines
    assert any("test is written, too: recipes/evaluate.py --cfg.split=test" in line for line in lines)
    assert beton_path(tmp_path, "pets", "test", 8).exists()
    assert json.loads(sidecar_path(beton_path(tmp_path, "pets", "val", 8)).read_text())["splits"] == ["train", "val"]
    rows = [f"pets/{part}/{path},{path[:3]},{part.title()}" for part in parts for path in IMAGES]
    (tmp_path / "m.csv").write_text("path,label,split\n" + "\n".join(rows))
    ended = script("writers/folder.py", "--manifest", tmp_path / "m.csv", *flags[:-1], tmp_path / "out")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[0] == "pets: train 4 images, val 4 images, test 4 images; 2 classes: cat, dog"
    assert json.loads(sidecar_path(beton_path(tmp_path / "out", "pets", "test", 8)).read_text())["num_samples"] == 4


@pytest.mark.parametrize(
    ("third", "left_out"),
    [
        (["unknown/0.png"], "1 files in the folder test (a third split, of other classes"),
        (["cat/0.png"], "1 files in the folder test (a third split, of other classes"),
        (["0.png", "1.png"], "2 files in the folder test (named like a split, but without a folder per class)"),
    ],
)
def test_a_third_split_that_has_no_labels_is_left_out(tmp_path, third, left_out):
    tree(tmp_path, *(f"{part}/{path}" for part in ("train", "val") for path in IMAGES), *(f"test/{n}" for n in third))
    sources = open_folder(tmp_path, 8, "square")
    assert list(sources) == ["train", "val"] and left_out in summary("x", sources)[1]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train/cat/0.png", "train/dog/0.png"], "holds train, but neither val nor test.*--source .*train"),
        (["train/cat/0.png", "train/dog/0.png", "test/0.png"], r"test has no folder per class, so no labels"),
        (["test/cat/0.png", "test/dog/0.png"], "holds test, but no train"),
        (["train/0.png", "test/0.png"], "test is named like a split, but holds no folder per class"),
        (["cat/0.png", "dog/0.png", "val/0.png"], "val is named like a split"),
        (["train/a/0.png", "Train/a/0.png", "val/a/0.png"], "both .* look like the split 'train'"),
        (
            ["cat/train/0.png", "cat/test/0.png", "dog/train/0.png", "dog/test/0.png"],
            "splits must be above the classes",
        ),
        (["cat/train/0.png", "cat/test/0.png", "dog/0.png"], "splits must be above the classes"),
        (["cat/0.png", "dog/pets_train/0.png", "dog/pets_val/0.png"], "splits must be above the classes"),
        (["data/train/a/0.png", "data/val/a/0.png", "docs/x.md"], "name it with --source .*data"),
        (["trainA/0.png", "trainB/0.png", "testA/0.png", "testB/0.png"], "named like a split"),
        (["cat/0.png", "dog/0.png", "cow.tar"], "cow.tar is packed, beside folders of classes"),
        (["train/a/0.png", "train/b/0.png", "train/c.zip", "val/a/0.png", "val/b/0.png"], "c.zip is packed"),
        (["train/a/0.png", "train/b/0.png", "val -> train"], "are one folder, in two splits"),
        (["train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b -> ../train/b"], "are one folder, in two splits"),
        (["train/a/0.png", "train/b/0.png", "val/a/0.png"], "no folder for the class 'b': add it, an empty one"),
        (["cat/0.png", "dog -> nowhere"], "dog is a link to nothing"),
        (["cat/0.png", "dog -> dog"], "dog is a link to nothing"),
        (["train/a/0.png", "train/b/0.png", "val -> gone"], "val is a link to nothing"),
        (["train/a/0.png", "train/b -> gone", "val/a/0.png"], "b is a link to nothing"),
        (["cat/0.png", "dog/"], "dog holds no images"),
        (
            ["cat/0.png", "dog/0.heic", "dog/1.HEIC"],
            "dog holds no images .*only 2 .heic files, a format that is not read",
        ),
        (["cat/0.png", "cat /0.png"], "'cat' and 'cat ' look the same|'cat ' and 'cat' look the same"),
        (["caf\u00e9/0.png", "cafe\u0301/0.png"], "look the same"),
        (["0.png", "1.png"], "no images found .*only 2 images outside of the folders of classes"),
        ([".hidden/0.png"], "no images found"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, paths, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        opened(tree(tmp_path, *paths))


@pytest.mark.parametrize(
    "paths", [["cat/0.png", "cat/1.png"], ["train/cat/0.png", "val/cat/0.png"], ["a/b/0.png"], ["train/0.png"]]
)
def test_one_class_alone_is_refused(tmp_path, script, paths):
    tree(tmp_path / "pets", *paths)
    ended = script("writers/folder.py", "--name", "pets", "--source", tmp_path / "pets", "--out", tmp_path, "--res", 8)
    assert ended.code == 2 and ("only one class was found" in ended.err or "only 1 image found" in ended.err)
    assert not list(tmp_path.glob("*.beton*"))


def test_what_is_left_of_an_earlier_source_is_told(tmp_path, script):
    three = [
        f"{split}/{name}/{n}.png" for split in ("train", "val", "test") for name in ("cat", "dog") for n in range(2)
    ]
    tree(tmp_path / "a", *three)
    tree(tmp_path / "b", *[f"{name}/{n}.png" for name in ("cat", "dog") for n in range(10)])

    def write(name, source, res=8):
        flags = ("--name", name, "--source", tmp_path / source, "--out", tmp_path / "data", "--res", res)
        ended = script("writers/folder.py", *flags)
        assert ended.code == 0, ended.err
        return [line for line in (ended.out + ended.err).splitlines() if "earlier source" in line]

    assert not write("pets", "a") and not write("pets_2", "a")
    before = (tmp_path / "data" / "pets_test_8.beton").read_bytes()
    assert not write("pets", "b", res=4) and not write("pet", "b")
    beton = tmp_path / "data" / "pets_test_8.beton"
    assert write("pets", "b") == [
        f"notice: {beton} is of an earlier source, and not written now: delete it, or --cfg.split finds it"
    ]
    assert (tmp_path / "data" / "pets_test_8.beton").read_bytes() == before


def test_a_class_that_skipping_empties_is_told(tmp_path, script):
    names = [f"{split}/{name}/{n}.png" for split in ("train", "val") for name in "ab" for n in range(2)]
    tree(tmp_path / "pets", *names, "train/c/0.png", "val/c/")  # val lacks c anyway
    for name in ("train/b/0.png", "train/b/1.png", "val/a/0.png"):
        (tmp_path / "pets" / name).write_bytes(b"no image")
    flags = ("--name", "pets", "--source", tmp_path / "pets", "--out", tmp_path, "--res", 8)
    stopped = script("writers/folder.py", *flags)
    assert stopped.code == 2 and stopped.err.rstrip().endswith(
        'To leave out and list such images: --on-error skip, from Python on_error="skip"'
    )
    ended = script("writers/folder.py", *flags, "--on-error", "skip")
    assert ended.code == 0 and (ended.out + ended.err).count("notice: no train image of 1 classes is left: b\n") == 1
    assert (ended.out + ended.err).count("is left: ") == 1


LITTER = (
    ".DS_Store .hidden.png ._0.png Thumbs.db thumbs.DB desktop.ini @eaDir/0.png/SYNO.jpg __MACOSX/._0.png "
    ".ipynb_checkpoints/0-checkpoint.png $RECYCLE.BIN/0.png #recycle/0.png lost+found/ .git/0.png @tmp/0.png "
    "~$x.png RECYCLER/0.png found.000/0.png .Trash-1000/files/0.png .Spotlight-V100/x.png .thumbnails/0.png"
).split()


def test_litter_is_left_out_everywhere_alike(tmp_path):
    wanted = [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(2)]
    root = tree(
        tmp_path / "pets",
        *wanted,
        *(f"{place}{name}" for place in ("", "cat/", "dog/") for name in LITTER),
        *("cat/notes.txt", "cat/x.heic", "dog/dead -> gone", "dog/noending"),
    )
    source = open_folder(root, 8, "square")[""]
    assert opened(root)[""] == wanted
    names = {name.split("/")[0] for name in LITTER}
    assert sum(count for why, count in source.left_out.items() if why.startswith("hidden")) == 3 * len(names)
    others = sorted(why for why in source.left_out if not why.startswith("hidden"))
    assert others[0] == ".heic files, a format that is not read: convert them to JPEG or PNG"
    assert others[1:] == [".txt files", "files without an ending", "links to nothing"]
    assert sorted(image_files(os.fsencode(root))) == [name.encode() for name in wanted]  # as evaluation lists `images`
    with tarfile.open(tmp_path / "pets.tar", "w") as archive:
        for path in sorted(path for path in root.rglob("*") if path.is_file()):
            archive.add(path, f"./pets/{path.relative_to(root)}")
    source = TarImages(tmp_path / "pets.tar")
    assert [
        f"{source.classes[label]}/{os.fsdecode(source.names[i])}" for i, label in enumerate(source.labels)
    ] == wanted
    assert sum(source.left_out.values()) > len(LITTER)


def test_litter_in_the_zip_and_beside_tars_of_classes(tmp_path):
    archive = files.write_tiny(tmp_path)
    whole = [tiny_imagenet(split, archive) for split in ("train", "val")]
    with zipfile.ZipFile(archive) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(archive, "w") as new:
        new.writestr("__MACOSX/tiny-imagenet-200/._wnids.txt", b"rubbish")
        for name, content in members.items():
            new.writestr(name, content)
            head, _, tail = name.rpartition("/")
            if tail.endswith(".JPEG"):
                new.writestr(f"{head}/._{tail}", b"rubbish")
    with zipfile.ZipFile(archive) as new:
        new.extractall(tmp_path / "unpacked")
    litter = 1 + sum(name.endswith(".JPEG") for name in members)
    for place in (archive, tmp_path / "unpacked"):
        beside = 1 if place is archive else 0  # __MACOSX is beside the unpacked folder
        left_out = tiny_imagenet("train", place).left_out
        assert left_out[HIDDEN] == litter - 1 + beside and not tiny_imagenet("val", place).left_out
        assert left_out["images of the split test, which has no labels"] == sum("/test/" in name for name in members)
    for split, source in zip(("train", "val"), whole, strict=True):
        again = tiny_imagenet(split, archive)
        assert [again.names[i] for i in range(len(again))] == [source.names[i] for i in range(len(source))]


def test_litter_in_a_flat_val_is_counted(tmp_path):
    files.val_flat(tmp_path)
    files.truth_wnids(tmp_path)
    tree(tmp_path / "val", "._x.JPEG", "Thumbs.db", "notes.txt")
    source = imagenet.val(tmp_path, files.WNIDS, 8)
    files.check_val(source)
    assert source.left_out == {HIDDEN: 2, ".txt files": 1}


@pytest.mark.parametrize("form", FORMATS)
def test_every_ending_of_a_format_is_read(tmp_path, form):
    content = encoded(PHOTO[:16, :16], form)
    for number, ending in enumerate(ENDINGS[form]):
        (tmp_path / "cat").mkdir(exist_ok=True)
        (tmp_path / "cat" / f"{number}{ending.upper() if number else ending}").write_bytes(content)
    source = ImageFolder(tmp_path, None, 8)
    assert len(source) == len(ENDINGS[form])
    assert all(source[i][0].shape == (8, 8, 3) for i in range(len(source)))


def test_the_summary_names_what_is_left_out_and_odd(tmp_path):
    root = tree(tmp_path, "Cat/0.png", "cat/0.png", "dog/0.png", "dog/1.png", "dog/x.heic", ".DS_Store")
    source = open_folder(root, 8, "square")[""]
    parts = train_val_split(source, 0.25, 0)
    lines = summary("pets", parts)
    assert lines[0] == "pets: train 3 images, val 1 images; 3 classes: Cat, cat, dog"
    assert lines[1].startswith("left out: ") and lines[1].count("1 .heic files") == 1  # not once for each part
    assert "notice: classes that differ only in case: Cat, cat" in lines
    labels = np.array([0, 0, 1, 2])
    for seed in range(20):
        parts = train_val_split(ArraySource(np.zeros((4, 2, 2, 3), np.uint8), labels, tuple("abc")), 0.5, seed)
        lost = set("abc") - {"abc"[label] for label in parts["train"].labels}
        told = next((line for line in summary("x", parts) if line.startswith("notice: no training image")), "")
        assert told == (f"notice: no training image of {len(lost)} classes: {', '.join(sorted(lost))}" if lost else "")
    labels = np.repeat(np.arange(9), [20, 1, 1, 1, 1, 1, 2, 2, 2])
    source = ArraySource(np.zeros((len(labels), 2, 2, 3), np.uint8), labels, tuple("abcdefghi"))
    for seed in range(20):  # no class is left without a training image, and the shares stay
        parts = train_val_split(source, 0.3, seed)
        assert sorted({*parts["train"].labels}) == list(range(9)) and len(parts["val"]) == round(0.3 * len(labels))
        assert sorted([*parts["train"].indices, *parts["val"].indices]) == list(range(len(labels)))


@pytest.mark.parametrize(
    ("paths", "notice"),
    [
        (["a/cat/0.png", "a/dog/0.png", "b/cat/0.png", "b/dog/0.png"], "each of a, b holds the folders cat, dog: if"),
        (["cat/0.png", "cat/1.png", "dog/0.png", "kitty -> cat"], "the classes cat and kitty are one folder: a link"),
        (["train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/"], "no val image of 1 classes: b"),
        (["train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png", "test/"], "the folder test is empty"),
    ],
)
def test_what_may_be_meant_otherwise_is_told(tmp_path, paths, notice):
    assert any(f"notice: {notice}" in line for line in summary("x", open_folder(tree(tmp_path, *paths), 8, "square")))


def test_what_lies_beside_the_folder_that_is_entered_is_counted(tmp_path):
    tree(tmp_path, "pets.zip", "pets/Thumbs.db", "pets/all/cat/0.png", "pets/all/dog/0.png", "pets/all/all.tar")
    left_out = open_folder(tmp_path, 8, "square")[""].left_out
    assert sum(left_out.values()) == 3 and left_out[HIDDEN] == 1


def tars(root, contents):
    for name, members in contents.items():
        (root / name).write_bytes(files.tar(members))
    return [root / name for name in contents]


def test_a_tar_per_class_is_a_class_whatever_is_in_it(tmp_path):
    paths = tars(tmp_path, {f"{name}.tar": {f"images/{n}.png": PNG for n in range(2)} for name in ("n01", "n02")})
    source = TarImages(paths)
    assert source.classes == ("n01", "n02") and source.labels.tolist() == [0, 0, 1, 1]
    (deep,) = tars(tmp_path, {"deep.tar": {f"train/{c}/images/{n}.png": PNG for c in ("a", "b") for n in range(2)}})
    assert TarImages(deep).classes == ("a", "b") and TarImages(deep).labels.tolist() == [0, 0, 1, 1]
    nested = {f"{c}.tar": files.tar({f"images/{n}.png": PNG for n in range(2)}) for c in ("a", "b")}
    assert TarImages(tars(tmp_path, {"nested.tar": nested})[0]).classes == ("a", "b")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"a.tar": {"x.png": PNG}, "b.tar": {}}, r"b\.tar holds no images"),
        ({"a.tar": {"x.png": PNG}, "b.tar": {"readme": b""}}, r"b\.tar holds no images"),
        ({"a.tar": {"x.png": PNG}, "b.tar": {"a/x.png": PNG}}, r"b\.tar: a/x\.png is in the folder of another class"),
        ({"a.tar": {"x.png": PNG}, "a .tar": {"x.png": PNG}}, "look the same"),
    ],
)
def test_odd_tars_of_classes_are_refused(tmp_path, contents, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        TarImages(tars(tmp_path, contents))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"a.tar": files.tar({"x.png": PNG}), "b.tar": files.tar({})},
            r"b\.tar holds no images: its class would be lost",
        ),
        ({"a.tar": files.tar({"x.png": PNG}), "y.png": PNG}, "images outside of its folders of classes"),
        ({"t/a/x.png": PNG, "t/b/x.png": PNG, "t/x.png": PNG}, "images outside of its folders of classes, in t"),
        ({f"p/{s}/{c}/x.png": PNG for s in ("train", "valid", "test") for c in "ab"}, "holds test and train and valid"),
        ({f"{s}/{c}/x.png": PNG for s in ("pets_train", "pets_test") for c in "ab"}, "pets_test and pets_train, spl"),
        ({"a/x.png": PNG, "b/x.png": PNG, "c/readme.txt": b""}, "c in it holds no images: its class would be lost"),
        ({"a/x.png": PNG, "b/x.png": PNG, "c.zip": b""}, "c.zip in it is compressed"),
        ({"a/x.png": PNG, "b/x.png": PNG, "c.tar.xz": b""}, "c.tar.xz in it is compressed"),
    ],
)
def test_odd_tars_are_refused(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        TarImages(tars(tmp_path, {"x.tar": members})[0])


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("n03/0.png", "n03: expected one or the other"),
        ("n03.tar.gz", r"n03\.tar\.gz is compressed"),
        ("n03.zip", r"n03\.zip is compressed"),
        ("n03.tgz", r"n03\.tgz is compressed"),
        ("n03.tar -> no", "n03"),
    ],
)
def test_imagenet21k_loses_no_class(tmp_path, script, extra, message):
    tars(tmp_path, {f"{name}.tar": {"0.png": PNG, "1.png": PNG} for name in ("n01", "n02")})
    (tmp_path / "._n01.tar").write_bytes(b"rubbish of macOS")
    flags = ("--source", tmp_path, "--out", tmp_path / "out", "--res", 8, "--num-workers", 1, "--holdout", 0.3)
    ended = script("writers/imagenet21k.py", *flags)
    assert ended.code == 0, ended.err
    assert "left out: 1 hidden files or litter" in ended.out
    tree(tmp_path, extra)
    ended = script("writers/imagenet21k.py", *flags)
    assert ended.code == 2 and message.replace("\\", "") in ended.err


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10.0", "9.0", "2.0"], ("2.0", "9.0", "10.0")),
        (["0", "10", "9"], ("0", "9", "10")),
        (["1e1", "9", "-1"], ("-1", "9", "1e1")),
        (["cat", "10", "9"], ("10", "9", "cat")),
        (["1_0", "9"], ("1_0", "9")),
        (["9" * 5000, "8" * 5000], ("8" * 5000, "9" * 5000)),
    ],
)
def test_labels_that_are_numbers_sort_as_numbers(tmp_path, labels, classes):
    (tmp_path / "m.csv").write_text("path,label\n" + "".join(f"{n}.png,{label}\n" for n, label in enumerate(labels)))
    assert Manifest(tmp_path / "m.csv").classes == classes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\na,0.5\nb,1\n", "the label '0.5' is no class"),
        ("path,label\na,nan\nb,1\n", "the label 'nan' is no class"),
        ("path,label\na,1\nb,1.0\n", "'1' and '1.0' are the same number"),
        ("path,label\na,01\nb,1\n", "'01' and '1' are the same number"),
        ("path,label\na,cat\nb,cat \n", "'cat' and 'cat ' look the same"),
        ("path,label\na,big cat\nb,big  cat\n", "look the same"),
        ("path,label\na,cat\nb,cat\u200b\n", "look the same"),
        ("path,label\na,cat\nb,dog\na,dog\n", "line 4: 'a', as in line 2, but with the label 'dog' instead of 'cat'"),
        ("path,label\na,cat\nb,dog\n./x/../a,dog\n", "line 4: './x/../a', as in line 2, but with the label"),
        ("path,label,split\na,cat,train\nb,dog,train\na,cat,val\n", "line 4: 'a', as in line 2, but in another split"),
        ("path,label,split\na,cat,train\nb,dog,val\na,cat,test\n", "line 4: 'a', as in line 2, but in another split"),
        ("path,label\na, \nb,dog\n", "line 2: no label"),
        ('path,label\na,"c\nt"\nb,dog\n', "holds a control character"),
        ("path,label\na.png,cat\nb.png,dog\nlink/a.png,dog\n", "line 4: 'link/a.png', as in line 2, but with"),
        ("path,label,split\na,cat,train\nb,dog,train\nlink/a,cat,val\n", "line 4: 'link/a', as in line 2, but in an"),
        ("path,label\na,cat\nb,dog\na,cat\n", "line 4: 'a', as in line 2, which could put one into each split"),
        ("path,label,label\na,cat,dog\n", "line 1: the header has 'label' twice"),
        ("path,label,split\na,cat,train\nb,dog,train\n", "expected the splits train and val .or test., found train"),
        ("path,label,split\na,cat,train\nb,dog,left\n", "found left, train"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(tmp_path, content, message):
    (tmp_path / "link").symlink_to(".")
    (tmp_path / "m.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        Manifest(tmp_path / "m.csv")


@pytest.mark.parametrize(
    "text",
    [
        "path;label;split\na.png;cat;train\nb.png;dog;train\nc.png;dog;val\n",
        "\ufeffPath\tLabel\tSplit\r\na.png\tcat\ttrain\r\nb.png\tdog\ttrain\r\nc.png\tdog\tval\r\n",
        "path, label, split\na.png, cat, train\nb.png, dog, train\nc.png, dog, val\n",
        '"LABEL","path","split",,\n"cat","a.png","train",,\ndog,b.png,train,,\ndog,c.png,val,,\n',
    ],
)
def test_manifests_of_any_dialect(tmp_path, text):
    (tmp_path / "m.csv").write_text(text, newline="")
    source = Manifest(tmp_path / "m.csv")
    assert source.classes == ("cat", "dog") and source.splits == ("train", "val")
    assert [source.names[i] for i in range(3)] == [b"a.png", b"b.png", b"c.png"]


def test_splits_of_manifests_in_any_spelling_and_repeated_rows(tmp_path):
    rows = ["a,cat,Training", "b,dog,Training", "a,cat,train", "c,dog,VALID"]
    (tmp_path / "m.csv").write_text("path,label,split\n" + "\n".join(rows))
    train, val = (Manifest(tmp_path / "m.csv", split) for split in ("train", "val"))
    assert train.splits == ("train", "val") and [train.names[i] for i in range(3)] == [b"a", b"b", b"a"]
    assert [val.names[i] for i in range(len(val))] == [b"c"] and val.labels.tolist() == [1]
    assert train.notices == (f"{tmp_path / 'm.csv'} lists 1 images more than once",)


def test_the_pixels_of_a_gif_and_a_link(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (255, 0, 0)).save(file, "GIF")
    tree(tmp_path, "cat/0.gif", "dog -> cat")
    (tmp_path / "cat" / "0.gif").write_bytes(file.getvalue())
    source = open_folder(tmp_path, None, "square")[""]
    assert source.classes == ("cat", "dog") and all((source[i][0] == (255, 0, 0)).all() for i in range(2))


def test_odd_names_and_depths_end_in_one_line(tmp_path, script):
    tree(tmp_path / "pets", "c\na\rt/", "dog/0.png")
    flags = ("--name", "pets", "--source", tmp_path / "pets", "--out", tmp_path, "--res", 8)
    ended = script("writers/folder.py", *flags)
    assert ended.code == 2 and ended.err.count("\n") == 1 and r"c\na\rt holds no images" in ended.err
    deep = tmp_path / "pets" / "dog"
    for _ in range(110):
        deep /= "d"
    deep.mkdir(parents=True)
    (tmp_path / "pets" / "c\na\rt" / "0.png").write_bytes(PNG)
    ended = script("writers/folder.py", *flags)
    assert ended.code == 2 and "is more than 100 folders deep" in ended.err


def test_links_in_cycles_end(tmp_path):
    tree(tmp_path / "a", "cat/0.png", "cat/up -> ..", "cat/here -> .", "dog/0.png", "dog/other -> ../cat")
    assert opened(tmp_path / "a") == {"": ["cat/0.png", "dog/0.png", "dog/other/0.png"]}
    tree(tmp_path / "b", *IMAGES, "train -> .", "val -> .")
    with pytest.raises(ValueError, match="are one folder, in two splits"):
        opened(tmp_path / "b")
    tree(tmp_path / "c", *IMAGES, "a -> b", "b -> a")
    with pytest.raises(ValueError, match="a is a link to nothing"):
        opened(tmp_path / "c")
