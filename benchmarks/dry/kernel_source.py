"""What a Triton kernel reads and writes, counted from the source that Inductor wrote.

Each `tl.load` and `tl.store` touches as many elements as its index takes values: the product of the ranges of the
variables in it, at most the tensor. Indices that are computed (a gather) take those of the variables that they were
computed from. Several loads of one tensor in one pass, such as the four taps of the augmentation, count once, up to the
whole tensor: the neighbours are in the caches. A reduction whose rows do not fit into registers has loops (a looped
reduction; a persistent one has none), and each loop is a pass of its own: what a second loop reads again counts again,
and is told apart as rereads, since the L2 cache may serve it. Weights that every row reads count once.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LOOP = re.compile(r"(\s*)for \w+ in (?:tl\.)?range\(")
ACCESS = re.compile(r"tl\.(load|store|atomic_\w+)\((\w+) \+ \(")
ASSIGNED = re.compile(r"\s*(\w+) = (.*)")
INDEX = re.compile(r"([xyz]|r\d_)index")
NAME = re.compile(r"\b_?(?:tmp\d+|[xyz]\d+|r\d+_\d+)\b")


@dataclass(frozen=True)
class Access:
    """Bytes of one tensor that a kernel or an operation reads or writes; rereads are those after the first pass."""

    shape: tuple[int, ...]
    dtype: str
    kind: str  # "read" or "written"
    bytes: int
    reread_bytes: int = 0


@dataclass(frozen=True)
class Argument:
    """A tensor of a launch: its distinct elements, those of expanded dimensions once."""

    shape: tuple[int, ...]
    dtype: str
    elements: int
    itemsize: int


def kernel_accesses(
    source: str,
    arguments: Mapping[str, Any],  # by name: Argument, or a number
) -> list[Access]:
    """Return what one launch of a kernel reads and writes. Tensors that the source accesses otherwise count once."""
    passes: dict[tuple[str, str], dict[int, dict[str, int]]] = {}  # argument, kind -> pass -> index -> elements
    for name, kind, number, index, elements in _touched(source, arguments):
        passes.setdefault((name, kind), {}).setdefault(number, {})[index] = elements
    found = []
    for name, one in arguments.items():
        if not isinstance(one, Argument):
            continue
        if (name, "read") not in passes and (name, "written") not in passes:
            kinds = ("read", "written") if name.startswith("in_out") else ("written" if "out" in name else "read",)
            passes.update({(name, kind): {0: {"": one.elements}} for kind in kinds})
        for kind in ("read", "written"):
            if (name, kind) not in passes:
                continue
            sizes = [min(one.elements, sum(of.values())) for of in passes[name, kind].values()]
            total, again = sum(sizes), sum(sizes) - max(sizes)
            found.append(Access(one.shape, one.dtype, kind, total * one.itemsize, again * one.itemsize))
    return found


def _touched(source: str, arguments: Mapping[str, Any]) -> Iterator[tuple[str, str, int, str, int]]:
    """Yield for each access: the argument, read or written, the number of the pass, the index, the elements."""
    numel = {name: int(size) for name, size in arguments.items() if name.endswith("numel")}
    numel.update({name: int(size) for name, size in re.findall(r"^ +(\w+numel) = (\d+)$", source, re.M)})
    space = math.prod(numel.get(name, 1) for name in ("xnumel", "ynumel", "znumel", "r0_numel", "r1_numel"))
    ranges: dict[str, int] = {}  # of the index variables
    origins: dict[str, set[str]] = {}  # of computed values: the index variables that they depend on
    loops, depth = 0, None  # loops so far; the indentation of the current one
    for line in source.split("@triton.jit", 1)[-1].splitlines():
        indent = len(line) - len(line.lstrip())
        if depth is not None and line.strip() and indent <= depth:
            depth = None
        if loop := LOOP.match(line):
            loops, depth = loops + 1, len(loop[1])
        for access in ACCESS.finditer(line):
            index = _in_parentheses(line, access.end())
            variables: set[str] = set()
            for name in NAME.findall(index):
                variables |= {name} if name in ranges else origins.get(name, set())
            elements = min(space, math.prod(ranges[name] for name in variables))
            number = 0 if depth is None else loops
            kinds = {"load": ("read",), "store": ("written",)}.get(access[1], ("read", "written"))
            for kind in kinds:
                yield access[2], kind, number, index, elements
        if assigned := ASSIGNED.match(line):
            name, value = assigned.groups()
            if NAME.fullmatch(name) and (index_of := INDEX.search(value)):
                ranges[name] = _range(value, numel.get(f"{index_of[1]}numel", 1))
            else:
                parts = ({one} if one in ranges else origins.get(one, set()) for one in NAME.findall(value))
                origins[name] = origins.get(name, set()).union(*parts)


def _range(value: str, numel: int) -> int:
    """Return how many values an index variable takes, such as ((xindex // 32) % 64)."""
    divisor, modulus = re.search(r"// (\d+)", value), re.search(r"% (\d+)", value)
    count = -(-numel // int(divisor[1])) if divisor else numel
    return min(count, int(modulus[1])) if modulus else count


def _in_parentheses(line: str, start: int) -> str:
    """Return the text from `start` to the parenthesis that closes the one before it."""
    depth = 1
    for end in range(start, len(line)):
        depth += {"(": 1, ")": -1}.get(line[end], 0)
        if not depth:
            return line[start:end]
    return line[start:]
