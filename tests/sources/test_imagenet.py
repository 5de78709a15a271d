"""ImageNet and its relatives, from archives made here in exactly the published formats."""

import csv
import gzip
import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from fastmlp.beton.inspect import BetonReader
from fastmlp.data.split import Split
from fastmlp.datasets import beton_path, get_dataset, sidecar_path
from fastmlp.sources import imagenet, stl10
from fastmlp.sources.folder import ImageFolder
from fastmlp.sources.stl10 import STL10
from fastmlp.sources.tar import TarImages
from fastmlp.sources.tiny_imagenet import tiny_imagenet

WNIDS = ("n01440764", "n01443537", "n01484850")
PER_CLASS = 4
VAL = 7
VAL_LABELS = [2, 0, 1, 1, 0, 2, 2]  # of ILSVRC2012_val_00000001.JPEG, ...
DEVKIT_IDS = {"n01440764": 3, "n01443537": 1, "n01484850": 2}  # in no order of the wnids


def jpeg(number):
    """A flat grey whose level tells the image's number."""
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (10 * number + 5,) * 3).save(file, "JPEG", quality=95)
    return file.getvalue()


def number_of(image):
    return int(image[0, 0, 0]) // 10


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def tar(files):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            add(archive, name, content)
    return file.getvalue()


def train_files():
    """wnid -> file -> content; image k of class c has the number 4c + k. Not in order, as in the real archive."""
    return {
        wnid: {f"{wnid}_{k}.JPEG": jpeg(PER_CLASS * label + k) for k in (2, 0, 3, 1)}
        for label, wnid in ((1, WNIDS[1]), (0, WNIDS[0]), (2, WNIDS[2]))
    }


def val_files():
    return {f"ILSVRC2012_val_{n:08d}.JPEG": jpeg(n) for n in (3, 1, 2, 7, 4, 6, 5)}


def train_tree(root):
    for wnid, files in train_files().items():
        (root / "train" / wnid).mkdir(parents=True)
        for name, content in files.items():
            (root / "train" / wnid / name).write_bytes(content)


def train_tar(root):
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar({f"{w}.tar": tar(files) for w, files in train_files().items()}))


def val_tree(root):
    for name, content in val_files().items():
        folder = root / "val" / WNIDS[VAL_LABELS[int(name[15:23]) - 1]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def val_flat(root):
    (root / "val").mkdir()
    for name, content in val_files().items():
        (root / "val" / name).write_bytes(content)


def val_tar(root):
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar(val_files()))


@pytest.mark.parametrize("make", [train_tree, train_tar])
def test_train_from_tree_and_nested_tar(tmp_path, make):
    make(tmp_path)
    first = imagenet.train(tmp_path, 8)
    assert first.classes == WNIDS and len(first) == 12
    for source in (first, pickle.loads(pickle.dumps(first))):
        assert [(number_of(image), label) for image, label in (source[i] for i in range(12))] == [
            (n, n // PER_CLASS) for n in range(12)
        ]
    pickle.dumps(first)  # with files open by now
    np.testing.assert_array_equal(first.labels, np.repeat([0, 1, 2], 4))


def devkit_files():
    from scipy.io import savemat

    rows = [(DEVKIT_IDS[w], w, "words", "gloss", 0) for w in sorted(DEVKIT_IDS, key=DEVKIT_IDS.__getitem__)]
    rows.append((4, "n00001740", "entity", "gloss", 3))  # inner nodes follow the 1,000 leaves
    synsets = np.zeros(
        (len(rows), 1), [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    )
    for at, row in enumerate(rows):
        synsets[at, 0] = row
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{DEVKIT_IDS[WNIDS[label]]}\n" for label in VAL_LABELS)
    return {
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
        "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
    }


def truth_wnids(root):
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("".join(f"{WNIDS[k]}\n" for k in VAL_LABELS))


def truth_named_wnids(root):
    lines = [f"ILSVRC2012_val_{n:08d}.JPEG {WNIDS[k]}\n" for n, k in enumerate(VAL_LABELS, 1)]
    (root / "val.txt").write_text("".join(reversed(lines)))


def truth_named_labels(root):
    lines = [f"ILSVRC2012_val_{n:08d}.JPEG\t{k}\n" for n, k in enumerate(VAL_LABELS, 1)]
    (root / "val.txt").write_text("".join(lines))


def truth_kaggle(root):
    with (root / "LOC_val_solution.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageId", "PredictionString"])
        for n in (5, 1, 7, 2, 3, 4, 6):
            wnid = WNIDS[VAL_LABELS[n - 1]]
            writer.writerow([f"ILSVRC2012_val_{n:08d}", f"{wnid} 85 1 499 272 {wnid} 3 4 5 6 "])


def truth_devkit_folder(root):
    for name, content in devkit_files().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def truth_devkit_tar(root):
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(tar(devkit_files())))


TRUTHS = [truth_wnids, truth_named_wnids, truth_named_labels, truth_kaggle, truth_devkit_folder, truth_devkit_tar]


@pytest.mark.parametrize("make_truth", TRUTHS)
@pytest.mark.parametrize("make", [val_flat, val_tar])
def test_val_with_every_kind_of_ground_truth(tmp_path, make, make_truth):
    make(tmp_path)
    make_truth(tmp_path)
    check_val(imagenet.val(tmp_path, WNIDS, 8))


def check_val(source):
    seen = [(number_of(image), label) for image, label in (source[i] for i in range(len(source)))]
    assert sorted(seen) == list(enumerate(VAL_LABELS, 1)) and source.classes == WNIDS
    assert [label for _, label in seen] == source.labels.tolist()


def test_val_from_a_tree_and_kaggles_layout(tmp_path):
    val_tree(tmp_path)
    check_val(imagenet.val(tmp_path, WNIDS))
    inside = tmp_path / "kaggle" / imagenet.KAGGLE
    inside.mkdir(parents=True)
    val_flat(inside)
    train_tree(inside)
    truth_kaggle(tmp_path / "kaggle")
    check_val(imagenet.val(tmp_path / "kaggle", WNIDS))
    assert imagenet.train(tmp_path / "kaggle").classes == WNIDS


def test_missing_and_wrong_ground_truth(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither val/ nor ILSVRC2012_img_val.tar.*image-net.org"):
        imagenet.val(tmp_path, WNIDS)
    val_flat(tmp_path)
    with pytest.raises(FileNotFoundError, match="lacks the labels.*--ground-truth"):
        imagenet.val(tmp_path, WNIDS)
    truth = tmp_path / "truth.txt"
    with pytest.raises(FileNotFoundError, match="truth.txt is missing"):
        imagenet.val(tmp_path, WNIDS, truth=truth)
    for content, message in (
        ("", "holds no labels"),
        ("1\n2\n3\n", "name ILSVRC2012_devkit_t12.tar.gz"),
        ("n01440764\nn99999999\n", "label 2 is 'n99999999': no class of the training"),
        ("goldfish\n", "label 1 is 'goldfish': expected a wnid"),
        ("a b c\n", "expected one or two columns"),
        ("n01440764\nILSVRC2012_val_00000001.JPEG 2\n", "expected one or two columns"),
        ("first.JPEG 2\n", "first.JPEG is not named like"),
        ("ILSVRC2012_val_00000001.JPEG 3\n", "label 1 is '3'"),
        ("n01440764\n" * 6, "ILSVRC2012_val_00000007.JPEG has no label"),
        ("n01440764\n" * 8, "holds only 7 of the 8 images"),
    ):
        truth.write_text(content)
        with pytest.raises(ValueError, match=message):
            imagenet.val(tmp_path, WNIDS, truth=truth)
    truth_devkit_folder(tmp_path)
    data = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    check_val(imagenet.val(tmp_path, WNIDS, truth=data / "ILSVRC2012_validation_ground_truth.txt"))
    (data / "meta.mat").write_bytes(b"no MATLAB file")
    with pytest.raises(ValueError, match="meta.mat cannot be read"):
        imagenet.val(tmp_path, WNIDS)
    truth.write_bytes(tar({"readme.txt": b""}))
    with pytest.raises(ValueError, match="lacks .*it is not the devkit"):
        imagenet.val(tmp_path, WNIDS, truth=truth)
    (tmp_path / "val" / "holiday.JPEG").write_bytes(jpeg(1))
    truth_wnids(tmp_path)
    with pytest.raises(ValueError, match="holiday.JPEG is not named like"):
        imagenet.val(tmp_path, WNIDS, truth=tmp_path / "imagenet_2012_validation_synset_labels.txt")


@pytest.mark.parametrize("make", [val_tree, val_flat, val_tar])
def test_real_labels_follow_the_file_names(tmp_path, make):
    make(tmp_path)
    if make is not val_tree:
        truth_wnids(tmp_path)
    lists = [[2], [0, 1], [], [1, 0, 2], [0], [2], [2, 1]]
    real = tmp_path / "real.json"
    real.write_text(json.dumps(lists))
    source = imagenet.val(tmp_path, WNIDS, real=real)
    assert source.multi_labels.shape == (7, 3) and source.multi_labels.dtype == np.int64
    for i in range(7):
        expected = lists[number_of(source[i][0]) - 1]
        assert source.multi_labels[i].tolist() == expected + [-1] * (3 - len(expected))
    assert source.fingerprint() != imagenet.val(tmp_path, WNIDS).fingerprint()
    for content, message in (
        ("{}", "not ReaL's"),
        ("[1, 2]", "not ReaL's"),
        ("[[", "not ReaL's"),
        (json.dumps([[3]] * 7), "labels 3 to 3, but there are 3 classes"),
        (json.dumps([[1]] * 6), "of 6 images, but there is an image 7"),
    ):
        real.write_text(content)
        with pytest.raises(ValueError, match=message):
            imagenet.val(tmp_path, WNIDS, real=real)
    with pytest.raises(FileNotFoundError, match="reassessed-imagenet"):
        imagenet.val(tmp_path, WNIDS, real=tmp_path / "none.json")


def test_tars_of_classes_and_of_trees(tmp_path):
    for wnid, files in train_files().items():
        (tmp_path / f"{wnid}.tar").write_bytes(tar(files))
    whole = {f"train/{wnid}/{name}": files[name] for wnid, files in train_files().items() for name in files}
    (tmp_path / "tree").write_bytes(tar({"train/readme.txt": b"x" * 700, **whole}))
    train_tree(tmp_path)
    tree = ImageFolder(tmp_path / "train")
    for source in (TarImages([tmp_path / f"{w}.tar" for w in reversed(WNIDS)]), TarImages(tmp_path / "tree")):
        assert source.classes == WNIDS
        for i in range(12):  # the same order as the tree's, so the same beton
            np.testing.assert_array_equal(source[i][0], tree[i][0])
            assert source[i][1] == tree[i][1]
    with pytest.raises(ValueError, match="tree has classes that the training images do not have: n01484850"):
        TarImages(tmp_path / "tree", WNIDS[:2])


def test_files_stay_few_though_archives_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr("fastmlp.sources.tar.OPEN_FILES", 2)
    for k in range(5):
        (tmp_path / f"n{k}.tar").write_bytes(tar({"a.JPEG": jpeg(k)}))
    source = TarImages(sorted(tmp_path.glob("*.tar")))
    for k in (0, 1, 2, 3, 4, 4, 0):
        assert number_of(source[k][0]) == k and len(source._open) <= 2


def test_bad_archives_are_named(tmp_path):
    path = tmp_path / "x.tar"
    good = tar({f"n{k}_\udcff ä.JPEG": jpeg(k) for k in range(3)})
    path.write_bytes(good)
    source = TarImages(path)
    assert len(source) == 3 and number_of(source[2][0]) == 2  # names of any bytes
    ends = [m.offset_data + m.size for m in tarfile.open(fileobj=io.BytesIO(good))]
    third = (ends[1] + 511) // 512 * 512  # its header
    for cut in (0, 100, 600, ends[0] - 1, ends[0], third, third + 100, ends[2]):
        path.write_bytes(good[:cut])
        with pytest.raises(ValueError, match="x.tar: (truncated|not a tar archive)"):
            TarImages(path)
    with pytest.raises(OSError, match="x.tar: n2_.*only .* bytes are there"):  # of the archive: no bad image
        path.write_bytes(good[: ends[2] - 5])
        source[2]
    damaged = bytearray(good)
    header = (ends[0] + 511) // 512 * 512
    damaged[header + 150] ^= 1  # tarfile by itself ends here without a word
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"x.tar: truncated or damaged at byte {header:,}"):
        TarImages(path)
    for content, message in (
        (gzip.compress(good), "x.tar is compressed .gzip.*Decompress"),
        (tar({"a.tar": gzip.compress(good)}), "x.tar: a.tar is compressed"),
        (tar({"a.tar.gz": gzip.compress(good)}), "a.tar.gz in it is compressed"),
        (tar({"n1.tar": good[: ends[1]]}), "x.tar: n1.tar: truncated"),
        (b"hello" * 500, "x.tar: (not a tar|truncated or damaged at byte 0)"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            TarImages(path)
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("a/x.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "../../etc/passwd"
        archive.addfile(link)
    with pytest.raises(ValueError, match="a/x.JPEG is not a plain file"):
        TarImages(path)
    path.write_bytes(tar({"readme.txt": b"x"}))
    with pytest.raises(FileNotFoundError, match="holds no images"):
        TarImages(path)
    path.write_bytes(tar({"../../n1/" + "deep/" * 60 + "x.JPEG": jpeg(4), "/abs/y.png": jpeg(2)}))
    source = TarImages(path)  # nothing is unpacked, so odd paths harm nothing
    assert source.classes == ("abs", "n1") and [number_of(source[i][0]) for i in range(2)] == [2, 4]


def stl10_files(monkeypatch, train=6, test=3):
    monkeypatch.setattr(stl10, "COUNTS", {"train": train, "test": test})
    files = {"stl10_binary/class_names.txt": b"".join(b"name%d\n" % k for k in range(10))}
    for split, count in (("test", test), ("train", train)):
        images = np.zeros((count, 96, 96, 3), np.uint8)
        images[..., 0] = np.arange(96)[:, None]  # the row
        images[..., 1] = np.arange(96)[None, :]  # the column
        images[..., 2] = np.arange(count)[:, None, None]
        files[f"stl10_binary/{split}_X.bin"] = images.transpose(0, 3, 2, 1).tobytes()  # column-major
        files[f"stl10_binary/{split}_y.bin"] = (1 + np.arange(count) % 10).astype(np.uint8).tobytes()
        files["stl10_binary/fold_indices.txt"] = b"0 1\n"
    return files


def test_stl10_from_archive_and_folder(tmp_path, monkeypatch):
    files = stl10_files(monkeypatch)
    archive = tmp_path / "stl10_binary.tar.gz"
    archive.write_bytes(gzip.compress(tar(files), 1))
    with pytest.raises(ValueError, match="checksum differs"):
        STL10("train", tmp_path)
    unpacked = tmp_path / "unpacked"
    (unpacked / "stl10_binary").mkdir(parents=True)
    for name, content in files.items():
        (unpacked / name).write_bytes(content)
    for place in (archive, tmp_path, unpacked, unpacked / "stl10_binary"):
        for split, count in (("train", 6), ("test", 3)):
            source = STL10(split, place, any_checksum=True)
            assert len(source) == count and source.classes[9] == "name9"
            for i in range(count):
                image, label = source[i]
                assert image.shape == (96, 96, 3) and label == i and (image[..., 2] == i).all()
                assert (image[..., 0] == np.arange(96)[:, None]).all() and (image[..., 1] == np.arange(96)).all()
    (unpacked / "stl10_binary" / "train_y.bin").write_bytes(bytes(6))
    with pytest.raises(ValueError, match="labels 0 to 0, expected 10 classes"):
        STL10("train", unpacked)
    (unpacked / "stl10_binary" / "train_X.bin").write_bytes(b"short")
    with pytest.raises(ValueError, match="train_X.bin has 5 bytes, expected 165888"):
        STL10("train", unpacked)
    (unpacked / "stl10_binary" / "test_y.bin").unlink()
    with pytest.raises(FileNotFoundError, match="lacks test_y.bin"):
        STL10("test", unpacked)
    with pytest.raises(FileNotFoundError, match="--source"):
        STL10("test", tmp_path / "none")
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(ValueError, match="stl10_binary.tar.gz: (damaged|not the binary) archive"):
        STL10("train", archive, any_checksum=True)


def tiny_files():
    files = {
        "wnids.txt": "".join(f"{w}\n" for w in (WNIDS[2], WNIDS[0], WNIDS[1])).encode(),
        "words.txt": b"",
        "test/images/test_0.JPEG": jpeg(9),
    }
    for wnid, images in train_files().items():
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"x 0 0 62 62\n"
        files |= {f"train/{wnid}/images/{name}": content for name, content in images.items()}
    lines = [f"val_{n}.JPEG\t{WNIDS[k]}\t0\t32\t44\t62\n" for n, k in enumerate(VAL_LABELS, 1)]
    files["val/val_annotations.txt"] = "".join(lines).encode()
    return files | {f"val/images/val_{n}.JPEG": jpeg(n) for n in range(1, 8)}


def write_tiny(root):
    with zipfile.ZipFile(root / "tiny-imagenet-200.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny-imagenet-200/", "")
        for name, content in tiny_files().items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    return root / "tiny-imagenet-200.zip"


def test_tiny_imagenet_from_zip_and_folder(tmp_path):
    archive = write_tiny(tmp_path)
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(archive).extractall(unpacked)
    for place in (archive, tmp_path, unpacked, unpacked / "tiny-imagenet-200"):
        train, val = (pickle.loads(pickle.dumps(tiny_imagenet(split, place))) for split in ("train", "val"))
        assert train.classes == WNIDS and [number_of(train[i][0]) for i in range(12)] == list(range(12))
        assert [train[i][1] for i in range(12)] == [n // 4 for n in range(12)]
        check_val(val)
        pickle.dumps(val)
    with pytest.raises(FileNotFoundError, match="cs231n"):
        tiny_imagenet("train", tmp_path / "none")
    root = unpacked / "tiny-imagenet-200"
    (root / "val" / "images" / "val_8.JPEG").write_bytes(jpeg(8))
    with pytest.raises(ValueError, match=r"val_8.JPEG is in no class of wnids.txt \(not in val/val_annotations.txt"):
        tiny_imagenet("val", root)
    (root / "val" / "val_annotations.txt").unlink()
    with pytest.raises(FileNotFoundError, match="not the complete TinyImageNet"):
        tiny_imagenet("val", root)
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(ValueError, match="tiny-imagenet-200.zip: not a zip archive, or a damaged archive"):
        tiny_imagenet("train", archive)


def described(out, dataset, split):
    return json.loads(sidecar_path(beton_path(out, dataset, split, 8)).read_text())


@pytest.mark.parametrize("make", [(train_tree, val_tree), (train_tar, val_tar)])
def test_the_script_writes_imagenet(tmp_path, script, make):
    for part in (*make, truth_devkit_tar):
        part(tmp_path)
    (tmp_path / "real.json").write_text(json.dumps([[k, (k + 1) % 3] for k in VAL_LABELS]))
    ended = script(
        "writers/imagenet.py",
        "--source",
        tmp_path,
        "--res",
        8,
        "--out",
        tmp_path / "out",
        "--num-workers",
        1,
        "--real",
        tmp_path / "real.json",
    )
    assert ended.code == 0, ended.err
    metadata = described(tmp_path / "out", "imagenet", "val")
    assert metadata["classes"] == list(WNIDS) and metadata["images_per_class"] == [2, 2, 3]
    ended = script(
        "writers/imagenet.py", "--source", tmp_path, "--res", 8, "--out", tmp_path / "long", "--fit", "longest"
    )
    assert ended.code == 0, ended.err


def test_tree_and_tar_give_the_same_bytes(tmp_path, script):
    betons = []
    for make in (train_tree, val_tree), (train_tar, val_tar):
        root = tmp_path / make[0].__name__
        root.mkdir()
        for part in (*make, truth_wnids):
            part(root)
        assert script("writers/imagenet.py", "--source", root, "--res", 8, "--out", root / "out").code == 0
        betons.append(beton_path(root / "out", "imagenet", "train", 8).read_bytes())
    assert betons[0] == betons[1]


@pytest.mark.parametrize("tars", [False, True])
def test_the_script_writes_imagenet21k(tmp_path, script, monkeypatch, tars):
    if tars:
        for wnid, files in train_files().items():
            (tmp_path / f"{wnid}.tar").write_bytes(tar(files))
        root = tmp_path
    else:
        train_tree(tmp_path)
        root = tmp_path / "train"
    (tmp_path / "classes.txt").write_text(f"{WNIDS[2]}\n{WNIDS[0]}\n")
    monkeypatch.setenv("IMAGENET21K", str(root))
    flags = ("--res", 8, "--out", tmp_path / "out", "--classes", tmp_path / "classes.txt", "--num-workers", 1)
    ended = script("writers/imagenet21k.py", *flags, "--fraction", 0.25, "--holdout", 0.2)
    assert ended.code == 0, ended.err
    train, val = (described(tmp_path / "out", "imagenet21k", split) for split in ("train", "val"))
    assert train["classes"] == [WNIDS[0], WNIDS[2]] and train["images_per_class"] == [1, 1]
    assert sum(val["images_per_class"]) == 2
    (tmp_path / "classes.txt").write_text("n00000001\n")
    ended = script("writers/imagenet21k.py", *flags)
    assert ended.code == 2 and "n00000001" in ended.err
    monkeypatch.delenv("IMAGENET21K")
    ended = script("writers/imagenet21k.py", *flags)
    assert ended.code == 2 and "IMAGENET21K" in ended.err and "image-net.org" in ended.err


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("shuffle", [(), ("--no-shuffle",)])
def test_a_fraction_holds_the_images_of_a_run_with_that_train_fraction(tmp_path, script, seed, shuffle):
    labels = np.repeat([0, 1, 2], [12, 40, 8])
    for value, label in enumerate(labels):
        folder = tmp_path / "images" / WNIDS[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (4 * value, 255 - 4 * value, 7)).save(folder / f"{value}.png")
    for fraction in (1, 0.3):
        flags = ("--source", tmp_path / "images", "--fraction", fraction, "--out", tmp_path / str(fraction), *shuffle)
        ended = script("writers/imagenet21k.py", *flags, "--res", 4, "--holdout", 0.1, "--seed", seed)
        assert ended.code == 0, ended.err
    spec = get_dataset("imagenet21k", tmp_path / "1", 4)
    split = Split(
        spec, "train", "evaluate", data_dir=tmp_path / "1", res=4, batch_size=8, num_workers=1, seed=seed, fraction=0.3
    )
    whole = BetonReader(beton_path(tmp_path / "1", "imagenet21k", "train", 4))
    small = BetonReader(beton_path(tmp_path / "0.3", "imagenet21k", "train", 4))

    def contents(beton, samples):
        return sorted((beton.image(i).tobytes(), int(beton.records["f1"][i])) for i in samples)

    assert len(whole.records) == 54 and 14 <= len(small.records) <= 18
    assert contents(small, range(len(small.records))) == contents(whole, split.loader.indices)


@pytest.mark.parametrize("fraction", [0, 1.1, "nan"])
def test_a_fraction_outside_of_0_to_1_is_refused(tmp_path, script, fraction):
    ended = script("writers/imagenet21k.py", "--source", tmp_path, "--fraction", fraction)
    assert ended.code == 2 and "--fraction" in ended.err and "at most 1" in ended.err


def test_the_scripts_write_tiny_imagenet_and_stl10(tmp_path, script, monkeypatch):
    write_tiny(tmp_path)
    monkeypatch.setenv("TINY_IMAGENET", str(tmp_path))
    flags = ("--res", 8, "--out", tmp_path / "out", "--num-workers", 1)
    assert script("writers/tiny_imagenet.py", *flags).code == 0
    assert described(tmp_path / "out", "tiny_imagenet", "val")["images_per_class"] == [2, 2, 3]
    files = stl10_files(monkeypatch)
    (tmp_path / "stl10_binary").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setenv("STL10", str(tmp_path))
    assert script("writers/stl10.py", *flags).code == 0
    assert described(tmp_path / "out", "stl10", "train")["images_per_class"] == [1] * 6 + [0] * 4
    for name in ("TINY_IMAGENET", "IMAGENET"):
        monkeypatch.delenv(name, raising=False)
        ended = script(f"writers/{name.lower()}.py", *flags)
        assert ended.code == 2 and name in ended.err and "http" in ended.err
