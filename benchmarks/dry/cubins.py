"""Compiles the Triton kernels as the card would, and reads what they take: registers, spills, shared memory."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch._inductor.config as inductor_config
import triton
from torch._inductor.runtime.triton_heuristics import CachingAutotuner

from .resources import Resources, worst


def compile_kernel(name: str, source: str, folder: Path) -> Resources:
    """Compile a kernel for the card that is pretended. Raises what Triton raises."""
    path = folder / f"{name}.py"
    path.write_text(source)
    space: dict[str, Any] = {"__name__": name, "__file__": str(path)}
    exec(compile(source, str(path), "exec"), space)
    tuner = space[name]
    assert isinstance(tuner, CachingAutotuner), type(tuner)
    found = []
    with inductor_config.patch(use_static_cuda_launcher=False, strict_static_cuda_launcher=False):
        for config in tuner.configs:
            found.append(_resources(tuner._precompile_config(config).kernel))
    return worst(found)


def _resources(binary: Any) -> tuple[int, int, int]:
    """Return registers, bytes of spills, bytes of shared memory."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", told)}
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"], binary.metadata.shared
