"""The report on benchmarks: what counts as a difference, and what the page holds."""

import json
import re

import growth
import numpy as np
import pytest
import report
import startup

from fastmlp.beton import layout
from fastmlp.loader.memory import MappedBeton


def line(rng, noise, factor=1.0, repeats=5, candidates=30):
    """What a benchmark gives, with repeats that scatter by `noise`."""
    results = {}
    for n in range(candidates):
        rates = sorted((1000 + 100 * n) * (factor if n == 3 else 1) * (1 + noise * rng.standard_normal(repeats)))
        results[f"candidate {n}"] = {"images_per_s": rates[repeats // 2], "least": rates[0], "most": rates[-1],
                                     "seconds": [1 / rate for rate in rates]}  # fmt: skip
    return {"benchmark": "loader", "script": "loader", "res": 64, "results": results, "noise": noise, "took_s": 1.0,
            "machine": {"cpu": "x"}, "command": "python benchmarks/loader.py --rounds 5"}  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_a_slow_down_is_flagged_and_noise_is_not(seed):
    rng = np.random.default_rng(seed)
    before, same, slower = (line(rng, 0.03, factor) for factor in (1.0, 1.0, 0.8))
    assert not any(verdict for _, verdict in report.compare([same], [before]).values())
    flagged = {name: verdict for (_, name), (_, verdict) in report.compare([slower], [before]).items() if verdict}
    assert flagged == {"candidate 3": "slower"}


def test_other_settings_are_never_compared():
    rng = np.random.default_rng(0)
    assert not report.compare([line(rng, 0.03)], [{**line(rng, 0.03), "res": 32}])


def test_the_page_holds_each_number_once_and_needs_no_network(tmp_path):
    rng = np.random.default_rng(1)
    before, now = line(rng, 0.03), line(rng, 0.03, 0.7)
    now["results"] |= {"note": {"bytes <x>": 12}}
    page = report.page([now], report.compare([now], [before]), tmp_path)
    for r in report.measured(now).values():
        assert page.count(f"<td>{report.number(r['images_per_s'])}</td>") == 1
    assert page.count('class="slower"') == 1 and "0.7" in page and "bytes &lt;x&gt;" in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page) and len(page) < 2e6
    assert len(list(tmp_path.glob("*.png"))) == 1 and "predicted for H100" in page


def test_results_are_read_back(tmp_path):
    rng = np.random.default_rng(2)
    with pytest.raises(FileNotFoundError, match=r"results\.jsonl is missing"):
        report.read(tmp_path)
    (tmp_path / "results.jsonl").write_text(json.dumps(line(rng, 0.01)) + "\n")
    assert report.key(report.read(tmp_path)[0]) == "loader, res 64"


def test_sparse_betons_are_whole(tmp_path):
    """startup.py, growth.py and cold.py lay out betons by hand."""
    startup.write_sparse(tmp_path / "x.beton", 3000)
    layout.check(tmp_path / "x.beton")
    beton = MappedBeton(tmp_path / "x.beton")
    assert len(beton.metadata) == 3000 and beton.metadata["f1"][2999] == 999


def test_slopes_are_those_of_the_data():
    assert growth.slope([10, 100, 1000], [3.0, 300.0, 30_000.0]) == pytest.approx(2)
