"""Pictures, by their pixels."""

import sys

import numpy as np
import pytest
from PIL import Image

from fastmlp import build_model, cli
from fastmlp.evaluation import filters
from fastmlp.evaluation.filters import filter_sheet
from fastmlp.models.weights import save_model
from fastmlp.plots import captioned_sheet, confusion_matrix


def test_filters_are_the_maximum_over_colours_from_least_to_greatest():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(7, 3 * 4 * 4)) * np.arange(1, 8)[:, None]  # ever larger
    sheet = filter_sheet(weights, 4, rows=2)
    assert sheet.shape == (9, 9, 3) and (sheet[4] == 255).all() and (sheet[:, 4] == 255).all()
    largest = np.argsort(-np.linalg.norm(weights, axis=1))
    for n, unit in enumerate(largest[:4]):
        most = np.array(
            [[max(weights[unit, c * 16 + y * 4 + x] for c in range(3)) for x in range(4)] for y in range(4)]
        )
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


def cells(path, classes):
    """The brightness, 0 to 255, of each cell; where there are numbers, off its middle."""
    with Image.open(path) as picture:
        grey = np.asarray(picture.convert("L")).astype(int)
    y, x = (np.flatnonzero((grey < 100).mean(axis) > 0.6) for axis in (1, 0))  # the lines of the square frame
    steps = (np.arange(classes) + (0.25 if classes <= 20 else 0.5)) * (y[-1] - y[0]) / classes
    return grey[np.ix_(np.rint(y[0] + steps).astype(int), np.rint(x[0] + steps).astype(int))]


@pytest.mark.parametrize("classes", [3, 20, 30, 200])
def test_a_confusion_matrix_darkens_with_the_share_of_a_row(tmp_path, classes):
    """Ten times the images, the same shade; a label without images is white and divides by nothing."""
    counts = 50 * np.eye(classes, dtype=int)
    counts[0, 2], counts[2, 0] = 50, 3
    counts[0] *= 10
    counts[1] = 0
    drawn = cells(confusion_matrix(counts, ["$\\frac$ of a long name"] * classes, tmp_path / "c.png"), classes)
    assert (drawn[1] > 250).all() and drawn[0, 0] == drawn[0, 2] and drawn[2, 2] < 60
    assert drawn[2, 2] < drawn[0, 0] - 20 < drawn[2, 0] - 60 and drawn[2, 0] < 230  # 94, 50 and 6 %
    assert (drawn[counts == 0] > 250).all()


def test_of_many_classes_those_most_confused_are_drawn(tmp_path):
    counts = 50 * np.eye(300, dtype=int)
    counts[100, 250], counts[299, 0] = 50, 20
    few = np.sort([100, 250, 299, *range(47)])  # the pairs, then the first ones
    whole = np.ix_(few, few)
    drawn = cells(confusion_matrix(counts, [str(n) for n in range(300)], tmp_path / "c.png"), 50)
    np.testing.assert_array_equal(drawn < 250, counts[whole] > 0)
