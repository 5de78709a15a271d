"""The report on benchmarks: what counts as a difference, and what the page holds."""

import json
import re

import growth
import numpy as np
import pytest
import report_compare
import report_html
import startup
from headless_browser import shown_at

from fastmlp.beton import layout
from fastmlp.loader.mapped_beton import MappedBeton


def line(rng, noise, factor=1.0, repeats=5, candidates=30):
    """What a benchmark gives, with repeats that scatter by `noise`."""
    results = {}
    for n in range(candidates):
        rates = sorted((1000 + 100 * n) * (factor if n == 3 else 1) * (1 + noise * rng.standard_normal(repeats)))
        results[f"candidate {n}"] = {
            "images_per_s": rates[repeats // 2],
            "least": rates[0],
            "most": rates[-1],
            "seconds": [1 / rate for rate in rates],
        }
    return {
        "benchmark": "loader",
        "script": "loader",
        "res": 64,
        "results": results,
        "noise": noise,
        "took_s": 1.0,
        "machine": {"cpu": "x", "cores": 2},
        "command": "python benchmarks/loader.py --rounds 5",
    }


def verdicts(now, before):
    """The verdict on each candidate of a line against the same line of the baseline."""
    return {name: change.verdict for (_, name), change in report_compare.compare([now], [before]).items()}


@pytest.mark.parametrize("seed", range(20))
def test_a_slow_down_is_flagged_and_noise_is_not(seed):
    rng = np.random.default_rng(seed)
    before, same, slower = (line(rng, 0.03, factor) for factor in (1.0, 1.0, 0.8))
    assert not any(verdict for verdict in verdicts(same, before).values())
    flagged = {name: verdict for name, verdict in verdicts(slower, before).items() if verdict}
    assert flagged == {"candidate 3": "slower"}


def test_a_slower_machine_is_no_change():
    rng = np.random.default_rng(0)
    before, slower, ours = (line(rng, 0.01, factor) for factor in (1.0, 0.7, 0.7))
    for lines, factor in ((before, 1.0), (slower, 0.7), (ours, 1.0)):
        rate = 2000 * factor
        lines["results"]["bare gather"] = {"images_per_s": rate, "least": 0.99 * rate, "most": 1.01 * rate}
    found = verdicts(slower, before)
    assert found["bare gather"] == "" and found["candidate 3"] == ""
    found = verdicts(ours, before)
    assert found["candidate 3"] == "slower" and found["bare gather"] == ""


def test_other_settings_are_never_compared():
    rng = np.random.default_rng(0)
    assert not report_compare.compare([line(rng, 0.03)], [{**line(rng, 0.03), "res": 32}])


def a_report(tmp_path):
    rng = np.random.default_rng(1)
    before, now = line(rng, 0.03), line(rng, 0.03, 0.7)
    now["results"] |= {"note <x>": {"bytes": 12}, "absent": ["litdata"], "failed": {"webdataset": "took <30 s"}}
    now["results"]["a candidate of a name far too long for a narrow screen to show it beside its figures"] = {
        "images_per_s": 98_765_432,
        "least": 9e7,
        "most": 1e8,
        "seconds": [1.0],
    }
    return now, report_html.page([now], report_compare.compare([now], [before]), tmp_path)


def test_the_page_holds_each_number_once_and_needs_no_network(tmp_path):
    now, page = a_report(tmp_path)
    for r in report_compare.measured(now).values():
        assert page.count(f"<td>{report_html.number(r['images_per_s'])}</td>") == 1
    assert page.count('class="slower"') == 1 and "note &lt;x&gt;" in page
    assert "not measured: litdata." in page and "webdataset (took &lt;30 s)" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and len(page) < 2e6
    assert len(list(tmp_path.glob("*.png"))) == 1 and "predicted for H100" in page


def test_a_browser_shows_the_page_on_a_narrow_screen_too(tmp_path):
    now, page = a_report(tmp_path)
    found = shown_at(360, tmp_path, page=page)["page"]
    assert found["wide"] <= 360 and found["images"] == 1 and found["broken"] == 0
    for r in report_compare.measured(now).values():
        assert report_html.number(r["images_per_s"]) in found["text"]


def test_figures_in_short_go_into_a_markdown_file(tmp_path):
    rates = {"fastmlp": 800_000.0, "bare gather": 1_000_000.0, "ffcv": 90_000.0, "ffcv, batches_ahead=1": 100_000.0}
    now = {
        **line(np.random.default_rng(0), 0.01),
        "res": 64,
        "batch_size": 16384,
        "batches": 4,
        "machine": {"cpu": "x", "cores": 2, "date": "today"},
        "results": {
            name: {"images_per_s": rate, "least": 0.9 * rate, "most": 1.1 * rate, "seconds": [1.0] * 5}
            for name, rate in rates.items()
        },
    }
    readme = tmp_path / "README.md"
    readme.write_text("before\n" + "\nold\n".join(report_html.MARKS) + "\nafter\n")
    report_html.put_into(readme, report_html.markdown([now]))
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    against = "0.80 of bare gather | 8.0 times ffcv, batches_ahead=1"
    assert f"| 800,000 (720,000 to 880,000) | {against} | `loader.py` |" in text
    readme.write_text("nothing\n")
    with pytest.raises(ValueError, match="lacks the lines"):
        report_html.put_into(readme, "x")
    assert readme.read_text() == "nothing\n"
    report_html.draw_loaders([now], tmp_path / report_html.PICTURE)
    assert (tmp_path / "docs/images/loader.png").stat().st_size > 5000
    assert len(report_html.markdown([{**now, "batches": 32}]).splitlines()) == 2, "a headline of the page alone"
    now["results"]["fastmlp"]["seconds"] = [1.0] * 4
    with pytest.raises(ValueError, match="4 runs, a README's figures are medians of 5"):
        report_html.markdown([now])


def test_results_are_read_back(tmp_path):
    rng = np.random.default_rng(2)
    with pytest.raises(FileNotFoundError, match=r"results\.jsonl is missing"):
        report_compare.read(tmp_path)
    (tmp_path / "results.jsonl").write_text(json.dumps(line(rng, 0.01)) + "\n")
    assert report_compare.key(report_compare.read(tmp_path)[0]) == "loader, res 64"


def test_sparse_betons_are_whole(tmp_path):
    """startup.py, growth.py and cold.py lay out betons by hand."""
    startup.write_sparse(tmp_path / "x.beton", 3000)
    layout.check(tmp_path / "x.beton")
    beton = MappedBeton(tmp_path / "x.beton")
    assert len(beton.metadata) == 3000 and beton.metadata["f1"][2999] == 999


def test_slopes_are_those_of_the_data():
    assert growth.slope([10, 100, 1000], [3.0, 300.0, 30_000.0]) == pytest.approx(2)
