"""Weights and checkpoints on disk: written whole or not at all, read without running code, loaded strictly."""

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from .atomic import write_whole
from .models import MLP, build_model


def write_atomically(path: Path, content: Any) -> None:
    """torch.save under a temporary name, fsync, rename: the final name never holds half a file.

    Raises OSError where the disk is full (torch.save alone would raise a RuntimeError), keeping what was there.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(path, buffer.getbuffer())


def read_checked(path: Path) -> Any:
    """What write_atomically wrote, on the CPU. Raises ValueError where a byte of it differs."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load looks at no checksum
            if broken := archive.testzip():
                raise ValueError(f"checksum of {broken}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):  # of the machine, not of the file
        raise
    except Exception as error:  # torch.load raises what its unpickler happens to meet
        raise ValueError(f"{path} is damaged or not a file of weights ({error or type(error).__name__})") from error


class Checkpoints:
    """The newest `keep` checkpoints of a run, in `checkpoints/` of its folder."""

    def __init__(self, run_folder: Path, keep: int = 2):
        self.folder, self._keep = run_folder / "checkpoints", keep

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:09d}.pt"

    def paths(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("step_*.pt"))

    def save(self, step: int, content: dict[str, Any]) -> None:
        """Raises OSError where the disk is full; what was there stays."""
        self.folder.mkdir(exist_ok=True)
        for left in self.folder.glob("*.partial"):  # of a save that was killed
            left.unlink()
        write_atomically(self.path(step), content)
        for old in [path for path in self.paths() if path != self.path(step)][: -self._keep + 1 or None]:
            old.unlink()

    def newest(self) -> dict[str, Any] | None:
        """The content of the newest one that is whole; None where there is none. A notice names damaged ones."""
        for path in reversed(self.paths()):
            try:
                return read_checked(path)
            except ValueError as error:
                warnings.warn(f"{error}: it is passed over", stacklevel=2)
        return None


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
    content = read_checked(path)
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


def export_safetensors(path: str | Path) -> Path:
    """A model saved by save_model, as safetensors with its architecture and facts in a JSON file beside it.

    Raises ModuleNotFoundError with the command that mends it where safetensors is not installed.
    """
    try:
        from safetensors.torch import save
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("safetensors is not installed: pip install 'fastmlp[export]'") from error
    model, facts = load_model(path)
    out = Path(path).with_suffix(".safetensors")
    config = {"arch": str(model.arch), "res": model.res, "num_classes": model.num_classes, **facts}
    write_whole(out.with_suffix(".json"), (json.dumps(config, indent=1) + "\n").encode())
    write_whole(out, save(model.state_dict()))
    return out
