"""Trained models on disk: ours, safetensors, and the paper's released weights; reading runs no code and is strict."""

import json
from pathlib import Path
from typing import Any

import torch

from ..arch import parse_arch
from ..atomic import load_torch, save_torch, write_atomic
from .mlp import MLP, new_model
from .released import from_released, read_json


def build_model(
    arch: str,
    res: int | None = None,  # 64
    num_classes: int | None = None,  # 11,230
    weights: str | Path | None = None,
    *,
    new_head: bool = False,
) -> MLP:
    """Return a model, initialised by torch's global generator or with the weights of a file (load_model).

    With weights, res and num_classes are theirs; new_head=True replaces the head by one for num_classes. Raises
    ValueError for an unknown name, and if the file holds another architecture, resolution or number of classes.
    """
    parsed = parse_arch(arch)
    if weights is None:
        return new_model(parsed, 64 if res is None else res, 11_230 if num_classes is None else num_classes)
    model = load_backbone(weights, arch)
    if model.res != (res or model.res):
        raise ValueError(f"{weights} is for images of {model.res} px, not {res}")
    if new_head:
        return model.replace_head(num_classes or model.num_classes)
    if model.num_classes != (num_classes or model.num_classes):
        raise ValueError(
            f"{weights} has a head for {model.num_classes} classes, not {num_classes}: new_head=True "
            "replaces it by a new one, which has to be trained"
        )
    return model


def load_backbone(
    path: str | Path,
    arch: str = "",  # raises ValueError if the weights are of another one
) -> MLP:
    """Return load_model's model, for callers that may replace its head."""
    model, _ = load_model(path)
    if arch and model.arch != parse_arch(arch):
        raise ValueError(f"{path} holds {model.arch}, not {parse_arch(arch)}")
    return model


def save_model(path: str | Path, model: MLP, metadata: dict[str, Any] | None = None) -> None:
    """Save architecture, weights and metadata (data set, normalisation, classes, scores, ...), plain numbers and text.

    The metadata is stored under the key "facts", as in 0.1.
    """
    content = {
        "arch": str(model.arch),
        "res": model.res,
        "num_classes": model.num_classes,
        "state_dict": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        "facts": metadata or {},
    }
    save_torch(Path(path), content)


def load_model(path: str | Path) -> tuple[MLP, dict[str, Any]]:
    """Return a model and its metadata.

    The file is one of save_model, a safetensors export, or a state dict as the paper's authors released it, with or
    without their configuration next to it.

    The metadata of trained models has at least mean and std, three numbers each on the 0-255 scale, with which images
    have to be normalised, dataset, and fit, "square" or "longest": how images have to be scaled. Raises
    FileNotFoundError, ModuleNotFoundError (safetensors), or ValueError naming what is wrong: a damaged file, weights
    that are missing, too many, of wrong shape or not finite, an architecture that differs from the configuration's.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is missing"
        raise FileNotFoundError(f"{path} {what}: expected a file of weights, such as runs/.../final.pt")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else load_torch(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, not weights")
    if (
        "arch" not in content
        and content
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())
    ):
        content = from_released(path, content)
    if missing := {"arch", "res", "num_classes", "state_dict"} - set(content):
        raise ValueError(f"{path} is not a model of fastmlp: it has no {', '.join(sorted(missing))}")
    try:
        model = new_model(parse_arch(content["arch"]), content["res"], content["num_classes"])
        load_weights(model, content["state_dict"], path)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a model of fastmlp: {error}") from error
    return model, content.get("facts", {})


def load_weights(model: MLP, state_dict: dict[str, torch.Tensor], origin: str | Path) -> None:
    """Load weights; raise ValueError if keys are missing or too many, shapes differ, or numbers are not finite."""
    expected = model.state_dict()
    complaints = []
    if missing := sorted(set(expected) - set(state_dict)):
        complaints.append(f"missing: {', '.join(missing)}")
    if extra := sorted(set(state_dict) - set(expected)):
        complaints.append(f"not of this architecture: {', '.join(extra)}")
    for name in expected.keys() & state_dict.keys():
        there, here = state_dict[name], expected[name]
        if there.shape != here.shape:
            complaints.append(f"{name} is {tuple(there.shape)}, expected {tuple(here.shape)}")
        elif there.is_floating_point() != here.is_floating_point():
            kind = "floating-point" if here.is_floating_point() else "integer"
            complaints.append(f"{name} is {there.dtype}, expected {kind} numbers")
        elif not there.isfinite().all():
            complaints.append(f"{name} holds numbers that are not finite")
    if complaints:
        raise ValueError(f"{origin} does not fit {model.arch}: {'; '.join(sorted(complaints))}")
    model.load_state_dict(state_dict)


def export_safetensors(path: str | Path) -> Path:
    """Export a model that load_model reads; return the path of the safetensors file.

    It is stored next to the model, with a JSON file of architecture and metadata. Raises ModuleNotFoundError, with the
    command to run, if safetensors is missing.
    """
    safetensors = _safetensors()
    model, metadata = load_model(path)
    out = Path(path).with_suffix(".safetensors")
    config = {"arch": str(model.arch), "res": model.res, "num_classes": model.num_classes, "facts": metadata}
    write_atomic(out.with_suffix(".json"), json.dumps(config, indent=1) + "\n")
    write_atomic(out, safetensors.torch.save(model.state_dict()))
    return out


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("safetensors is not installed: pip install 'fastmlp[export]'") from error
    return safetensors


def _read_safetensors(path: Path) -> dict[str, Any]:
    safetensors = _safetensors()
    try:
        state_dict = safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged, or not a safetensors file ({error})") from error
    config = read_json(path.with_suffix(".json"))
    return state_dict if config is None else {**config, "state_dict": state_dict}
