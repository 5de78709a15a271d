"""What only a GPU can show, in one report: run by scripts/gpu_check.sh.

    scripts/gpu_check.sh                         # every check; writes gpu-check.md
    scripts/gpu_check.sh --only training tests   # some of them

The checks are: the tests marked `gpu`; a short training run (images/sec against the prediction, memory that stays the
same over the epochs, no compilation after the first step, no step that waits for the device); the same run, smaller and
without torch.compile, under NVIDIA's compute-sanitizer if that is installed; the benchmarks, on the device. Exit code 0
if none has failed, 1 if one has, 3 if torch sees no accelerator.
"""

import argparse
import contextlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from fastmlp import build_model, cli
from fastmlp import device as devices
from fastmlp.atomic import write_atomic
from fastmlp.beton.writer_cli import WriteOptions, write_splits
from fastmlp.config import PretrainConfig
from fastmlp.cost.budget import Host, TrainingJob, predict
from fastmlp.cost.hardware import this_machine
from fastmlp.data.split import Split
from fastmlp.datasets import get_dataset
from fastmlp.sources.synthetic import Synthetic
from fastmlp.training.run import augment_of
from fastmlp.training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
ON_DEVICE = ("--device", "auto")
BENCHMARKS = {  # with their flags; budget.py predicts for the accelerator without any
    "loader": ON_DEVICE,
    "transforms": ON_DEVICE,
    "train_step": ON_DEVICE,
    "inference": ON_DEVICE,
    "growth": (*ON_DEVICE, "--of", "batch", "width", "depth"),
    "budget": (),
}
PREDICTION_FACTOR = 1.5  # measured images/sec may be this many times more or less than predicted


@dataclass
class Check:
    """The outcome of a check: what failed, if anything, and lines for the report."""

    name: str
    faults: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    skipped: str = ""  # the reason

    @property
    def verdict(self) -> str:
        if self.skipped:
            return f"not run: {self.skipped}"
        return f"FAILED: {'; '.join(self.faults)}" if self.faults else "ok"


@dataclass(frozen=True)
class Case:
    """The training run that is checked."""

    arch: str = "B_12-Wi_1024"
    res: int = 64
    num_classes: int = 1000
    images: int = 65_536
    batch_size: int = 16_384
    epochs: int = 5
    compile: str = "auto"

    @property
    def config(self) -> PretrainConfig:
        return PretrainConfig(
            dataset="synthetic",
            res=self.res,
            arch=self.arch,
            batch_size=self.batch_size,
            epochs=str(self.epochs),
            crop="random_resized",
            flip=True,
            mixup_alpha=0.8,
            compile=self.compile,
        )


SMALL = Case("B_2-Wi_64", 8, 5, 600, 100, 3, "off")


def check_training(case: Case, device: torch.device) -> Check:
    """Train for some epochs and check memory, compilations, waits and speed."""
    check = Check("training")
    with tempfile.TemporaryDirectory() as folder:
        write_data(case, Path(folder))
        torch.manual_seed(0)
        model = build_model(case.arch, case.res, case.num_classes).to(device)
        split = open_split(case, Path(folder), device)
        trainer = Trainer(model, case.config, split.batches_per_epoch)
        seconds, reserved, compiled = [], [], []
        for epoch in range(case.epochs):
            started = time.perf_counter()
            waits = train_epoch(trainer, split, epoch, device, forbid_waits=epoch == case.epochs - 1)
            devices.synchronize(device)
            seconds.append(time.perf_counter() - started)
            reserved.append(devices.reserved_bytes(device))
            compiled.append(compiled_graphs())
            check.faults += waits
        images_per_s = case.batch_size * split.batches_per_epoch / min(seconds[1:-1] or seconds)
        check.lines += [
            f"{case.arch}, {case.res} px, {case.num_classes:,} classes, batch {case.batch_size:,} in micro-batches of "
            f"{trainer.micro_batch_size:,}, {devices.precision(device)}; compiled in {trainer.compile_s:.1f} s",
            f"seconds per epoch: {', '.join(f'{s:.3f}' for s in seconds)}",
            f"memory reserved after each epoch [MiB]: {', '.join(f'{b / 2**20:.1f}' for b in reserved)}",
            f"graphs compiled until the end of each epoch: {', '.join(map(str, compiled))}",
        ]
        batch_bytes = case.batch_size * 3 * case.res**2 * 3  # as sent, and converted: record_stream may free one late
        if reserved[-1] > reserved[1] + batch_bytes:
            check.faults.append("the reserved memory grows over the epochs")
        if compiled[-1] > compiled[0]:
            check.faults.append("graphs are compiled after the first epoch")
        compare_with_prediction(check, case, trainer, split, device, images_per_s)
    return check


def write_data(case: Case, folder: Path) -> None:
    """Write the betons of the run into a folder."""
    sizes = {"train": case.images, "test": min(case.images, 1000)}
    write_splits(
        "synthetic",
        lambda split: Synthetic(sizes[split], case.num_classes, case.res, split),
        ("train", "test"),
        WriteOptions(case.res, folder, num_workers=0, limit=None, seed=0),
    )


def open_split(case: Case, folder: Path, device: torch.device) -> Split:
    return Split(
        get_dataset("synthetic", folder, case.res),
        "train",
        "train",
        data_dir=folder,
        res=case.res,
        batch_size=case.batch_size,
        augment=augment_of(case.config),
        device=device,
        num_workers=devices.default_num_workers(device),
    )


def train_epoch(trainer: Trainer, split: Split, epoch: int, device: torch.device, forbid_waits: bool) -> list[str]:
    """Train for an epoch; return the steps' waits for the device, if they are forbidden."""
    with no_waits(device) if forbid_waits else contextlib.nullcontext([]) as waits:
        for images, labels in split.batches(epoch):
            trainer.step(images, labels)
    return waits


@contextlib.contextmanager
def no_waits(device: torch.device) -> Iterator[list[str]]:
    """Yield a list which holds, at the end, the error of the first wait of the host that torch has noticed."""
    mode = getattr(torch.get_device_module(device), "set_sync_debug_mode", None)
    found: list[str] = []
    if mode is None:
        yield found
        return
    mode("error")
    try:
        yield found
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        found.append(f"a step waits for the device ({str(error).splitlines()[0]})")
    finally:
        mode("default")


def compiled_graphs() -> int:
    """Return the number of graphs that torch.compile has built in this process."""
    if "torch._dynamo.utils" not in sys.modules:  # nothing was compiled; importing it takes seconds
        return 0
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def compare_with_prediction(
    check: Check, case: Case, trainer: Trainer, split: Split, device: torch.device, images_per_s: float
) -> None:
    """Add the predicted images/sec and memory to a check of training."""
    job = TrainingJob(
        trainer.model.arch,
        case.res,
        case.num_classes,
        split.num_samples,
        case.batch_size,
        case.epochs,
        case.config.optimizer,
        micro_batch_size=trainer.micro_batch_size,
    )
    peak_bytes = devices.peak_memory_bytes(device)  # before the machine is measured
    machine = this_machine(device)
    budget = predict(job, machine, Host())
    ratio = images_per_s / budget.images_per_s
    check.lines += [
        f"images/sec: {images_per_s:,.0f} measured, {budget.images_per_s:,.0f} predicted for {machine.name} "
        f"({budget.binding} binds): {ratio:.2f}",
        f"peak memory [GiB]: {peak_bytes / 2**30:.2f} measured, {sum(budget.memory.values()) / 2**30:.2f} predicted",
    ]
    if not 1 / PREDICTION_FACTOR < ratio < PREDICTION_FACTOR:
        check.lines.append(f"note: the prediction is off by more than a factor of {PREDICTION_FACTOR}")


def check_tests() -> Check:
    """Run the tests marked `gpu`."""
    return run_command("tests", [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "no:cacheprovider"])


def check_sanitizer() -> Check:
    """Run a small training under compute-sanitizer."""
    if not shutil.which("compute-sanitizer"):
        return Check("sanitizer", skipped="compute-sanitizer is not on PATH (it comes with the CUDA toolkit)")
    with tempfile.TemporaryDirectory() as folder:
        small = [sys.executable, str(Path(__file__).resolve()), "--small", "--only", "training"]
        command = ["compute-sanitizer", "--error-exitcode=9", *small, "--out", f"{folder}/report.md"]
        return run_command("sanitizer", command)


def check_benchmark(name: str) -> Check:
    return run_command(f"benchmark {name}", [sys.executable, f"benchmarks/{name}.py", *BENCHMARKS[name]])


def run_command(name: str, command: Sequence[str], timeout_s: float = 1800) -> Check:
    """Run a command in the project's root; its last lines go into the report."""
    check = Check(name, lines=[" ".join(command)])
    try:
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        check.faults.append(f"not at its end after {timeout_s:g} s")
        return check
    check.lines += [*ended.stdout.splitlines()[-60:], *ended.stderr.splitlines()[-60:]]
    if ended.returncode:
        check.faults.append(f"exit code {ended.returncode}")
    return check


def describe_machine(device: torch.device) -> list[str]:
    """Return the lines that a report begins with."""
    driver = ""
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.strip().replace("\n", "; ")
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return [
        f"{devices.describe(device)}, {devices.total_bytes(device) / 2**30:.1f} GiB, {devices.precision(device)}",
        f"nvidia-smi: {driver or 'not there'}",
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}, "
        f"{platform.platform()}",
        f"fastmlp at {revision.stdout.strip() or 'an unknown commit'}",
    ]


def write_report(checks: Sequence[Check], device: torch.device, out: Path) -> None:
    lines = ["# GPU check", "", *describe_machine(device), "", "| check | outcome |", "|---|---|"]
    lines += [f"| {check.name} | {check.verdict} |" for check in checks]
    for check in checks:
        lines += ["", f"## {check.name}", "", check.verdict, "", "```", *check.lines, "```"]
    write_atomic(out, "\n".join(lines) + "\n")
    print("\n".join(f"{check.name}: {check.verdict}" for check in checks))


def guarded(name: str, run: Callable[[], Check]) -> Check:
    """Return a check's outcome; an exception is a fault of it, and the other checks go on."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    try:
        return run()
    except Exception as error:
        reason = str(error).splitlines() or [""]
        return Check(name, [f"{type(error).__name__}: {reason[0]}"], traceback.format_exc().splitlines())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds = ("tests", "training", "sanitizer", "benchmarks")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds, help="(default: all)")
    parser.add_argument("--small", action="store_true", help="train a small model without torch.compile")
    parser.add_argument("--out", type=cli.path, default=ROOT / "gpu-check.md", help="the report (default: %(default)s)")
    options = parser.parse_args(argv)
    device = devices.select("auto")
    if device.type == "cpu":
        print(f"no check was run: {devices.explain_choice('auto', device)}", file=sys.stderr)
        return 3
    case = SMALL if options.small else fitting_case(Case(), device)
    runs: dict[str, tuple[str, Callable[[], Check]]] = {
        "tests": ("tests", check_tests),
        "training": ("training", lambda: check_training(case, device)),
        "sanitizer": ("sanitizer", check_sanitizer),
    }
    runs |= {f"benchmark {name}": ("benchmarks", partial(check_benchmark, name)) for name in BENCHMARKS}
    checks = [guarded(name, run) for name, (kind, run) in runs.items() if kind in options.only]
    write_report(checks, device, options.out)
    return 1 if any(check.faults for check in checks) else 0


def fitting_case(case: Case, device: torch.device) -> Case:
    """Return the case, or a narrower one for a device with less than 16 GiB."""
    return case if devices.total_bytes(device) >= 15 * 2**30 else replace(case, arch="B_6-Wi_512", batch_size=8192)


if __name__ == "__main__":
    sys.exit(main())
