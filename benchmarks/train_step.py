"""Images/sec of training: from a beton to updated weights, on a fixed batch, and of the bare GEMMs of the same shapes.

    python benchmarks/train_step.py [--case B_6-Wi_256,32,10,1024 ...] [--rounds 5]
    python benchmarks/train_step.py --profile runs/profile [--case ...]

A case is architecture, resolution, classes, effective batch. "beton" is the whole way: loader, random crop, flip,
MixUp, forward, backward, LION; "batch" the same step on one batch in memory. "gemm" are the matrix products that the
step cannot do without (forward, gradients of weights and of inputs, none of the images'), into kept buffers, in the
micro-batch that suits them best. Also LION alone against the authors' loop over tensors and a stream of its bytes.
--profile tells instead where the time of a step of the first case goes (profile_step.py): a trace and a picture there.
A table goes to stderr, one JSON line per case to stdout.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import measure
import profile_step
import torch

from fastmlp import device as devices
from fastmlp.arch import parse_arch
from fastmlp.beton.writer import write_beton
from fastmlp.config import PretrainConfig
from fastmlp.cost import flops as compute
from fastmlp.data.split import Split
from fastmlp.datasets import DatasetSpec, beton_path
from fastmlp.models.weights import build_model
from fastmlp.sources.synthetic import Synthetic
from fastmlp.training.lion import Lion
from fastmlp.training.trainer import Trainer
from fastmlp.transforms.augment_params import Augment

CASES = ("B_6-Wi_256,32,10,1024", "B_6-Wi_512,32,10,1024", "B_6-Wi_256,32,10,16384", "B_6-Wi_512,32,10,16384")
GEMM_MICRO_BATCHES = (512, 1024, 2048)


def layers(arch: str, res: int, classes: int) -> list[tuple[int, int, bool]]:
    """Inputs, outputs, and whether the gradient with respect to the input is needed, of every linear layer."""
    shape = parse_arch(arch)
    wide = shape.expansion * shape.width
    block = [(shape.width, wide, True), (wide, shape.width, True)]
    return [(3 * res * res, shape.width, False), *shape.blocks * block, (shape.width, classes, True)]


def gemms(shapes: list[tuple[int, int, bool]], batch: int, micro_batch_size: int) -> Callable[[], None]:
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
    for epoch in itertools.count():
        yield from split.batches(epoch)


def lion_loop(params: list[torch.Tensor], momenta: list[torch.Tensor], grads: list[torch.Tensor]) -> None:
    """As the authors' code has it (lion-pytorch's update, a parameter at a time)."""
    for p, m, g in zip(params, momenta, grads, strict=True):
        p.mul_(1 - 1e-5 * 1e-3)
        update = m.clone().mul_(0.9).add(g, alpha=0.1).sign_()
        p.add_(update, alpha=-1e-5)
        m.mul_(0.99).add_(g, alpha=0.01)


def optimisers(arch: str, res: int, classes: int) -> dict[str, Callable[[], object]]:
    model = build_model(arch, res, classes)
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
    cases = arguments.case or CASES
    for case in cases[:1] if arguments.profile else cases:
        arch, res, classes, batch = (text if n == 0 else int(text) for n, text in enumerate(case.split(",")))
        with tempfile.TemporaryDirectory() as folder:
            run_case(arch, res, classes, batch, Path(folder), arguments)


def run_case(arch: str, res: int, classes: int, batch: int, folder: Path, arguments: argparse.Namespace) -> None:
    spec = DatasetSpec("x", classes, {}, (120.0,) * 3, (60.0,) * 3, res, "", ("train", "val"))
    write_beton(beton_path(folder, "x", "train", res), Synthetic(max(4 * batch, 8192), min(classes, 10), res), res)
    config = PretrainConfig(
        dataset="x",
        res=res,
        arch=arch,
        batch_size=batch,
        epochs="10",
        log_every=10**6,
        micro_batch_size=arguments.micro_batch_size,
    )
    device = devices.select("auto" if arguments.profile else "cpu")
    split = Split(
        spec,
        "train",
        "train",
        data_dir=folder,
        res=res,
        batch_size=batch,
        device=device,
        num_workers=devices.default_num_workers(device),
        augment=Augment("random_resized", flip=True),
    )
    if arguments.profile:
        trainer = Trainer(build_model(arch, res, classes).to(device), replace(config, compile="off"), 4)
        settings = {"arch": arch, "res": res, "classes": classes, "batch": batch, "device": devices.describe(device)}
        profile_step.run(trainer, forever(split), settings, arguments.profile)
        return
    trainers = {}
    for name in ("eager", "compiled") if arguments.compiled else ("eager",):
        torch.manual_seed(0)
        how = replace(config, compile="on" if name == "compiled" else "off")
        trainers[name] = Trainer(build_model(arch, res, classes), how, 4)
    batches, shapes = forever(split), layers(arch, res, classes)
    steps = max(1, 4096 // batch)
    fixed = [tensor.clone() for tensor in next(batches)]

    def train(trainer: Trainer) -> None:
        for _ in range(steps):
            trainer.step(*next(batches))

    def repeat(trainer: Trainer) -> None:
        for _ in range(steps):
            trainer.step(*fixed)

    candidates: dict[str, Callable[[], object]] = {
        f"gemm {size}": gemms(shapes, steps * batch, size) for size in GEMM_MICRO_BATCHES if size <= batch
    }
    for name, trainer in trainers.items():
        candidates |= {f"beton, {name}": lambda t=trainer: train(t), f"batch, {name}": lambda t=trainer: repeat(t)}
    results = {
        key: measure.summary(seconds, steps * batch)
        for key, seconds in measure.alternate(candidates, arguments.rounds).items()
    }
    bound = max(result["images_per_s"] for name, result in results.items() if name.startswith("gemm"))
    flop = compute.training_flop_per_image(parse_arch(arch), res, classes)
    trainer = trainers["compiled" if arguments.compiled else "eager"]
    print(
        f"\n{arch}, {res} px, {classes:,} classes, batch {batch:,} in parts of {trainer.max_micro_batch_size:,}; "
        f"compiled in {trainer.compile_s:.1f} s; {torch.get_num_threads()} threads; peak memory "
        f"{devices.peak_memory_bytes(trainer.device) / 1e9:.1f} GB",
        file=sys.stderr,
    )
    for key, result in results.items():
        result["of_gemm"] = result["images_per_s"] / bound
        print(
            f"  {key:20s}{result['images_per_s']:9,.0f} images/sec ({result['least']:,.0f} to {result['most']:,.0f}) "
            f"{result['of_gemm']:6.3f} of gemm {result['images_per_s'] * flop / 1e9:6.0f} GFLOP/s",
            file=sys.stderr,
        )
    times = measure.alternate(optimisers(arch, res, classes), arguments.rounds)
    updates = {key: measure.summary(seconds, 1) for key, seconds in times.items()}
    loop = updates["lion, the authors' loop"]["images_per_s"]
    for key, result in updates.items():
        median, least, most = (1e3 / result[name] for name in ("images_per_s", "most", "least"))
        print(
            f"  {key:28s}{median:8.1f} ms ({least:.1f} to {most:.1f}) {result['images_per_s'] / loop:6.2f} of the loop",
            file=sys.stderr,
        )
    measure.emit(
        "train_step",
        {
            "arch": arch,
            "res": res,
            "classes": classes,
            "batch": batch,
            "micro_batch": trainer.max_micro_batch_size,
            "compile_s": trainer.compile_s,
            "threads": torch.get_num_threads(),
        },
        results,
    )
    measure.emit("optimiser, updates", {"arch": arch, "res": res, "classes": classes}, updates)


if __name__ == "__main__":
    main()
