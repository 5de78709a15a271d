"""Images/sec of training: from a beton to updated weights, on a fixed batch, and of the bare GEMMs of the same shapes.

    python benchmarks/train_step.py [--device auto] [--case B_6-Wi_256,32,10,1024 ...] [--rounds 5]
    python benchmarks/train_step.py --profile runs/profile [--case ...]

A case is architecture, resolution, classes, effective batch. "beton" is the whole step: loader, random crop, flip,
MixUp, forward, backward, LION; "batch" is the same step on one batch in the device's memory, "loading alone" the loader
without the step. "gemm" is the matrix
products that the step cannot do without (forward, gradients of weights and of inputs, none of the images'), in
training's precision, into kept buffers, in the micro-batch that suits them best. "measured over predicted" compares
"beton" with the budget of the device and that loader (fastmlp.cost.budget); rates that no data sheet has are measured.
LION alone is compared with the authors' loop over tensors and a stream of its bytes (updates.py).
--profile writes instead where the time of a step of the first case goes (profile_step.py): a trace and a picture.
A table goes to stderr, one JSON line per case to stdout.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import limits
import measure
import profile_step
import torch
import updates

from fastmlp import cli
from fastmlp import device as devices
from fastmlp.arch import parse_arch
from fastmlp.beton.writer import write_beton
from fastmlp.config import PretrainConfig
from fastmlp.cost import flops, hardware
from fastmlp.cost.budget import LOADER_SLOTS, Budget, Host, TrainingJob, predict
from fastmlp.data.split import Split
from fastmlp.datasets import DatasetSpec, beton_path
from fastmlp.models.weights import build_model
from fastmlp.sources.synthetic import Synthetic
from fastmlp.training.trainer import Trainer
from fastmlp.transforms.augment_params import Augment

CASES = ("B_6-Wi_256,32,10,1024", "B_6-Wi_512,32,10,1024", "B_6-Wi_256,32,10,16384", "B_6-Wi_512,32,10,16384")
GEMM_MICRO_BATCHES = (512, 1024, 2048)  # on the CPU, where they stay in the caches
DEVICE_MICRO_BATCHES = (2048, 8192, 16_384)
LOADED_BEFORE = LOADER_SLOTS - 1  # batches that a loader may have made while other candidates ran


@dataclass(frozen=True)
class Case:
    arch: str
    res: int  # [pixels]
    classes: int
    batch: int  # images of a step

    @classmethod
    def parse(cls, text: str) -> "Case":
        """Return the case that ARCH,RES,CLASSES,BATCH names. Raises ValueError for any other text."""
        arch, *numbers = text.split(",")
        if len(numbers) != 3 or not all(number.isdecimal() and int(number) for number in numbers):
            raise ValueError(f"--case {text}: expected ARCH,RES,CLASSES,BATCH, the last three positive integers")
        return cls(arch, *map(int, numbers))


def forever(split: Split) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the batches of one epoch after another."""
    for epoch in itertools.count():
        yield from split.batches(epoch)


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    parser.add_argument("--case", action="append", metavar="ARCH,RES,CLASSES,BATCH", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each candidate that count (default: 5)")
    parser.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        help="also with torch.compile (default: on a GPU, where training uses it)",
    )
    parser.add_argument("--micro-batch", type=int, default=0, help="(default: the trainer's choice)")
    parser.add_argument("--profile", type=cli.path, metavar="FOLDER", help="gets trace.json and profile.png")
    measure.add_device(parser)
    arguments = measure.parse(parser)
    device = measure.select_device(arguments.device)
    if arguments.compiled is None:
        arguments.compiled = device.type != "cpu"
    cases = [Case.parse(text) for text in arguments.case or CASES]
    for case in cases[:1] if arguments.profile else cases:
        with tempfile.TemporaryDirectory() as folder:
            if arguments.profile:
                profile_case(case, device, Path(folder), arguments)
            else:
                run_case(case, device, Path(folder), arguments)


def prepare(case: Case, device: torch.device, folder: Path, micro_batch_size: int) -> tuple[PretrainConfig, Split]:
    """Write a beton; return the configuration, and the split of augmented batches."""
    spec = DatasetSpec("x", case.classes, {}, (120.0,) * 3, (60.0,) * 3, case.res, "", ("train", "val"))
    source = Synthetic(max(4 * case.batch, 8192), min(case.classes, 10), case.res)
    write_beton(beton_path(folder, "x", "train", case.res), source, case.res)
    config = PretrainConfig(
        dataset="x",
        res=case.res,
        arch=case.arch,
        batch_size=case.batch,
        epochs="10",
        log_every=10**6,
        micro_batch_size=micro_batch_size,
    )
    split = Split(
        spec,
        "train",
        "train",
        data_dir=folder,
        res=case.res,
        batch_size=case.batch,
        device=device,
        num_workers=devices.default_num_workers(device),
        augment=Augment("random_resized", flip=True),
    )
    return config, split


def profile_case(case: Case, device: torch.device, folder: Path, arguments: argparse.Namespace) -> None:
    config, split = prepare(case, device, folder, arguments.micro_batch)
    model = build_model(case.arch, case.res, case.classes).to(device)
    trainer = Trainer(model, replace(config, compile="off"), 4)
    settings = {**asdict(case), "device": devices.describe(device)}
    profile_step.run(trainer, forever(split), settings, arguments.profile)


def run_case(case: Case, device: torch.device, folder: Path, arguments: argparse.Namespace) -> None:
    config, split = prepare(case, device, folder, arguments.micro_batch)
    steps = max(4 if device.type == "cpu" else 16, min(64, 4096 // case.batch))
    batches, shapes = forever(split), limits.layers(case.arch, case.res, case.classes)
    sizes = limits.fitting(GEMM_MICRO_BATCHES if device.type == "cpu" else DEVICE_MICRO_BATCHES, case.batch)
    candidates: dict[str, Callable[[], object]] = {  # before the trainers, which take the memory that is left
        f"gemm {size}": limits.training_products(shapes, case.batch, steps, size, device) for size in sizes
    }
    trainers = {}
    for name in ("eager", "compiled") if arguments.compiled else ("eager",):
        torch.manual_seed(0)
        how = replace(config, compile="on" if name == "compiled" else "off")
        trainer = Trainer(build_model(case.arch, case.res, case.classes).to(device), how, 4)
        if name == "eager" or trainer.compiled_block:  # else compiling failed, with a warning
            trainers[name] = trainer
    fixed = [tensor.clone() for tensor in next(batches)]

    def load() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield a run's batches, all of them loaded in that run: those that were ready before do not count."""
        yield from itertools.islice(batches, LOADED_BEFORE, LOADED_BEFORE + steps)

    def train(trainer: Trainer) -> None:
        for batch in load():
            trainer.step(*batch)

    def repeat(trainer: Trainer) -> None:
        for _ in range(steps):
            trainer.step(*fixed)

    for name, trainer in trainers.items():
        candidates |= {f"beton, {name}": lambda t=trainer: train(t), f"batch, {name}": lambda t=trainer: repeat(t)}
    candidates["loading alone"] = lambda: measure.drain(load())
    results = measure.rates(candidates, steps * case.batch, arguments.rounds, device)
    peak_bytes = devices.peak_memory_bytes(device)  # before the budget's rates are measured
    trainer = list(trainers.values())[-1]
    budget = predicted(case, trainer, split, results["loading alone"]["images_per_s"])
    report(case, results, trainer, peak_bytes, budget)
    one_each = updates.candidates(build_model(case.arch, case.res, case.classes).to(device))
    settings = {"arch": case.arch, "res": case.res, "classes": case.classes, **measure.device_settings(device)}
    updates.report(settings, measure.rates(one_each, 1, arguments.rounds, device))


def predicted(case: Case, trainer: Trainer, split: Split, loader_images_per_s: float) -> Budget:
    """Return the budget of the case on its device, in the trainer's micro-batches, with the loader measured here."""
    job = TrainingJob(
        parse_arch(case.arch),
        case.res,
        case.classes,
        split.num_samples,
        case.batch,
        1,
        trainer.config.optimizer,
        micro_batch_size=trainer.micro_batch_size,
    )
    return predict(job, hardware.this_machine(trainer.device), Host(loader_images_per_s))


def compare_with_budget(results: dict, budget: Budget, device: torch.device) -> None:
    """Add what was predicted to the results, beside the rates measured here, and print it as a row."""
    best = max(result["images_per_s"] for name, result in results.items() if name.startswith("beton"))
    machine, ratio = budget.machine, best / budget.images_per_s
    found = {
        "images_per_s": budget.images_per_s,
        "measured_over_predicted": ratio,
        "products_gflop_per_s": machine.flop_per_s * machine.efficiency / 1e9,
        "copies_gb_per_s": hardware.copied_bytes_per_s(device) / 1e9,
    }
    rates = f"copies measured {found['copies_gb_per_s']:,.1f} GB/s"
    if device.type != "cpu":
        found["link_gb_per_s"] = hardware.sent_bytes_per_s(device) / 1e9
        rates += f", host link {found['link_gb_per_s']:,.1f} GB/s"
    results["predicted"] = found
    row = f"{best:,.0f} of {budget.images_per_s:,.0f} images/sec"
    measure.print_table(
        "", [["measured over predicted", f"{ratio:.3f}", row, f"for {machine.name}: {budget.binding} binds", rates]]
    )


def report(case: Case, results: dict, trainer: Trainer, peak_bytes: int, budget: Budget) -> None:
    """Set each candidate's share of the fastest matrix products; print the table and the JSON line."""
    bound = max(result["images_per_s"] for name, result in results.items() if name.startswith("gemm"))
    measure.add_shares(results, "of_gemm", bound)
    flop = flops.training_flop_per_image(parse_arch(case.arch), case.res, case.classes)
    title = (
        f"{case.arch}, {case.res} px, {case.classes:,} classes, batch {case.batch:,} in parts of "
        f"{trainer.micro_batch_size:,}; {devices.describe(trainer.device)}, {devices.precision(trainer.device)}; "
        f"compiled in {trainer.compile_s:.1f} s; {torch.get_num_threads()} threads; "
        f"peak memory {peak_bytes / 1e9:.1f} GB"
    )
    measure.print_rates(
        title, results, "of_gemm", "gemm", more=lambda r: f"{r['images_per_s'] * flop / 1e9:.0f} GFLOP/s"
    )
    compare_with_budget(results, budget, trainer.device)
    settings = {
        **asdict(case),
        **measure.device_settings(trainer.device),
        "micro_batch": trainer.max_micro_batch_size,
        "compile_s": trainer.compile_s,
        "threads": torch.get_num_threads(),
    }
    measure.emit("train_step", settings, results)


if __name__ == "__main__":
    cli.run(main)
