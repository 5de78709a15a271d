"""Rows of bytes by address into a buffer, at the speed of memory."""

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic


@intrinsic
def _memcpy(typingctx, target, source, count):
    """C's memcpy between addresses. (ctypes' own cannot be in a function that numba caches on disk.)"""

    def generate(context, builder, signature, args):
        pointer = ir.IntType(8).as_pointer()
        to, come_from = (builder.inttoptr(arg, pointer) for arg in args[:2])
        cgutils.raw_memcpy(builder, to, come_from, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.uintp), generate


@nb.njit(parallel=True, nogil=True, cache=True)
def _gather(source, addresses, out, row_bytes):
    for i in nb.prange(len(addresses)):
        _memcpy(
            np.uintp(out.ctypes.data) + np.uintp(i * row_bytes),
            np.uintp(source.ctypes.data) + np.uintp(addresses[i]),
            np.uintp(row_bytes),
        )


def gather_rows(
    source: np.ndarray,  # (N,) uint8
    addresses: np.ndarray,  # (B,) uint64, each row's start in `source`; not checked
    out: np.ndarray,  # (B, ...) contiguous, written
) -> None:
    """out[i] = the bytes of `source` from addresses[i] on, by all of numba's threads."""
    if len(out):
        _gather(source, addresses, out, out.nbytes // len(out))
