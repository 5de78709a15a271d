"""Weights on disk: written whole or not at all, read without running code, loaded strictly."""

import io
import os
from pathlib import Path
from typing import Any

import torch

from .models import MLP, build_model


def write_atomically(path: Path, content: Any) -> None:
    """torch.save under a temporary name, fsync, rename: the final name never holds half a file.

    Raises OSError where the disk is full (torch.save alone would raise a RuntimeError), keeping what was there.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def save_model(path: str | Path, model: MLP, facts: dict[str, Any] | None = None) -> None:
    """Architecture, weights and `facts` (data set, normalisation, scores, ...) of plain numbers and strings."""
    content = {
        "arch": str(model.arch),
        "res": model.res,
        "num_classes": model.num_classes,
        "state_dict": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        "facts": facts or {},
    }
    write_atomically(Path(path), content)


def load_model(path: str | Path) -> tuple[MLP, dict[str, Any]]:
    """A model saved by save_model, and its facts. Raises FileNotFoundError or ValueError naming what is wrong."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: name a .pt file that recipes/pretrain.py wrote")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what its unpickler happens to meet
        raise ValueError(f"{path} is damaged or not a file of weights ({type(error).__name__})") from error
    missing = {"arch", "res", "num_classes", "state_dict"} - set(content if isinstance(content, dict) else ())
    if missing:
        raise ValueError(f"{path} is not a model of fastmlp: it has no {', '.join(sorted(missing))}")
    try:
        model = build_model(content["arch"], content["res"], content["num_classes"])
        load_weights(model, content["state_dict"], path)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a model of fastmlp: {error}") from error
    return model, content.get("facts", {})


def load_weights(model: MLP, state_dict: dict[str, torch.Tensor], origin: str | Path) -> None:
    """Strict: raises ValueError naming keys that are missing or too many, or shapes that differ."""
    if any(name.startswith("layers.") for name in state_dict):
        raise ValueError(
            f"{origin} holds the authors' own S-MLP (layers.0, ...: norm, GELU, linear), whose structure differs from "
            "the paper's S-MLP (linear, ReLU) that fastmlp builds: it cannot be loaded"
        )
    own = model.state_dict()
    complaints = []
    if missing := sorted(set(own) - set(state_dict)):
        complaints.append(f"missing: {', '.join(missing)}")
    if extra := sorted(set(state_dict) - set(own)):
        complaints.append(f"not of this architecture: {', '.join(extra)}")
    complaints += [
        f"{name} is {tuple(state_dict[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state_dict and state_dict[name].shape != own[name].shape
    ]
    if complaints:
        raise ValueError(f"{origin} does not fit {model.arch}: {'; '.join(complaints)}")
    model.load_state_dict(state_dict)
