"""What a run will cost on a card: predicted images/sec, hours and memory, and how far the prediction can be trusted.

    python benchmarks/budget.py --card A5000 --arch B_12-Wi_1024 --res 64 --classes 11230 --images 11801680
    python benchmarks/budget.py --check        # the paper's two epochs, and this machine's CPU; 2 to 3 minutes

Without --card: the GPU here (measured in about a second if the table lacks it), else every card of the table. --loader
is the rate of the host's loader as measured by benchmarks/loader.py (images/sec of all cores). --check fits one number
to one of the paper's epochs and predicts the other, shows below which rate the host link would bind, and compares
predictions with training measured on this CPU, after calibration by products and copies in the same run. One JSON line
on stdout.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict, replace

import measure
import torch
from limits import layers
from tqdm import tqdm

from fastmlp import build_model, cli
from fastmlp import device as devices
from fastmlp.arch import parse_arch
from fastmlp.config import PretrainConfig
from fastmlp.cost import hardware
from fastmlp.cost.budget import Host, TrainingJob, explain, predict
from fastmlp.cost.hardware import CARDS, MEMORY_EFFICIENCY, Machine, card, mig_slice, this_machine
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
    """Return a prediction for the smaller model, fitted on the larger, and where the host link would begin to bind."""
    jobs = {arch: TrainingJob(parse_arch(arch), 64, 11_230, IMAGENET21K, 16_384, 1) for arch in PAPER_EPOCH_S}
    machine, large, small = card("A5000", "tf32"), "B_12-Wi_1024", "B_6-Wi_1024"
    low, high = 0.01, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        slower = predict(jobs[large], replace(machine, efficiency=middle)).epoch_s > PAPER_EPOCH_S[large]
        low, high = (middle, high) if slower else (low, middle)
    fitted = replace(machine, efficiency=middle)
    predicted = predict(jobs[small], fitted).epoch_s
    link_limits = {}
    for arch, job in jobs.items():
        gb_per_s = 1000.0
        while predict(job, replace(fitted, link_bytes_per_s=gb_per_s * 1e9)).binding == "device":
            gb_per_s /= 1.01
        link_limits[arch] = gb_per_s
    print(
        f"the paper's epochs on an RTX A5000: {middle:.3f} of the TF32 peak, fitted to {large} "
        f"({PAPER_EPOCH_S[large]:g} s), predicts {predicted:.0f} s for {small} (paper: {PAPER_EPOCH_S[small]:g} s, "
        f"error {predicted / PAPER_EPOCH_S[small] - 1:+.1%})\n"
        f"the host link binds below {link_limits[large]:.2f} GB/s ({large}) and {link_limits[small]:.2f} GB/s ({small})"
        " if images are sent as bytes",
        file=sys.stderr,
    )
    return {
        "efficiency": middle,
        "predicted_s": predicted,
        "error": predicted / PAPER_EPOCH_S[small] - 1,
        "link_flips_at_gb_per_s": link_limits,
    }


def check_case(arch: str, batch: int, rounds: int, copy: Callable[[], object], copied_bytes: int) -> dict:
    """Return the images/sec measured last, and the errors of the predictions: their median, and of each round."""
    micro_batch_size = min(batch, CPU_MICRO_BATCH)
    shapes = [(micro_batch_size, i, o) for i, o, _ in layers(arch, 32, 10)]
    config = PretrainConfig(arch=arch, res=32, batch_size=batch, epochs="1000", mixup_alpha=0.0)
    trainer = Trainer(build_model(arch, 32, 10), config, 100)
    images, labels = torch.randn(batch, 3072), torch.randint(0, 10, (batch,))
    steps, errors = max(1, 4096 // batch), []
    job = TrainingJob(parse_arch(arch), 32, 10, 60_000, batch, 1, micro_batch_size=micro_batch_size)

    def train() -> None:
        for _ in range(steps):
            trainer.step(images, labels)

    train()
    for _ in range(rounds):
        copies = measure.alternate({"copy": copy}, 3)["copy"]
        flop_per_s = hardware.measured_peak(shapes, 0.5)
        (seconds,) = measure.alternate({"train": train}, 1)["train"]
        memory_bytes_per_s = 2 * copied_bytes / min(copies) / MEMORY_EFFICIENCY
        machine = Machine("this CPU", flop_per_s, 16e9, memory_bytes_per_s, None, "float32", 1.0)
        errors.append(predict(job, machine).images_per_s / (steps * batch / seconds) - 1)
    return {"measured": steps * batch / seconds, "error": sorted(errors)[len(errors) // 2], "errors": errors}


def check_cpu(rounds: int) -> dict:
    """Return predicted against measured images/sec of training; products and copies are measured next to each."""
    buffer, source = torch.empty(1 << 26), torch.rand(1 << 26)
    pairs = {}
    for arch, batch in tqdm(CPU_CASES, unit=" cases"):
        pairs[f"{arch}, {batch}"] = check_case(arch, batch, rounds, lambda: buffer.copy_(source), buffer.nbytes)
    median = sorted(abs(pair["error"]) for pair in pairs.values())[len(pairs) // 2]
    rows = [["architecture, batch", "measured", "error of the prediction", ""]]
    for name, pair in pairs.items():
        spread = f"({min(pair['errors']):+.1%} to {max(pair['errors']):+.1%})"
        rows.append([name, f"{pair['measured']:,.0f} images/sec", f"{pair['error']:+.1%}", spread])
    measure.print_table(f"median absolute error on this CPU, {len(pairs)} pairs: {median:.1%}", rows)
    return {"pairs": pairs, "median_absolute_error": median}


def machines(options: argparse.Namespace) -> list[Machine]:
    """Return the card that the options name; without one the GPU here, else every card that has the precision.

    Raises ValueError for a precision that the named card lacks, and for a precision without a card if there is a GPU.
    """
    if options.card:
        whole = card(options.card, options.precision)
        return [mig_slice(whole, options.mig) if options.mig else whole]
    if options.mig:
        raise ValueError("--mig goes with --card; a slice that is here is measured, without either")
    device = devices.select("auto")
    if device.type != "cpu":
        if options.precision != "auto":
            raise ValueError(
                f"--precision={options.precision} goes with --card: {devices.describe(device)}, the GPU here, is "
                f"predicted with the precision of training, {devices.precision(device)}"
            )
        return [this_machine(device)]
    found = []
    for name, one in CARDS.items():
        if options.precision != "auto" and one.flop_per_s(options.precision) is None:
            print(f"{name} has no {options.precision}", file=sys.stderr)
        else:
            found.append(card(name, options.precision))
    return found


def predict_machines(options: argparse.Namespace) -> None:
    """Print the prediction for each machine that the options name, and the JSON line."""
    job = TrainingJob(
        parse_arch(options.arch),
        options.res,
        options.classes,
        options.images,
        options.batch_size,
        options.epochs,
        options.optimizer,
        cached=options.cached,
        ema=options.ema,
        num_devices=options.devices,
    )
    host = Host(options.loader, options.disk and options.disk * 1e9, options.memory and options.memory * 1e9)
    budgets = [predict(job, machine, host) for machine in machines(options)]
    for budget in budgets:
        print(explain(budget), file=sys.stderr)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    parser.add_argument("--card", choices=CARDS, help="(default: the GPU here, else all)")
    parser.add_argument("--mig", metavar="PROFILE", help="a slice of --card, such as 3g.40gb")
    parser.add_argument("--devices", type=int, default=1, help="cards that share each batch (default: %(default)s)")
    parser.add_argument("--precision", choices=("auto", "bfloat16", "tf32", "float32"), default="auto")
    parser.add_argument("--arch", default="B_12-Wi_1024", help="(default: %(default)s)")
    parser.add_argument("--res", type=int, default=64, help="[pixels] (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=11_230, help="(default: %(default)s)")
    parser.add_argument("--images", type=int, default=IMAGENET21K, help="in the data set (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16_384, help="(default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=800, help="(default: %(default)s)")
    parser.add_argument("--optimizer", choices=("lion", "adamw", "sgd", "muon"), default="lion")
    parser.add_argument("--cached", action="store_true", help="the beton's pixels are in the device's memory")
    parser.add_argument("--ema", action="store_true", help="there is a moving average of the weights")
    parser.add_argument("--loader", type=float, help="images/sec that the host's loader reaches")
    parser.add_argument("--disk", type=float, help="GB/s at which the disk reads")
    parser.add_argument("--memory", type=float, help="GB of the host's memory")
    parser.add_argument("--check", action="store_true", help="compare the model with what was measured")
    parser.add_argument("--rounds", type=int, default=5, help="for --check (default: %(default)s)")
    options = measure.parse(parser)
    if options.check:
        measure.emit("budget", {}, {"paper": check_paper(), "cpu": check_cpu(options.rounds)})
        return
    predict_machines(options)


if __name__ == "__main__":
    cli.run(main)
