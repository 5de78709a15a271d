"""Singular values of a trained model's gradients, block by block: whether a few directions are all that is learned."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..atomic import write_atomic
from ..config import PretrainConfig
from ..datasets import DatasetSpec

NAME = "gradients.json"  # in a run's folder


def measure(folder: Path, settings: PretrainConfig, spec: DatasetSpec, images: int) -> Path:
    """Write the singular values of each block's weight gradients to gradients.json of a finished run; return its path.

    The gradient is that of final.pt on one batch of `images` training images, augmented as the run's were, MixUp
    included. Of a block's matrices "expand" is W_e and "collapse" is W_c; an S-MLP has "weight".
    """
    import torch  # which reading the file does not need

    from ..data.split import Split
    from ..models.loss import mixed_cross_entropy
    from ..models.weights import load_model
    from ..training.run import augment_of
    from ..transforms.mixup import mix, mixup_lam

    model, _ = load_model(folder / "final.pt")
    model.train()
    split = Split(
        spec,
        spec.train_split,
        "train",
        batch_size=images,
        augment=augment_of(settings),
        data_dir=settings.data_dir,
        res=settings.res,
        image_res=model.res,
        resampling=model.resampling,
        device=torch.device("cpu"),
        num_workers=1,
        seed=settings.seed,
        fraction=settings.train_fraction,
    )
    pixels, labels = next(iter(split.batches(0)))
    lam = mixup_lam(settings.mixup_alpha, settings.seed, 0)
    logits = model.linear_out(model.forward_blocks(mix(model.embed(pixels), lam)))
    mixed_cross_entropy(logits, labels, lam, settings.label_smoothing, len(labels)).backward()
    spectra = {}
    for n, block in enumerate(model.blocks):
        matrices = {name: p for name, p in block.named_parameters() if p.ndim == 2}
        names = ("expand", "collapse") if len(matrices) == 2 else ("weight",)
        for name, p in zip(names, matrices.values(), strict=True):
            assert p.grad is not None
            spectra[f"block {n} {name}"] = torch.linalg.svdvals(p.grad.double()).tolist()
    write_atomic(folder / NAME, json.dumps({"images": images, "singular_values": spectra}))
    return folder / NAME


def read_spectra(folder: Path) -> dict[str, list[float]]:
    """Return the singular values by block and matrix, {} if they were not measured."""
    path = folder / NAME
    return json.loads(path.read_text(encoding="utf-8"))["singular_values"] if path.is_file() else {}


def effective_rank(singular_values: Sequence[float]) -> float:
    """Return the effective rank, 1 to their number: exp of the entropy of the values as shares (Roy, Vetterli 2007)."""
    shares = np.asarray(singular_values, np.float64)
    if not shares.sum() > 0:
        return 0.0
    shares = shares[shares > 0] / shares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
