"""Training-ready images/sec: both paths of fastmlp, the paper's pipeline of stock FFCV operations, torch's grid_sample.

    python benchmarks/transforms.py [--device auto] [--case crop:64:64:16384 ...] [--rounds 5] [--folder /tmp]

A case is work:pixels stored:pixels made:batch size. crop: random resized crop, flip, normalise to training's precision
(float32 on the CPU); flip: flip and normalise; uint8: random resized crop and flip, not normalised, for transfer.
Candidates take turns, an epoch of --samples images each, from one beton whose pages are warm. Two limits are measured:
"bare write" fills a kept buffer with as many bytes as the batches have, "bare gather" copies the stored rows.
With a GPU the batches end in its memory, and so does the write; then "bare send" copies the stored rows there from
page-locked memory, the slowest of the three is the limit, and FFCV's operations, which need the CPU, are left out.
A table goes to stderr, one JSON line per case to stdout.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import limits
import measure
import numpy as np
import torch
import torch.nn.functional as F
from peers import ffcv_loader

import fastmlp
from fastmlp import cli
from fastmlp import device as devices
from fastmlp.sources.base import ArraySource
from fastmlp.transforms.augment_params import Augment, draw_params
from fastmlp.transforms.cpu_decoder import AugmentedRGBImageDecoder
from fastmlp.transforms.pipelines import image_pipelines, raw_pipelines

CASES = ("crop:64:64:16384", "crop:64:64:4096", "flip:64:64:16384", "uint8:64:64:16384", "crop:32:64:16384")
WORK = ("crop", "flip", "uint8")
MEAN, STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)
RANDOM = fastmlp.OrderOption.RANDOM


class Normalize(torch.nn.Module):
    """Normalisation as torchvision.transforms.Normalize does it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
        return images.clone().sub_(mean).div_(std)


def stock_pipelines(work: str, stored: int, res: int, mixup: bool) -> dict:
    """Return FFCV's own operations, in the order of the paper's code."""
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
    from ffcv.transforms import Convert, ImageMixup, RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

    decode = SimpleRGBImageDecoder() if work == "flip" else RandomResizedCropRGBImageDecoder((res, res))
    image = [decode, RandomHorizontalFlip(), *([ImageMixup(0.8, True)] if mixup else []), ToTensor()]
    if work != "uint8":
        image += [ToTorchImage(), Convert(torch.float32), Normalize()]
    return {"image": image, "label": [IntDecoder(), ToTensor(), Squeeze(1)]}


def grid_sample_epoch(loader: fastmlp.Loader, augment: Augment, stored: int, res: int) -> None:
    """Crop, flip, resize and normalise one epoch by torch's grid_sample, with the same random draws."""
    order, mean = loader.next_traversal_order(), None
    for number, (images, _) in enumerate(loader):
        if mean is None:
            mean, std = (torch.tensor(numbers, device=images.device)[:, None, None] for numbers in (MEAN, STD))
        samples = order[number * loader.batch_size :][: len(images)]
        boxes, flips = draw_params(augment, stored, stored, 0, 0, samples)
        top, left, height, width = torch.from_numpy(boxes.T / stored).float()
        theta = torch.zeros(len(images), 2, 3)
        theta[:, 0, 0], theta[:, 0, 2] = width * torch.from_numpy(1.0 - 2 * flips).float(), 2 * left + width - 1
        theta[:, 1, 1], theta[:, 1, 2] = height, 2 * top + height - 1
        grid = F.affine_grid(theta.to(images.device), (len(images), 3, res, res), align_corners=False)
        planes = images.permute(0, 3, 1, 2).float()
        F.grid_sample(planes, grid, padding_mode="border", align_corners=False).sub_(mean).div_(std)


def bare(
    pixels: torch.Tensor, work: str, res: int, batch_size: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Return the limits of an epoch, as functions."""
    kept = torch.zeros(batch_size, 3 * res * res, dtype=torch.uint8 if work == "uint8" else dtype, device=device)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(pixels))).view(-1, batch_size)
    found = {"bare write": lambda: [kept.fill_(1) for _ in order], "bare gather": limits.gather(pixels, order)}
    if device.type != "cpu":
        found["bare send"] = limits.send(batch_size * pixels.shape[1], len(order), device)
    return found


def candidates(
    path: Path, pixels: torch.Tensor, work: str, stored: int, res: int, batch_size: int, device: torch.device
) -> dict[str, Callable[[], object]]:
    """Return one epoch of each, as functions."""
    augment = Augment("none" if work == "flip" else "random_resized", flip=True)
    shared = {"batch_size": batch_size, "order": RANDOM, "seed": 0}
    on_cpu, dtype = device.type == "cpu", devices.compute_dtype(device)
    numbers = {"mean": MEAN, "std": STD, "device": device, "dtype": dtype}

    def ours(pipelines: dict) -> fastmlp.Loader:
        return fastmlp.Loader(path, pipelines=pipelines, batches_ahead=1, **shared)

    def stock(mixup: bool) -> object:
        return ffcv_loader(path, pipelines=stock_pipelines(work, stored, res, mixup), **shared)

    found = bare(pixels, work, res, batch_size, dtype, device)
    raw = raw_pipelines(device)
    if work == "uint8":
        loaders = {"fastmlp": ours({**raw, "image": [AugmentedRGBImageDecoder(augment, res), *raw["image"][1:]]})}
        loaders |= {"ffcv": stock(False)} if on_cpu else {}
    else:
        host, whole = (ours(image_pipelines(augment, res, **numbers, augment_on=on)) for on in ("host", "device"))
        loaders = {"fastmlp, host path": host, f"fastmlp, device path{' on the CPU' if on_cpu else ''}": whole}
        if on_cpu:
            loaders["ffcv, the paper's pipeline without MixUp"] = stock(False)
        if work == "crop":
            if on_cpu:
                loaders["ffcv, the paper's pipeline"] = stock(True)
            unchanged = ours(raw)
            found["torch grid_sample"] = lambda: grid_sample_epoch(unchanged, augment, stored, res)
    if stored != res:  # known from the other cases
        loaders = {name: loader for name, loader in loaders.items() if "paper" not in name}
    return {**found, **{name: lambda loader=loader: measure.drain(loader) for name, loader in loaders.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=cli.summary(__doc__))
    parser.add_argument(
        "--case", nargs="+", default=CASES, metavar="WORK:STORED:MADE:BATCH", help="(default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each candidate that count (default: 5)")
    parser.add_argument(
        "--samples", type=int, default=65_536, help="images of an epoch, made whole batches (default: %(default)s)"
    )
    parser.add_argument("--folder", type=cli.path, help="for the temporary betons (default: the system's)")
    measure.add_device(parser)
    arguments = measure.parse(parser)
    device = measure.select_device(arguments.device)
    for case in arguments.case:
        work, _, numbers = case.partition(":")
        if work not in WORK:
            raise ValueError(f"--case {case}: expected {', '.join(WORK)} before the first colon, not {work!r}")
        run_case(work, *measure.sizes("--case", numbers, "STORED:MADE:BATCH"), device, arguments)


def run_case(
    work: str, stored: int, res: int, batch_size: int, device: torch.device, arguments: argparse.Namespace
) -> None:
    samples = max(1, arguments.samples // batch_size) * batch_size
    images = np.random.default_rng(0).integers(0, 256, (samples, stored, stored, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source = ArraySource(images, np.zeros(samples, np.int64), ("one",))
        path = fastmlp.write_beton(Path(folder) / "random.beton", source, stored)
        pixels = torch.from_numpy(images.reshape(samples, -1))
        runs = candidates(path, pixels, work, stored, res, batch_size, device)
        results = measure.rates(runs, samples, arguments.rounds, device)
    limit, title = "bare write", f"{work}, {stored} px to {res} px, batch {batch_size}"
    if device.type != "cpu":
        limit = limits.slowest(results, [name for name in results if name.startswith("bare")])
        title += f", on {devices.describe(device)} (FFCV's operations need the CPU: --device cpu)"
    what = limit.removeprefix("bare ")
    measure.add_shares(results, f"share_of_{what}", results[limit]["images_per_s"])
    measure.print_rates(title, results, f"share_of_{what}", f"the {what}")
    settings = {"work": work, "stored": stored, "res": res, "batch_size": batch_size, "samples": samples}
    measure.emit("transforms", {**settings, **measure.device_settings(device), "limit": limit}, results)


if __name__ == "__main__":
    cli.run(main)
