"""Every CUDA-only line: which device, which precision."""

from contextlib import AbstractContextManager, nullcontext

import torch


def choose(name: str) -> torch.device:
    """"cpu", "cuda" or "auto" (CUDA where there is one). Raises ValueError where CUDA is asked for and missing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--cfg.device=cuda, but torch sees no CUDA device. Use --cfg.device=auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")  # TF32, as the paper's code allows
    return torch.device("cuda")


def autocast(device: torch.device) -> AbstractContextManager:
    """bfloat16 on CUDA where the device has it; float32 on the CPU, where bfloat16 GEMMs may crawl."""
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.autocast("cuda", torch.bfloat16)
    return nullcontext()


def describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
