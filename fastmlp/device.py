"""Every line that knows an accelerator: devices, precision, memory, timers, pinned buffers, streams.

An accelerator is whatever torch serves through torch.get_device_module. CUDA is the supported one; ROCm, which torch
calls CUDA, and XPU are untested. No other module names one: they ask whether a device's type is "cpu".
"""

import ctypes
import os
import resource
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from .worker_pool import cores_per_process


def _accelerator() -> str:
    """Return the type of this torch's accelerator; "cuda" if it has none."""
    found = None if torch.cuda.is_available() else torch.accelerator.current_accelerator()
    return found.type if found is not None else "cuda"


ACCELERATOR = _accelerator()
DEVICES = ("auto", "cpu", "cuda")  # the names that `select` takes; "cuda" is the accelerator


def _module(device: torch.device | str) -> Any:
    """Return torch's module for an accelerator, such as torch.cuda."""
    return torch.get_device_module(device)


def select(name: str) -> torch.device:
    """Return the device named "cpu", "cuda" or "auto" (the accelerator if there is one).

    Of several devices it is the one that torchrun's LOCAL_RANK numbers. Raises ValueError if CUDA is asked for and
    missing, if there are fewer devices than processes, and for another name. FASTMLP_DEVICE in the environment says
    what "auto" is.
    """
    if name not in DEVICES:
        raise ValueError(f"unknown device {name!r}: expected auto, cpu or cuda")
    if name == "auto":
        name = os.environ.get("FASTMLP_DEVICE") or name
        if name not in DEVICES:
            raise ValueError(f"the environment has FASTMLP_DEVICE={name}: expected auto, cpu or cuda")
    if name == "cpu" or not _module(ACCELERATOR).is_available():
        if name == "cuda":
            raise ValueError(
                "asked for the device cuda, but torch sees no CUDA device. Use --cfg.device=auto, for a benchmark "
                "--device auto"
            )
        return torch.device("cpu")
    rank, count = int(os.environ.get("LOCAL_RANK", 0)), _module(ACCELERATOR).device_count()
    if rank >= count:
        raise ValueError(
            f"LOCAL_RANK={rank}, but torch sees {count} device{'s'[: count != 1]}: start at most {count} processes "
            f"on this machine (torchrun --nproc-per-node={count})"
        )
    device = torch.device(ACCELERATOR, rank)
    _module(device).set_device(device)
    return device


def explain_choice(name: str, device: torch.device) -> str:
    """Return which device `select(name)` has chosen, and why; a GPU that torch cannot use is named."""
    named = f"device {device}, {describe(device)}" if device.type != "cpu" else "device CPU"
    if name != "auto":
        return f"{named} (as asked)"
    if asked := os.environ.get("FASTMLP_DEVICE"):
        return f"{named} (FASTMLP_DEVICE={asked})"
    if device.type != "cpu":
        return f"{named} (torch sees it)"
    if (hidden := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None and torch.version.cuda:
        return f"device CPU (torch sees no GPU; the environment has CUDA_VISIBLE_DEVICES={hidden!r})"
    if gpu := _unusable_gpu():
        return (
            f"device CPU, since torch {torch.__version__} cannot use the {gpu} of this machine: it is a CPU build, or "
            "needs a newer driver. .venv/bin/python scripts/self_check.py --gpu says which torch fits"
        )
    return "device CPU (torch sees no GPU)"


def _unusable_gpu() -> str:
    """Return the name of the first NVIDIA GPU that the driver lists, "" if there is none."""
    if not shutil.which("nvidia-smi"):
        return ""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    names = [line.split(":", 1)[1].split("(UUID")[0].strip() for line in listed.splitlines() if line.startswith("GPU ")]
    return names[0] if names else ""


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 on an accelerator that computes with it, else float32.

    CUDA devices before compute capability 8.0 (T4, V100) only emulate it, and on a CPU bfloat16 GEMMs may crawl.
    """
    if device.type == "cpu" or not _module(device).is_bf16_supported():
        return torch.float32
    is_nvidia = device.type == "cuda" and not torch.version.hip
    emulated = is_nvidia and _module(device).get_device_capability(device) < (8, 0)
    return torch.float32 if emulated else torch.bfloat16


def autocast(device: torch.device) -> AbstractContextManager:
    dtype = compute_dtype(device)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def describe(device: torch.device) -> str:
    return "CPU" if device.type == "cpu" else _module(device).get_device_name(device)


def precision(device: torch.device) -> str:
    """Return the precision of the matrix products, as fastmlp.cost.hardware names it.

    TF32 is left off, since cards that have it have bfloat16, too.
    """
    return "bfloat16" if compute_dtype(device) == torch.bfloat16 else "float32"


def free_bytes(device: torch.device) -> int:
    """Return the free memory of an accelerator; for the CPU, what programs can still allocate without swapping."""
    if device.type != "cpu":
        _module(device).empty_cache()  # what torch's allocator keeps unused is free, too
        return _module(device).mem_get_info(device)[0]
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def total_bytes(device: torch.device) -> int:
    """Return the memory of an accelerator."""
    return _module(device).mem_get_info(device)[1]


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory: of tensors on an accelerator, of the process on the CPU."""
    if device.type != "cpu":
        return _module(device).max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reserved_bytes(device: torch.device) -> int:
    """Return the memory of an accelerator that torch's allocator holds, used or not."""
    return _module(device).memory_reserved(device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all submitted work."""
    if device.type != "cpu":
        _module(device).synchronize(device)


def default_num_workers(device: torch.device) -> int:
    """Return the default number of loader threads: one per core of this process, half when training on the CPU.

    On the CPU, where the same cores train, half gives 2 % more images/sec.
    """
    cores = cores_per_process()
    return cores if device.type != "cpu" else max(1, cores // 2)


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


# What full memory is called by others than torch's allocator of a device: page-locked memory, contexts, cuBLAS, Triton,
# and the allocator of the CPU.
OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Triton Error [CUDA]: out of memory",
    "DefaultCPUAllocator",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one that it came from, says that a device's memory is full."""
    return any(
        isinstance(one, torch.OutOfMemoryError) or any(text in str(one) for text in OUT_OF_MEMORY)
        for one in _chain(error)
    )


def is_device_error(error: BaseException) -> bool:
    """Return whether an error, or one that it came from, is full memory or a fault of an accelerator."""
    kinds = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))  # of torch 2.8
    texts = ("CUDA error", "Triton Error [CUDA]")
    return any(isinstance(one, kinds) or any(text in str(one) for text in texts) for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or getattr(error, "inner_exception", None) or error.__context__


@contextmanager
def memory_errors(device: torch.device, advice: Callable[[], str]) -> Iterator[None]:
    """Raise MemoryError, with the advice on how to need less, instead of an accelerator's out-of-memory error."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        free = _module(device).mem_get_info(device)[0] if device.type != "cpu" else free_bytes(device)
        text = str(error).strip()
        reason = text[max(0, text.find("DefaultCPUAllocator")) :].split(". ")[
            0
        ]  # torch goes on with how full its pools are
        raise MemoryError(f"{reason} ({free / 2**30:.2f} GiB free on {describe(device)}): {advice()}") from error


def compiled_or_none(attempt: Callable[[], T], otherwise: str) -> T | None:
    """Return attempt(), which runs torch.compile; if that fails (no compiler, an odd path), warn and return None.

    otherwise: the end of the warning, which says what happens instead. An error of the device is raised.
    """
    try:
        return attempt()
    except Exception as error:  # the compiler raises many kinds
        if is_device_error(error):
            raise
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = (
            lines[1] if lines[0].endswith("raised:") and len(lines) > 1 else lines[0]
        )  # the backend, then the error
        warnings.warn(f"torch.compile failed ({reason.strip()}): {otherwise}", stacklevel=3)
        return None


def _now(device: torch.device) -> Any:
    """Return the host's time on the CPU; on an accelerator an event, after what is queued on the current stream."""
    if device.type == "cpu":
        return time.perf_counter()
    return _recorded_event(device, _module(device).current_stream(device), enable_timing=True)


def _seconds_between(before: Any, after: Any) -> float:
    """Return the seconds between two results of `_now`; events have to be done."""
    return after - before if isinstance(before, float) else before.elapsed_time(after) / 1e3


class Stopwatch:
    """Seconds that work takes on a device: by the device's events, or by the host's clock on the CPU.

    The clock runs from `start`, when the device is idle, until the current stream has finished what was queued on it,
    and what that waits for. Thus it includes the time of the host between.
    """

    def __init__(self, device: torch.device):
        self._device = device

    def start(self) -> None:
        """Start the clock, after waiting for all work of the device."""
        synchronize(self._device)
        self._started = _now(self._device)

    def stop(self) -> float:
        """Return the seconds since `start`, after waiting for all work of the device."""
        stopped = _now(self._device)
        synchronize(self._device)
        return _seconds_between(self._started, stopped)


class PhaseTimer:
    """Seconds between marks, summed by name. On an accelerator they are device time.

    Nothing waits until they are read, except that the host is never more than MAX_MARKS marks ahead of the device.
    """

    MAX_MARKS = 1024  # a few hundred steps: events that are kept until they are read

    def __init__(self, device: torch.device):
        self._device = device
        self._marks: list[tuple[str, Any]] = [("", _now(device))]
        self._sums: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Add the time since the last mark to `name`."""
        self._marks.append((name, _now(self._device)))
        if self._device.type == "cpu":
            self._add_up(2)
        elif len(self._marks) > self.MAX_MARKS:
            self._add_up(self.MAX_MARKS // 2)

    def _add_up(self, count: int) -> None:
        """Add the first `count` marks to the sums, and keep the last of them as the start of those that follow."""
        marks, self._marks = self._marks[:count], self._marks[count - 1 :]
        if self._device.type != "cpu":
            marks[-1][1].synchronize()
        for (_, before), (name, after) in zip(marks, marks[1:], strict=False):
            self._sums[name] = self._sums.get(name, 0.0) + _seconds_between(before, after)

    def seconds(self) -> dict[str, float]:
        """Return the seconds by name since the last call. Waits for the device."""
        self._add_up(len(self._marks))
        sums, self._sums = self._sums, {}
        return sums


def host_buffer(size_bytes: int, pinned: bool = False) -> np.ndarray:
    """Return an uninitialised (size_bytes,) uint8 array, aligned to a cache line.

    pinned: page-locked, so that copies to an accelerator run in the background.
    """
    if pinned:
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True).numpy()
    whole = np.empty(size_bytes + 64, np.uint8)  # NumPy asks for huge pages, torch does not
    offset = -whole.ctypes.data % 64
    return whole[offset : offset + size_bytes]


def storage_uses(tensor: torch.Tensor) -> int:
    """Return how many tensors share a tensor's storage, itself included; torch's CUDA graphs count this way too."""
    return torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)


Reader = tuple[torch.device, Any]  # a device, and the stream on it that has received a batch


class StreamHandoff:
    """Stream order between a loader's threads and its consumers, on the accelerators that its pipelines send to.

    It has one stream per device for as long as the loader lives, since torch's allocator keeps memory for the stream
    that has used it. The loading thread copies on that stream. The consumer's stream waits for the copy, and a slot is
    written again only when all work is done that the consumer had submitted when it gave the slot back. FFCV's
    event.wait() orders only streams, while the host continues and overwrites the slot (ffcv/loader/epoch_iterator.py).
    Streams are noted when a batch is received and when the next one is asked for; a caller who goes on to a third
    stream with a batch orders it before one of these.

    Without devices it does nothing: it makes no context, stream or event.
    """

    def __init__(self, devices: Iterable[torch.device]):
        self._streams = {device: _module(device).Stream(device=device) for device in devices}

    @contextmanager
    def loading(self) -> Iterator[None]:
        """A context for the loading thread, in which it works on these devices and streams, and opens no other."""
        with ExitStack() as stack:
            for device, stream in self._streams.items():
                _module(device).set_device(device)  # what `stream` puts back at its end
                stack.enter_context(_module(device).stream(stream))
            yield

    def loaded(self) -> list[Any]:
        """Return the events that the consumer has to wait for. Called in the loading thread, after a batch."""
        return [_recorded_event(device, stream) for device, stream in self._streams.items()]

    def receive(self, loaded: list[Any], batch: Any) -> set[Reader]:
        """Make the consumer's streams wait for a batch, and own from here on what operations allocated for it.

        Returns these streams: the readers of the batch.
        """
        readers = self.current_streams()
        for (_, reader), event in zip(readers, loaded, strict=True):
            reader.wait_event(event)
        for tensor in tree_leaves(batch) if readers else ():
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "cpu":
                tensor.record_stream(_module(tensor.device).current_stream(tensor.device))
        return set(readers)

    def current_streams(self) -> list[Reader]:
        """Return the calling thread's current streams on the devices."""
        return [(device, _module(device).current_stream(device)) for device in self._streams]

    def submitted(self, readers: Iterable[Reader]) -> list[Any]:
        """Return events for the work that the readers have submitted so far, for `wait`."""
        return [_recorded_event(device, stream) for device, stream in readers]

    def wait(self, events: Iterable[Any]) -> None:
        """Wait in the loading thread until a slot's last batch has been read and the slot may be written again."""
        for event in events:
            event.synchronize()

    def finish(self) -> None:
        """Wait for copies that nobody has received."""
        self.wait(self.loaded())


def _recorded_event(device: torch.device, stream: Any, enable_timing: bool = False) -> Any:
    """Return an event recorded on a stream. A thread that waits for it sleeps instead of taking a core."""
    options = {"blocking": True} if device.type == "cuda" else {}  # XPU's has no such option
    event = _module(device).Event(enable_timing=enable_timing, **options)
    event.record(stream)
    return event


def resolve(device: torch.device) -> torch.device:
    """Return the device with its number: without one it is the current device of its type."""
    if device.type == "cpu" or device.index is not None:
        return device
    return torch.device(device.type, _module(device).current_device())
