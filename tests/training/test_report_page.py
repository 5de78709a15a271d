"""The page of a run: what it holds, that nothing in it is run or loaded, and that it loses no run."""

import csv
import errno
import html.parser
import json
import math
import re
import shlex
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from finished_runs import CLASSES, detailed, write_run
from headless_browser import shown_at
from PIL import Image

from fastmlp import cli
from fastmlp.beton.writer_cli import WriteOptions, write_splits
from fastmlp.data.stored_images import stored_images
from fastmlp.evaluation.evaluate import DetailedScores, Scores
from fastmlp.evaluation.html_page import BOTTOM, LEFT, MAX_POINTS, RIGHT, TOP, Series, line_chart, ticks
from fastmlp.evaluation.predictions import StoredPredictions, read_predictions, write_predictions
from fastmlp.loader.mapped_beton import MappedBeton
from fastmlp.models.weights import build_model, load_model, save_model
from fastmlp.plots import contact_sheet
from fastmlp.sources.synthetic import Synthetic
from fastmlp.training import report_page, report_pictures
from fastmlp.training.run_log import read_log
from fastmlp.training.run_record import duration_text, read_run

EVIL = '<script>alert("1")</script>'
NAMES = (EVIL, "caf\u00e9 & co", "a" * 90, "x' onerror='alert(1)", "plain")
FLAGS = (
    "--cfg.dataset=named",
    "--cfg.arch=B_1-Wi_32",
    "--cfg.batch_size=100",
    "--cfg.epochs=3",
    "--cfg.mixup_alpha=0",
    "--cfg.optimizer=adamw",
    "--cfg.lr=0.003",
    "--cfg.log_every=2",
    "--cfg.checkpoint_every=18 steps",
)


class Named(Synthetic):
    """Images that are hard to tell apart, of classes with the names that a folder may have."""

    def __init__(self, split):
        super().__init__({"train": 600, "test": 200}[split], num_classes=5, res=8, split=split, noise=400)
        self.classes = NAMES


@pytest.fixture(scope="module")
def named_data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("named")
    options = WriteOptions(res=8, out=folder, num_workers=1, limit=None, seed=0)
    write_splits("named", Named, ("train", "test"), options)
    return folder


@pytest.fixture
def run(script, named_data, tmp_path, monkeypatch):
    """run("recipe", flags): the recipe on the data above."""
    monkeypatch.chdir(tmp_path)
    return lambda recipe, *flags: script(f"recipes/{recipe}.py", f"--cfg.data_dir={named_data}", *flags)


class Elements(html.parser.HTMLParser):
    """All elements of a page, their attributes, and its text."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def check_page(page, images):
    """Nothing of it is run or loaded from elsewhere."""
    elements = Elements(page)
    allowed = (
        "html head meta title style body section h1 h2 p div span b i br table tr th td figure figcaption img svg "
    )
    allowed += "path polyline circle text details summary pre"
    assert {tag for tag, _ in elements.found} <= set(allowed.split())
    names = {name for _, attributes in elements.found for name in attributes}
    assert not [name for name in names if name.startswith("on")] and not names & {"href", "srcset", "action", "data"}
    sources = [attributes["src"] for _, attributes in elements.found if "src" in attributes]
    assert len(sources) == images and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "url(" not in page and "@import" not in page and len(page.encode()) < 1.5e6
    return elements


def rows_of(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_a_run_ends_with_its_page(run, named_data, tmp_path):
    folder = Path("runs") / "<img src=x onerror=alert(2)>"
    ended = run("pretrain", *FLAGS, f"--cfg.run_dir={folder}")
    assert ended.code == 0 and "report.html" in ended.out and "not written" not in ended.err, ended.err
    again = run("evaluate", f"--cfg.weights={folder / 'final.pt'}", "--cfg.out=scores")
    assert again.code == 0, again.err
    mine, theirs = (rows_of(at) for at in (folder, Path("scores")))
    assert [row[:3] + row[4:] for row in mine] == [row[:3] + row[4:] for row in theirs]
    np.testing.assert_allclose([float(row[3]) for row in mine[1:]], [float(row[3]) for row in theirs[1:]], atol=1.1e-4)
    wrong = [row for row in mine[1:] if row[1] != row[2]]
    assert len(mine) == 201 and 20 < len(wrong) < 180 and {row[1] for row in mine[1:]} == set(NAMES)

    page = (folder / "report.html").read_text()
    elements = check_page(page, images=24 + 2)  # mistakes, training images, filters
    end = read_log(folder, "end")[0]
    assert f"{end['eval_top1']:.2%}" in elements.text and f"{len(wrong)} of 200 images" in elements.text
    assert EVIL in elements.text and str(folder.name) in elements.text and "a" * 90 not in page
    surest = sorted(wrong, key=lambda row: -float(row[3]))[0]
    assert f"{float(surest[3]):.1%}is " in elements.text
    assert "--cfg.epochs=3" in elements.text and shlex.quote(f"--cfg.run_dir={folder}") in elements.text
    assert "3 epochs" in elements.text and "optimiser" in elements.text

    shown = shown_at(360, tmp_path, page=page.replace("<details>", "<details open>"))["page"]
    assert shown["wide"] <= 360 and shown["broken"] == 0 and shown["images"] == 26 and shown["scripts"] == 0
    assert "run_dir" in shown["text"] and EVIL in shown["text"]

    # Killed between its last evaluation and its last line, the run writes the same again.
    lines = (folder / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "log.jsonl").write_text("".join(line for line in lines if '"end"' not in line))
    for name in ("predictions.csv", "report.html"):
        (folder / name).unlink()
    assert "unfinished, at step 18" in report_page.page(read_run(folder))
    ended = run("pretrain", *FLAGS, f"--cfg.run_dir={folder}")
    assert "resuming after step 18 of 18" in ended.out and rows_of(folder) == mine
    assert "2, of which this is the last" in (folder / "report.html").read_text()


def test_held_out_images_and_probes(run, tmp_path):
    """The predictions are final.pt's on the test images, whatever the images of the epochs were."""
    ended = run(
        "pretrain",
        *FLAGS,
        "--cfg.run_dir=a",
        "--cfg.validation=0.1",
        "--cfg.lr=0.02",
        "--cfg.epochs=5",
        "--cfg.batch_size=60",
    )
    assert ended.code == 0, ended.err
    (end,) = read_log(Path("a"), "end")
    assert end["eval_top1"] != end["best_eval_top1"]  # so that the two models are told apart
    ended = run(
        "linear_probe", "--cfg.weights=a/final.pt", "--cfg.dataset=named", "--cfg.method=logistic", "--cfg.run_dir=b"
    )
    assert ended.code == 0 and "predictions.csv" in ended.out, ended.err
    ended = run(
        "linear_probe",
        "--cfg.weights=a/final.pt",
        "--cfg.dataset=named",
        "--cfg.epochs=1",
        "--cfg.batch_size=100",
        "--cfg.run_dir=c",
    )
    assert ended.code == 0, ended.err
    for folder in "abc":
        found, (end,) = read_predictions(Path(folder)), read_log(Path(folder), "end")
        assert len(found.right) == 200 and found.right.mean() == pytest.approx(end["eval_top1"])
        assert found.classes == list(NAMES) and found.beton.endswith("named_test_8.beton")
        check_page(Path(folder, "report.html").read_text(), images=24 + (1 if folder == "b" else 2))
    assert "validation" in Path("a/report.html").read_text() and "Curves" not in Path("b/report.html").read_text()


def test_a_full_disk_loses_no_run(run, monkeypatch):
    def fail(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(report_page, "write_atomic", fail)
    monkeypatch.setattr("fastmlp.evaluation.predictions.write_atomic", fail)
    ended = run("pretrain", *FLAGS, "--cfg.run_dir=a", "--cfg.epochs=1")
    assert ended.code == 0 and "test top-1" in ended.out and read_log(Path("a"), "end"), ended.err
    for name in ("report.html", "predictions.csv"):
        assert f"notice: {name} is not written: [Errno 28] No space left on device" in ended.err
    assert load_model("a/final.pt") and not Path("a/report.html").exists()


def test_a_fault_of_the_page_loses_no_run(tmp_path, monkeypatch, capsys):
    folder = write_run(tmp_path / "a", np.ones(9, bool))
    assert report_page.finish_with_page(folder) == ["report.html"]
    monkeypatch.setattr(report_page, "curves", lambda run: 1 / 0)
    assert report_page.finish_with_page(folder) == []
    assert f"python -m fastmlp.training.report_page {folder} tries again" in capsys.readouterr().err


def make_pages(monkeypatch, *folders):
    monkeypatch.setattr(sys, "argv", ["report_page", *map(str, folders)])
    monkeypatch.setattr("warnings.formatwarning", None)
    cli.run(report_page.main)


def test_pages_of_earlier_and_unfinished_runs(tmp_path, monkeypatch, capsys):
    with tarfile.open(Path(__file__).parents[1] / "written_by_0.1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    make_pages(monkeypatch, tmp_path / "finished", tmp_path / "unfinished")
    assert capsys.readouterr().out.split() == [
        str(tmp_path / name / "report.html") for name in ("finished", "unfinished")
    ]
    finished = check_page((tmp_path / "finished" / "report.html").read_text(), images=1)  # the filters
    assert "40.00%" in finished.text and "mixup_alpha" in finished.text and "mistakes" not in finished.text
    unfinished = check_page((tmp_path / "unfinished" / "report.html").read_text(), images=0)
    assert re.search("unfinished, at step 1[0-9]", unfinished.text) and "First-layer" not in unfinished.text


def test_pages_that_cannot_be(tmp_path, monkeypatch, capsys):
    damaged = write_run(tmp_path / "damaged", np.ones(9, bool))
    log = damaged / "log.jsonl"
    good = log.read_text()
    numbers = damaged / "predictions.csv"
    for change, message in (
        (lambda: log.write_text("{\n" + good), f"{log} is damaged: 1 of its 8 lines"),
        (lambda: log.write_text(good.replace('"train_loss"', '"x"')), "a line 'epoch' has no train_loss"),
        (lambda: log.write_text(good.replace('"images_per_s": 1000.0', '"images_per_s": null')), "has no images_per_s"),
        (
            lambda: log.write_text(good.replace('"train_s": 75.0', f'"train_s": 1{400 * "0"}')),
            "train_s of a line 'end'",
        ),
        (lambda: log.write_text(good.replace('"test_top5": 1.0', '"test_top5": 2.0')), "eval_top5 of a line 'end'"),
        (lambda: numbers.write_text(numbers.read_text().replace("3,cat", "4,cat")), f"{numbers} is damaged"),
    ):
        change()
        with pytest.raises(SystemExit) as ended:
            make_pages(monkeypatch, damaged)
        err = capsys.readouterr().err
        assert ended.value.code == 2 and message in err and err.count("\n") == 1, err
        log.write_text(good)
    with pytest.raises(SystemExit):
        make_pages(monkeypatch, tmp_path)
    assert "is no run: it has no config.yaml" in capsys.readouterr().err
    numbers.unlink()
    log.write_text(good[:-40])  # a crash cut the last line short
    assert read_run(damaged).end is None
    lost = json.dumps({"event": "lost", "missing_bytes": 3, "unreadable_lines": 1}) + "\n"
    log.write_text("{\n" + lost + good)  # told by the run that was resumed
    assert read_run(damaged).end is not None


def test_predictions_are_read_back(tmp_path):
    found, names = detailed(np.arange(90) % 4 > 0), ["a,\n\"b'", "caf\u00e9\u2028\rx", "c"]
    write_run(tmp_path / "a", found.labels == found.predicted, classes=names)
    written = detailed(found.labels == found.predicted, seed=1)
    back = read_predictions(tmp_path / "a")
    np.testing.assert_array_equal(back.labels, written.labels)
    np.testing.assert_array_equal(back.predicted, written.predicted)
    np.testing.assert_array_equal(back.right, np.arange(90) % 4 > 0)
    np.testing.assert_allclose(back.probability, written.probability, atol=5e-5)
    written_names = [name.replace("\r", "\\r") for name in names]
    assert (back.classes, back.fingerprint) == (written_names, 7)
    (tmp_path / "a" / "predictions.json").unlink()  # as evaluate.py of 0.1 left it
    older = read_predictions(tmp_path / "a")
    assert older.classes == sorted(written_names) and older.fingerprint is None
    assert [older.classes[label] for label in older.labels] == [written_names[label] for label in back.labels]
    assert read_predictions(tmp_path) is None


def of_classes(count, pairs):
    """StoredPredictions of (label, predicted, how often)."""
    labels, predicted = (np.repeat([pair[n] for pair in pairs], [pair[2] for pair in pairs]) for n in (0, 1))
    return StoredPredictions(
        labels, predicted, np.full(len(labels), 0.5), labels == predicted, [f"k{n}" for n in range(count)]
    )


def test_confusion():
    pairs = [(0, 0, 5), (0, 1, 3), (1, 1, 7), (2, 0, 2), (2, -1, 4)]  # of NaN there is no prediction
    cells = re.findall(r"<td[^>]*>(.*?)</td>", report_pictures.confusion(of_classes(3, pairs)))
    assert cells == ["k0", "5", "3", "", "62.5%", "k1", "", "7", "", "100.0%", "k2", "2", "", "", "0.0%"]
    many = report_pictures.confusion(of_classes(31, [(30, 4, 9), (4, 30, 8), (7, 7, 100), (4, 4, 8), (1, 2, 10)]))
    cells = re.findall(r"<td[^>]*>(.*?)</td>", many)
    assert cells == ["k1", "k2", "10", "100.0%", "k30", "k4", "9", "100.0%", "k4", "k30", "8", "50.0%"]
    assert report_pictures.confusion(of_classes(31, [(7, 7, 100)])) == ""


def test_mistakes_are_the_surest_with_their_images(named_data):
    beton = named_data / "named_test_8.beton"
    rng = np.random.default_rng(0)
    labels, predicted, probability = rng.integers(0, 5, 200), rng.integers(0, 5, 200), rng.uniform(0, 1, 200)
    given = StoredPredictions(labels, predicted, probability, labels == predicted, list("abcde"), str(beton))
    assert "<img" not in report_pictures.mistakes(given)  # the beton may be another one by now
    fingerprint = MappedBeton(beton).fingerprint
    page = report_pictures.mistakes(StoredPredictions(**{**vars(given), "fingerprint": fingerprint}))
    wrong = [n for n in np.argsort(-probability, kind="stable") if labels[n] != predicted[n]][:24]
    shown = [int(sample) for sample in re.findall(r'alt="sample (\d+)"', page)]
    assert shown == wrong
    for sample, image in zip(wrong[:3], stored_images(beton, wrong[:3], fingerprint), strict=True):
        source = Named("test")
        assert any(np.array_equal(image, source[n][0]) for n in range(200)), sample
    with pytest.raises(ValueError, match="another file"):
        stored_images(beton, [0], fingerprint + 1)
    with pytest.raises(ValueError, match="does not hold"):
        stored_images(beton, [200])


def test_large_images_stay_small(tmp_path):
    """Of noise, which no PNG compresses."""
    rng = np.random.default_rng(0)
    contact_sheet(rng.integers(0, 256, (8, 16, 64, 64, 3), dtype=np.uint8), tmp_path / "augmented.png")
    model = build_model("S_1-Wi_512", 64, 4)
    sheet = report_pictures.augmented_sheet(tmp_path / "augmented.png", model)
    assert 100_000 < len(sheet) < 600_000 and len(report_pictures.filters(model)) < 300_000
    with Image.open(tmp_path / "augmented.png") as whole:
        assert f"width:{whole.width}px" in sheet
    noise = rng.integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert 24 * len(report_pictures._small_png(noise)) * 4 / 3 < 500_000
    (tmp_path / "augmented.png").write_bytes(b"damaged")
    assert report_pictures.augmented_sheet(tmp_path / "augmented.png", model) == ""


def test_curves():
    points = [(float(x), x**2 + 5.0) for x in range(11)]
    chart = line_chart("A <b>", "epoch", [Series("one", [*points, (11.0, math.nan)]), Series("two", [], 1)])
    (drawn,) = re.findall(r'points="(.*?)"', chart)
    xs, ys = np.array([point.split(",") for point in drawn.split()], float).T
    margin = 0.04 * 100
    np.testing.assert_allclose(xs, np.interp(range(11), [0, 10], [LEFT, RIGHT]), atol=0.06)
    np.testing.assert_allclose(
        ys, np.interp([y for _, y in points], [5 - margin, 105 + margin], [BOTTOM, TOP]), atol=0.06
    )
    assert "A &lt;b&gt;" in chart and "one" in chart and "two" not in chart
    assert line_chart("x", "epoch", [Series("", [(1.0, math.inf)])]) == ""
    assert line_chart("x", "epoch", [Series("", [(1.0, 0.0)])]).count("<circle") == 1
    many = Series("", [(float(n), float(n)) for n in range(10_000)])
    assert len(many.finite()) == MAX_POINTS and many.finite()[-1] == (9999.0, 9999.0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.12, 0.31, [0.15, 0.2, 0.25, 0.3]), (-1e-5, 1e-5, [-1e-5, -5e-6, 0, 5e-6, 1e-5])],
)
def test_ticks(low, high, expected):
    np.testing.assert_allclose(ticks(low, high), expected, atol=1e-12)


def test_where_the_time_went(tmp_path):
    """Means over steps, not over lines; what no phase has is "other"."""
    folder = write_run(tmp_path / "a", np.ones(9, bool))
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    for line, step, seconds in zip(steps, (10, 12, 20), (0.01, 0.1, 0.02), strict=True):
        line["step"], line["data_s_per_step"] = step, seconds
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(folder)
    data = (10 * 0.01 + 2 * 0.1 + 8 * 0.02) / 20
    whole = (10 * 100 / 1000 + 2 * 100 / 2000 + 8 * 100 / 3000) / 20  # batches of 100, at 1000 to 3000 images/sec
    assert run.mean("data_s_per_step") == pytest.approx(data) and run.mean("mfu") is None
    table = report_page.step_table(run)
    assert f"<td>{1000 * data:.2f}</td>" in table and "other" not in table  # the phases take longer than the steps
    for line in steps:
        line["forward_backward_s_per_step"] = line["optimizer_s_per_step"] = 0.001
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = report_page.step_table(read_run(folder))
    assert f"other</span></td><td>{1000 * (whole - data - 0.002):.2f}</td>" in table
    assert f"whole step</td><td>{1000 * whole:.2f}</td>" in table


def test_durations():
    texts = {0.04: "0.0 s", 59.94: "59.9 s", 75: "1 min 15 s", 3 * 3600 + 1200: "3 h 20 min", 180_000: "2 d 2 h"}
    assert {seconds: duration_text(seconds) for seconds in texts} == texts


def test_a_run_whose_classes_have_no_names(tmp_path):
    """And whose beton is not there any more."""
    folder = write_run(tmp_path / "a", np.arange(90) % 2 > 0, classes=[str(n) for n in range(3)])
    torch.manual_seed(0)
    save_model(folder / "final.pt", build_model("B_1-Wi_16", 8, 3), {})
    page = check_page(report_page.page(read_run(folder)), images=1)
    assert "not there any more" in page.text and "45 of 90 images" in page.text
    assert CLASSES[0] not in page.text


def test_classes_of_no_or_the_same_name_are_told_apart(tmp_path):
    labels = np.array([0, 1, 2, 3, 1])
    found = DetailedScores(Scores(1.0, 1.0, 0.0, 5), labels, labels, np.ones(5, np.float32), 4)
    write_predictions(tmp_path, found, ["", "a", "b", "a"], SimpleNamespace(path=tmp_path / "x.beton", fingerprint=1))
    stored = read_predictions(tmp_path)
    assert stored.classes == ["(0)", "a (1)", "b", "a (3)"]
    np.testing.assert_array_equal(stored.labels, labels)
    np.testing.assert_array_equal(stored.predicted, labels)
