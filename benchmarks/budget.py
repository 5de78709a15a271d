"""What a run will cost on a card: predicted images/sec, hours and memory, and how far the prediction can be trusted.

    python benchmarks/budget.py --card A5000 --arch B_12-Wi_1024 --res 64 --classes 11230 --images 11801680
    python benchmarks/budget.py --check        # the paper's two epochs, and this machine's CPU; 2 to 3 minutes

Without --card the GPU that is present, else every card of the table. --loader takes the host's loader as measured by
benchmarks/loader.py (images/sec of all cores). --check fits one number to one of the paper's epochs and predicts the
other, tells from which host link on that would bind, and compares predictions with training measured on this CPU, after
calibration by products and copies in the same run. One JSON line on stdout.
"""

import argparse
import sys
from dataclasses import asdict, replace

import measure
import torch
from train_step import layers

from fastmlp import build_model
from fastmlp import device as devices
from fastmlp.arch import parse_arch
from fastmlp.config import PretrainConfig
from fastmlp.cost import hardware
from fastmlp.cost.budget import Host, TrainingJob, explain, predict
from fastmlp.cost.hardware import CARDS, MEMORY_EFFICIENCY, Machine, card
from fastmlp.training.trainer import CPU_MICRO_BATCH, Trainer

IMAGENET21K = 11_801_680
PAPER_EPOCH_S = {"B_12-Wi_1024": 450.0, "B_6-Wi_1024": 250.0}  # section 4.3, one RTX A5000; its code allows TF32
CPU_CASES = (
    ("B_6-Wi_256", 1024),
    ("B_6-Wi_512", 1024),
    ("B_12-Wi_256", 1024),
    ("S_6-Wi_512", 1024),
    ("B_2-Wi_256-E_2", 512),
    ("B_6-Wi_256", 4096),
    ("B_2-Wi_1024", 1024),
    ("B_6-Wi_128", 2048),
)


def check_paper() -> dict:
    """Fitted on the larger model, predicted for the smaller; and where the link would begin to bind."""
    runs = {arch: TrainingJob(parse_arch(arch), 64, 11_230, IMAGENET21K, 16_384, 1) for arch in PAPER_EPOCH_S}
    machine, large, small = card("A5000", "tf32"), "B_12-Wi_1024", "B_6-Wi_1024"
    low, high = 0.01, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        slower = predict(runs[large], replace(machine, efficiency=middle)).epoch_s > PAPER_EPOCH_S[large]
        low, high = (middle, high) if slower else (low, middle)
    fitted = replace(machine, efficiency=middle)
    predicted = predict(runs[small], fitted).epoch_s
    flips = {}
    for arch, run in runs.items():
        gb_per_s = 1000.0
        while predict(run, replace(fitted, link_bytes_per_s=gb_per_s * 1e9)).binding == "device":
            gb_per_s /= 1.01
        flips[arch] = gb_per_s
    print(
        f"the paper's epochs on an RTX A5000: {middle:.3f} of the TF32 peak, fitted to {large} "
        f"({PAPER_EPOCH_S[large]:g} s), predicts {predicted:.0f} s for {small} (paper: {PAPER_EPOCH_S[small]:g} s, "
        f"error {predicted / PAPER_EPOCH_S[small] - 1:+.1%})\n"
        f"the host link binds below {flips[large]:.2f} GB/s ({large}) and {flips[small]:.2f} GB/s ({small}), images "
        "sent as bytes",
        file=sys.stderr,
    )
    return {
        "efficiency": middle,
        "predicted_s": predicted,
        "error": predicted / PAPER_EPOCH_S[small] - 1,
        "link_flips_at_gb_per_s": flips,
    }


def check_cpu(rounds: int) -> dict:
    """Predicted against measured images/sec of training, each after products and copies measured beside it."""
    buffer, source = torch.empty(1 << 26), torch.rand(1 << 26)
    pairs = {}
    for arch, batch in CPU_CASES:
        shapes = [(min(batch, CPU_MICRO_BATCH), i, o) for i, o, _ in layers(arch, 32, 10)]
        config = PretrainConfig(arch=arch, res=32, batch_size=batch, epochs="1000", mixup_alpha=0.0)
        trainer = Trainer(build_model(arch, 32, 10), config, 100)
        images, labels = torch.randn(batch, 3072), torch.randint(0, 10, (batch,))
        steps, errors = max(1, 4096 // batch), []

        def train(trainer=trainer, images=images, labels=labels, steps=steps) -> None:
            for _ in range(steps):
                trainer.step(images, labels)

        train()
        for _ in range(rounds):
            copies = measure.alternate({"copy": lambda: buffer.copy_(source)}, 3)["copy"]
            flop_per_s = hardware.measured_peak(shapes, 0.5)
            (seconds,) = measure.alternate({"train": train}, 1)["train"]
            machine = Machine(
                "this CPU", flop_per_s, 16e9, 2 * buffer.nbytes / min(copies) / MEMORY_EFFICIENCY, None, "float32", 1.0
            )
            run = TrainingJob(parse_arch(arch), 32, 10, 60_000, batch, 1, micro_batch_size=min(batch, CPU_MICRO_BATCH))
            errors.append(predict(run, machine).images_per_s / (steps * batch / seconds) - 1)
        error = sorted(errors)[len(errors) // 2]
        pairs[f"{arch}, {batch}"] = {"measured": steps * batch / seconds, "error": error, "errors": errors}
        print(
            f"  {arch:16s} batch {batch:5d}: {steps * batch / seconds:8,.0f} images/sec measured, prediction "
            f"{error:+.1%} ({min(errors):+.1%} to {max(errors):+.1%})",
            file=sys.stderr,
        )
    median = sorted(abs(pair["error"]) for pair in pairs.values())[len(pairs) // 2]
    print(f"median absolute error on this CPU, {len(pairs)} pairs: {median:.1%}", file=sys.stderr)
    return {"pairs": pairs, "median_absolute_error": median}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--card", choices=CARDS, help="(default: the GPU here, else all)")
    parser.add_argument("--precision", choices=("auto", "bfloat16", "tf32", "float32"), default="auto")
    parser.add_argument("--arch", default="B_12-Wi_1024", help="(default: %(default)s)")
    parser.add_argument("--res", type=int, default=64, help="[pixels] (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=11_230, help="(default: %(default)s)")
    parser.add_argument("--images", type=int, default=IMAGENET21K, help="of the data set (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16_384, help="(default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=800, help="(default: %(default)s)")
    parser.add_argument("--optimizer", choices=("lion", "adamw", "sgd", "muon"), default="lion")
    parser.add_argument("--cached", action="store_true", help="the beton's pixels lie in the device's memory")
    parser.add_argument("--loader", type=float, help="images/sec that the host's loader reaches")
    parser.add_argument("--disk", type=float, help="GB/s that the disk reads")
    parser.add_argument("--memory", type=float, help="GB of the host's memory")
    parser.add_argument("--check", action="store_true", help="compare the model with what was measured")
    parser.add_argument("--rounds", type=int, default=5, help="of --check (default: %(default)s)")
    options = parser.parse_args()
    if options.check:
        measure.emit("budget", {}, {"paper": check_paper(), "cpu": check_cpu(options.rounds)})
        return
    run = TrainingJob(
        parse_arch(options.arch),
        options.res,
        options.classes,
        options.images,
        options.batch_size,
        options.epochs,
        options.optimizer,
        cached=options.cached,
    )
    host = Host(options.loader, options.disk and options.disk * 1e9, options.memory and options.memory * 1e9)
    present = next(
        (name for name, (device, *_) in CARDS.items() if device == devices.describe(devices.select("auto"))), None
    )
    budgets = []
    for name in [options.card or present] if options.card or present else CARDS:
        if hardware.peak_flop_per_s(CARDS[name][0], options.precision.replace("auto", "float32")) is None:
            print(f"{name} has no {options.precision}", file=sys.stderr)
            continue
        budgets.append(predict(run, card(name, options.precision), host))
        print(explain(budgets[-1]), file=sys.stderr)
    measure.emit(
        "budget",
        vars(options),
        {
            budget.machine.name: {
                "predicted": True,
                "bounds": budget.bounds,
                "binding": budget.binding,
                "epoch_s": budget.epoch_s,
                "days": budget.days,
                "memory_bytes": budget.memory,
                "machine": asdict(budget.machine),
            }
            for budget in budgets
        },
    )


if __name__ == "__main__":
    main()
