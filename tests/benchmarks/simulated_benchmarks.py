"""Benchmarks on the simulated accelerator: where they run and what they wait for (run by test_simulated_device.py)."""

import json
import sys
from functools import partial

import growth
import inference
import loader
import measure
import pytest
import torch
import train_step
import transforms
from simulated_device import NAME, sim

from fastmlp import device as devices
from fastmlp.config import PretrainConfig
from fastmlp.cost import hardware
from fastmlp.cost.hardware import card
from fastmlp.sources.synthetic import Synthetic
from fastmlp.transforms import torch_path

torch_path._works = False  # no compiler knows the device
GPU = torch.device(NAME, 0)


@pytest.fixture
def run(capsys, monkeypatch):
    """run(module, *arguments): the JSON lines of a benchmark, and what it prints to stderr."""
    monkeypatch.setattr(sim, "bfloat16", False)
    monkeypatch.setattr(sim, "limit_bytes", 1 << 28)
    monkeypatch.setattr(measure, "PAUSE_S", 0)

    def call(module, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
        module.main()
        out, err = capsys.readouterr()
        return [json.loads(text) for text in out.splitlines()], err

    return call


def simulated_clock_stops_when_the_device_has_finished():
    """Copies into page-locked memory arrive when the host waits."""
    source, arrived = torch.arange(100.0, device=GPU), []
    target = torch.empty(100, pin_memory=True)
    seconds = measure.alternate({"copy": lambda: target.copy_(source, non_blocking=True)}, 1, GPU)
    arrived = target.clone()
    assert torch.equal(arrived, torch.arange(100.0)) and seconds["copy"][0] > 0
    assert all(queue.done == queue.last for queue in sim.queues.values())
    assert {kind for kind, _ in sim.counters.syncs} == {"device synchronize"}


def simulated_training_is_measured_on_the_device(run, monkeypatch):
    monkeypatch.setattr(train_step.hardware, "this_machine", lambda device: card("A100", "float32"))
    monkeypatch.setattr(train_step, "Synthetic", lambda count, *more: Synthetic(400, *more))
    (step, updates), err = run(train_step, "--case", "B_1-Wi_8,8,5,400", "--rounds", "1", "--no-compiled")
    assert f"device {NAME}:0, Simulated GPU (torch sees it)" in err
    assert step["device"] == updates["device"] == "Simulated GPU" and step["precision"] == "float32"
    assert list(step["results"]) == ["gemm 400", "beton, eager", "batch, eager", "loading alone", "predicted"]
    assert step["results"]["predicted"]["link_gb_per_s"] > 0 and "host link" in err
    assert 0 < step["results"]["predicted"]["measured_over_predicted"]


def simulated_batches_are_loaded_to_the_device(run, monkeypatch):
    monkeypatch.setattr(loader.peers, "ffcv_loader", lambda *_, **__: [])
    (line,), _ = run(loader, "--case", "8:1000:2", "--peers", "--rounds", "1")
    hosts = [f"{name}, on the host" for name in ("fastmlp", "ffcv", "ffcv, batches_ahead=1")]
    results = line["results"]
    assert list(results) == ["bare gather", "bare send", "fastmlp", *hosts]
    assert line["limit"] == min(("bare gather", "bare send"), key=lambda name: results[name]["images_per_s"])
    assert sim.counters.streams == 1 and line["device"] == "Simulated GPU"  # that of "fastmlp" alone
    _, err = run(loader, "--case", "8:1000:1", "--peers", "--rounds", "1", "--device", "cpu")
    assert "device CPU (as asked)" in err and "on the host" not in err


@pytest.mark.parametrize("work", ["crop", "uint8"])
def simulated_batches_are_transformed_to_the_device(run, work):
    (line,), err = run(transforms, "--case", f"{work}:8:8:64", "--samples", "100", "--rounds", "1")
    paths = {"crop": ["torch grid_sample", "fastmlp, host path", "fastmlp, device path"], "uint8": ["fastmlp"]}
    assert list(line["results"]) == ["bare write", "bare gather", "bare send", *paths[work]]
    assert line["samples"] == 64 and "FFCV's operations need the CPU" in err


def simulated_inference_is_measured_on_the_device(run):
    flags = ["--arch", "B_1-Wi_8", "--res", "8", "--classes", "5", "--images", "100", "--views", "1", "--rounds", "1"]
    lines, _ = run(inference, *flags)
    assert [line["device"] for line in lines] == ["Simulated GPU"] * 3
    assert list(lines[0]["results"]) == ["gemm 100", "ready batches of 100", "from a beton"]


def simulated_growth_is_that_of_the_device(run, monkeypatch):
    monkeypatch.setattr(growth.startup, "write_sparse", partial(few, growth.startup.write_sparse))
    monkeypatch.setattr("fastmlp.config.PretrainConfig", partial(PretrainConfig, compile="off"))
    before = sim.memory[0].max_allocated
    found = growth.point("batch", 4, 1, GPU)
    assert found["seconds"] > 0 and found["memory_bytes"] == sim.memory[0].max_allocated - before
    assert growth.point("threads", 1, 1, GPU)["seconds"] > 0 and sim.counters.streams == 1  # the loader's


def few(write, path, samples):
    write(path, 4096)


def simulated_rates_of_links_are_measured(monkeypatch):
    monkeypatch.setattr(sim, "limit_bytes", 1 << 24)
    assert hardware.copied_bytes_per_s(GPU) > 0 and hardware.sent_bytes_per_s(GPU) > 0
    assert devices.describe(GPU) == "Simulated GPU"
