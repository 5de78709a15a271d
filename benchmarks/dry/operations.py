"""What an operation of torch reads and writes when it runs eagerly, as a kernel of its own."""

import math
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from .kernel_source import Access, Argument

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
NO_BYTES = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias")
OVERWRITES = ("copy_", "fill_", "zero_")  # read nothing of what they write to
GATHERS = ("gather", "index", "index_select", "embedding")
SCATTERS = ("scatter", "scatter_add", "index_put", "index_add")


def argument(tensor: Tensor) -> Argument:
    """Return what counting needs of a tensor."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    elements = math.prod(size for size, stride in pairs if stride) if tensor.numel() else 0
    return Argument(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), elements, tensor.itemsize)


def operation_name(function: Any) -> str:
    return function._schema.name.split("::")[1]


def operation_accesses(function: Any, args: Any, kwargs: Any, out: Any, device: str = "cuda") -> list[Access]:
    """Return what an operation reads and writes on a device: each tensor once, views nothing.

    Expanded dimensions count once. Gathers read, and scatters change, as many elements as there are indices. An eager
    softmax of long rows may read them more than once: that is not counted.
    """
    name = operation_name(function)
    if function.namespace == "prim" or name in NO_BYTES or function.is_view:
        return []
    changed: set[int] = set()
    read: dict[int, Tensor] = {}
    for declared, value in zip(function._schema.arguments, _given(function, args, kwargs), strict=True):
        tensors = [t for t in tree_leaves(value) if isinstance(t, Tensor) and t.device.type == device]
        written = declared.alias_info is not None and declared.alias_info.is_write
        changed |= {id(t) for t in tensors if written}
        if not (written and (declared.is_out or name in OVERWRITES)):
            read.update({id(t): t for t in tensors})
    results = {id(t): t for t in tree_leaves(out) if isinstance(t, Tensor) and t.device.type == device}
    for value in _given(function, args, kwargs):
        results.update({id(t): t for t in tree_leaves(value) if id(t) in changed and isinstance(t, Tensor)})
    base = name.removesuffix("_")
    if base in GATHERS:
        return _gathered(list(read.values()), list(results.values()))
    if base in SCATTERS:
        return _scattered(list(read.values()), list(results.values()), in_place=bool(changed))
    accesses = [_whole(t, "read") for t in read.values()]
    return accesses + [_whole(t, "written") for t in results.values()]


def _given(function: Any, args: Any, kwargs: Any) -> list[Any]:
    """Return the values of the schema's arguments, in its order."""
    declared = function._schema.arguments
    return [args[i] if i < len(args) else kwargs.get(one.name) for i, one in enumerate(declared)]


def _whole(tensor: Tensor, kind: str, elements: int | None = None) -> Access:
    one = argument(tensor)
    touched = one.elements if elements is None else min(elements, one.elements)
    return Access(one.shape, one.dtype, kind, touched * one.itemsize)


def _gathered(read: list[Tensor], results: list[Tensor]) -> list[Access]:
    """The source is the first tensor, and as many of its elements are read as the result has."""
    source, *indices = read
    accesses = [_whole(source, "read", results[0].numel()), *(_whole(t, "read") for t in indices)]
    return accesses + [_whole(t, "written") for t in results]


def _scattered(read: list[Tensor], results: list[Tensor], in_place: bool) -> list[Access]:
    """The target is the first tensor; indices and values are read, and as many elements of the target change."""
    target, *others = read
    count = max((t.numel() for t in others), default=0)
    accesses = [_whole(t, "read") for t in others]
    if not in_place:  # the target is copied before
        accesses += [_whole(target, "read"), _whole(results[0], "written")]
    return [*accesses, _whole(target, "read", count), _whole(target, "written", count)]


def product_flop(name: str, args: Any) -> int:
    """Return the FLOP of a matrix product, 2 for each multiply-accumulate."""
    a, b = args[1:3] if "add" in name else args[:2]
    return 2 * a.numel() * b.shape[-1]
