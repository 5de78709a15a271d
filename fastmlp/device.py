"""Every line that knows an accelerator: devices, precision, memory, timers, pinned buffers, streams."""

import ctypes
import os
import resource
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from .worker_pool import num_cores


def select(name: str) -> torch.device:
    """Return the device named "cpu", "cuda" or "auto" (CUDA if there is a device).

    Raises ValueError if CUDA is asked for and missing.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--cfg.device=cuda, but torch sees no CUDA device. Use --cfg.device=auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    torch.set_float32_matmul_precision("high")  # TF32, as the paper's code allows
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))  # torchrun's, one for each process
    torch.cuda.set_device(device)
    return device


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 on CUDA if the device supports it, otherwise float32: on a CPU bfloat16 GEMMs may crawl."""
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_it else torch.float32


def autocast(device: torch.device) -> AbstractContextManager:
    dtype = compute_dtype(device)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def describe(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def precision(device: torch.device) -> str:
    """Return the precision of the matrix products, as fastmlp.cost.hardware names it."""
    return "bfloat16" if compute_dtype(device) == torch.bfloat16 else "tf32" if device.type == "cuda" else "float32"


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a CUDA device; for the CPU, what programs can still allocate without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory: of tensors on CUDA, of the process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all submitted work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def default_num_workers(device: torch.device) -> int:
    """Return the default number of loader threads: one per core, half of them when training on the CPU.

    On the CPU, where the same cores train, half gives 2 % more images/sec.
    """
    cores = num_cores()
    return cores if device.type == "cuda" else max(1, cores // 2)


def tune_malloc() -> None:
    """Make glibc's malloc keep freed memory; do nothing with another malloc.

    By default each freed tensor of megabytes is returned to the system, and the next one of that size is mapped again,
    with a page fault for every 4 kB: 11,500 faults per step of B_6-Wi_256 at batch 1024, 38 with this.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another malloc
        return
    trim_threshold, mmap_threshold, largest = -1, -3, 2**31 - 1
    mallopt(trim_threshold, largest)
    mallopt(mmap_threshold, largest)


T = TypeVar("T")


def compiled_or_none(attempt: Callable[[], T], otherwise: str) -> T | None:
    """Return attempt(), which runs torch.compile; if that fails (no compiler, an odd path), warn and return None.

    otherwise: the end of the warning, which says what happens instead.
    """
    try:
        return attempt()
    except Exception as error:  # the compiler raises many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(f"torch.compile failed ({reason}): {otherwise}", stacklevel=3)
        return None


class PhaseTimer:
    """Seconds between marks, summed by name. On CUDA they are device time, and nothing waits until they are read."""

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
        """Add the time since the last mark to `name`."""
        now = self._now()
        if self._cuda:
            self._marks.append((name, now))
        else:
            self._sums[name] = self._sums.get(name, 0.0) + now - self._marks[0][1]
            self._marks[0] = ("", now)

    def seconds(self) -> dict[str, float]:
        """Return the seconds by name since the last call. Waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
            for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
                self._sums[name] = self._sums.get(name, 0.0) + before.elapsed_time(after) / 1e3
            self._marks = self._marks[-1:]
        sums, self._sums = self._sums, {}
        return sums


def host_buffer(size_bytes: int) -> np.ndarray:
    """Return an uninitialised (size_bytes,) uint8 array, aligned to a cache line.

    It is page-locked if there is CUDA, so that copies to the device run in the background.
    """
    if torch.cuda.is_available():
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True).numpy()
    whole = np.empty(size_bytes + 64, np.uint8)  # NumPy asks for huge pages, torch does not
    offset = -whole.ctypes.data % 64
    return whole[offset : offset + size_bytes]


def storage_uses(tensor: torch.Tensor) -> int:
    """Return how many tensors share a tensor's storage, itself included; torch's CUDA graphs count this way too."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


class StreamHandoff:
    """Stream order between the loading thread and the consumer; does nothing without CUDA.

    The loading thread copies on a stream of its own. The consumer's stream waits for that copy, and a slot is
    written again only after all work that the consumer had submitted when it returned the slot is done. FFCV's
    event.wait() orders only streams, while the host continues and overwrites the slot (ffcv/loader/epoch_iterator.py).
    """

    def __init__(self) -> None:
        self._active = torch.cuda.is_available()
        self._stream = torch.cuda.Stream() if self._active else None

    def loading(self) -> AbstractContextManager:
        return torch.cuda.stream(self._stream) if self._active else nullcontext()

    def loaded(self) -> torch.cuda.Event | None:
        """Return the event that the consumer has to wait for. Called in the loading thread, after a batch."""
        return self._stream.record_event() if self._stream is not None else None

    def receive(self, loaded: torch.cuda.Event | None, batch: Iterable[Any]) -> None:
        """Wait for a batch in the consumer's stream, which owns what operations allocated from here on."""
        if loaded is not None:
            torch.cuda.current_stream().wait_event(loaded)
            for tensor in batch:
                if isinstance(tensor, torch.Tensor) and tensor.is_cuda:
                    tensor.record_stream(torch.cuda.current_stream())

    def give_back(self) -> torch.cuda.Event | None:
        """Return the event that the loading thread has to wait for. Called in the consumer, after a batch."""
        return torch.cuda.current_stream().record_event() if self._active else None

    def finish(self) -> None:
        """Wait for copies that nobody received."""
        if self._stream is not None:
            self._stream.synchronize()

    def reuse(self, given_back: torch.cuda.Event | None) -> None:
        """Wait in the loading thread until a slot may be written again."""
        if given_back is not None:
            given_back.synchronize()
