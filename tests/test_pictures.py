"""Pictures, by their pixels."""

import sys

import numpy as np
import pytest
from PIL import Image

from fastmlp import build_model, cli, filters
from fastmlp.filters import filter_sheet
from fastmlp.plots import captioned_sheet, confusion_matrix
from fastmlp.weights import save_model


def test_filters_are_the_maximum_over_colours_from_least_to_greatest():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(7, 3 * 4 * 4)) * np.arange(1, 8)[:, None]  # ever larger
    sheet = filter_sheet(weights, 4, rows=2)
    assert sheet.shape == (9, 9, 3) and (sheet[4] == 255).all() and (sheet[:, 4] == 255).all()
    largest = np.argsort(-np.linalg.norm(weights, axis=1))
    for n, unit in enumerate(largest[:4]):
        most = np.array([[max(weights[unit, c * 16 + y * 4 + x] for c in range(3)) for x in range(4)]
                         for y in range(4)])  # fmt: skip
        expected = np.rint(255 * (most - most.min()) / (most.max() - most.min()))
        y, x = n // 2 * 5, n % 2 * 5
        np.testing.assert_array_equal(sheet[y : y + 4, x : x + 4, 1], expected)
    first = filter_sheet(weights, 4, rows=2, select="first")
    assert not np.array_equal(first, sheet)
    np.testing.assert_array_equal(first, filter_sheet(weights[:4], 4, rows=2, select="first"))


def test_fewer_filters_than_places_and_constant_ones():
    sheet = filter_sheet(np.zeros((3, 12)), 2, rows=2)
    assert (sheet[3:, 3:] == 255).all() and (sheet[:2, :2] == 0).all()


def test_the_command_draws_models_side_by_side(tmp_path, monkeypatch, capsys):
    for name, res in (("a", 8), ("b", 8), ("c", 4)):
        (tmp_path / name).mkdir()
        save_model(tmp_path / name / "final.pt", build_model("B_1-Wi_30", res, 3))
    out = tmp_path / "filters.png"

    def call(*names):
        monkeypatch.setattr(sys, "argv", ["filters", *(f"{tmp_path}/{n}/final.pt" for n in names), "--out", str(out)])
        cli.run(filters.main)

    widths = []
    for names in (("a",), ("a", "b")):
        call(*names)
        with Image.open(out) as picture:
            widths.append(picture.width)
    assert widths[1] == 2 * widths[0] - 6 and str(out) in capsys.readouterr().out
    with pytest.raises(SystemExit):
        call("a", "c")
    assert "models of 4, 8 px" in capsys.readouterr().err


def test_captions_never_reach_their_neighbours(tmp_path):
    images = np.zeros((5, 10, 10, 3), np.uint8)
    captions = ["a very long caption indeed, far wider than the image\nand a second line, long, too"] * 5
    with Image.open(captioned_sheet(images, captions, tmp_path / "x.png", columns=3, title="t")) as picture:
        pixels = np.asarray(picture)
    side, cell = 100, 106
    assert pixels.shape[1] == 6 + 3 * cell
    for column in range(4):
        assert (pixels[:, column * cell : column * cell + 6] == 255).all() or column == 0  # the title starts there
    assert (pixels[-(side + 36) :, 6 + 2 * cell :] == 255).all()  # the sixth place is empty
    rows = [y for y in range(pixels.shape[0]) if (pixels[y, 6 : 6 + side] == 0).all()]
    assert len(rows) == 2 * side


@pytest.mark.parametrize("classes", [3, 30, 120])
def test_confusion_matrices_of_any_size(tmp_path, classes):
    """A class without images divides by nothing; darker means more."""
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 3, (classes, classes)) + 50 * np.eye(classes, dtype=int)
    counts[1] = 0
    with Image.open(confusion_matrix(counts, [f"class {n} of many" for n in range(classes)], tmp_path / "c.png")) as p:
        grey = np.asarray(p.convert("L")).astype(int)
    assert min(grey.shape) > 400 and (grey < 64).mean() > 0.005 and (grey > 250).mean() > 0.5
