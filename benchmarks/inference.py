"""Images/sec of inference against the bare forward GEMMs, of test-time augmentation, and of a probe on cached features.

    python benchmarks/inference.py [--device auto] [--arch B_6-Wi_256 --res 32 --classes 10] [--images 10000]
        [--views 100] [--rounds 3]

As in the paper's Table 9: the best images/sec over batch sizes, and the latency of one image, of the model alone
(batches ready in the device's memory) and with loading and transfer, from a beton. "gemm" is the matrix products that a
forward pass cannot do without, in training's precision, into kept buffers. Batches larger than --images are left out.
"tta" averages over --views crops of each image; "plain passes" are
as many forward passes over ready batches. "probe" trains a linear head for an epoch: on cached features, and with the
images through the frozen backbone each time. A table goes to stderr, JSON lines to stdout.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import limits
import measure
import torch

from fastmlp import build_model, cli
from fastmlp import device as devices
from fastmlp.beton.writer import write_beton
from fastmlp.config import FinetuneConfig
from fastmlp.data.split import Split
from fastmlp.datasets import DatasetSpec, beton_path
from fastmlp.evaluation.evaluate import evaluate, evaluate_detailed, select_forward
from fastmlp.evaluation.features import CachedFeatures
from fastmlp.sources.synthetic import Synthetic
from fastmlp.training.trainer import Trainer
from fastmlp.transforms.augment_params import Augment

BATCHES = (256, 512, 1024, 2048, 4096)
CROP = Augment("random_resized", (0.4, 1.0), (1.0, 1.0), flip=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    parser.add_argument("--arch", default="B_6-Wi_256", help="(default: %(default)s)")
    parser.add_argument("--res", type=int, default=32, help="[pixels] (default: %(default)s)")
    parser.add_argument("--classes", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--images", type=int, default=10_000, help="of the test set (default: %(default)s)")
    parser.add_argument("--views", type=int, default=100, help="crops of each (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each candidate that count (default: 3)")
    measure.add_device(parser)
    options = measure.parse(parser)
    device = measure.select_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        measure_all(options, device, Path(folder))


def measure_all(options: argparse.Namespace, device: torch.device, folder: Path) -> None:
    spec = DatasetSpec("x", options.classes, {}, (120.0,) * 3, (60.0,) * 3, options.res, "", ("train", "test"))
    for name in spec.splits:
        source = Synthetic(options.images, min(options.classes, 10), options.res, name)
        write_beton(beton_path(folder, "x", name, options.res), source, options.res)
    shared = {"data_dir": folder, "res": options.res, "device": device}
    test = Split(spec, "test", "evaluate", batch_size=2048, **shared)
    views = Split(spec, "test", "tta", batch_size=2048, augment=CROP, **shared)
    model = build_model(options.arch, options.res, options.classes).to(device).eval()
    run, ready = select_forward(model), [images.clone() for images, _ in test.batches(0)]
    shapes, whole = limits.layers(options.arch, options.res, options.classes), torch.cat(ready)

    def plain(batch: int, times: int = 1) -> None:
        with torch.inference_mode():
            for _ in range(times):
                for part in whole.split(batch):
                    run(part)

    candidates: dict[str, Callable[[], object]] = {}
    batches = limits.fitting(BATCHES, options.images)
    for batch in batches:
        candidates[f"gemm {batch}"] = limits.forward_products(shapes, options.images, batch, device)
        candidates[f"ready batches of {batch}"] = lambda batch=batch: plain(batch)
    candidates["from a beton"] = lambda: evaluate(model, test)
    results = report(candidates, options.images, 3 * options.rounds, "gemm", device)
    times = measure.alternate({"one image": lambda: forward_one(run, whole)}, 50, device)
    latency = sorted(times["one image"])
    spread = f"({1e3 * latency[0]:.2f} to {1e3 * latency[-1]:.2f})"
    measure.print_table("", [["latency of one image", f"{1e3 * latency[25]:.2f} ms", spread]])
    best = max(batches, key=lambda batch: results[f"ready batches of {batch}"]["images_per_s"])
    settings = {**vars(options), "device": devices.describe(device), "threads": torch.get_num_threads()}
    measure.emit("inference", {**settings, "best_batch": best, "latency_s": latency[25]}, results)
    crops = report(
        {
            f"{options.views} plain passes": lambda: plain(best, options.views),
            f"tta of {options.views} views": lambda: evaluate_detailed(model, views, options.views),
        },
        options.images * options.views,
        max(2, options.rounds),
        "plain",
        device,
        str(options.views),
    )
    measure.emit("inference, crops", settings, crops)
    measure.emit("inference, probe", settings, probe(spec, shared, options))


def forward_one(run: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> None:
    with torch.inference_mode():
        run(images[:1])


def probe(spec: DatasetSpec, shared: dict, options: argparse.Namespace) -> dict:
    """Return the rates of training a linear head, with the images through the backbone and on cached features."""
    size = min(1000, options.images)
    config = FinetuneConfig(batch_size=size, optimizer="adamw", epochs="1000", compile="off")
    epochs: dict[str, Callable[[], object]] = {}
    for backbone in ("frozen", "cached"):
        model = build_model(options.arch, options.res, options.classes).to(shared["device"])
        if backbone == "frozen":
            batches = Split(spec, "train", "train", batch_size=size, **shared)
        else:
            batches = CachedFeatures(model, Split(spec, "train", "evaluate", batch_size=2048, **shared), size)
        trainer, number = Trainer(model, config, options.images // size, backbone=backbone), itertools.count()

        def epoch(trainer=trainer, batches=batches, number=number) -> None:
            for batch in batches.batches(next(number)):
                trainer.step(*batch)
            trainer.check_finite()

        epochs[f"probe, {'images' if backbone == 'frozen' else 'features'}"] = epoch
    images = options.images // size * size
    return report(epochs, images, 3 * options.rounds, "probe, images", shared["device"])


def report(
    candidates: dict[str, Callable[[], object]],
    images: int,
    rounds: int,
    bound: str,
    device: torch.device,
    of: str = "",
) -> dict:
    """Measure and print. The limit is the best of the candidates whose name, without `of`, begins with `bound`."""
    results = measure.rates(candidates, images, rounds, device)
    limit = max(r["images_per_s"] for name, r in results.items() if name.removeprefix(f"{of} ").startswith(bound))
    measure.add_shares(results, "share", limit)
    measure.print_rates("", results, "share", bound)
    return results


if __name__ == "__main__":
    cli.run(main)
