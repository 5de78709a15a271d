"""The public names stay: docs/public-interface.md lists them as they are, and docs' scripts run as written."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

import fastmlp


def test_the_page_lists_the_names_as_they_are():
    spec = importlib.util.spec_from_file_location("public_interface", ROOT / "scripts/public_interface.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    now, written = module.page(), module.PAGE.read_text(encoding="utf-8")
    assert now == written, (
        "the public interface has changed: run python scripts/public_interface.py --write, and tell it in CHANGELOG.md"
    )
    assert all(f"fastmlp.{name}" in now for name in fastmlp.__all__ if name != "__version__")


def test_each_public_name_is_there_and_explained():
    assert set(fastmlp.__all__) <= set(dir(fastmlp))
    for name in set(fastmlp.__all__) - {"__version__", "OrderOption"}:
        assert len(getattr(fastmlp, name).__doc__) > 60, name


def script_of(page: str) -> str:
    """Return the first script on the page."""
    found, *_ = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.M | re.S)
    return found


def run(code: str, folder: Path, *arguments: object) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture
def small_data(tmp_path) -> Iterator[Path]:
    """A folder data/ with betons that are named as Fashion-MNIST's and have 10 classes of synthetic images."""
    from fastmlp.beton.writer_cli import WriteOptions, write_splits
    from fastmlp.sources.synthetic import Synthetic

    sizes = {"train": 600, "test": 200}
    write_splits(
        "fashion_mnist",
        lambda split: Synthetic(sizes[split], num_classes=10, res=32, split=split),
        ("train", "test"),
        WriteOptions(res=32, out=tmp_path / "data", num_workers=1, limit=None, seed=0),
    )
    yield tmp_path


def test_the_script_of_the_python_page_runs_as_written(small_data):
    code = script_of("python.md")
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    out = run(code, small_data)
    assert re.search(r"^top-1 [\d.]+%, [\d,]+ images/sec, in runs/python$", out, re.M)
    assert "95 % interval" in out and out.count("), ('") == 6 and (small_data / "first.onnx").stat().st_size > 1e6


def test_an_ffcv_script_runs_with_another_import(small_data):
    """With FASTMLP_KILLS, as scripts/torture.sh sets it, on FFCV too: its compilation takes 20 s."""
    code = script_of("loader-for-ffcv-users.md")
    first = "from fastmlp import Loader, OrderOption\n"
    assert code.startswith(first)
    loaders = [first]
    if "FASTMLP_KILLS" in os.environ:
        loaders.append("from ffcv.loader import Loader, OrderOption\n")
    betons = [small_data / f"data/fashion_mnist_{split}_32.beton" for split in ("train", "test")]
    for loader in loaders:
        out = run(code.replace(first, loader), small_data, *betons, 2, 100)
        assert re.fullmatch(r"(epoch \d: loss \d\.\d{3}, \d+ right of 200\n){2}", out), out
