"""The loader against faults, bad arguments and interruption."""

import os
import signal
import subprocess
import sys
import time

import pytest
from ffcv.fields import RGBImageField
from ffcv.fields.decoders import SimpleRGBImageDecoder
from ffcv.pipeline.operation import Operation
from ffcv.transforms import ToTensor
from loading import (
    SAMPLES,
    beton_fixture,  # noqa: F401
    drain,
    make,
)
from numbered_images import numbered

from fastmlp.beton.writer import write_beton
from fastmlp.loader.loader import clamp_workers


class Spoil(Operation):
    """An operation that raises in the batch with sample 150."""

    def generate_code(self):
        def spoil(images, _, indices):
            if 150 in indices:
                raise RuntimeError("spoilt")
            return images

        spoil.with_indices = True
        return spoil

    def declare_state_and_memory(self, previous):
        return previous, None


def test_an_operation_that_raises(beton):
    pipelines = {"image": [SimpleRGBImageDecoder(), ToTensor(), Spoil()], "label": None}
    with make(beton, 60, pipelines=pipelines) as loader:
        for _ in range(2):  # the loader can be used again
            received = 0
            with pytest.raises(RuntimeError, match="spoilt") as raised:
                for _ in loader:
                    received += 1
            assert received == 2
            assert f"batch 2 of epoch {loader.next_epoch - 1} of {beton}" in raised.value.__notes__[0]


class Stop(Operation):
    def generate_code(self):
        def stop(images, _):
            raise StopIteration

        return stop

    def declare_state_and_memory(self, previous):
        return previous, None


def test_stop_iteration_in_an_operation_is_an_error(beton):
    pipelines = {"image": [SimpleRGBImageDecoder(), ToTensor(), Stop()], "label": None}
    with make(beton, 60, pipelines=pipelines) as loader, pytest.raises(RuntimeError, match="StopIteration"):
        next(iter(loader))


@pytest.mark.serial
def test_a_file_cut_short_while_open(tmp_path):
    path = write_beton(tmp_path / "x.beton", numbered(200, res=64), 64)
    with make(path, 10, batches_ahead=1) as loader:
        batches = iter(loader)
        next(batches)
        time.sleep(0.5)  # until the thread waits for a slot: a cut in the middle of a gather would kill the process
        os.truncate(path, 1 << 20)
        with pytest.raises(OSError, match="cut short while open"):
            for _ in batches:
                pass
        with pytest.raises(OSError, match="cut short while open"):
            next(iter(loader))


def test_no_memory_for_buffers(beton, monkeypatch):
    def exhausted(*_):
        raise MemoryError("no memory for buffers")

    with make(beton) as loader:
        monkeypatch.setattr("fastmlp.device.host_buffer", exhausted)
        with pytest.raises(MemoryError, match="no memory for buffers"):
            next(iter(loader))
        monkeypatch.undo()
        assert len(drain(loader)) == SAMPLES // 64


def test_bad_arguments(beton, tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        make(tmp_path / "none.beton")
    (tmp_path / "text.beton").write_text("hello" * 100)
    with pytest.raises(ValueError, match="not a beton"):
        make(tmp_path / "text.beton")
    with pytest.raises(ValueError, match="reach outside of the 500 samples"):
        make(beton, indices=[0, 500])
    with pytest.raises(ValueError, match="reach outside"):
        make(beton, indices=[-1])
    with pytest.raises(ValueError, match=r"n\.beton has no field 'picture', but image, label"):
        make(beton, pipelines={"picture": [SimpleRGBImageDecoder()]})
    for wrong in (
        {"batch_size": 0},
        {"batches_ahead": -1},
        {"cache": "disk"},
        {"order": "random"},
        {"pipelines": {"image": 3}},
        {"seed": "x"},
        {"seed": 1.5},
        {"seed": -1},
    ):
        with pytest.raises(ValueError):
            make(beton, **wrong)


def test_what_has_no_effect_is_told(beton):
    with pytest.warns(UserWarning, match=r"custom_fields: .*n\.beton has no field imagee, but image, label"):
        make(beton, custom_fields={"imagee": RGBImageField})
    with make(beton, 501) as loader, pytest.warns(UserWarning, match="fewer samples than batch_size=501, so no batch"):
        assert drain(loader) == []
    with make(beton, 501, drop_last=False) as loader:
        assert [len(batch) for batch in drain(loader)] == [500]
    with make(beton, 300) as loader:
        next(iter(loader))
        state = loader.state_dict()
        loader.load_state_dict(state)  # 200 left
        assert drain(loader) == []


def test_missing_and_cut_betons_are_told_without_a_command_that_may_be_wrong(beton, tmp_path):
    cut = tmp_path / "cut.beton"
    cut.write_bytes(beton.read_bytes()[:-20])
    with pytest.raises(
        ValueError, match=r"truncated: \d+ bytes, its allocation table, at the end, starts .* and is cut"
    ):
        make(cut)
    cut.write_bytes(beton.read_bytes()[: 3 << 20])
    with pytest.raises(ValueError, match=r"starts at \d+\. Write it with a script of writers/ or FFCV's DatasetWriter"):
        make(cut)


def test_workers_are_clamped_with_a_notice():
    with pytest.warns(UserWarning, match="num_workers=999 is more than"):
        assert clamp_workers(999) == clamp_workers(0) == clamp_workers(-1) >= 1
    assert clamp_workers(1) == 1


INTERRUPTED = """
import sys, time
from fastmlp import Loader, OrderOption
from fastmlp.beton import layout
loader = Loader(sys.argv[1], 10, order=OrderOption.RANDOM)
print("ready", flush=True)
while True:
    for batch in loader:
        time.sleep(0.001)
"""
LEFT_OPEN = """
import sys
from fastmlp import Loader
batches = iter(Loader(sys.argv[1], 10))
next(batches)
"""


def test_interpreter_exit_with_an_open_iterator(beton):
    command = [sys.executable, "-W", "error", "-c", LEFT_OPEN, str(beton)]
    ended = subprocess.run(command, capture_output=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_ctrl_c(beton):
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(beton)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=10)
    assert err.rstrip().endswith("KeyboardInterrupt") and err.count("Traceback") == 1
