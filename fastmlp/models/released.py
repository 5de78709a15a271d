"""The weights that the authors of the paper released."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..arch import Arch, parse_arch
from ..datasets import SPECS, Triple

# Data sets as the authors' files and configurations spell them.
RELEASED_NAMES = {"imagenet21": "imagenet21k", "imagenet_real": "imagenet", "tinyimagenet": "tiny_imagenet"}
RELEASED_BY_CLASSES = {11_230: "imagenet21k", 1000: "imagenet", 200: "tiny_imagenet", 100: "cifar100", 10: "cifar10"}


def from_released(path: Path, state_dict: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return a bare state dict in the format of save_model, with the architecture that its shapes tell.

    Its data set is that of the file's name, else that of the configuration next to it if that has as many classes as
    the head (a configuration is often that of pre-training), else the one of the released models with so many.

    Raises ValueError if they fit no MLP, or if the file's name or the configuration next to it contradicts them.
    """
    for prefix in ("module.", "_orig_mod."):  # DataParallel's, torch.compile's
        if all(name.startswith(prefix) for name in state_dict):
            state_dict = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items()}
    # One of a single width has no layers at all.
    linear_only = {f"linear_{end}.{kind}" for end in ("in", "out") for kind in ("weight", "bias")}
    if state_dict.keys() == linear_only or any(name.startswith("layers.") for name in state_dict):
        raise ValueError(
            f"{path} holds the authors' own S-MLP (linear_in, layers.0, ..., linear_out: norm, GELU, linear), whose "
            "structure differs from the paper's S-MLP (linear, ReLU), which fastmlp builds: it cannot be loaded"
        )
    arch, res, num_classes = _shape(path, state_dict)
    dataset = RELEASED_BY_CLASSES.get(num_classes)
    for name in ("config.txt", "config.json", f"{path.name.removesuffix('_weights')}_config"):
        config = _read_config(path.with_name(name), path, arch, res)
        told = RELEASED_NAMES.get(str(config.get("dataset")), config.get("dataset"))
        if isinstance(told, str) and told in SPECS and SPECS[told].num_classes == num_classes:
            dataset = told
    named = re.search(r"_res_\d+_([a-z0-9]+)_epochs_", path.name)
    if named:
        dataset = RELEASED_NAMES.get(named[1], named[1])
        if dataset in SPECS and SPECS[dataset].num_classes != num_classes:
            raise ValueError(
                f"{path} is named after {dataset}, which has {SPECS[dataset].num_classes} classes, but its head "
                f"has {num_classes}: it is another model's file under this name"
            )
    mean, std = released_statistics(num_classes)
    fit = "longest" if num_classes in (1000, 11_230) else "square"
    metadata = {"dataset": dataset or "unknown", "mean": list(mean), "std": list(std), "fit": fit}
    metadata["resampling"] = "area"  # of FFCV's decoders
    return {"arch": str(arch), "res": res, "num_classes": num_classes, "state_dict": state_dict, "facts": metadata}


def released_statistics(num_classes: int) -> tuple[Triple, Triple]:
    """Return the mean and std (0-255) that the authors normalise images of a data set of so many classes with.

    Those of CIFAR-10 for it, CIFAR-100 and STL-10, those of ImageNet for all others (data_utils/data_stats.py of their
    code).
    """
    spec = SPECS["cifar10" if num_classes in (10, 100) else "imagenet"]
    return spec.mean, spec.std


def _shape(path: Path, state_dict: dict[str, torch.Tensor]) -> tuple[Arch, int, int]:
    """Return the architecture, resolution and number of classes of a state dict."""
    blocks = {int(m[1]) for m in (re.match(r"blocks\.(\d{1,9})\.", name) for name in state_dict) if m}
    try:
        width, inputs = state_dict["linear_in.weight"].shape
        num_classes = state_dict["linear_out.weight"].shape[0]
        first = state_dict.get("blocks.0.block.0.weight")
        kind, expansion = ("S", 4) if first is None else ("B", len(first) // width)
        norms = [name for name in state_dict if name.startswith("layernorms.")]
        norm = "batch" if any(name.endswith("running_mean") for name in norms) else "layer" if norms else "none"
        arch = Arch(kind, len(blocks), width, expansion, norm)
    except (KeyError, ValueError, IndexError, TypeError, ZeroDivisionError) as error:
        raise ValueError(
            f"{path} does not hold the weights of an MLP: expected linear_in, blocks and linear_out"
        ) from error
    res = math.isqrt(inputs // 3)
    if not blocks or 3 * res * res != inputs or min(width, arch.expansion) < 1:
        raise ValueError(
            f"{path} is not an MLP on images: its {inputs} inputs are not a square RGB image, or it has no blocks"
        )
    return arch, res, num_classes


def _read_config(config_path: Path, path: Path, arch: Arch, res: int) -> dict[str, Any]:
    """Return the authors' configuration, {} if it is not there; raise ValueError if it contradicts the weights.

    Its number of classes and its data set are not compared: they are those of pre-training.
    """
    config = read_json(config_path)
    if config is None:
        return {}
    # The authors' names of architectures do not tell the norm, which is a field of its own.
    of_weights = {
        "architecture": str(replace(arch, norm="layer")),
        "crop_resolution": res,
        "normalization": arch.norm,
        "model": "BottleneckMLP",
    }
    of_config = {name: config[name] for name in of_weights if name in config}
    if "architecture" in of_config:
        try:
            of_config["architecture"] = str(parse_arch(str(of_config["architecture"])[:200]))
        except ValueError as error:
            raise ValueError(f"{config_path}: {error}") from error
    differ = [
        f"{name} {repr(value)[:80]} (weights: {of_weights[name]!r})"
        for name, value in of_config.items()
        if value != of_weights[name]
    ]
    if differ:
        raise ValueError(f"{config_path} does not belong to {path}: {', '.join(differ)}")
    return config


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the JSON object of a file, None if there is no file; raise ValueError if it is not one."""
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a model's configuration: expected a JSON object")
    return config
