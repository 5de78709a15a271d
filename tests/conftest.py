"""What tests share: scripts called in process, and small betons to train on."""

import functools
import gc
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SIMULATED = "FASTMLP_SIMULATED" in os.environ  # tests/simulated_device.py
if SIMULATED:
    os.environ.pop("FASTMLP_DEVICE", None)
else:
    os.environ["FASTMLP_DEVICE"] = "cpu"  # "auto" is the CPU, in child processes, too
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for child processes: the others have the cores


@pytest.hookimpl(hookwrapper=True)
def pytest_collection():
    """No garbage is collected while tests are: what finalisers do there can break the compiler of Python below 3.11.9
    ("AST constructor recursion depth mismatch", CPython issue 106905)."""
    gc.disable()
    yield
    gc.enable()


def pytest_addoption(parser):
    parser.addoption("--serial", choices=("only", "without"), help="run only tests marked serial or gpu, or the others")


def pytest_ignore_collect(collection_path, config):
    """With --serial=only, files without such a test need not be imported."""
    if config.getoption("--serial") != "only" or collection_path.suffix != ".py":
        return None
    content = collection_path.read_bytes()
    return not (b"mark.serial" in content or b"mark.gpu" in content) or None


def pytest_collection_modifyitems(config, items):
    """An option of its own, so that a caller's -m goes with it. Processes side by side would share one GPU."""
    if wanted := config.getoption("--serial"):
        left_out = [item for item in items if _runs_alone(item) != (wanted == "only")]
        items[:] = [item for item in items if _runs_alone(item) == (wanted == "only")]
        config.hook.pytest_deselected(items=left_out)


def _runs_alone(item):
    return any(item.get_closest_marker(name) for name in ("serial", "gpu"))


def _printable(value):
    """Return nested lists and mappings whose strings are text, not names of files that are not UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in value.items()}
    return type(value)(map(_printable, value)) if type(value) in (list, tuple) else value


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable():
    """What a test has printed or logged goes to the process that reports it, which takes UTF-8 alone."""
    return _printable((yield))


@pytest.fixture(autouse=True)
def device_of_the_test(request, monkeypatch):
    """Only tests marked `gpu` train on a GPU."""
    if "gpu" in request.keywords:
        monkeypatch.delenv("FASTMLP_DEVICE", raising=False)


@pytest.fixture(autouse=True)
def messages_as_in_scripts():
    """What the library says is printed, as scripts have it. test_from_python.py overrides this."""
    from fastmlp.messages import shown

    with shown():
        yield


@functools.cache
def _peak(measured_peak, threads):
    return measured_peak()


@pytest.fixture(autouse=True)
def peak_measured_once(monkeypatch):
    """Each run measures the CPU's peak for its MFU, a second on one thread: here only the first does, for all.

    test_this_machine.py overrides this.
    """
    from fastmlp.cost import hardware

    real = hardware.measured_peak

    def measured_peak(*shapes, **options):
        import torch

        return real(*shapes, **options) if shapes or options else _peak(real, torch.get_num_threads())

    monkeypatch.setattr(hardware, "measured_peak", measured_peak)


@dataclass
class Ended:
    """How a script ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def script(capsys, monkeypatch) -> Callable[..., Ended]:
    """script("recipes/pretrain.py", "--cfg.epochs=1"): runs it in this process, through its own error handling."""
    from fastmlp import cli

    def call(path: str, *arguments: object) -> Ended:
        spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        monkeypatch.setattr("warnings.formatwarning", None)  # cli.run sets it; put back after the test
        capsys.readouterr()
        code = 0
        try:
            cli.run(module.main)
        except SystemExit as ending:
            code = ending.code
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture
def inspected(capsys, monkeypatch) -> Callable[..., str]:
    """inspected(path): what `python -m fastmlp.beton.inspect path` prints."""
    from fastmlp import cli
    from fastmlp.beton import inspect

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["inspect", *map(str, arguments)])
        monkeypatch.setattr("warnings.formatwarning", None)  # cli.run sets it; put back after the test
        cli.run(inspect.main)
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A folder with the synthetic data set: 600 training and 200 test images of 8 px in 5 classes."""
    from fastmlp.beton.writer_cli import WriteOptions, write_splits
    from fastmlp.sources.synthetic import Synthetic

    folder = tmp_path_factory.mktemp("data")
    sizes = {"train": 600, "test": 200}
    write_splits(
        "synthetic",
        lambda split: Synthetic(sizes[split], num_classes=5, res=8, split=split),
        ("train", "test"),
        WriteOptions(res=8, out=folder, num_workers=1, limit=None, seed=0),
    )
    return folder
