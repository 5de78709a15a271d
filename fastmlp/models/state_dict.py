"""State dicts from files: checked name by name and shape by shape before anything of their size is built."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..arch import Arch

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MAX_TENSORS = 50_000  # in a file; a model of 1,000 blocks has 6,000 to 9,000
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def state_shapes(arch: Arch, res: int, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor in the state dict of MLP(arch, res, num_classes), which is not built."""
    width, hidden = arch.width, arch.expansion * arch.width
    block: dict[str, tuple[int, ...]] = {"weight": (width, width), "bias": (width,)}
    if arch.kind == "B":
        block = {"block.0.weight": (hidden, width), "block.0.bias": (hidden,)}
        block |= {"block.2.weight": (width, hidden), "block.2.bias": (width,)}
    norm: dict[str, tuple[int, ...]] = {"weight": (width,), "bias": (width,)} if arch.norm != "none" else {}
    batch_norm: dict[str, tuple[int, ...]] = {
        "running_mean": (width,),
        "running_var": (width,),
        "num_batches_tracked": (),
    }
    norm |= batch_norm if arch.norm == "batch" else {}
    shapes = {"linear_in.weight": (width, 3 * res * res), "linear_in.bias": (width,)}
    for number in range(arch.blocks):
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block.items()}
        shapes |= {f"layernorms.{number}.{name}": shape for name, shape in norm.items()}
    return {**shapes, "linear_out.weight": (num_classes, width), "linear_out.bias": (num_classes,)}


def check_state_dict(
    state_dict: Any,
    arch: Arch,
    res: int,
    num_classes: int,
    origin: Any,  # what the error begins with: the file
    file_bytes: int | None = None,
) -> None:
    """Raise ValueError unless these are the weights of MLP(arch, res, num_classes).

    Each must have the name and shape of the model's, and numbers in memory (no sparse tensors, none whose shape only
    repeats what is stored), of a kind that fits, finite as float32. With file_bytes, all of them must fit in the file.
    """
    if not isinstance(state_dict, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state_dict.items()
    ):
        raise ValueError(f"{origin} is not a model of fastmlp: its state_dict does not map names to tensors")
    expected = {} if arch.blocks > len(state_dict) else state_shapes(arch, res, num_classes)
    complaints = []
    if not expected:
        complaints.append(f"{arch.blocks:,} blocks do not have only {len(state_dict):,} tensors")
    else:
        if missing := expected.keys() - state_dict.keys():
            complaints.append(f"missing: {shorten(missing)}")
        if extra := state_dict.keys() - expected.keys():
            complaints.append(f"not of this architecture: {shorten(extra)}")
    wrong = {
        name: complaint
        for name in sorted(expected.keys() & state_dict.keys())
        if (complaint := _complaint(state_dict[name], expected[name], name.endswith("num_batches_tracked")))
    }
    complaints += [f"{name} {complaint}" for name, complaint in list(wrong.items())[:5]]
    if len(wrong) > 5:
        complaints.append(f"so are {len(wrong) - 5:,} more")
    if not complaints and file_bytes is not None:
        total = sum(tensor.numel() * tensor.element_size() for tensor in state_dict.values())
        if total > file_bytes:
            complaints.append(f"its tensors have {total:,} bytes, the file {file_bytes:,}: they share their numbers")
    if complaints:
        raise ValueError(f"{origin} does not fit {arch}: {'; '.join(complaints)}")


def _complaint(tensor: Tensor, shape: tuple[int, ...], is_count: bool) -> str:
    """Return what is wrong with a tensor, "" if nothing is. Only the numbers of a good shape are read."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_nested:
        return f"is stored as {tensor.layout}, expected a dense tensor"
    if tuple(tensor.shape) != shape:
        return f"is {tuple(tensor.shape)}, expected {shape}"
    if tensor.dtype not in (INTEGERS if is_count else FLOATS):
        expected = "integer numbers" if is_count else "floating-point numbers of 16, 32 or 64 bits"
        return f"is {tensor.dtype}, expected {expected}"
    if tensor.device.type != "cpu" or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "has a shape, but not a number for each of its elements"
    if not tensor.float().isfinite().all():
        return "holds numbers that are not finite"
    return ""


def shorten(names: Iterable[Any], count: int = 8) -> str:
    """Return the first names, of up to 80 characters each, and how many more there are: a file may have 100,000."""
    listed = sorted(name if len(name) <= 80 else name[:77] + "..." for name in map(str, names))
    return ", ".join(listed[:count]) + (f" and {len(listed) - count:,} more" if len(listed) > count else "")
