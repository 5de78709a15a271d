"""Training, evaluation and prediction from Python: values, silence, errors that are raised."""

import io
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch import nn

import fastmlp
from fastmlp.config import PretrainConfig
from fastmlp.messages import logger, shown
from fastmlp.models.mlp import MLP
from fastmlp.sources.decode import decode
from fastmlp.training import pretrain
from fastmlp.training.trainer import Trainer

ARCH = {"res": 8, "arch": "B_1-Wi_16", "batch_size": 100, "lr": 1e-3, "mixup_alpha": 0.0, "num_workers": 1}


@pytest.fixture(autouse=True)
def messages_as_in_scripts():
    """Nothing is printed, as when the library is called from Python."""


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    return fastmlp.train("synthetic", data_dir=data_dir, epochs=2, run_dir=folder, **ARCH)


def test_training_returns_what_the_log_has(trained):
    (end,) = trained.log("end")
    assert trained.top1 == end["eval_top1"] and trained.best_top1 == end["best_top1"]
    assert trained.images_per_s == end["images_per_s"] and trained.train_s == end["train_s"]
    assert [line["epoch"] for line in trained.log()] == [1, 2] and trained.weights.is_file()
    assert 0 <= trained.top1 <= 1 and trained.scores.images == 200


def test_the_recipe_trains_the_same_weights(trained, script, data_dir, tmp_path):
    flags = [f"--cfg.{name}={value}" for name, value in ARCH.items()]
    path = tmp_path / "recipe"
    ended = script(
        "recipes/pretrain.py",
        *flags,
        "--cfg.dataset=synthetic",
        f"--cfg.data_dir={data_dir}",
        f"--cfg.run_dir={path}",
        "--cfg.epochs=2",
    )
    assert ended.code == 0 and "test top-1" in ended.out
    models = [fastmlp.load_model(file)[0].state_dict() for file in (path / "final.pt", trained.weights)]
    for name, tensor in models[0].items():
        torch.testing.assert_close(models[1][name], tensor, rtol=0, atol=0)


def test_nothing_is_printed_unless_asked(data_dir, tmp_path, capfd):
    shared = {"data_dir": str(data_dir), "epochs": 1, **ARCH}
    run = fastmlp.train("synthetic", run_dir=str(tmp_path / "a"), **shared)
    transfer = {"data_dir": str(data_dir), "res": 8, "num_workers": 1, "batch_size": 100}
    fastmlp.finetune(run.weights, "synthetic", run_dir=str(tmp_path / "b"), epochs=1, **transfer)
    fastmlp.linear_probe(run.weights, "synthetic", run_dir=str(tmp_path / "c"), epochs=1, **transfer)
    fastmlp.linear_probe(run.weights, "synthetic", run_dir=str(tmp_path / "d"), method="logistic", **transfer)
    fastmlp.evaluate(run.weights, data_dir=str(data_dir), res=8)
    fastmlp.predict(run.weights, np.zeros((2, 9, 9, 3), np.uint8))
    assert capfd.readouterr() == ("", "")
    fastmlp.train("synthetic", run_dir=str(tmp_path / "e"), verbose=True, **shared)
    out, err = capfd.readouterr()
    assert "epoch    1/1" in out and "images/sec" in out and "images/s" in err
    assert not logger.isEnabledFor(10) and len(logger.handlers) == 1


def test_writing_is_silent_but_in_scripts(data_dir, tmp_path, capfd):
    from fastmlp.sources.synthetic import Synthetic

    source = Synthetic(50, num_classes=5, res=8, split="train")
    for _ in range(2):
        fastmlp.write_beton(tmp_path / "x.beton", source, 8)
    assert capfd.readouterr() == ("", "")
    with shown():
        fastmlp.write_beton(tmp_path / "x.beton", source, 8)
    assert capfd.readouterr().err.endswith("notice: x.beton: already written\n")


def test_shown_ends_with_its_block(capfd):
    with shown(), shown(), shown(False):
        logger.info("in %s", "it")
    logger.info("after")
    logger.warning("after")
    assert capfd.readouterr() == ("in it\n", "")


def test_evaluation_equals_the_recipe(trained, script, data_dir, tmp_path):
    found = fastmlp.evaluate(trained.weights, data_dir=str(data_dir), res=8)
    shared = ("recipes/evaluate.py", f"--cfg.weights={trained.weights}", f"--cfg.data_dir={data_dir}", "--cfg.res=8")
    assert script(*shared, f"--cfg.out={tmp_path}").code == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert found.top1 == trained.top1 == results["top-1"]["share"] and found.loss == results["loss"]
    assert list(found.interval) == results["top-1"]["interval_95"]
    assert found.per_class_top1 == results["per_class_top1"] and found.classes == list(results["per_class_top1"])
    assert (found.labels == found.predicted).mean() == pytest.approx(found.top1)
    assert found.confusion.sum() == len(found.probability) == 200 and found.dataset == "synthetic"
    model, _ = fastmlp.load_model(trained.weights)
    again = fastmlp.evaluate(model, data_dir=str(data_dir), res=8, tta_crops=2)
    assert again.top5 == 1 and again.split == found.split


IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)


def expected(model: MLP, images: np.ndarray) -> np.ndarray:
    """Return the probabilities of images of the model's size by torch alone."""
    numbers = [torch.tensor(model.metadata[name], dtype=torch.float64)[:, None, None] for name in ("mean", "std")]
    pixels = (torch.tensor(images).permute(0, 3, 1, 2).double() - numbers[0]) / numbers[1]
    with torch.no_grad():
        return model.double()(pixels.flatten(1)).softmax(1).numpy()


def test_predictions_are_those_of_torch(trained):
    model, metadata = fastmlp.load_model(trained.weights)
    found = fastmlp.predict(model, IMAGES)
    np.testing.assert_allclose(found.probabilities, expected(model, IMAGES), atol=1e-5)
    assert found.inputs == list(range(7)) and found.classes == metadata["classes"] and len(found) == 7
    assert found.labels == [found.classes[c] for c in found.probabilities.argmax(1)]
    for top, row in zip(found.top(2), found.probabilities, strict=True):
        assert [share for _, share in top] == sorted(row.tolist())[:-3:-1]


def to_png(image: np.ndarray, path) -> None:
    Image.fromarray(image).save(path)


FORMS = {
    "array": lambda images, folder: images,
    "tensor": lambda images, folder: torch.tensor(images),
    "list": lambda images, folder: list(images),
    "iterator": lambda images, folder: iter(images),
    "pillow": lambda images, folder: [Image.fromarray(image) for image in images],
    "opaque": lambda images, folder: np.concatenate([images, np.full((*images.shape[:3], 1), 255, np.uint8)], 3),
    "paths": lambda images, folder: sorted(folder.glob("*.png")),
    "names": lambda images, folder: [str(path) for path in sorted(folder.glob("*.png"))],
    "folder": lambda images, folder: folder,
    "mixed": lambda images, folder: (images[0], Image.fromarray(images[1]), folder / "2.png", *images[3:]),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_images_gives_the_same(trained, form, tmp_path):
    for number, image in enumerate(IMAGES):
        to_png(image, tmp_path / f"{number}.png")
    whole = fastmlp.predict(trained.weights, IMAGES)
    found = fastmlp.predict(trained.weights, FORMS[form](IMAGES, tmp_path))
    np.testing.assert_array_equal(found.probabilities, whole.probabilities)
    assert len(found.inputs) == 7


def test_one_image_alone_and_grey_ones(trained):
    one = fastmlp.predict(trained.weights, IMAGES[0])
    whole = fastmlp.predict(trained.weights, IMAGES)
    np.testing.assert_allclose(one.probabilities, whole.probabilities[:1], atol=1e-6)  # another shape of product
    grey = IMAGES[..., 0]
    colour = fastmlp.predict(trained.weights, np.repeat(grey[..., None], 3, 3)).probabilities
    for form in (grey, grey[..., None], list(grey)):
        np.testing.assert_array_equal(fastmlp.predict(trained.weights, form).probabilities, colour)
    np.testing.assert_allclose(fastmlp.predict(trained.weights, grey[0]).probabilities, colour[:1], atol=1e-6)


def test_pillow_images_are_turned_upright_and_fitted_as_files(trained, tmp_path):
    wide = np.random.default_rng(1).integers(0, 256, (20, 31, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = io.BytesIO()
    Image.fromarray(wide).save(content, "png", exif=exif)
    (tmp_path / "x.png").write_bytes(content.getvalue())
    opened = Image.open(io.BytesIO(content.getvalue()))
    for fit in ("square", "longest"):
        first, second = (fastmlp.predict(trained.weights, [i], fit=fit) for i in (opened, tmp_path / "x.png"))
        np.testing.assert_array_equal(first.probabilities, second.probabilities)
    assert decode(content.getvalue(), "x").shape == (31, 20, 3)


def test_a_folder_leaves_out_what_cannot_be_read_and_a_list_does_not(trained, tmp_path):
    to_png(IMAGES[0], tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    (tmp_path / "c.txt").write_text("no image")
    found = fastmlp.predict(trained.weights, tmp_path)
    assert found.inputs == [tmp_path / "a.png"] and found.left_out.total() == 1
    assert len(found.unreadable) == 1 and "b.png" in found.unreadable[0]
    with pytest.raises(ValueError, match=r"1 of 2 images: .*b\.png"):
        fastmlp.predict(trained.weights, [tmp_path / "a.png", tmp_path / "b.png"])


def damaged_png(image: np.ndarray) -> Image.Image:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "png", compress_level=0)
    content = bytearray(content.getvalue())
    content[60:100] = bytes(40)
    return Image.open(io.BytesIO(content))


def closed(image: np.ndarray) -> Image.Image:
    picture = damaged_png(image)
    picture.close()
    return picture


@pytest.mark.parametrize("broken", [damaged_png, closed])
def test_a_pillow_image_that_cannot_be_read_is_named(trained, broken):
    with pytest.raises(ValueError, match="1 of 2 images: image 1: cannot be read as an image"):
        fastmlp.predict(trained.weights, [IMAGES[0], broken(IMAGES[1])])


def test_an_iterator_may_fill_the_same_array_again(trained):
    def frames():
        frame = np.empty((8, 8, 3), np.uint8)
        for image in IMAGES:
            frame[:] = image
            yield frame

    found = fastmlp.predict(trained.weights, frames())
    np.testing.assert_array_equal(found.probabilities, fastmlp.predict(trained.weights, IMAGES).probabilities)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_of_the_caller_s_is_changed(trained, data_dir, training):
    model, _ = fastmlp.load_model(trained.weights)
    model.train(training)
    threads, handlers = torch.get_num_threads(), list(logger.handlers)
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    for one in (model, trained.weights):
        fastmlp.predict(one, IMAGES)
        fastmlp.evaluate(one, data_dir=data_dir, res=8)
    assert torch.rand(1) == wanted and model.training is training
    assert torch.get_num_threads() == threads and logger.handlers == handlers and logger.propagate


def test_no_class_is_named_where_a_logit_is_nan(trained):
    model, _ = fastmlp.load_model(trained.weights)
    with torch.no_grad():
        model.linear_out.weight[3] = float("nan")
    found = fastmlp.predict(model, IMAGES[:1])
    assert found.labels == [""] and found.top(2) == [[]] and found.best[0].tolist() == [-1] * 5


def test_messages_of_several_threads_and_other_handlers(capfd):
    first, second = shown(), shown()
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    logger.info("still")
    second.__exit__(None, None, None)
    logger.info("ended")
    with shown():
        logger.info("again")
    assert capfd.readouterr() == ("still\nagain\n", "")


def test_numpy_s_metadata_and_home_folders(trained, tmp_path, monkeypatch):
    model, metadata = fastmlp.load_model(trained.weights)
    wanted = fastmlp.predict(model, IMAGES)
    model.metadata = {name: np.array(metadata[name]) for name in ("mean", "std", "classes")}
    assert fastmlp.predict(model, IMAGES).labels == wanted.labels
    monkeypatch.setenv("HOME", str(trained.folder))
    assert fastmlp.predict("~/final.pt", IMAGES).labels == wanted.labels


MISUSES = {
    "floats": (lambda w: fastmlp.predict(w, IMAGES / 255), ValueError, "pixels of float64: expected uint8"),
    "channels first": (lambda w: fastmlp.predict(w, IMAGES.transpose(0, 3, 1, 2)), ValueError, "is no image"),
    "nothing": (lambda w: fastmlp.predict(w, []), ValueError, "no images: expected"),
    "empty": (lambda w: fastmlp.predict(w, IMAGES[:0]), ValueError, "is no image"),
    "one with channels first": (
        lambda w: fastmlp.predict(w, IMAGES[0].transpose(2, 0, 1)),
        ValueError,
        "channels first",
    ),
    "half": (lambda w: fastmlp.predict(fastmlp.load_model(w)[0].half(), IMAGES), ValueError, r"call model\.float\(\)"),
    "model to tune": (
        lambda w: fastmlp.finetune(fastmlp.load_model(w)[0], "x"),
        ValueError,
        "weights: expected a file",
    ),
    "device of a model": (
        lambda w: fastmlp.evaluate(fastmlp.load_model(w)[0], device="cpu"),
        ValueError,
        "device .the model has its own",
    ),
    "number": (lambda w: fastmlp.predict(w, 3), ValueError, "int is no image"),
    "budget of a fit": (
        lambda w: fastmlp.linear_probe(w, "synthetic", res=8, method="logistic", budget=1),
        ValueError,
        "has no steps of which",
    ),
    "bytes": (lambda w: fastmlp.predict(w, b"x"), ValueError, "bytes is no image"),
    "missing": (lambda w: fastmlp.predict(w, "none.png"), FileNotFoundError, "none.png is missing"),
    "folder in a list": (lambda w: fastmlp.predict(w, [w.parent]), ValueError, "give it alone"),
    "nested": (lambda w: fastmlp.predict(w, [[IMAGES[0]]]), ValueError, "single images"),
    "fit": (lambda w: fastmlp.predict(w, IMAGES, fit="tall"), ValueError, "fit='tall': expected auto, square or"),
    "no weights": (lambda w: fastmlp.predict("none.pt", IMAGES), FileNotFoundError, "none.pt is missing"),
    "no setting": (lambda w: fastmlp.train("synthetic", epoch=3), ValueError, "unknown field epoch"),
    "wrong value": (lambda w: fastmlp.train("synthetic", epochs=-3), ValueError, "^epochs: expected a number"),
    "old name": (lambda w: fastmlp.train("synthetic", mixup=0.8), ValueError, "mixup is now called mixup_alpha"),
    "odd": (lambda w: fastmlp.train("synthetic", micro_batch_size=3), ValueError, "^micro_batch_size=3 is odd"),
    "no data set": (lambda w: fastmlp.train("none"), ValueError, "unknown data set 'none'"),
    "no beton": (lambda w: fastmlp.train("cifar10"), FileNotFoundError, "python writers/cifar.py"),
    "budget": (
        lambda w: fastmlp.train("synthetic", budget=1, **ARCH),
        ValueError,
        "recipes/pretrain.py --cfg.budget=1",
    ),
    "finished": (
        lambda w: fastmlp.train("synthetic", run_dir=str(w.parent), **ARCH),
        ValueError,
        "choose another run_dir",
    ),
    "no data set to tune on": (lambda w: fastmlp.finetune(w, "auto"), ValueError, "dataset=NAME"),
    "images": (lambda w: fastmlp.evaluate(w, images="x"), ValueError, r"fastmlp\.predict classifies images"),
    "other classes": (lambda w: fastmlp.evaluate(w, "cifar10"), ValueError, "has 5 classes, cifar10 has 10"),
    "bare model": (
        lambda w: fastmlp.predict(fastmlp.build_model("B_1-Wi_8", 8, 3), IMAGES),
        ValueError,
        "the model does not record its mean and std: .* set model.metadata",
    ),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_raises_what_a_user_can_read(trained, misuse, data_dir, monkeypatch, capfd):
    call, kind, told = MISUSES[misuse]
    monkeypatch.chdir(data_dir.parent)
    (data_dir.parent / "data").exists() or (data_dir.parent / "data").symlink_to(data_dir)
    with pytest.raises(kind, match=told) as raised:
        call(trained.weights)
    assert type(raised.value) is kind and "--cfg." not in str(raised.value).replace("pretrain.py --cfg.budget", "")
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_raises_after_a_checkpoint_and_the_same_call_resumes(data_dir, tmp_path, monkeypatch, capfd):
    steps, step = [], Trainer.step

    def stopping(self, *batch):
        steps.append(1)
        if len(steps) == 4:
            signal.raise_signal(signal.SIGINT)
        return step(self, *batch)

    shared = {"data_dir": str(data_dir), "epochs": 2, **ARCH}
    whole = fastmlp.train("synthetic", run_dir=str(tmp_path / "whole"), **shared)
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stopping)
        with pytest.raises(KeyboardInterrupt, match="stopped by signal 2; the same call or command resumes from .*cut"):
            fastmlp.train("synthetic", run_dir=str(tmp_path / "cut"), **shared)
    assert signal.getsignal(signal.SIGINT) is before and len(steps) == 4
    run = fastmlp.train("synthetic", run_dir=str(tmp_path / "cut"), **shared)
    first, second = (fastmlp.load_model(r.weights)[0].state_dict() for r in (whole, run))
    assert all(torch.equal(first[name], second[name]) for name in first) and capfd.readouterr() == ("", "")


def test_a_diverging_run_raises(data_dir, tmp_path):
    with pytest.raises(FloatingPointError, match="step"):
        fastmlp.train("synthetic", data_dir=str(data_dir), run_dir=str(tmp_path / "x"), **{**ARCH, "lr": 1e30})


def test_a_model_of_ones_own_predicts_with_its_metadata(data_dir):
    model = fastmlp.build_model("B_1-Wi_8", 8, 3)
    nn.init.normal_(model.linear_out.weight)
    model.metadata = {"mean": (120, 121, 122), "std": (60.0, 61.0, 62.0), "classes": ["a", "b", "c"]}
    found = fastmlp.predict(model, IMAGES)
    np.testing.assert_allclose(found.probabilities, expected(model, IMAGES), atol=1e-5)
    assert set(found.labels) <= {"a", "b", "c"}
    model.float().replace_head(2)
    assert model.metadata == {"mean": (120, 121, 122), "std": (60.0, 61.0, 62.0)}
    assert fastmlp.predict(model, IMAGES[0]).classes == ["0", "1"]


def test_settings_of_a_data_set_are_installed_and_a_checkouts_own_go_first(tmp_path, monkeypatch):
    asked = PretrainConfig(dataset="fashion_mnist", data_dir=str(tmp_path))
    own, installed = pretrain.SETTINGS_FOLDERS
    assert own == ROOT / "recipes/configs" and installed.parent == Path(pretrain.__file__).parent
    assert pretrain.presets(asked)["arch"] == "B_2-Wi_256-E_2"
    assert pretrain.presets(PretrainConfig(dataset="cifar10", data_dir=str(tmp_path))) == {}
    monkeypatch.setattr(pretrain, "SETTINGS_FOLDERS", (tmp_path, installed))
    assert pretrain.presets(asked)["arch"] == "B_2-Wi_256-E_2"
    (tmp_path / "fashion_mnist.yaml").write_text("cfg: {arch: S_1-Wi_8}")
    assert pretrain.presets(asked) == {"arch": "S_1-Wi_8"}
    (tmp_path / "fashion_mnist.yaml").write_text("arch: S_1-Wi_4\nepochs: 3")
    assert pretrain.presets(asked) == {"arch": "S_1-Wi_4", "epochs": 3}
    for wrong, message in (("epohcs: 3", "unknown field epohcs"), ("mixup: 0", "now called mixup_alpha"), ("3", "map")):
        (tmp_path / "fashion_mnist.yaml").write_text(wrong)
        with pytest.raises(ValueError, match=f"fashion_mnist.yaml.*{message}"):
            pretrain.presets(asked)
