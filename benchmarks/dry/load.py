"""Loads torch with the stub of a CUDA device. Import this before torch; nothing here imports it.

The order matters: the stub registers itself in libc10 and libtorch_cpu, whose symbols have to be global, and that is
settled by whoever loads them first. libgomp is the wheel's own, which the loader would not find by itself.
"""

import ctypes
import importlib.util
from pathlib import Path


def load_torch(stub: Path) -> None:
    spec = importlib.util.find_spec("torch")
    assert spec and spec.origin
    folder = Path(spec.origin).parent / "lib"
    for library in (*sorted(folder.glob("libgomp*")), folder / "libc10.so", folder / "libtorch_cpu.so", stub):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    import torch

    torch.set_num_threads(1)
