"""The law of the error recovered from known constants; what it says of data that is seen again; what it refuses."""

import json
import math

import numpy as np
import pytest
import yaml
from synthetic_study import LAW, study_cells, study_rows, true_error, write_study

from fastmlp.planner.data_law import Cell, cells_of, effective_images, fit_data_law
from fastmlp.planner.study_folder import read_study_runs


def test_a_repeated_image_is_worth_less_than_a_new_one():
    seen = np.array([500.0, 1000.0, 2000.0, 4000.0, 1e5, 1e9])
    worth = effective_images(seen, 1000.0, 5.0)
    by_hand = [1000 * (1 + 5 * (1 - math.exp(-(d / 1000 - 1) / 5))) for d in seen[2:]]
    np.testing.assert_allclose(worth, [500, 1000, *by_hand])
    assert (np.diff(worth) >= 0).all() and (worth <= seen).all()
    assert worth[-1] == pytest.approx(1000 * (1 + 5))
    # The first repetition of many counts nearly as much as new images.
    assert effective_images(1001.0, 1000.0, 5.0) == pytest.approx(1001, abs=1e-3)
    # The same images seen, of more unique ones.
    of_more = effective_images(8000.0, np.array([500.0, 1000.0, 2000.0, 8000.0, 9000.0]), 5.0)
    assert (np.diff(of_more[:4]) > 0).all() and of_more[3] == of_more[4] == 8000


def test_without_noise_the_constants_return():
    law = fit_data_law(study_cells(noise=0.0, seeds=(0,)), resamples=2)
    for name, value in LAW.items():
        assert getattr(law, name) == pytest.approx(value, rel=0.03), name
    assert law.relative_rms < 2e-4
    assert float(law.predict(1e7, 1e8, 1e7)) == pytest.approx(true_error(1e7, 1e8, 1e7), rel=1e-3)


def test_no_point_of_a_fine_grid_fits_better():
    cells = study_cells(key=3)
    law = fit_data_law(cells, resamples=2)
    measured = np.log([cell.error for cell in cells])

    def cost(**changed):
        values = {name: getattr(law, name) for name in LAW} | changed
        return sum(
            (math.log(true_error(c.parameters, c.images_seen, c.samples, values)) - m) ** 2
            for c, m in zip(cells, measured, strict=True)
        )

    for name in LAW:
        for factor in (0.97, 0.995, 1.005, 1.03):
            assert cost(**{name: factor * getattr(law, name)}) > cost() * (1 - 1e-6), (name, factor)


def test_predictions_and_intervals_over_20_seeds():
    """One per cent of noise. Predicted: four times the largest size, length and number of unique images."""
    parameters, seen, samples = 5_000_000, 4_000_000, 240_000
    truth = true_error(parameters, seen, samples)
    predicted, covered, beta = [], 0, []
    for key in range(20):
        law = fit_data_law(study_cells(key=key), resamples=12, seed=key)
        (low,), (high,) = law.interval(parameters, seen, samples)
        predicted.append(float(law.predict(parameters, seen, samples)))
        beta.append(law.beta)
        covered += low <= truth <= high
    assert covered >= 16
    assert np.median(np.abs(np.array(predicted) / truth - 1)) < 0.02
    assert np.abs(np.array(predicted) / truth - 1).max() < 0.08
    assert np.median(beta) == pytest.approx(LAW["beta"], rel=0.05)


def test_an_interval_holds_a_run_s_scatter_and_seeds_decide_it():
    cells = study_cells(noise=0.05)
    law, again = fit_data_law(cells, resamples=20), fit_data_law(cells, resamples=20)
    np.testing.assert_array_equal(law.bootstrap, again.bootstrap)
    assert not np.array_equal(law.bootstrap, fit_data_law(cells, resamples=20, seed=1).bootstrap)
    sizes = (cells[40].parameters, cells[40].images_seen, cells[40].samples)
    (low,), (high,) = law.interval(*sizes)
    assert 0.12 < (high - low) / float(law.predict(*sizes)) < 0.35  # 4 * 0.05, and the law's own


def test_what_the_runs_do_not_tell_is_said():
    once = [cell for cell in study_cells(epochs=(1,)) if cell.samples == cell.images_seen]
    law = fit_data_law(once, resamples=10)
    assert (
        law.undetermined["r"].startswith("no run saw an image twice")
        and law.r == pytest.approx(15.39)
        and "UNDETERMINED: no run saw" in law.describe()
    )
    beyond = law.decades_beyond(parameters=100 * law.ranges["parameters"][1], samples=60_000, flop=1.0)
    assert beyond["parameters"] == pytest.approx(2) and beyond["samples"] == 0 and beyond["flop"] > 9


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (lambda cells: cells[:7], "7 different runs .* needs 8"),
        (lambda cells: [c for c in cells if c.arch in ("B_2-Wi_16-E_2", "B_2-Wi_256-E_2")], "2 sizes of the model"),
        (lambda cells: [c for c in cells if c.images_seen in (120_000, 360_000)], "2 lengths in images"),
        (lambda cells: [Cell(*_but_errors(c), (1 - c.error,)) for c in cells], "does not fall"),
        (lambda cells: [Cell(*_but_errors(c), (0.0,)) for c in cells], "expected shares of wrong answers"),
    ],
)
def test_no_law_through_runs_that_carry_none(cells, message):
    with pytest.raises(ValueError, match=message):
        fit_data_law(cells(study_cells()))


def _but_errors(cell):
    return cell.arch, cell.parameters, cell.images_seen, cell.samples, cell.flop


def test_cells_gather_seeds():
    rows = study_rows(seeds=(0, 1, 2))
    cells = cells_of(rows)
    assert len(cells) == 60 and {len(cell.errors) for cell in cells} == {3}
    own = [row["error"] for row in rows if row["arm"] == "B_2-Wi_64-E_2 0.5 6"]
    assert any(cell.errors == tuple(own) for cell in cells)
    assert [cell.flop for cell in cells] == sorted(cell.flop for cell in cells)


def test_a_study_is_read_and_its_differences_are_found(tmp_path):
    rows = study_rows()[:12]
    rows[0] = {**rows[0], "error": 1.0, "train_s": None}
    folder = write_study(tmp_path / "study", rows, loss=None)
    study = read_study_runs(folder)
    assert (study.dataset, study.res, study.diverged, len(study.rows)) == ("fashion_mnist", 32, 1, 11)
    assert study.differing == {} and study.settings["lr"] == 1e-3
    config = folder / rows[5]["run"] / "config.yaml"
    given = yaml.safe_load(config.read_text())["cfg"]
    config.write_text(yaml.safe_dump({"cfg": {**given, "lr": 0.002}}))
    assert read_study_runs(folder).differing == {"lr": ["0.001", "0.002"]}
    config.write_text(yaml.safe_dump({"cfg": {**given, "dataset": "cifar10"}}))
    with pytest.raises(ValueError, match="cifar10 at 32 px, fashion_mnist at 32 px"):
        read_study_runs(folder)
    config.unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.yaml is missing"):
        read_study_runs(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1 is no run"),
        ('{"arch": "B_1-Wi_8"}', "it lacks seed, batch_size"),
        (json.dumps({**study_rows()[0], "run": "../x"}), "is no folder of this study"),
        (json.dumps({**study_rows()[0], "error": 1.0}), "no run that ended"),
        ("", "no run that ended"),
    ],
)
def test_damaged_results_are_told(tmp_path, text, message):
    with pytest.raises(FileNotFoundError, match="recipes/scaling.py"):
        read_study_runs(tmp_path)
    (tmp_path / "results.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_study_runs(tmp_path)


def test_the_mean_of_many_seeds_scatters_less():
    """With 5 % of noise between seeds on an exact law, eight seeds' mean is nearly sqrt(8) times as sure as a run."""
    law = fit_data_law(study_cells(noise=0.05, seeds=range(6)), resamples=20)
    widths = [float(np.diff(law.interval(2e5, 3e5, 3e4, seeds=seeds), axis=0)[0, 0]) for seeds in (1, 8)]
    assert widths[1] < 0.6 * widths[0]


def test_arms_and_batch_sizes_of_one_size_are_no_seeds_of_each_other():
    rows = study_rows(widths=(16,), epochs=(2,), seeds=(0, 1))
    other = [{**row, "of_arm": "other", "error": 0.9} for row in rows]
    batch = [{**row, "batch_size": 7} for row in rows]
    assert [len(cell.errors) for cell in cells_of([*rows, *other, *batch])] == 3 * 4 * [2]
