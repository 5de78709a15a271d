"""Training, recipes and scripts/gpu_check.py on the simulated accelerator (run by tests/test_simulated_device.py)."""

import dataclasses
import importlib
import io
import itertools
import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import ROOT
from emulated_bfloat16 import Bfloat16, rounded
from simulated_device import NAME, reset, sim

from fastmlp import Loader, build_model
from fastmlp.config import PretrainConfig
from fastmlp.cost.hardware import card
from fastmlp.data.split import Split
from fastmlp.datasets import get_dataset
from fastmlp.device import PhaseTimer, StreamHandoff
from fastmlp.models.mlp import bottleneck_block
from fastmlp.training import trainer as training
from fastmlp.training.trainer import Trainer, choose_micro_batch
from fastmlp.transforms import torch_path
from fastmlp.transforms.augment_params import Augment

torch_path._works = False  # no compiler knows the device

CONFIG = PretrainConfig(
    dataset="synthetic",
    res=8,
    arch="B_2-Wi_32",
    batch_size=100,
    micro_batch_size=34,
    lr=1e-3,
    mixup_alpha=0.8,
    label_smoothing=0.1,
    ema_decay=0.9,
    clip_norm=1.0,
    schedule="cosine",
    epochs="2",
    compile="off",
)
FLAGS = (
    *("--cfg.dataset=synthetic", "--cfg.res=8", "--cfg.arch=B_2-Wi_32", "--cfg.batch_size=100", "--cfg.epochs=6 steps"),
    *("--cfg.optimizer=lion", "--cfg.lr=1e-3", "--cfg.ema_decay=0.9", "--cfg.compile=off", "--cfg.log_every=6"),
)


@pytest.fixture
def precision(request, monkeypatch):
    monkeypatch.setattr(sim, "bfloat16", request.param == "bfloat16")
    return request.param


def new_trainer(device, config=CONFIG, micro_batch_size=0):
    torch.manual_seed(0)
    return Trainer(build_model(config.arch, 8, 5).to(device), config, 6, micro_batch_size=micro_batch_size)


def training_split(data_dir, device):
    return Split(
        get_dataset("synthetic", data_dir),
        *("train", "train"),
        data_dir=data_dir,
        res=8,
        batch_size=100,
        num_workers=1,
        augment=Augment("random_resized", flip=True),
        augment_on="device",
        device=device,
    )


def host_waits():
    """Return how often the main thread has waited for a device."""
    made = {"launches", "streams", "pinned_buffers"}
    return sum(n for (name, kind), n in sim.counters.by_thread.items() if name == "MainThread" and kind not in made)


def weights(trainer):
    return [p.detach().cpu() for p in [*trainer.trained, *trainer.ema]]


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [(name, "bfloat16") for name in ("lion", "adamw", "sgd", "muon")] + [("adamw", "float32"), ("muon", "float32")],
    indirect=["precision"],
)
def simulated_training_is_that_of_the_cpu(data_dir, optimizer, precision):
    """Steps in micro-batches with MixUp, clipping and a moving average; none waits for the device."""
    config, found = dataclasses.replace(CONFIG, optimizer=optimizer), {}
    for device in ("cpu", f"{NAME}:0"):
        trainer, losses = new_trainer(device, config), []
        for batch in itertools.islice(training_split(data_dir, device).batches(epoch=0), 4):
            before = host_waits()
            losses.append(trainer.step(*batch))
            assert host_waits() == before
        found[device] = weights(trainer), torch.stack(losses).cpu()
    (wanted, losses), (got, simulated_losses) = found.values()
    close = {"rtol": 0, "atol": 2e-5} if precision == "float32" else {"rtol": 0.02, "atol": 0.0}
    torch.testing.assert_close(simulated_losses, losses, **close)
    if precision == "float32":
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("arch", ["B_2-Wi_32", "S_2-Wi_32"])
def simulated_autocast_rounds_as_emulated_bfloat16_does(arch, monkeypatch):
    """By the lists for CUDA: the loss and every gradient, LayerNorm's included."""
    config, found = dataclasses.replace(CONFIG, arch=arch, micro_batch_size=0, clip_norm=0.0, optimizer="sgd"), {}
    losses, images, labels = {}, torch.randn(100, 192), torch.randint(0, 5, (100,))
    for name, device in (("unrounded", "cpu"), ("simulated", NAME), ("emulated", "cpu")):
        if name == "emulated":
            monkeypatch.setattr(training, "autocast", lambda device: Bfloat16())
            monkeypatch.setattr(training, "bottleneck_own_backward", bottleneck_block)
        trainer = new_trainer(device, config)
        losses[name] = trainer.step(images.to(device), labels.to(device)).cpu()
        found[name] = [p.grad.cpu() for p in trainer.trained]
    torch.testing.assert_close(losses["emulated"], losses["simulated"], rtol=1e-4, atol=0)
    for unrounded, simulated, emulated in zip(*found.values(), strict=True):
        assert (emulated - simulated).norm() <= 0.5 * (simulated - unrounded).norm()
        assert torch.equal(emulated, rounded(emulated)) == torch.equal(simulated, rounded(simulated))


@pytest.mark.parametrize(("first", "second"), [("cpu", NAME), (NAME, "cpu"), (NAME, NAME)])
def simulated_checkpoint_goes_to_another_device(first, second):
    config = dataclasses.replace(CONFIG, optimizer="muon")
    batches = [(torch.randn(100, 192), torch.randint(0, 5, (100,))) for _ in range(4)]
    whole, begun, resumed = new_trainer("cpu", config), new_trainer(first, config), new_trainer(second, config)
    for batch in batches:
        whole.step(*batch)
    for images, labels in batches[:2]:
        begun.step(images.to(first), labels.to(first))
    file = io.BytesIO()
    torch.save(begun.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    for images, labels in batches[2:]:
        resumed.step(images.to(second), labels.to(second))
    assert resumed.steps_done == 4
    for mine, theirs in zip(weights(resumed), weights(whole), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-2)  # bfloat16


def simulated_full_memory_halves_the_micro_batch_once(monkeypatch):
    backend = torch.get_device_module(NAME)
    config = dataclasses.replace(CONFIG, micro_batch_size=0, batch_size=1000)
    images, labels = torch.randn(1000, 192, device=NAME), torch.randint(0, 5, (1000,), device=NAME)
    peaks = {}
    for size in (1000, 500):
        trainer = new_trainer(NAME, config, micro_batch_size=size)
        backend.empty_cache()
        backend.reset_peak_memory_stats()
        trainer.step(images, labels)
        peaks[size] = backend.max_memory_allocated()
        del trainer
        reset()
        backend.empty_cache()
    assert peaks[500] < 0.9 * peaks[1000]
    monkeypatch.setattr("fastmlp.training.trainer.fitting_micro_batch", lambda *_: 1000)
    trainer = new_trainer(NAME, config)
    monkeypatch.setattr(sim, "limit_bytes", (peaks[500] + peaks[1000]) // 2)
    with pytest.warns(UserWarning, match="micro-batches of 1000: halved to 500"):
        trainer.step(images, labels)
    trainer.step(images, labels)
    assert trainer.max_micro_batch_size == 500 and trainer.steps_done == 2
    monkeypatch.setattr(sim, "limit_bytes", peaks[500] // 2)
    with pytest.raises(torch.OutOfMemoryError):  # of a run that has taken steps
        trainer.step(images, labels)


def simulated_first_step_leaves_room_for_the_optimiser(monkeypatch):
    """AdamW's state is made after the first step's gradients; the second step needs it beside its own."""
    backend = torch.get_device_module(NAME)
    config = dataclasses.replace(CONFIG, micro_batch_size=0, batch_size=1000, optimizer="adamw", arch="B_2-Wi_128")
    images, labels = torch.randn(1000, 192, device=NAME), torch.randint(0, 5, (1000,), device=NAME)
    trainer, peaks = new_trainer(NAME, config, micro_batch_size=1000), []
    for _ in range(2):
        backend.empty_cache()
        backend.reset_peak_memory_stats()
        trainer.step(images, labels)
        peaks.append(backend.max_memory_allocated())
    assert peaks[0] < 0.95 * peaks[1]
    del trainer
    reset()
    backend.empty_cache()
    monkeypatch.setattr("fastmlp.training.trainer.fitting_micro_batch", lambda *_: 1000)
    trainer = new_trainer(NAME, config)
    monkeypatch.setattr(sim, "limit_bytes", peaks[1] - (peaks[1] - peaks[0]) // 4)
    with pytest.warns(UserWarning, match="halved to 500"):
        trainer.step(images, labels)
    trainer.step(images, labels)


def simulated_second_attempt_counts_no_image_twice(monkeypatch):
    """BatchNorm's running statistics are those of a run that began with the smaller micro-batch."""
    config = dataclasses.replace(CONFIG, arch="B_2-Wi_32-N_batch", micro_batch_size=0)
    images, labels = torch.randn(100, 192, device=NAME), torch.randint(0, 5, (100,), device=NAME)
    plain = new_trainer(NAME, config, micro_batch_size=50)
    plain.step(images, labels)
    monkeypatch.setattr("fastmlp.training.trainer.fitting_micro_batch", lambda *_: 100)
    trainer, accumulate = new_trainer(NAME, config), Trainer._accumulate_gradients

    def full_at_first(self, *batch):
        total = accumulate(self, *batch)
        if self.max_micro_batch_size == 100:
            raise torch.OutOfMemoryError("after the forward pass")
        return total

    monkeypatch.setattr(Trainer, "_accumulate_gradients", full_at_first)
    with pytest.warns(UserWarning, match="halved to 50"):
        trainer.step(images, labels)
    for mine, theirs in zip(trainer.model.state_dict().values(), plain.model.state_dict().values(), strict=True):
        assert torch.equal(mine.cpu(), theirs.cpu())


def simulated_head_alone_needs_little_memory(monkeypatch):
    torch.manual_seed(0)
    model = build_model("B_12-Wi_128", 8, 5).to(NAME)
    torch.get_device_module(NAME).empty_cache()
    monkeypatch.setattr(sim, "limit_bytes", torch.get_device_module(NAME).memory_reserved() + (10 << 20))
    config = dataclasses.replace(CONFIG, micro_batch_size=0)
    assert choose_micro_batch(model, config, 1, "frozen") == 100
    with pytest.raises(MemoryError, match="does not fit"):
        choose_micro_batch(model, config, 1, "trained")


@pytest.fixture
def recipe(script, data_dir, tmp_path, monkeypatch):
    """recipe("pretrain", flag, ...): the standard output of a run that has to succeed."""
    monkeypatch.chdir(tmp_path)

    def call(name, *flags, code=0):
        ended = script(f"recipes/{name}.py", f"--cfg.data_dir={data_dir}", *flags)
        assert ended.code == code, ended.err
        return ended.out + ended.err

    return call


def stop_after(monkeypatch, steps, what):
    """Do something after a number of steps."""
    step = Trainer.step

    def step_then(self, images, labels):
        loss = step(self, images, labels)
        if self.steps_done == steps:
            what()
        return loss

    monkeypatch.setattr(Trainer, "step", step_then)


@pytest.mark.parametrize(("first", "second"), [("cpu", "auto"), ("auto", "cpu"), ("auto", "auto")])
def simulated_run_resumes_on_another_device(recipe, monkeypatch, first, second):
    flags = (*FLAGS, "--cfg.run_dir=run")
    with monkeypatch.context() as patch:
        stop_after(patch, 4, lambda: signal.raise_signal(signal.SIGINT))
        assert "stopped after step 4" in recipe("pretrain", *flags, f"--cfg.device={first}", code=130)
    out = recipe("pretrain", *flags, f"--cfg.device={second}")
    assert "resuming after step 4 of 6" in out and "test top-1" in out
    began = {"cpu": "CPU", "auto": "Simulated GPU"}[first]
    assert (f"notice: it began on {began}, so rounding differs" in out) == (first != second)


def simulated_recipes_run_to_their_end(recipe, monkeypatch):
    out = recipe("pretrain", *FLAGS, "--cfg.run_dir=run", "--cfg.checkpoint_every=5 steps")
    assert f"device {NAME}:0, Simulated GPU (torch sees it)" in out and "on 1 x Simulated GPU" in out
    given = ("--cfg.weights=run/final.pt", "--cfg.dataset=synthetic")
    small = ("--cfg.res=8", "--cfg.epochs=3 steps", "--cfg.batch_size=100", "--cfg.compile=off")
    assert "test top-1" in recipe("finetune", *given, *small, "--cfg.run_dir=tuned")
    assert "features kept in memory" in recipe("linear_probe", *given, *small, "--cfg.run_dir=probe")
    assert "test top-1" in recipe("linear_probe", *given, *small, "--cfg.run_dir=views", "--cfg.flip=1")
    assert "l2 1)" in recipe(
        "linear_probe", *given, "--cfg.res=8", "--cfg.l2=1", "--cfg.method=logistic", "--cfg.run_dir=logistic"
    )
    monkeypatch.setattr(sim, "bfloat16", False)  # a CPU may multiply bfloat16 very slowly
    assert "images/sec" in recipe("pretrain", *FLAGS, "--cfg.run_dir=other", "--cfg.budget=1")
    found = {}
    for device in ("auto", "cpu"):
        recipe("evaluate", *given, "--cfg.res=8", f"--cfg.device={device}", f"--cfg.out={device}")
        found[device] = json.loads(Path(device, "results.json").read_text())["top-1"]["share"]
        views = ("--cfg.res=8", "--cfg.tta_crops=3")
        recipe("evaluate", *given, f"--cfg.device={device}", f"--cfg.out={device}-views", *views)
    assert abs(found["auto"] - found["cpu"]) <= 0.02  # bfloat16
    Path("photographs").mkdir()
    for number in range(3):
        PIL.Image.fromarray(np.full((9, 11, 3), 40 * number, np.uint8)).save(f"photographs/{number}.png")
    assert "3 images, 0 unreadable" in recipe("evaluate", given[0], "--cfg.images=photographs")


def simulated_full_memory_ends_in_one_line(recipe, monkeypatch):
    stop_after(monkeypatch, 4, lambda: monkeypatch.setattr(sim, "limit_bytes", 1 << 16))
    out = recipe("pretrain", *FLAGS, "--cfg.run_dir=run", code=2)
    (line,) = [line for line in out.splitlines() if line.startswith("error: ")]
    assert "GiB free on Simulated GPU): the same command resumes once memory is free" in line


def simulated_nothing_fits(recipe, monkeypatch):
    torch.get_device_module(NAME).empty_cache()
    monkeypatch.setattr(sim, "limit_bytes", torch.get_device_module(NAME).memory_reserved() + (3 << 17))
    assert "does not fit into the 0.00 GiB that are free" in recipe("pretrain", *FLAGS, code=2)


def simulated_ranks_without_a_device_are_told(recipe, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert "LOCAL_RANK=2, but torch sees 2 devices: start at most 2 processes" in recipe("pretrain", *FLAGS, code=2)


def simulated_phase_timer_keeps_few_events():
    timer = PhaseTimer(torch.device(NAME, 0))
    for _ in range(2 * PhaseTimer.MAX_MARKS):
        timer.mark("step")
        assert len(timer._marks) <= PhaseTimer.MAX_MARKS
    assert timer.seconds()["step"] > 0 and len(timer._marks) == 1


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.setattr(sim, "bfloat16", False)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    module = importlib.import_module("gpu_check")
    monkeypatch.setattr(module, "this_machine", lambda device: card("A100"))
    return module


def simulated_gpu_check_writes_a_report(gpu_check, tmp_path):
    assert gpu_check.main(["--only", "training", "--small", "--out", str(tmp_path / "report.md")]) == 0
    report = (tmp_path / "report.md").read_text()
    assert "Simulated GPU" in report and "| training | ok |" in report
    assert "images/sec: " in report and "memory reserved after each epoch" in report


def simulated_gpu_check_finds_a_stream_for_each_epoch(gpu_check, monkeypatch):
    made = Loader.__iter__

    def with_a_new_stream(self):
        self.handoff = StreamHandoff(self.program.devices)
        self.slots.clear()
        return made(self)

    monkeypatch.setattr(Loader, "__iter__", with_a_new_stream)
    check = gpu_check.check_training(gpu_check.SMALL, torch.device(NAME, 0))
    assert check.faults == ["the reserved memory grows over the epochs"]


@pytest.fixture
def sync_debug_mode(monkeypatch):
    """torch.cuda.set_sync_debug_mode as CUDA has it: waits for events are not among what it forbids."""
    mode, wait = ["default"], type(sim).wait

    def checked(self, kind, *queues, **named):
        if mode[0] == "error" and kind != "event.synchronize":
            raise RuntimeError("called a synchronizing CUDA operation")
        return wait(self, kind, *queues, **named)

    monkeypatch.setattr(type(sim), "wait", checked)
    monkeypatch.setattr(
        torch.get_device_module(NAME), "set_sync_debug_mode", lambda new: mode.__setitem__(0, new), raising=False
    )


def simulated_gpu_check_forbids_waits(gpu_check, sync_debug_mode, monkeypatch):
    device = torch.device(NAME, 0)
    assert gpu_check.check_training(gpu_check.SMALL, device).faults == []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, *batch: float(step(self, *batch)))
    (fault,) = gpu_check.check_training(gpu_check.SMALL, device).faults
    assert fault == "a step waits for the device (called a synchronizing CUDA operation)"


def simulated_gpu_check_goes_on_after_an_error(gpu_check, tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no kernel image")

    monkeypatch.setattr(gpu_check, "check_training", fail)
    monkeypatch.setattr(gpu_check.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, "out", "err"))
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert gpu_check.main(["--out", str(tmp_path / "report.md")]) == 1
    report = (tmp_path / "report.md").read_text()
    assert "| training | FAILED: ValueError: no kernel image |" in report
    for name in ("tests", "sanitizer", *(f"benchmark {name}" for name in gpu_check.BENCHMARKS)):
        assert f"| {name} | FAILED: exit code 1 |" in report
