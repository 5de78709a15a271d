"""Images/sec of training: from a beton to updated weights, on a fixed batch, and of the bare GEMMs of the same shapes.

    python benchmarks/train_step.py [--case B_6-Wi_256,32,10,1024 ...] [--rounds 5]
    python benchmarks/train_step.py --profile runs/profile [--case ...]

A case is architecture, resolution, classes, effective batch. "beton" is the whole step: loader, random crop, flip,
MixUp, forward, backward, LION; "batch" is the same step on one batch in memory. "gemm" is the matrix products that the
step cannot do without (forward, gradients of weights and of inputs, none of the images'), into kept buffers, in the
micro-batch that suits them best. LION alone is compared with the authors' loop over tensors and a stream of its bytes.
--profile writes instead where the time of a step of the first case goes (profile_step.py): a trace and a picture.
A table goes to stderr, one JSON line per case to stdout.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import measure
import profile_step
import torch

from fastmlp import device as devices
from fastmlp.arch import parse_arch
from fastmlp.beton.writer import write_beton
from fastmlp.config import PretrainConfig
from fastmlp.cost import flops
from fastmlp.data.split import Split
from fastmlp.datasets import DatasetSpec, beton_path
from fastmlp.models.weights import build_model
from fastmlp.sources.synthetic import Synthetic
from fastmlp.training.lion import Lion
from fastmlp.training.trainer import Trainer
from fastmlp.transforms.augment_params import Augment

CASES = ("B_6-Wi_256,32,10,1024", "B_6-Wi_512,32,10,1024", "B_6-Wi_256,32,10,16384", "B_6-Wi_512,32,10,16384")
GEMM_MICRO_BATCHES = (512, 1024, 2048)


@dataclass(frozen=True)
class Case:
    arch: str
    res: int  # [pixels]
    classes: int
    batch: int  # images of a step

    @classmethod
    def parse(cls, text: str) -> "Case":
        """Return the case that ARCH,RES,CLASSES,BATCH names."""
        arch, *numbers = text.split(",")
        return cls(arch, *map(int, numbers))


def layers(arch: str, res: int, classes: int) -> list[tuple[int, int, bool]]:
    """Return (inputs, outputs, is the gradient with respect to the input needed) of every linear layer."""
    shape = parse_arch(arch)
    wide = shape.expansion * shape.width
    block = [(shape.width, wide, True), (wide, shape.width, True)]
    return [(3 * res * res, shape.width, False), *shape.blocks * block, (shape.width, classes, True)]


def gemms(shapes: list[tuple[int, int, bool]], batch: int, micro_batch_size: int) -> Callable[[], None]:
    """Return a function that computes the matrix products of a training step, into kept buffers."""
    buffers = {
        (i, o): (
            torch.randn(micro_batch_size, i),
            torch.randn(o, i),
            torch.randn(micro_batch_size, o),
            torch.empty(micro_batch_size, o),
            torch.empty(o, i),
            torch.empty(micro_batch_size, i),
        )
        for i, o, _ in shapes
    }

    def run() -> None:
        for _ in range(batch // micro_batch_size):
            for i, o, needs_input in shapes:
                x, weight, gradient, out, of_weight, of_input = buffers[i, o]
                torch.mm(x, weight.t(), out=out)
                torch.mm(gradient.t(), x, out=of_weight)
                if needs_input:
                    torch.mm(gradient, weight, out=of_input)

    return run


def forever(split: Split) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the batches of one epoch after another."""
    for epoch in itertools.count():
        yield from split.batches(epoch)


def lion_loop(params: list[torch.Tensor], momenta: list[torch.Tensor], grads: list[torch.Tensor]) -> None:
    """Update the parameters as the authors' code does (lion-pytorch's update, a parameter at a time)."""
    for p, m, g in zip(params, momenta, grads, strict=True):
        p.mul_(1 - 1e-5 * 1e-3)
        update = m.clone().mul_(0.9).add(g, alpha=0.1).sign_()
        p.add_(update, alpha=-1e-5)
        m.mul_(0.99).add_(g, alpha=0.01)


def optimisers(case: Case) -> dict[str, Callable[[], object]]:
    """Return one update of all parameters by each candidate, as functions."""
    model = build_model(case.arch, case.res, case.classes)
    params = list(model.parameters())
    for p in params:
        p.grad = torch.randn_like(p)
    plain = [p.detach().clone() for p in params]
    momenta, grads = [torch.zeros_like(p) for p in params], [p.grad for p in params]
    compiled, blocks = (Lion(params, lr=1e-5, weight_decay=1e-3, compile=how) for how in (True, False))
    total = sum(p.numel() for p in params)
    a, b, c = (torch.randn(total) for _ in range(3))

    def stream() -> None:  # reads three, writes two, in blocks that stay in the caches
        for x, y, z in zip(a.split(1 << 17), b.split(1 << 17), c.split(1 << 17), strict=True):
            x.add_(z)
            y.copy_(z)

    return {
        "lion, compiled": compiled.step,
        "lion, in blocks": blocks.step,
        "lion, the authors' loop": lambda: lion_loop(plain, momenta, grads),
        "stream": stream,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", metavar="ARCH,RES,CLASSES,BATCH", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each candidate that count (default: 5)")
    parser.add_argument("--compiled", action="store_true", help="also with torch.compile")
    parser.add_argument("--micro-batch", type=int, default=0, help="(default: the trainer's choice)")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="gets trace.json and profile.png")
    arguments = parser.parse_args()
    cases = [Case.parse(text) for text in arguments.case or CASES]
    for case in cases[:1] if arguments.profile else cases:
        with tempfile.TemporaryDirectory() as folder:
            if arguments.profile:
                profile_case(case, Path(folder), arguments)
            else:
                run_case(case, Path(folder), arguments)


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


def profile_case(case: Case, folder: Path, arguments: argparse.Namespace) -> None:
    device = devices.select("auto")
    config, split = prepare(case, device, folder, arguments.micro_batch)
    model = build_model(case.arch, case.res, case.classes).to(device)
    trainer = Trainer(model, replace(config, compile="off"), 4)
    settings = {**asdict(case), "device": devices.describe(device)}
    profile_step.run(trainer, forever(split), settings, arguments.profile)


def run_case(case: Case, folder: Path, arguments: argparse.Namespace) -> None:
    config, split = prepare(case, devices.select("cpu"), folder, arguments.micro_batch)
    trainers = {}
    for name in ("eager", "compiled") if arguments.compiled else ("eager",):
        torch.manual_seed(0)
        how = replace(config, compile="on" if name == "compiled" else "off")
        trainers[name] = Trainer(build_model(case.arch, case.res, case.classes), how, 4)
    batches, shapes = forever(split), layers(case.arch, case.res, case.classes)
    steps = max(1, 4096 // case.batch)
    images = steps * case.batch
    fixed = [tensor.clone() for tensor in next(batches)]

    def train(trainer: Trainer) -> None:
        for _ in range(steps):
            trainer.step(*next(batches))

    def repeat(trainer: Trainer) -> None:
        for _ in range(steps):
            trainer.step(*fixed)

    candidates: dict[str, Callable[[], object]] = {
        f"gemm {size}": gemms(shapes, images, size) for size in GEMM_MICRO_BATCHES if size <= case.batch
    }
    for name, trainer in trainers.items():
        candidates |= {f"beton, {name}": lambda t=trainer: train(t), f"batch, {name}": lambda t=trainer: repeat(t)}
    results = measure.rates(candidates, images, arguments.rounds)
    report(case, results, trainers["compiled" if arguments.compiled else "eager"])
    updates = measure.rates(optimisers(case), 1, arguments.rounds)
    report_updates(case, updates)


def report(case: Case, results: dict, trainer: Trainer) -> None:
    """Set each candidate's share of the fastest matrix products; print the table and the JSON line."""
    bound = max(result["images_per_s"] for name, result in results.items() if name.startswith("gemm"))
    measure.add_shares(results, "of_gemm", bound)
    flop = flops.training_flop_per_image(parse_arch(case.arch), case.res, case.classes)
    title = (
        f"{case.arch}, {case.res} px, {case.classes:,} classes, batch {case.batch:,} in parts of "
        f"{trainer.max_micro_batch_size:,}; compiled in {trainer.compile_s:.1f} s; {torch.get_num_threads()} threads; "
        f"peak memory {devices.peak_memory_bytes(trainer.device) / 1e9:.1f} GB"
    )
    measure.print_rates(
        title, results, "of_gemm", "gemm", more=lambda r: f"{r['images_per_s'] * flop / 1e9:.0f} GFLOP/s"
    )
    settings = {
        **asdict(case),
        "micro_batch": trainer.max_micro_batch_size,
        "compile_s": trainer.compile_s,
        "threads": torch.get_num_threads(),
    }
    measure.emit("train_step", settings, results)


def report_updates(case: Case, updates: dict) -> None:
    """Print the table and the JSON line of the optimisers; their rates are updates per second."""
    loop = updates["lion, the authors' loop"]["images_per_s"]
    rows = []
    for name, result in updates.items():
        median, fastest, slowest = (1e3 / result[which] for which in ("images_per_s", "most", "least"))
        share = f"{result['images_per_s'] / loop:.2f} of the loop"
        rows.append([name, f"{median:.1f} ms", f"({fastest:.1f} to {slowest:.1f})", share])
    measure.print_table("", rows)
    measure.emit("optimiser, updates", {"arch": case.arch, "res": case.res, "classes": case.classes}, updates)


if __name__ == "__main__":
    main()
