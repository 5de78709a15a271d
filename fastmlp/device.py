"""Every CUDA-only line: which device, which precision; and what serves both kinds: memory, clocks."""

import ctypes
import os
import resource
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .worker_pool import num_cores


def select(name: str) -> torch.device:
    """ "cpu", "cuda" or "auto" (CUDA where there is one). Raises ValueError where CUDA is asked for and missing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--cfg.device=cuda, but torch sees no CUDA device. Use --cfg.device=auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")  # TF32, as the paper's code allows
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))  # torchrun's, one for each process
    torch.cuda.set_device(device)
    return device


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA where the device has it; float32 on the CPU, where bfloat16 GEMMs may crawl."""
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_it else torch.float32


def autocast(device: torch.device) -> AbstractContextManager:
    dtype = compute_dtype(device)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def precision(device: torch.device) -> str:
    """Of the matrix products, as fastmlp.cost.hardware names it."""
    return "bfloat16" if compute_dtype(device) == torch.bfloat16 else "tf32" if device.type == "cuda" else "float32"


def free_bytes(device: torch.device) -> int:
    """Of a CUDA device's memory; on the CPU what programs may still take without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def peak_memory_bytes(device: torch.device) -> int:
    """The most that has been in use: by tensors on CUDA, by the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def synchronize(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def default_num_workers(device: torch.device) -> int:
    """That suit training there: one per core, but half of them where the cores train, too (2 % more images/sec)."""
    cores = num_cores()
    return cores if device.type == "cuda" else max(1, cores // 2)


def tune_malloc() -> None:
    """Makes malloc keep what is freed, where it is glibc's.

    It would hand each freed tensor of megabytes back to the system, and the next of that size would be mapped anew, a
    page fault for every 4 kB: 11,500 faults per step of B_6-Wi_256 at batch 1024, 38 with this.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another malloc
        return
    trim_threshold, mmap_threshold, largest = -1, -3, 2**31 - 1
    mallopt(trim_threshold, largest)
    mallopt(mmap_threshold, largest)


class PhaseTimer:
    """Seconds between marks, summed by name. On CUDA they are the device's, and nothing waits until they are read."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = [("", self._now())]
        self._sums: dict[str, float] = {}

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def mark(self, name: str) -> None:
        """What has passed since the last mark counts for `name`."""
        now = self._now()
        if self._cuda:
            self._marks.append((name, now))
        else:
            self._sums[name] = self._sums.get(name, 0.0) + now - self._marks[0][1]
            self._marks[0] = ("", now)

    def seconds(self) -> dict[str, float]:
        """By name, since the last call. Waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
            for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
                self._sums[name] = self._sums.get(name, 0.0) + before.elapsed_time(after) / 1e3
            self._marks = self._marks[-1:]
        sums, self._sums = self._sums, {}
        return sums


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


class StreamHandoff:
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
