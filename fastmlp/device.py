"""Every CUDA-only line: which device, which precision."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch


def choose(name: str) -> torch.device:
    """"cpu", "cuda" or "auto" (CUDA where there is one). Raises ValueError where CUDA is asked for and missing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--cfg.device=cuda, but torch sees no CUDA device. Use --cfg.device=auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")  # TF32, as the paper's code allows
    return torch.device("cuda")


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA where the device has it; float32 on the CPU, where bfloat16 GEMMs may crawl."""
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def autocast(device: torch.device) -> AbstractContextManager:
    dtype = compute_dtype(device)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def host_buffer(size_bytes: int) -> np.ndarray:
    """(size_bytes,) uint8, uninitialised, aligned to a cache line.

    Page-locked where there is CUDA, so that copies to it run alongside.
    """
    if torch.cuda.is_available():
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True).numpy()
    whole = np.empty(size_bytes + 64, np.uint8)  # NumPy asks for huge pages, torch does not
    offset = -whole.ctypes.data % 64
    return whole[offset : offset + size_bytes]


def storage_uses(tensor: torch.Tensor) -> int:
    """How many tensors share a tensor's storage, itself counted in; torch's CUDA graphs count this way too."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


class Handover:
    """CUDA's part in handing batches from the loading thread to the consumer; does nothing where there is no CUDA.

    The loading thread copies on a stream of its own. The consumer's stream waits for that copy, and a slot is
    written again only after all work that the consumer had submitted when it gave the slot back is done. FFCV's
    event.wait() orders streams alone, while the host goes on and overwrites (ffcv/loader/epoch_iterator.py).
    """

    def __init__(self) -> None:
        self._active = torch.cuda.is_available()
        self._stream = torch.cuda.Stream() if self._active else None

    def loading(self) -> AbstractContextManager:
        return torch.cuda.stream(self._stream) if self._active else nullcontext()

    def loaded(self) -> torch.cuda.Event | None:
        """In the loading thread, after a batch: what the consumer has to wait for."""
        return self._stream.record_event() if self._stream is not None else None

    def receive(self, loaded: torch.cuda.Event | None, batch: Iterable[Any]) -> None:
        """In the consumer, before it uses a batch; what operations allocated is its stream's from here on."""
        if loaded is not None:
            torch.cuda.current_stream().wait_event(loaded)
            for tensor in batch:
                if isinstance(tensor, torch.Tensor) and tensor.is_cuda:
                    tensor.record_stream(torch.cuda.current_stream())

    def give_back(self) -> torch.cuda.Event | None:
        """In the consumer, when it is done with a batch: what the loading thread has to wait for."""
        return torch.cuda.current_stream().record_event() if self._active else None

    def finish(self) -> None:
        """Waits for copies that nobody received."""
        if self._stream is not None:
            self._stream.synchronize()

    def reuse(self, given_back: torch.cuda.Event | None) -> None:
        """In the loading thread, before it writes the slot again."""
        if given_back is not None:
            given_back.synchronize()
