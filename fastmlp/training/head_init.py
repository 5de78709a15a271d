"""The head that fine-tuning begins with: random, or that of a logistic probe.

A random head moves the features of the backbone before it knows what they are good for; after a probe it does not
(Kumar et al. 2022, arXiv 2202.10054: LP-FT). recipes/studies/head_init.py measured what that gains: 4 to 15 points
after an epoch, nothing after 20.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..config import FinetuneConfig
from ..data.split import Split
from ..distributed import DistributedContext
from ..evaluation.features import CachedFeatures, fits_in_memory
from ..evaluation.logistic import choose_l2, fit_logistic
from ..messages import logger
from ..models.mlp import MLP
from .run_log import read_log

HeadInit = Literal["probe", "random"]
MIN_IMAGES = 20  # of which a tenth, held out, chooses the probe's l2
# Over the images, of all candidates of l2 together: 298 for 500 images of 5 classes, 446 for 2,000 of 10, measured.
PASSES = 450


def choose_head_init(
    config: FinetuneConfig,
    model: MLP,
    images: int,  # that are trained on
    steps: int,  # of the run
    folder: Path,  # of the run
    context: DistributedContext,
) -> HeadInit:
    """Return what config.head_init means here. A run that was begun before keeps what it had chosen.

    Raises ValueError if a probe is asked for, but its features do not fit into memory. All processes have to call it.
    """
    chosen: Any = config.head_init
    if context.is_main and chosen == "auto":
        begun = read_log(folder, "start") if (folder / "log.jsonl").exists() else []
        trained = steps * config.batch_size * sum(p.numel() for p in model.parameters())
        is_cheap = PASSES * images * model.linear_out.weight.numel() <= trained  # matrix products of both
        fits = images >= MIN_IMAGES and is_cheap and fits_in_memory(model, images)
        chosen = begun[-1].get("head_init") if begun else "probe" if fits else "random"
        if chosen == "random":
            logger.info("the head begins at random: a probe has too few images, or takes too much memory or time")
    chosen = context.broadcast(chosen)
    if config.head_init == "probe" and not context.broadcast(fits_in_memory(model, images)):
        raise ValueError(
            f"features of {images:,} images do not fit into memory: use --cfg.head_init=random, or --cfg.train_fraction"
        )
    return chosen


def probe_head(
    model: MLP,
    features: CachedFeatures,
    l2: float,  # 0 to choose it on a held-out tenth of the features (choose_l2)
    seed: int,
) -> tuple[float, dict[float, float]]:
    """Give the model the head of a logistic probe; return its l2 and, if l2 is 0, the top-1 of each that was tried."""
    tried: dict[float, float] = {}
    if not l2:
        l2, tried = choose_l2(features.values, features.labels, model.num_classes, seed=seed)
    set_head(model, *fit_logistic(features.values, features.labels, model.num_classes, l2))
    return l2, tried


@torch.no_grad()
def set_head(model: MLP, weight: Tensor, bias: Tensor) -> None:
    """Copy (num_classes, m) weights and (num_classes,) biases into the model's head, from any device."""
    model.linear_out.weight.copy_(weight)
    model.linear_out.bias.copy_(bias)


def describe_l2(l2: float, tried: dict[float, float]) -> str:
    """Return the words on how a probe's l2 was chosen."""
    listed = ", ".join(f"{candidate:g} {top1:.2%}" for candidate, top1 in tried.items())
    return f"l2 {l2:g} has the lowest loss on a held-out tenth of the training set; top-1 there: {listed}"


def begin_with_probe(model: MLP, split: Split, config: FinetuneConfig, context: DistributedContext) -> None:
    """Give each process's model the head of a logistic probe, which the main process fits. All have to call it.

    split: of the training images, in order and without augmentation. Raises ValueError if the features are not finite
    and a probe was asked for; with "auto" the head then stays random.
    """
    head = None
    if context.is_main:
        try:
            l2, tried = probe_head(model, CachedFeatures(model, split), 0.0, config.seed)
            logger.info(f"the head begins as a logistic probe's: {describe_l2(l2, tried)}")
        except ValueError as error:
            if config.head_init == "probe":
                raise
            logger.warning(f"the head begins at random, since no probe can be fitted: {error}")
        head = model.linear_out.weight.detach().cpu(), model.linear_out.bias.detach().cpu()
    set_head(model, *context.broadcast(head))
