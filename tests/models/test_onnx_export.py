"""Exported ONNX files in onnxruntime against the host path: resized and normalised pixels, then the model."""

import functools
import json
import sys
from collections.abc import Callable

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from matplotlib.cbook import get_sample_data
from PIL import Image

import fastmlp
from fastmlp import cli
from fastmlp.evaluation.classify import classify_folder
from fastmlp.evaluation.evaluate import select_forward
from fastmlp.models import onnx_export
from fastmlp.models.onnx_export import export_onnx, resize_matrix
from fastmlp.models.weights import load_model, save_model
from fastmlp.transforms.augment_params import Augment, draw_params
from fastmlp.transforms.resample import crop_resize_normalize

METADATA = {"mean": [125.3, 122.95, 113.87], "std": [62.99, 62.09, 66.7], "dataset": "mine", "fit": "square"}
SIZES = ((32, 64), (64, 32), ((48, 60), 32), (33, 64), ((45, 31), 17), ((1, 7), 8), ((90, 150), 32))
ARCHS = ("B_2-Wi_48", "S_2-Wi_48", "B_1-Wi_40-E_3-N_batch", "S_3-Wi_40-N_batch", "B_2-Wi_48-N_none", "S_1-Wi_40-N_none")
CASES = [(size, res, resampling) for size, res in SIZES for resampling in ("bilinear", "area")]


def model(arch: str, res: int, resampling: str = "bilinear", num_classes: int = 7) -> fastmlp.models.mlp.MLP:
    """A model of which no weight and no statistic is as it was initialised."""
    torch.manual_seed(0)
    built = fastmlp.build_model(arch, res, num_classes)
    built.resampling = resampling
    with torch.no_grad():
        for tensor in (*built.parameters(), *(b for b in built.buffers() if b.is_floating_point())):
            tensor.add_(torch.rand_like(tensor) * 0.1)
    return built


@functools.cache
def photographs() -> list[np.ndarray]:
    """One photograph at three scales."""
    with get_sample_data("grace_hopper.jpg") as file:
        photograph = Image.open(file).convert("RGB")
        return [np.asarray(photograph.reduce(factor)) for factor in (1, 2, 3)]


def windows(height: int, width: int, count: int) -> np.ndarray:
    """Windows of it, (count, height, width, 3) uint8."""
    rng, images = np.random.default_rng(0), np.empty((count, height, width, 3), np.uint8)
    for n, image in enumerate(images):
        whole = photographs()[n % 3]
        top, left = rng.integers(whole.shape[0] - height + 1), rng.integers(whole.shape[1] - width + 1)
        image[:] = whole[top : top + height, left : left + width]
    return images


def host_logits(built, images: np.ndarray) -> torch.Tensor:
    """The logits of images (B, H, W, 3) uint8 as evaluation on the CPU computes them."""
    count, height, width = images.shape[:3]
    boxes, flips = draw_params(Augment("center"), height, width, 0, 0, np.arange(count))
    addresses = np.array([image.ctypes.data for image in images], np.uint64)
    sides, out = (np.full(count, height), np.full(count, width)), np.empty((count, 3 * built.res**2), np.float32)
    numbers = (np.array(METADATA[name], np.float32) for name in ("mean", "std"))
    crop_resize_normalize(addresses, *sides, boxes, flips, *numbers, out, built.res, built.resampling == "area")
    with torch.inference_mode():
        return select_forward(built.eval())(torch.from_numpy(out))


def runtime(path) -> Callable[[np.ndarray], list[np.ndarray]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits", "probabilities"], {"images": images})


@pytest.mark.parametrize(("number", "size", "res", "resampling"), [(n, *case) for n, case in enumerate(CASES)])
def test_logits_and_probabilities_equal_the_host_path(tmp_path, number, size, res, resampling):
    """In all 1,050 windows of a photograph and 14 of noise."""
    height, width = (size, size) if isinstance(size, int) else size
    built = model(ARCHS[number % len(ARCHS)], res, resampling, num_classes=number + 1)
    run = runtime(export_onnx(built, tmp_path / "m.onnx", size, METADATA, "none"))
    noise = np.random.default_rng(number).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    for images in (windows(height, width, 75), noise):
        expected = host_logits(built, images)
        logits, probabilities = run(images)
        assert logits.dtype == probabilities.dtype == np.float32
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * max(1, float(expected.abs().max())))
        np.testing.assert_allclose(probabilities, expected.softmax(1), rtol=0, atol=1e-4)
    assert number == 0 or np.ptp(logits) > 0.01


@pytest.mark.parametrize("fit", ["square", "longest"])
@pytest.mark.parametrize(
    ("size", "res"), [((48, 60), 32), ((60, 48), 64), ((9, 90), 32), ((33, 33), 64), ((31, 45), 31)]
)
def test_predictions_of_another_size_are_those_of_predict(tmp_path, size, res, fit):
    """On 400 images at each of 10 combinations, photographs and noise."""
    built = model("B_2-Wi_48", res, "area" if res == 64 else "bilinear")
    built.metadata = {**METADATA, "fit": fit}
    run = runtime(export_onnx(built, tmp_path / "m.onnx", size))
    noise = np.random.default_rng(res).integers(0, 256, (200, *size, 3), dtype=np.uint8)
    images = np.concatenate([windows(*size, 200), noise])
    np.testing.assert_allclose(run(images)[1], fastmlp.predict(built, images).probabilities, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("side", "res"), [(8, 8), (9, 5), (5, 9), (64, 32), (300, 17), (1, 3), (3, 1), (100, 99)])
def test_bicubic_matrices_give_the_bytes_of_pillow(side, res):
    images = np.random.default_rng(side).integers(0, 256, (40, side, side, 3), np.uint8)
    images[:20] = np.where(images[:20] > 127, 255, 0)  # overshoots, which are clipped
    matrix = onnx_export.bicubic_matrix(side, res)
    for image in images:
        across = np.clip(np.floor(np.einsum("hwc,xw->hxc", image.astype(float), matrix) + 0.5), 0, 255)
        both = np.clip(np.floor(np.einsum("hxc,yh->yxc", across, matrix) + 0.5), 0, 255)
        expected = Image.fromarray(image).resize((res, res), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(both, np.asarray(expected))


@pytest.mark.parametrize(("side", "res"), [(8, 8), (9, 5), (5, 9), (64, 32), (32, 64), (100, 17), (1, 3), (3, 1)])
def test_resizing_matrices_are_those_of_torch_and_opencv(side, res):
    eye = torch.eye(side)
    bilinear = F.interpolate(eye[None, None], (res, side), mode="bilinear", align_corners=False)[0, 0]
    np.testing.assert_allclose(resize_matrix(side, res, "bilinear"), bilinear, atol=1e-5)
    area = cv2.resize(eye.numpy(), (side, res), interpolation=cv2.INTER_AREA).reshape(res, side)
    np.testing.assert_allclose(resize_matrix(side, res, "area"), area, atol=1e-5)


def test_a_trained_model_leaves_by_the_command_with_everything_inside(tmp_path, monkeypatch, capsys):
    """Its probabilities are those that classify_folder gives the same pictures."""
    classes = ["Äpfel", "b,c", "d\udce9"]  # the last from a folder's name that is no UTF-8
    metadata = {**METADATA, "dataset": "m\udce9", "classes": classes, "steps": 7}
    save_model(tmp_path / "m.pt", model("B_2-Wi_48", 32, "area", 3), metadata)
    images = windows(32, 32, 12)
    (tmp_path / "pictures").mkdir()
    for n, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{n:02}.png")
    out = tmp_path / "new" / "m.onnx"
    monkeypatch.setattr(sys, "argv", ["onnx_export", str(tmp_path / "m.pt"), str(out)])
    monkeypatch.setattr("warnings.formatwarning", None)  # cli.run sets it; put back after the test
    cli.run(onnx_export.main)
    assert capsys.readouterr().out.startswith(str(out)) and [path.name for path in out.parent.iterdir()] == ["m.onnx"]
    loaded, _ = load_model(tmp_path / "m.pt")
    found = classify_folder(loaded, tmp_path / "pictures", "square", num_workers=1)
    run = runtime(out)
    for chosen in (slice(None), slice(1)):  # batches of two sizes
        np.testing.assert_allclose(run(images[chosen])[1], found.probabilities[chosen], atol=1e-4)
    stored = onnx.load(out)
    onnx.checker.check_model(stored, full_check=True)
    told = {entry.key: entry.value for entry in stored.metadata_props}
    texts = [told[name] for name in ("arch", "dataset", "resampling", "fit")]
    assert texts == ["B_2-Wi_48", "m\\udce9", "area", "square"]
    assert [json.loads(told[name]) for name in ("classes", "mean", "steps")] == [classes, METADATA["mean"], 7]
    (images_in,) = stored.graph.input
    dims = images_in.type.tensor_type.shape.dim
    assert dims[0].dim_param == "batch" and [dim.dim_value for dim in dims[1:]] == [32, 32, 3]


def test_sizes_on_the_command_line(tmp_path, monkeypatch, capsys):
    save_model(tmp_path / "m.pt", model("S_1-Wi_40-N_none", 8), METADATA)
    monkeypatch.setattr("warnings.formatwarning", None)
    for sides in (["12"], ["12", "20"], ["1", "2", "3"], ["0"]):
        monkeypatch.setattr(
            sys, "argv", ["x", str(tmp_path / "m.pt"), str(tmp_path / "m.onnx"), "--input-size", *sides]
        )
        if len(sides) == 3 or sides == ["0"]:
            with pytest.raises(SystemExit, match="2"):
                cli.run(onnx_export.main)
            assert "expected the side of the images in pixels, or their height and width" in capsys.readouterr().err
        else:
            cli.run(onnx_export.main)
            images = np.zeros((2, int(sides[0]), int(sides[-1]), 3), np.uint8)
            assert runtime(tmp_path / "m.onnx")(images)[0].shape == (2, 7)


def test_metadata_can_be_given_or_replaced(tmp_path):
    built = model("S_1-Wi_40-N_none", 8)
    save_model(tmp_path / "m.pt", built, {"mean": [1.0, 2.0, 3.0]})
    given = {"mean": np.array(METADATA["mean"]), "std": tuple(METADATA["std"]), "classes": [], "n": np.float32(3)}
    images = windows(8, 8, 3)
    logits, _ = runtime(fastmlp.export_onnx(tmp_path / "m.pt", tmp_path / "m.onnx", metadata=given))(images)
    np.testing.assert_allclose(logits, host_logits(built, images), atol=1e-4)
    logits, _ = runtime(export_onnx(built.half(), tmp_path / "m.onnx", metadata=given))(images)  # stored as float32
    np.testing.assert_allclose(logits, host_logits(built.float(), images), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "m.pt"}, r"m\.pt: expected the name of a file to write that ends in \.onnx"),
        ({"input_size": 0}, "input size 0: expected"),
        ({"input_size": (8, 70_000)}, r"input size \(8, 70000\): expected"),
        ({"input_size": 8.0}, "input size 8.0: expected"),
        ({"input_size": "8"}, "input size '8': expected"),
        ({"metadata": None}, "the model's metadata has no mean and no std, with which"),
        ({"metadata": {"mean": METADATA["mean"]}}, "has no std, with which"),
        ({"metadata": {"mean": [1.0, 2.0], "std": [1.0, 2.0, 3.0]}}, "expected three finite numbers each"),
        ({"metadata": {**METADATA, "fit": "Square"}}, "has wrong metadata: fit"),
        ({"metadata": {**METADATA, "classes": "abcdefg"}}, "has wrong metadata: classes"),
        ({"fit": "tall"}, "fit='tall': expected auto, square, longest or none"),
        ({"metadata": {**METADATA, "classes": ["a"]}}, "names 1 classes, but the head has 7"),
    ],
)
def test_what_cannot_be_exported_is_refused(tmp_path, arguments, message):
    arguments = {"path": "m.onnx", "metadata": METADATA, **arguments}
    with pytest.raises(ValueError, match=message):
        export_onnx(model("S_1-Wi_40-N_none", 8), tmp_path / arguments.pop("path"), **arguments)
    assert not list(tmp_path.iterdir())


def test_weights_that_no_file_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "MAX_BYTES", 10_000)
    with pytest.raises(ValueError, match=r"S_1-Wi_40-N_none takes 0\.0 GiB, but an ONNX file holds at most 2 GiB"):
        export_onnx(model("S_1-Wi_40-N_none", 8), tmp_path / "m.onnx", metadata=METADATA)


def test_files_that_are_no_model_or_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "m.pt").write_bytes(b"no model")
    with pytest.raises(ValueError, match=r"m\.pt is damaged or not a file of weights"):
        export_onnx(tmp_path / "m.pt", tmp_path / "m.onnx")
    with pytest.raises(FileNotFoundError, match="is missing: expected a file of weights"):
        export_onnx("runs/none/final.pt", tmp_path / "m.onnx")
    built = model("S_1-Wi_40-N_none", 8)
    with pytest.raises(OSError, match=r"m\.pt"):  # a file where a folder should be
        export_onnx(built, tmp_path / "m.pt" / "m.onnx", metadata=METADATA)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(IsADirectoryError, match=r"folder\.onnx is a folder"):
        export_onnx(built, tmp_path / "folder.onnx", metadata=METADATA)
    (tmp_path / "m.onnx").write_bytes(b"before")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        export_onnx(built, tmp_path / "m.onnx", metadata=METADATA)
    assert (tmp_path / "m.onnx").read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 3


def test_without_onnx_the_command_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r"onnx is not installed: pip install 'fastmlp\[export\]'"):
        export_onnx(model("S_1-Wi_40-N_none", 8), tmp_path / "m.onnx", metadata=METADATA)
