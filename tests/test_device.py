"""Which device is used and why, its precision, and errors of devices; no accelerator is needed."""

import os
import types

import pytest
import torch

from fastmlp import device as devices
from fastmlp.loader.loader import clamp_workers
from fastmlp.worker_pool import num_cores

CPU = torch.device("cpu")


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """on_path(script): an nvidia-smi that is this shell script."""

    def put(script):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    monkeypatch.delenv("FASTMLP_DEVICE")
    return put


@pytest.fixture
def card(monkeypatch):
    """card(capability): torch.cuda looks as if it had two such devices."""

    def put(capability):
        has_bfloat16 = capability >= (8, 0)
        cuda = types.SimpleNamespace(
            is_available=lambda: True,
            device_count=lambda: 2,
            set_device=lambda device: None,
            get_device_name=lambda device: "NVIDIA Test",
            get_device_capability=lambda device: capability,
            is_bf16_supported=lambda including_emulation=True: including_emulation or has_bfloat16,
        )
        monkeypatch.setattr(devices, "_module", lambda device: cuda)

    monkeypatch.delenv("FASTMLP_DEVICE")
    before = torch.get_float32_matmul_precision()
    yield put
    torch.set_float32_matmul_precision(before)


def test_the_choice_is_explained(on_path, monkeypatch):
    on_path("exit 1")
    assert devices.explain_choice("cpu", CPU) == "device CPU (as asked)"
    assert devices.explain_choice("auto", CPU) == "device CPU (torch sees no GPU)"
    monkeypatch.setenv("FASTMLP_DEVICE", "cpu")
    assert devices.explain_choice("auto", CPU) == "device CPU (FASTMLP_DEVICE=cpu)"


def test_a_gpu_that_torch_cannot_use_is_named(on_path):
    on_path('echo "GPU 0: NVIDIA GeForce RTX 3060 (UUID: GPU-1)"; echo "GPU 1: Other (UUID: GPU-2)"')
    line = devices.explain_choice("auto", CPU)
    assert line.startswith(f"device CPU, since torch {torch.__version__} cannot use the NVIDIA GeForce RTX 3060")
    assert "scripts/self_check.py --gpu" in line
    on_path("echo 'No devices were found'")
    assert devices.explain_choice("auto", CPU) == "device CPU (torch sees no GPU)"


@pytest.mark.parametrize(
    ("capability", "dtype", "precision"),
    [
        ((7, 0), torch.float32, "float32"),  # V100
        ((7, 5), torch.float32, "float32"),  # T4
        ((8, 6), torch.bfloat16, "bfloat16"),
    ],
)
def test_precision_of_a_card(card, capability, dtype, precision):
    card(capability)
    cuda = torch.device("cuda", 0)
    assert devices.compute_dtype(cuda) == dtype and devices.precision(cuda) == precision


def test_a_wrong_word_in_the_environment_is_told(monkeypatch):
    monkeypatch.setenv("FASTMLP_DEVICE", "gpu")
    with pytest.raises(ValueError, match="FASTMLP_DEVICE=gpu: expected auto, cpu or cuda"):
        devices.select("auto")
    assert devices.select("cpu") == CPU


def test_a_hidden_gpu_is_told(on_path, monkeypatch):
    on_path('echo "GPU 0: NVIDIA GeForce RTX 3060 (UUID: GPU-1)"')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    line = devices.explain_choice("auto", CPU)
    assert line == "device CPU (torch sees no GPU; the environment has CUDA_VISIBLE_DEVICES='')"


def test_each_process_has_a_device_of_its_own(card, monkeypatch):
    card((8, 0))
    assert devices.select("cpu") == CPU
    assert devices.select("auto") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert devices.select("cuda") == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="LOCAL_RANK=2, but torch sees 2 devices"):
        devices.select("auto")
    monkeypatch.setenv("FASTMLP_DEVICE", "cpu")
    assert devices.select("auto") == CPU


def test_unmarked_tests_stay_on_the_cpu():
    assert os.environ["FASTMLP_DEVICE"] == "cpu" and devices.select("auto") == CPU


def test_processes_share_the_cores(monkeypatch):
    cores = num_cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores))
    assert devices.default_num_workers(CPU) == clamp_workers(-1) == 1
    assert devices.default_num_workers(torch.device("cuda")) == 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert devices.default_num_workers(torch.device("cuda")) == clamp_workers(-1) == cores


def chained(error):
    """Return an error of the compiler that another one caused."""
    outer = RuntimeError("backend failed")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("full"),
        torch.AcceleratorError("illegal address"),
        RuntimeError("CUDA error: launch"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda error: error, chained])
def test_faults_of_a_device_are_no_failed_compilation(error, wrap):
    def attempt():
        raise wrap(error)

    with pytest.raises(type(wrap(error))):
        devices.compiled_or_none(attempt, "on it goes")


def test_a_failed_compilation_is_a_warning():
    def attempt():
        raise RuntimeError("no compiler\nat all")

    with pytest.warns(UserWarning, match=r"torch.compile failed \(no compiler\): on it goes"):
        assert devices.compiled_or_none(attempt, "on it goes") is None


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Triton Error [CUDA]: out of memory",
    ],
)
def test_full_memory_has_many_names(text):
    assert devices.is_out_of_memory(RuntimeError(text)) and devices.is_device_error(RuntimeError(text))
    assert not devices.is_out_of_memory(RuntimeError("CUDA error: launch"))


def test_full_memory_comes_with_advice():
    with pytest.raises(MemoryError, match=r"Tried to allocate 2 GiB \(.* GiB free on CPU\): take less"):
        with devices.memory_errors(CPU, lambda: "take less"):
            raise torch.OutOfMemoryError("Tried to allocate 2 GiB. GPU 0 has 1 GiB. Of the allocated memory, ...")
    with pytest.raises(RuntimeError, match="other"), devices.memory_errors(CPU, lambda: "take less"):
        raise RuntimeError("other")


def test_phases_add_up():
    timer = devices.PhaseTimer(CPU)
    for name in ("a", "b", "a"):
        timer.mark(name)
    assert set(timer.seconds()) == {"a", "b"} and timer.seconds() == {}
