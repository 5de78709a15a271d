"""Trained models on disk: ours, safetensors, and the paper's released weights; reading runs no code and is strict."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import device as devices
from ..arch import Arch, parse_arch
from ..atomic import in_one_line, load_torch, save_torch, write_atomic
from ..messages import logger
from .mlp import MLP, new_model
from .released import from_released, read_json
from .released_files import ReleasedFile, cached_weights, find_released, is_path
from .state_dict import MAX_TENSORS, check_state_dict


def build_model(
    arch: str,
    res: int | None = None,  # 64
    num_classes: int | None = None,  # 11,230
    weights: str | Path | None = None,
    *,
    new_head: bool = False,
) -> MLP:
    """Return a model, initialised by torch's global generator or with the weights of a file or a name (load_model).

    It takes normalised images (B, 3 * res * res) float32, in C, H, W order, and returns logits (B, num_classes)
    float32. arch: such as "B_12-Wi_1024-E_4" or "S_2-Wi_192". res: side of its images in px, 64 if None. num_classes:
    11,230 if None.

    With a name of released weights the architecture need not be part of it: build_model("B_12-Wi_1024",
    weights="in21k"), "in21k_cifar10", "in21k_cifar100" or "in21k_imagenet". With weights, res and num_classes are
    theirs; new_head=True replaces the head by one for num_classes.

    Raises ValueError for an unknown name, and if the file holds another architecture, resolution or number of classes;
    MemoryError if the weights alone are larger than the free memory; what load_model raises.
    """
    parsed = parse_arch(arch)
    if weights is None:
        sizes = 64 if res is None else res, 11_230 if num_classes is None else num_classes
        _check_memory(parsed, *sizes)
        return new_model(parsed, *sizes)
    model, _ = load_model(weights, arch)
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


def _check_memory(arch: Arch, res: int, num_classes: int) -> None:
    """Raise MemoryError if the weights alone, in float32, are larger than the free memory."""
    width, hidden = arch.width, arch.width * (2 * arch.expansion if arch.kind == "B" else 1)
    needed = 4 * width * (3 * res * res + arch.blocks * hidden + num_classes)
    free = devices.free_bytes(torch.device("cpu"))
    if needed > free:
        raise MemoryError(
            f"the weights of {arch} for {res} px and {num_classes:,} classes take {needed / 2**30:,.0f} GiB, "
            f"{free / 2**30:,.0f} GiB are free: take a narrower model or smaller images"
        )


def save_model(path: str | Path, model: MLP, metadata: dict[str, Any] | None = None) -> None:
    """Save architecture, weights and metadata (data set, normalisation, classes, scores, ...), plain numbers and text.

    metadata: for `predict` and `evaluate` at least "mean" and "std", three numbers each (0-255), and "dataset", "fit"
    ("square" or "longest") and "classes" (a list of names) if they are known. It is stored under the key "facts", as in
    0.1; the model's resampling is part of it if it is not "bilinear". Raises OSError if the file cannot be written; it
    appears completely or not at all.
    """
    content: dict[str, Any] = {
        "arch": str(model.arch),
        "res": model.res,
        "num_classes": model.num_classes,
        "state_dict": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        "facts": {name: value for name, value in (metadata or {}).items() if name != "resampling"},
    }
    if model.resampling != "bilinear":  # what 0.1 wrote, and every file without it, is bilinear
        content["facts"]["resampling"] = model.resampling
    save_torch(Path(path), content)


def load_model(
    weights: str | Path,
    arch: str = "",  # raises ValueError if the weights are of another one
) -> tuple[MLP, dict[str, Any]]:
    """Return a model and its metadata, from a file or by the name of released weights.

    The file is one of save_model, a safetensors export, or a state dict as the paper's authors released it, with or
    without their configuration next to it. arch: what the weights must be of, "" for any. A name such as
    "B_12-Wi_1024_in21k_cifar10", or "in21k_cifar10" with an architecture, is downloaded from the authors' host at its
    first use (released_files.py).

    The metadata of trained models has at least mean and std, three numbers each on the 0-255 scale, with which images
    have to be normalised, dataset, and fit, "square" or "longest": how images have to be scaled. Of a released model
    (and what is fine-tuned from one) model.resampling is "area", of any other "bilinear".

    Raises FileNotFoundError, ModuleNotFoundError (safetensors), or ValueError naming what is wrong: a damaged file,
    weights that are missing, too many, of wrong shape or not finite, an architecture that differs from the
    configuration's. Raises ConnectionError if weights cannot be downloaded.
    """
    path = Path(weights).expanduser() if is_path(weights) else _cached(find_released(str(weights), arch))
    model, metadata = _read_model(path)
    if arch and model.arch != parse_arch(arch):
        raise ValueError(f"{weights} holds {model.arch}, not {parse_arch(arch)}")
    model.metadata = metadata
    return model, metadata


def _cached(released: ReleasedFile) -> Path:
    """Return the path of released weights, downloaded at their first use."""

    def check(path: Path) -> None:
        model, _ = _read_model(path)
        if (str(model.arch), model.res, model.num_classes) != (released.arch, 64, released.num_classes):
            raise ValueError(
                f"it holds {model.arch} for {model.res} px and {model.num_classes:,} classes, not {released.name}"
            )

    return cached_weights(released, check)


def _read_model(path: Path) -> tuple[MLP, dict[str, Any]]:
    """Return load_model's result for a file."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is missing"
        raise FileNotFoundError(f"{path} {what}: expected a file of weights, such as runs/.../final.pt")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else load_torch(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, not weights")
    if "arch" not in content and content and all(_is_named_tensor(*item) for item in content.items()):
        content = from_released(path, content)
    if missing := {"arch", "res", "num_classes", "state_dict"} - {name for name in content if isinstance(name, str)}:
        raise ValueError(f"{path} is not a model of fastmlp: it has no {', '.join(sorted(missing))}")
    metadata = content.get("facts", {})
    _check_description(path, content["arch"], content["res"], content["num_classes"], metadata)
    try:
        arch = parse_arch(content["arch"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    sizes = content["res"], content["num_classes"]
    check_state_dict(content["state_dict"], arch, *sizes, path, path.stat().st_size)
    model = new_model(arch, *sizes)
    model.load_state_dict(content["state_dict"])
    model.resampling = metadata.get("resampling", "bilinear")  # 0.1 knew no other
    return model, metadata


def load_weights(model: MLP, state_dict: dict[str, torch.Tensor], origin: str | Path) -> None:
    """Load weights; raise ValueError if they are not this model's (check_state_dict)."""
    check_state_dict(state_dict, model.arch, model.res, model.num_classes, origin)
    model.load_state_dict(state_dict)


def _is_named_tensor(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, torch.Tensor)


def _check_description(path: Path, arch: Any, res: Any, num_classes: Any, metadata: Any) -> None:
    """Raise ValueError if a value has a type that it cannot have; the ranges of mean, std and fit are checked, too."""
    wrong = [
        f"{name} is {type(value).__name__}, expected {expected.__name__}"
        for name, value, expected in (
            ("arch", arch, str),
            ("res", res, int),
            ("num_classes", num_classes, int),
            ("facts", metadata, dict),
        )
        if type(value) is not expected
    ]
    wrong += [
        f"{name} is not from 1 to {2**31 - 1:,}"
        for name, value in (("res", res), ("num_classes", num_classes))
        if type(value) is int and not 0 < value < 2**31
    ]
    if isinstance(metadata, dict):
        wrong += [name for name, is_valid in METADATA.items() if name in metadata and not is_valid(metadata[name])]
    if wrong:
        raise ValueError(f"{path} is not a model of fastmlp, or damaged: {'; '.join(wrong)}")


def _is_triple(value: Any, above: float) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(type(number) in (int, float) and above < number < 1e6 for number in value)
    )


def complete_metadata(model: MLP, origin: str | Path) -> dict[str, Any]:
    """Return model.metadata with all that predicting needs: mean, std, dataset, fit and classes, [] if unknown.

    Raises ValueError, which names `origin`, if there is no mean or std, or not a name for each class.
    """
    if missing := {"mean", "std"} - set(model.metadata):
        raise ValueError(
            f"{origin} does not record its {' and '.join(sorted(missing))}: save it with save_model(path, model, "
            'metadata), or set model.metadata = {"mean": (r, g, b), "std": (r, g, b)} [0-255]'
        )
    if model.linear_in.weight.dtype != torch.float32:
        raise ValueError(f"{origin} has weights of {model.linear_in.weight.dtype}: call model.float() before")
    metadata = {"dataset": "unknown", "fit": "square", "classes": [], **model.metadata}
    plain = {name: metadata[name].tolist() for name in ("mean", "std", "classes") if hasattr(metadata[name], "tolist")}
    metadata |= plain
    if wrong := [name for name, is_valid in METADATA.items() if name in metadata and not is_valid(metadata[name])]:
        raise ValueError(f"{origin} has wrong metadata: {', '.join(wrong)}")
    if len(metadata["classes"]) not in (0, model.num_classes):
        names = len(metadata["classes"])
        raise ValueError(f"{origin} is damaged: it has {names:,} names for {model.num_classes:,} classes")
    return metadata


def class_names(names: Sequence[str], num_classes: int) -> list[str]:
    """Return a name for each class: its number if the model came without names."""
    return list(names) if len(names) == num_classes else [str(label) for label in range(num_classes)]


METADATA: dict[str, Callable[[Any], bool]] = {
    "mean": lambda value: _is_triple(value, -1e6),
    "std": lambda value: _is_triple(value, 0),
    "dataset": lambda value: isinstance(value, str),
    "fit": lambda value: value in ("square", "longest"),
    "beton_res": lambda value: type(value) is int and 0 < value < 2**31,
    "resampling": lambda value: value in ("bilinear", "area"),
    "classes": lambda value: isinstance(value, list | tuple) and all(isinstance(name, str) for name in value),
}


def export_safetensors(path: str | Path) -> Path:
    """Export a model that load_model reads; return the path of the safetensors file.

    It is stored next to the model, with a JSON file of architecture and metadata. Both hold the SHA-256 of all of it
    (safetensors has no checksum). Raises ModuleNotFoundError, with the command to run, if safetensors is missing.
    """
    safetensors = _safetensors()
    model, metadata = load_model(path)
    out, state_dict = Path(path).with_suffix(".safetensors"), model.state_dict()
    config = {"arch": str(model.arch), "res": model.res, "num_classes": model.num_classes, "facts": metadata}
    sha256 = _digest(config, state_dict)
    write_atomic(out.with_suffix(".json"), json.dumps({**config, "sha256": sha256}, indent=1) + "\n")
    write_atomic(out, safetensors.torch.save(state_dict, {"config": json.dumps(config), "sha256": sha256}))
    return out


def _digest(config: dict[str, Any], state_dict: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 of a description and of the tensors' names, types, shapes and bytes."""
    hasher = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(state_dict.items()):
        hasher.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("safetensors is not installed: pip install 'fastmlp[export]'") from error
    return safetensors


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Return the content in the format of save_model, or a bare state dict if nothing describes it.

    Raises ValueError if the file, or the JSON file beside it, is not as it was exported. Without a digest in either,
    as in files of 0.1 and of others, a notice is printed.
    """
    safetensors = _safetensors()
    try:
        # safetensors takes no path that is not UTF-8.
        with path.open("rb") as opened, safetensors.safe_open(f"/proc/self/fd/{opened.fileno()}", "pt") as file:
            if len(names := file.keys()) > MAX_TENSORS:
                raise ValueError(f"{len(names):,} tensors, expected at most {MAX_TENSORS:,}")
            state_dict = {name: file.get_tensor(name) for name in names}
            stored = file.metadata() or {}
        embedded = json.loads(stored["config"]) if "config" in stored else None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # of many types: json's, safetensors', torch's
        raise ValueError(f"{path} is damaged, or not a safetensors file ({in_one_line(error)})") from error
    beside = read_json(path.with_suffix(".json"))
    digests = [stored.get("sha256"), beside and beside.pop("sha256", None)]
    if (embedded is None) != (digests[0] is None):
        raise ValueError(f"{path} is damaged: its description or its digest is missing")
    if embedded is not None and beside is not None and (beside != embedded or digests[0] != digests[1]):
        raise ValueError(
            f"{path.with_suffix('.json')} does not belong to {path}, or is damaged: export the model again, or delete "
            "the JSON file, which the other contains"
        )
    config = beside if embedded is None else embedded
    expected = digests[1] if digests[0] is None else digests[0]
    if expected is None:
        logger.warning(f"{path} is unverified: neither it nor a JSON file beside it has a digest")
    elif not isinstance(config, dict) or _digest(config, state_dict) != expected:
        raise ValueError(f"{path} is damaged: its weights or their description differ from the digest (SHA-256)")
    return state_dict if config is None else {**config, "state_dict": state_dict}
