"""torch's own threads for loops that numba compiles: OpenMP's team, which is still awake after a matrix product.

Threads of Python's would wait until OpenMP's stop spinning, and numba's own are no choice (loader/row_threads.py).
"""

import ctypes
import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, cached_property
from typing import Any

import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from torch import Tensor
from torch.profiler import record_function

from ..transforms.numba_cache import numba as nb

NUMBERS = 16
NEXT, TILES, ROWS, COLUMNS, FIRST = range(5)
_Numbers = ctypes.c_int64 * NUMBERS
SIGNATURE = types.void(types.CPointer(types.int64))

_forked: list[bool] = []  # OpenMP's team stays behind in the parent
os.register_at_fork(after_in_child=lambda: _forked.append(True))


@intrinsic
def next_tile(typingctx, numbers):
    """Return the number of the next tile that no thread has taken, and take it."""

    def generate(context, builder, signature, args):
        return builder.atomic_rmw("add", args[0], ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.CPointer(types.int64)), generate


@intrinsic
def multiply_add(typingctx, a, b, c):
    """Return a * b + c for float32, rounded once if the machine can do so in one instruction, as torch's lerp does."""

    def generate(context, builder, signature, args):
        return builder.fadd(builder.fmul(*args[:2], flags=("contract",)), args[2], flags=("contract",))

    return types.float32(types.float32, types.float32, types.float32), generate


@intrinsic
def integers_at(typingctx, address):
    """Return the pointer to int64 numbers of an address."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(64).as_pointer())

    return types.CPointer(types.int64)(types.int64), generate


@intrinsic
def floats_at(typingctx, address):
    """Return the pointer to float32 numbers of an address."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.FloatType().as_pointer())

    return types.CPointer(types.float32)(types.int64), generate


@cache
def _team() -> Any:
    """Return OpenMP's function that calls a function in each of so many threads, None if torch has no OpenMP.

    LLVM's and Intel's OpenMP have it by GNU's name, too.
    """
    try:
        team = ctypes.CDLL(None).GOMP_parallel
    except AttributeError:
        return None
    team.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    return team


class TileLoop:
    """A function that works on one tile after the other, in each of torch's threads, until `next_tile` returns no more.

    It takes the address of NUMBERS int64: next tile, number of tiles, rows, columns, and from FIRST on the addresses of
    its operands. It is compiled at its first use, into numba's cache on disk, which notices changes of its file only.
    contract: let products and sums be one instruction.
    """

    def __init__(self, function: Callable[[Any], None], contract: bool = False):
        self._function, self._contract = function, contract
        self._name = f"fastmlp::{function.__name__.strip('_').removesuffix('_loop')}"  # for torch's profiler

    @cached_property
    def _address(self) -> int:
        fastmath = {"contract"} if self._contract else False
        address = nb.cfunc(SIGNATURE, cache=True, fastmath=fastmath, error_model="numpy")(self._function).address
        assert address is not None
        return address

    def run(
        self,
        tiles: int,
        rows: int,
        columns: int,
        *operands: Tensor,  # contiguous float32 on the CPU, or int64 where the function expects that
    ) -> None:
        """Return after all tiles are done. Raises TypeError for other operands, since they are read by address."""
        for one in operands:
            if not one.is_contiguous() or one.device.type != "cpu" or one.dtype not in (torch.float32, torch.int64):
                raise TypeError(
                    f"{self._name}: expected contiguous float32 on the CPU, got {one.dtype} on {one.device}"
                )
        numbers = _Numbers(0, tiles, rows, columns, *(one.data_ptr() for one in operands))
        threads, team = min(torch.get_num_threads(), tiles), _team()
        with record_function(self._name) if torch.autograd._profiler_enabled() else nullcontext():
            if threads < 2 or team is None or _forked:
                ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._address)(ctypes.addressof(numbers))
            else:
                team(self._address, ctypes.addressof(numbers), threads, 0)
