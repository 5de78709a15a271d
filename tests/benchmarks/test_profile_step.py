"""The profile of a training step: its parts are all there is, and what it writes is whole."""

import json
import sys

import profile_step
import pytest
import train_step


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """A small case's JSON line, and the folder."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("profile")
    lines: list[dict] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train_step.py", "--profile", str(folder), "--case", "B_2-Wi_64,8,10,256"])
        patch.setattr(train_step.measure, "emit", lambda name, settings, results: lines.append(results))
        train_step.main()
    return lines[0], folder


def test_parts_add_up_to_the_step(profiled):
    results, _ = profiled
    parts = results["parts"]
    assert list(parts) == list(profile_step.PARTS) and all(part["ms"] >= 0 for part in parts.values())
    assert sum(part["ms"] for part in parts.values()) == pytest.approx(results["wall_ms"])
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
    for name in ("matrix products", "LayerNorm and GELU", "other passes", "loss", "optimiser"):
        assert 0 < parts[name]["least_ms"] <= parts[name]["ms"] <= parts[name]["most_ms"]


def test_the_trace_is_whole_and_its_steps_are_the_wall_time(profiled):
    results, folder = profiled
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    steps = sorted(e["dur"] / 1e3 for e in events if e.get("name") == "step" and e.get("ph") == "X")
    assert len(steps) == profile_step.STEPS
    assert results["wall_ms"] == pytest.approx(steps[len(steps) // 2], rel=0.01, abs=0.1)
    assert sorted(path.name for path in folder.iterdir()) == ["profile.png", "trace.json"]
