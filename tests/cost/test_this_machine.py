"""What this_machine, MFU's peak and benchmarks/budget.py know of an accelerator, on one that tests simulate.

Its clock stands still until the host waits for the device: a rate that is measured without waiting would be infinite.
"""

import argparse
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import budget as budget_script
import numpy as np
import pytest
import torch

from fastmlp import device as devices
from fastmlp.arch import parse_arch
from fastmlp.cost import hardware
from fastmlp.cost.budget import TrainingJob, explain, predict
from fastmlp.cost.hardware import MEMORY_EFFICIENCY, card, this_machine

ROOT = Path(__file__).parents[2]
PRODUCTS, COPIES, LINK = 2e12, 1e11, 4e9  # what the simulated device does in a second: FLOP, bytes, bytes


@pytest.fixture(autouse=True)
def peak_measured_once():
    """Here it is measured each time."""


@dataclass
class Accelerator:
    """A device of type "simgpu", for which the CPU stands in. Its work takes time at the host's next wait only."""

    name: str
    bfloat16: bool = True
    total: int = 8_000_000_000
    free: int = 200_000_000
    type: str = "simgpu"
    clock: float = 0.0
    queued: float = 0.0
    looks: int = 0  # at the clock
    products: tuple = ()  # (shape of a, shape of b, dtype), the last ones

    def wait(self) -> None:
        self.clock, self.queued = self.clock + self.queued, 0.0

    def look(self) -> float:
        self.looks += 1
        assert self.looks < 1000, "rounds without end: they take no time"
        return self.clock

    def multiply(self, a, b, out) -> None:
        assert out.shape == (a.shape[0], b.shape[1]) and a.dtype == b.dtype == out.dtype
        assert a.nbytes + b.nbytes + out.nbytes <= self.free
        self.products = (*self.products, (tuple(a.shape), tuple(b.shape), a.dtype))[-2:]
        self.queued += 2 * a.numel() * b.shape[1] / PRODUCTS

    def copy(self, target, source, non_blocking) -> None:
        pinned = getattr(source, "pinned", False)
        assert pinned == non_blocking and target.nbytes == source.nbytes <= self.free / 2
        self.queued += source.nbytes / LINK if pinned else 2 * source.nbytes / COPIES


@pytest.fixture
def accelerator(monkeypatch):
    """accelerator("NVIDIA T4", ...) is a device that fastmlp.device answers for. Its tensors are on the CPU."""

    def make(name: str, **fields) -> Accelerator:
        gpu = Accelerator(name, **fields)
        empty, from_numpy = torch.empty, torch.from_numpy
        made, pinned_sizes = set(), set()

        def allocate(*size, device=None, **options):  # without values, so that large tensors cost nothing
            tensor = empty(*size, device="cpu" if device is gpu else device, **options)
            if device is gpu:
                made.add(tensor.data_ptr())
            return tensor

        def pinned_tensor(array):
            tensor = from_numpy(array)
            tensor.pinned = array.size in pinned_sizes
            return tensor

        def multiply(a, b, out):
            assert a.data_ptr() in made, "measures the CPU"
            gpu.multiply(a, b, out)

        def copy(target, source, non_blocking=False):
            assert target.data_ptr() in made
            gpu.copy(target, source, non_blocking)

        def host_buffer(size, pinned=False):
            if pinned:
                pinned_sizes.add(size)
            return np.zeros(size, np.uint8)

        module = SimpleNamespace(
            get_device_name=lambda device: gpu.name,
            is_bf16_supported=lambda including_emulation=True: gpu.bfloat16,
            mem_get_info=lambda device: (gpu.free, gpu.total),
            empty_cache=lambda: None,
            synchronize=lambda device: gpu.wait(),
        )
        monkeypatch.setattr(devices, "_module", lambda device: module)
        monkeypatch.setattr(devices, "host_buffer", host_buffer)
        monkeypatch.setattr(devices, "select", lambda name: gpu)
        monkeypatch.setattr(torch, "rand", allocate)
        monkeypatch.setattr(torch, "empty", allocate)
        monkeypatch.setattr(torch, "from_numpy", pinned_tensor)
        monkeypatch.setattr(torch, "mm", multiply)
        monkeypatch.setattr(torch.Tensor, "copy_", copy)
        monkeypatch.setattr(hardware.time, "perf_counter", gpu.look)
        return gpu

    return make


@pytest.mark.parametrize(
    ("name", "precision", "peak", "memory_rate", "link"),
    [
        ("Tesla T4", "float32", 8.1e12, 320e9, 15.75e9),
        ("NVIDIA T4", "float32", 8.1e12, 320e9, 15.75e9),
        ("Tesla V100-SXM2-16GB", "float32", 15.7e12, 900e9, 15.75e9),
        ("Tesla V100-SXM3-32GB", "float32", 15.7e12, 900e9, 15.75e9),
        ("Tesla V100-PCIE-16GB", "float32", 14e12, 900e9, 15.75e9),
        ("NVIDIA RTX A5000", "bfloat16", 111.1e12, 768e9, 31.5e9),
        ("NVIDIA RTX A5000", "tf32", 55.6e12, 768e9, 31.5e9),
        ("NVIDIA A100-PCIE-40GB", "bfloat16", 312e12, 1555e9, 31.5e9),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312e12, 1555e9, 31.5e9),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12, 2039e9, 31.5e9),
        ("NVIDIA A100 80GB PCIe", "bfloat16", 312e12, 1935e9, 31.5e9),
        ("NVIDIA H100 PCIe", "bfloat16", 756.5e12, 2000e9, 63e9),
    ],
)
def test_a_card_of_the_table_has_its_data_sheet_s_rates_and_its_own_memory(
    accelerator, monkeypatch, name, precision, peak, memory_rate, link
):
    gpu = accelerator(name, total=15 * 10**9)
    monkeypatch.setattr(devices, "precision", lambda device: precision)
    machine = this_machine(gpu)
    assert (machine.name, machine.precision, machine.flop_per_s) == (name, precision, peak)
    assert (machine.memory_bytes, machine.memory_bytes_per_s, machine.link_bytes_per_s) == (1.5e10, memory_rate, link)
    assert machine.efficiency == hardware.EFFICIENCY and not machine.measured and not gpu.clock
    assert hardware.device_peak_flop_per_s(gpu) == peak


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4070 Laptop GPU",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "NVIDIA GH200 480GB",
        "AMD Instinct MI300X",
    ],
)
def test_any_other_accelerator_is_measured(accelerator, name):
    gpu = accelerator(name)
    machine = this_machine(gpu)
    assert machine.name == f"{name} (products and copies measured)" and machine.measured
    assert machine.flop_per_s == pytest.approx(PRODUCTS) and machine.efficiency == 1
    assert machine.memory_bytes_per_s * MEMORY_EFFICIENCY == pytest.approx(COPIES)
    assert machine.link_bytes_per_s * hardware.LINK_EFFICIENCY == pytest.approx(LINK)
    assert machine.memory_bytes == 8e9 and machine.precision == "bfloat16"
    assert 0.3 < gpu.clock < 1.0  # seconds of the device's work
    # half of 2e8 bytes is room for 2 * (1024 * 5120 + 1024 * 4096) bfloat16 values twice, not for four times
    assert gpu.products == (((2048, 1024), (1024, 4096), torch.bfloat16), ((2048, 4096), (4096, 1024), torch.bfloat16))
    assert hardware.device_peak_flop_per_s(gpu) is None  # MFU "n/a"


def test_a_card_without_bfloat16_is_measured_in_float32(accelerator):
    gpu = accelerator("NVIDIA GeForce GTX 1660", bfloat16=False, free=64 * 10**9)
    machine = this_machine(gpu)
    assert machine.precision == "float32" and machine.flop_per_s == pytest.approx(PRODUCTS)
    assert gpu.products[0] == ((2048, 1024), (1024, 4096), torch.float32)  # long enough: 17 GFLOP


def test_a_measured_machine_is_explained_by_what_was_measured(accelerator):
    job = TrainingJob(parse_arch("B_6-Wi_512"), 64, 1000, 1_281_167, 16_384, 100)
    text = explain(predict(job, this_machine(accelerator("NVIDIA GeForce RTX 4070 Laptop GPU"))))
    assert text.startswith(
        "predicted for NVIDIA GeForce RTX 4070 Laptop GPU (products and copies measured): B_6-Wi_512"
    )
    assert "measured: products of 2 TFLOP/s, copies of 100 GB/s, 4 GB/s to the device" in text
    assert "peak" not in text and "of 7.45 GiB" in text


def test_the_cpu_touches_no_accelerator(monkeypatch):
    def forbidden(*_):
        raise AssertionError("touches an accelerator")

    monkeypatch.setattr(devices, "_module", forbidden)
    monkeypatch.setattr(torch, "get_device_module", forbidden)
    monkeypatch.setattr(torch, "mm", lambda a, b, out: out)
    monkeypatch.setattr(hardware.time, "perf_counter", iter(range(1000)).__next__)  # each round takes 1 s
    cpu = torch.device("cpu")
    machine = this_machine(cpu)
    assert machine.name == "this CPU (products and copies measured)" and machine.link_bytes_per_s is None
    assert (machine.precision, machine.efficiency, machine.measured) == ("float32", 1.0, True)
    assert machine.flop_per_s == 2 * 2048**3 == hardware.device_peak_flop_per_s(cpu)
    assert machine.memory_bytes_per_s * MEMORY_EFFICIENCY == pytest.approx(2 * 2**28, rel=1e-6)


def options(**given):
    return argparse.Namespace(**{"card": None, "mig": None, "precision": "auto", **given})


def test_the_benchmark_predicts_for_the_gpu_here(accelerator):
    accelerator("NVIDIA A100 80GB PCIe")
    (known,) = budget_script.machines(options())
    assert known.name == "NVIDIA A100 80GB PCIe" and not known.measured and known.memory_bytes == 8e9
    accelerator("NVIDIA H100 NVL")
    (other,) = budget_script.machines(options())
    assert other.name == "NVIDIA H100 NVL (products and copies measured)" and other.measured
    assert budget_script.machines(options(card="4090", precision="tf32")) == [card("4090", "tf32")]
    with pytest.raises(
        ValueError, match="--precision=tf32 goes with --card: NVIDIA H100 NVL, the GPU here, .* bfloat16"
    ):
        budget_script.machines(options(precision="tf32"))


def test_the_benchmark_predicts_for_every_card_on_a_cpu(capsys):
    found = budget_script.machines(options())
    assert [machine.name for machine in found] == list(hardware.CARDS)
    assert {m.precision for m in found if m.name in ("T4", "V100", "V100-PCIe")} == {"float32"}
    assert {m.name for m in found} - {m.name for m in budget_script.machines(options(precision="tf32"))} == {
        "T4",
        "V100",
        "V100-PCIe",
    }
    assert "T4 has no tf32" in capsys.readouterr().err


def test_studies_train_one_run_at_a_time_on_any_accelerator(monkeypatch):
    spec = importlib.util.spec_from_file_location("scaling_recipe", ROOT / "recipes/scaling.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    monkeypatch.setattr(devices, "select", lambda name: SimpleNamespace(type="simgpu"))
    assert recipe.default_parallel() == 1
