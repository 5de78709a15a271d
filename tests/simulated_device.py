"""A simulated accelerator in host memory: torch tensors of two devices "simgpu:0" and "simgpu:1", with streams.

Each operation computes at once, with the CPU's kernel: an order that the program allows as long as it has no race.
What the host can see happens as late as it may, when the host waits (synchronize, item, a copy): events and streams are
done, copies into pinned buffers arrive, and pinned buffers are compared with what was read from them. Each access is
checked against vector clocks: RaceError names an access that no event orders, memory that is freed while another stream
uses it (raised by the next operation or wait), and a pinned buffer that the host overwrites before it is copied. New
memory holds NaN or 0xFF. It is accounted like that of a caching allocator, which gives it back to the same stream only.

`install()` registers the devices for the rest of the process. `run_inside(__file__)`, in a test, runs the functions of
a file that are named simulated_* in a process of their own with the devices installed, each followed by a check that no
race is left. A wait hides races from what follows, so tests wait rarely: they clone, and compare at the end.

Limits: backward only on simgpu:0, on the main thread's current stream, wherever forward ran; one generator, the CPU's;
torch.load only to the CPU; no torch.compile, CUDA graphs and torch.accelerator streams. A pinned buffer that a queued
copy fills must not be sent by another queued copy. Torch's private API may change: see `self_test`.
"""

import contextlib
import ctypes
import functools
import gc
import os
import subprocess
import sys
import threading
import time
import types
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest
import torch
from torch import Tensor

NAME = "simgpu"
KEY, DLPACK_DEVICE, DEVICE_TYPE = "PrivateUse1", 12, 20  # the names of PrivateUse1 for dispatch, DLPack and C++
INSIDE = os.environ.get("FASTMLP_SIMULATED") == "1"  # whether run_inside started this process
ROOT = f"{Path(__file__).parent.parent}/"
aten = torch.ops.aten
Device = int | str | torch.device | None


class RaceError(RuntimeError):
    """Two accesses to memory that nothing orders."""


@dataclass
class Counters:
    """What the program did since the last reset."""

    syncs: Counter = field(default_factory=Counter)  # (kind, "file:line function") -> waits of the host
    by_thread: Counter = field(default_factory=Counter)  # (thread's name, kind) -> waits of the host
    launches: int = 0  # operations, copies and events
    streams: int = 0  # made
    pinned_buffers: int = 0  # made
    contexts: set[int] = field(default_factory=set)  # indices of the devices that were touched


class Queue:
    """The work of one stream, and its share of the device's memory."""

    def __init__(self, number: int, index: int):
        self.number, self.index = number, index
        self.last = self.done = 0  # numbers of the work queued last, and finished last as the host knows
        self.late: deque[tuple[int, Callable[[], Any]]] = deque()  # what the host can see, by number of the work
        self.clock: dict[Queue, int] = {}  # the work of other streams that is done before what is queued here next
        self.free_bytes = 0  # reserved, to be used again by this stream only
        self.pending: list[tuple[int, list[tuple[Queue, int]]]] = []  # freed bytes, and the uses to wait for

    def knows(self, other: "Queue", number: int) -> bool:
        """Return whether `other`'s work up to `number` is done before what is queued here from now on."""
        return other is self or number <= other.done or self.clock.get(other, 0) >= number

    def collect(self) -> None:
        """Make freed memory available again after its last use."""
        for entry in [e for e in self.pending if all(user.done >= number for user, number in e[1])]:
            self.pending.remove(entry)
            self.free_bytes += entry[0]

    def __repr__(self) -> str:
        return f"stream {self.number} of {NAME}:{self.index}"


@dataclass(eq=False)
class Block:
    """An allocation: its bytes on the host, the stream that owns it, and the accesses since the last write."""

    storage: torch.UntypedStorage
    owner: Queue
    size_bytes: int
    recorded: set[Queue] = field(default_factory=set)  # by record_stream
    write: tuple[Queue, int, str] | None = None
    reads: dict[Queue, tuple[int, str]] = field(default_factory=dict)


Blocks: TypeAlias = Sequence[Block]
Late: TypeAlias = Callable[[], Any] | None


class Memory:
    """The memory of one device: bytes in tensors, and bytes that the allocator has reserved."""

    def __init__(self) -> None:
        self.allocated = self.reserved = self.max_allocated = 0

    def take(self, queue: Queue, size_bytes: int) -> None:
        """Give a stream memory: its own free memory, or new memory up to the limit. Raises torch.OutOfMemoryError."""
        queue.collect()
        if self.reserved + max(0, size_bytes - queue.free_bytes) > sim.limit_bytes:
            self.release(queue.index)  # as CUDA's allocator does before it fails
        more = max(0, size_bytes - queue.free_bytes)
        if self.reserved + more > sim.limit_bytes:
            raise torch.OutOfMemoryError(f"{NAME} out of memory. Tried to allocate {size_bytes} bytes. {queue}.")
        queue.free_bytes += more - size_bytes
        self.reserved += more
        self.allocated += size_bytes
        self.max_allocated = max(self.max_allocated, self.allocated)

    def release(self, index: int) -> None:
        """Give up the memory that no tensor uses, after waiting for the streams of record_stream as CUDA does."""
        for queue in [q for q in list(sim.queues.values()) if q.index == index]:
            for user, number in [use for _, uses in queue.pending for use in uses]:
                sim.finish(user, number)
            queue.collect()
            self.reserved -= queue.free_bytes
            queue.free_bytes = 0


class Simulator:
    """The state of the simulated devices. `limit_bytes` and `bfloat16` may be set at any time."""

    def __init__(self) -> None:
        self.devices, self.limit_bytes, self.bfloat16 = 0, 1 << 31, True
        self.lock, self.local = threading.RLock(), threading.local()
        self.queues: dict[tuple[int, int], Queue] = {}  # by (number, device index)
        self.blocks: dict[int, Block] = {}  # by address
        self.pinned: dict[int, Tensor] = {}  # the bytes of pinned buffers by address
        self.races: list[str] = []  # found where nothing may be raised; the next operation or wait raises them
        self.memory = [Memory(), Memory()]
        self.main_streams: dict[int, int] = {}
        self.kept: list[Any] = []  # the registered kernels
        self.next_stream = 1
        self.counters = Counters()

    def queue(self, number: int, index: int) -> Queue:
        with self.lock:
            return self.queues.get((number, index)) or self.queues.setdefault((number, index), Queue(number, index))

    def streams(self) -> dict[int, int]:
        """Return this thread's current stream by device. The threads of autograd follow the main thread."""
        if not hasattr(self.local, "streams"):
            thread = threading.current_thread()
            follows = thread is threading.main_thread() or isinstance(thread, threading._DummyThread)
            self.local.streams = self.main_streams if follows else {}
        return self.local.streams

    def current(self, index: int) -> Queue:
        return self.queue(self.streams().get(index, 0), index)

    def finish(self, queue: Queue, last: int) -> None:
        """Let a stream's work up to number `last` be done, and what that waits for."""
        with self.lock, torch.inference_mode(False):
            while queue.late and queue.late[0][0] <= last:
                queue.late.popleft()[1]()
            queue.done = max(queue.done, last)

    def raise_races(self) -> None:
        if self.races:
            found, self.races[:] = list(self.races), []
            raise RaceError("; ".join(found))

    def wait(self, kind: str, *queues: Queue, last: int | None = None) -> None:
        """Let the host wait for streams, which is counted, and raise races found meanwhile."""
        with self.lock:
            self.counters.syncs[kind, call_site()] += 1
            self.counters.by_thread[threading.current_thread().name, kind] += 1
            for queue in queues:
                self.finish(queue, queue.last if last is None else last)
            self.raise_races()

    def launch(self, what: str, queue: Queue, reads: Blocks = (), writes: Blocks = (), late: Late = None) -> int:
        """Note work and what the host sees of it; return its number. Raises RaceError if no event orders an access."""
        with self.lock:
            self.raise_races()
            for blocks, access in ((reads, "reads"), (writes, "writes")):
                for block in blocks:
                    others = [(*block.write, "written")] if block.write else []
                    if access == "writes":
                        others += [(other, number, by, "read") for other, (number, by) in block.reads.items()]
                    for other, number, by, how in others:
                        if not queue.knows(other, number):
                            text = f"race: {what} on {queue} {access} memory {how} by {by} on {other}"
                            raise RaceError(f"{text}, without waiting for it [{call_site()}]")
            queue.last += 1
            for block in reads:
                block.reads[queue] = (queue.last, what)
            for block in writes:
                block.write, block.reads = (queue, queue.last, what), {}
            self.counters.launches += 1
            self.counters.contexts.add(queue.index)
            if late is not None:
                queue.late.append((queue.last, late))
            return queue.last

    def freed(self, address: int) -> None:
        """Take back the memory of a block whose last tensor is gone."""
        with self.lock:
            block = self.blocks.pop(address)
            owner = block.owner
            uses = [(queue, number, by) for queue, (number, by) in block.reads.items()]
            for queue, number, by in uses + ([block.write] if block.write else []):
                if queue not in block.recorded and not owner.knows(queue, number):
                    text = f"race: memory of {owner} is freed while {by} on {queue} uses it"
                    self.races.append(f"{text}, without record_stream")
            self.memory[owner.index].allocated -= block.size_bytes
            waits = [(queue, queue.last) for queue in block.recorded if queue is not owner]
            owner.pending.append((block.size_bytes, waits))


sim = Simulator()


def call_site() -> str:
    """Return where the project is, or else who called torch: "fastmlp/loader/slots.py:40 buffer"."""
    frame, found = sys._getframe(1), ""
    while frame is not None and not found.startswith(ROOT):
        file = frame.f_code.co_filename
        if file != __file__ and "site-packages" not in file and (file.startswith(ROOT) or not found):
            found = f"{file}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return found.removeprefix(ROOT) or "autograd"


_torch_empty, _CPU = torch.empty, torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def device_index(device: Device) -> int:
    """Return the index that a device, its name or None (the current device) means."""
    index = device if isinstance(device, int) or device is None else torch.device(device).index
    return current_device() if index is None else index


def poison(tensor: Tensor) -> Tensor:
    """Fill a tensor on the host with what nobody expects: NaN, -1, 255, True."""
    return tensor.fill_(torch.nan if tensor.is_floating_point() or tensor.is_complex() else -1)


def adopt(host: Tensor, index: int, written: tuple[Queue, int, str] | None = None) -> Tensor:
    """Return a tensor of a device in the memory of a new tensor on the host, by a DLPack capsule that names the device.

    Raises torch.OutOfMemoryError.
    """
    if host.storage_offset() or host.data_ptr() in sim.blocks:  # part of other memory
        host = host.clone()
    storage, address, queue = host.untyped_storage(), host.data_ptr(), sim.current(index)
    size_bytes = -(-storage.nbytes() // 512) * 512 if address else 0
    with sim.lock:
        sim.counters.contexts.add(index)
        sim.memory[index].take(queue, size_bytes)
        capsule = torch._C._to_dlpack(host)
        fields = (ctypes.c_int32 * 2).from_address(_capsule_pointer(capsule, b"dltensor") + 8)
        fields[0], fields[1] = DLPACK_DEVICE, index
        tensor = torch._C._from_dlpack(capsule)
        if address:
            sim.blocks[address] = Block(storage, queue, size_bytes, write=written)
            weakref.finalize(tensor.untyped_storage(), sim.freed, address).atexit = False
    return tensor


def block_of(tensor: Tensor) -> list[Block]:
    """Return the block that a device tensor lives in, in a list; none if the tensor is empty."""
    return [sim.blocks[tensor.untyped_storage().data_ptr()]] if tensor.numel() else []


def alias(tensor: Tensor, blocks: list[Block]) -> Tensor:
    """Return the CPU tensor that shares a device tensor's memory, without its history."""
    if not blocks:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    bare = _torch_empty(0, dtype=tensor.dtype)
    return bare.set_(blocks[0].storage, tensor.storage_offset(), tensor.size(), tensor.stride())


def on_host(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the CPU's kernel, also on device tensors if it touches no memory."""
    return op.redispatch(_CPU, *args, **kwargs)


def tree_map(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Return a value with function(tensor) instead of each tensor in it; lists and tuples are searched."""
    if isinstance(value, Tensor):
        return function(value)
    return type(value)(tree_map(function, each) for each in value) if isinstance(value, list | tuple) else value


class Signature(NamedTuple):
    name: str
    arguments: list[str]
    written: set[str]
    views: bool  # whether its result shares memory with an argument
    waits: bool  # whether the host waits: the result's shape, or its type, depends on the data
    returned: list[str | None]  # for each result the argument that it is, None for a new tensor


@functools.cache
def signature(op: Any) -> Signature:
    """Return what an operator's schema says about memory."""

    def same(one: Any, other: Any) -> bool:
        return bool(one and other) and one.before_set == other.before_set

    arguments, returns = [(a.name, a.alias_info) for a in op._schema.arguments], op._schema.returns
    return Signature(
        name=op.overloadpacket.__name__.replace("_local_scalar_dense", "item"),
        arguments=[name for name, _ in arguments],
        written={name for name, info in arguments if info and info.is_write},
        views=op.overloadpacket is aten.set_ or any(r.alias_info and not r.alias_info.is_write for r in returns),
        waits=not {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}.isdisjoint(op.tags),
        returned=[next((n for n, i in arguments if same(i, r.alias_info)), None) for r in returns],
    )


def fallback(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Call an operator's CPU kernel on the current stream; any operator of the device without a kernel of its own."""
    what = signature(op)
    if what.views:
        return on_host(op, *args, **kwargs)
    index, reads, writes, waits = -1, list[Block](), list[Block](), what.waits

    def real(tensor: Tensor) -> Tensor:
        nonlocal index, waits
        if tensor.device.type == NAME:
            if index not in (-1, tensor.device.index):
                raise RaceError(f"{what.name} mixes tensors of {NAME}:{index} and {tensor.device} [{call_site()}]")
            index, blocks = tensor.device.index, block_of(tensor)
            (writes if name in what.written else reads).extend(blocks)
            return alias(tensor, blocks)
        if name == "indices":  # advanced indexing takes them from the host, and waits
            waits = True
        elif tensor.dim() or name in what.written:  # what has no dimensions is a number
            raise RuntimeError(f"{what.name}: expected all tensors on the same device, but {name} is on the CPU")
        return tensor

    inner, given = {}, dict(zip(what.arguments, args, strict=False)) | kwargs
    for name, value in given.items():
        inner[name] = tree_map(real, value)
    with sim.lock:
        queue = sim.current(index)
        number = sim.launch(what.name, queue, reads, writes)
        if waits:
            sim.wait(what.name, queue)
        results = op(**inner)

        def new(host: Tensor) -> Tensor:
            return adopt(host, index, (queue, number, what.name))

        for name in what.written:
            tensor = given[name]
            if isinstance(tensor, Tensor) and tensor.size() != inner[name].size():  # given as out=, or resize_'s
                if tensor.numel():
                    raise NotImplementedError(f"{NAME}: {what.name} resizes a tensor with elements")
                on_host(aten.set_.source_Tensor, tensor, new(inner[name]))
        each = zip(what.returned, (results,) if len(what.returned) == 1 else results or (), strict=True)
        found = tuple(given[name] if name else tree_map(new, result) for name, result in each)
        return found[0] if len(found) == 1 else found or None


def empty(size: Any, stride: Any = None, *, dtype: Any = None, device: Device = None, **kwargs: Any) -> Tensor:
    """Implement empty, and empty_strided, which has a stride."""
    if stride is None:
        layout = kwargs.get("memory_format") or torch.contiguous_format
        host = _torch_empty(size, dtype=dtype, memory_format=layout, device="cpu")
    else:
        host = torch.empty_strided(size, stride, dtype=dtype, device="cpu")
    return adopt(poison(host), device_index(device))


def copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Implement copy_ on a device, to it, from it, and between devices.

    A queued copy refers to no tensor: a program that reuses memory once nothing refers to it would look right.
    """
    up, down = source.device.type != NAME, target.device.type != NAME
    read = [] if up else block_of(source)
    value = source.detach() if up else alias(source, read)
    if down:
        queue, buffer = sim.current(source.device.index), pinned_alias(target) if non_blocking else None
        late = None if buffer is None else functools.partial(buffer.copy_, value.clone())
        sim.launch("copy_ to the host", queue, read, late=late)
        if late is None:
            sim.wait("copy to the host", queue)
            target.detach().copy_(value)
        return target
    queue, written = sim.current(target.device.index), block_of(target)
    with sim.lock:
        if up:
            sim.launch("copy_ from the host", queue, (), written, still_equal(source) if non_blocking else None)
            if not non_blocking:
                sim.wait("copy to the device", queue)
            alias(target, written).copy_(value)
            return target
        by = sim.current(source.device.index)
        if queue is not by:  # as CUDA does: on the source's stream, with both streams waiting before and after
            Event().record_on(queue).wait_on(by)
        sim.launch("copy_", by, read, written)
        alias(target, written).copy_(value)
        if queue is not by:
            Event().record_on(by).wait_on(queue)
    return target


def record_stream(tensor: Tensor, stream: torch.Stream) -> None:
    """Implement Tensor.record_stream."""
    for block in block_of(tensor):
        block.recorded.add(sim.queue(stream.stream_id, stream.device_index))


def pinned_empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
    """Replace torch.empty: the same, with pinned memory, which queued copies keep alive but do not refer to."""
    out = _torch_empty(*args, **kwargs)
    if pin_memory and out.numel():
        root = poison(_torch_empty(out.nbytes, dtype=torch.uint8))
        out = torch.from_dlpack(root).view(out.dtype).view(out.shape)
        with sim.lock:
            sim.pinned[root.data_ptr()] = root
            sim.counters.pinned_buffers += 1
            if not sim.counters.contexts:  # pinning needs a context, that of any device
                sim.counters.contexts.add(current_device())
        weakref.finalize(out.untyped_storage(), sim.pinned.pop, root.data_ptr(), None).atexit = False
    return out


def pinned_alias(tensor: Tensor) -> Tensor | None:
    """Return a tensor of the same pinned memory that does not refer to the other; None if it is not pinned."""
    address = tensor.data_ptr()
    for first, root in list(sim.pinned.items()):
        if first <= address < first + root.nbytes and tensor.numel():
            with torch.inference_mode(False):
                bare, offset = _torch_empty(0, dtype=tensor.dtype), (address - first) // tensor.itemsize
                return bare.set_(root.untyped_storage(), offset, tensor.size(), tensor.stride())
    return None


def still_equal(source: Tensor) -> Late:
    """Return a check, for later, that a pinned buffer still holds what it holds now; None if it is not pinned."""
    buffer, site = pinned_alias(source), call_site()
    if buffer is None:
        return None

    def as_bytes(tensor: Tensor) -> Tensor:  # in which NaN equals NaN
        return tensor.contiguous().view(-1).view(torch.uint8)

    def check(now: Tensor, then: Tensor) -> None:
        if not torch.equal(as_bytes(now), then):
            sim.races.append(f"race: the host overwrote a pinned buffer before it was copied to the device [{site}]")

    return functools.partial(check, buffer, as_bytes(buffer).clone())


class Stream(torch.Stream):
    """A new stream of a device."""

    def __new__(cls, device: Device = None, number: int | None = None) -> "Stream":
        index = device_index(device)
        if number is None:
            with sim.lock:
                number, sim.next_stream = sim.next_stream, sim.next_stream + 1
                sim.counters.streams += 1
                sim.counters.contexts.add(index)
        return super().__new__(cls, stream_id=number, device_index=index, device_type=DEVICE_TYPE)

    @property
    def queue(self) -> Queue:
        return sim.queue(self.stream_id, self.device_index)

    def wait_event(self, event: "Event") -> None:  # type: ignore[override]
        """Let the work queued from now on wait for an event."""
        event.wait_on(self.queue)

    def wait_stream(self, stream: "Stream") -> None:  # type: ignore[override]
        """Let the work queued from now on wait for what is queued on a stream now."""
        Event().record_on(stream.queue).wait_on(self.queue)

    def synchronize(self) -> None:
        """Let the host wait for the work queued so far."""
        sim.wait("stream.synchronize", self.queue)


class Event:
    """A point in a stream's work. Its time is the host's, when it knows of it."""

    def __init__(self, enable_timing: bool = False):
        self.time, self.number, self.clock = 0.0, 0, dict[Queue, int]()
        self.queue: Queue | None = None

    def record_on(self, queue: Queue) -> "Event":
        with sim.lock:
            self.queue, note = queue, functools.partial(setattr, self, "time")
            self.number = sim.launch("event", queue, late=lambda: note(time.perf_counter()))
            self.clock = {**queue.clock, queue: self.number}
        return self

    def wait_on(self, queue: Queue) -> None:
        if self.queue in (None, queue):
            return
        with sim.lock:
            for other, known in self.clock.items():
                queue.clock[other] = max(known, queue.clock.get(other, 0))
            sim.launch("wait", queue, late=functools.partial(sim.finish, self.queue, self.number))

    def record(self, stream: Stream | None = None) -> None:
        """Stand for the work queued so far on a stream, by default the current one."""
        self.record_on((stream or current_stream()).queue)

    def synchronize(self) -> None:
        """Let the host wait for the work."""
        if self.queue is not None:
            sim.wait("event.synchronize", self.queue, last=self.number)

    def elapsed_time(self, end: "Event") -> float:
        """Return the milliseconds between two events. Raises RuntimeError before they are done."""
        if not (self.time and end.time):
            raise RuntimeError("both events must be completed")
        return 1e3 * (end.time - self.time)


def current_device() -> int:
    """Return the index of this thread's current device."""
    return getattr(sim.local, "device", 0)


def set_device(device: Device) -> None:
    """Make a device this thread's current one."""
    sim.local.device = device_index(device)
    sim.counters.contexts.add(sim.local.device)


@contextlib.contextmanager
def stream(wanted: Stream) -> Iterator[None]:
    """Make a stream, and its device, the current ones of this thread for a while."""
    streams, index, device = sim.streams(), wanted.device_index, current_device()
    before, streams[index], sim.local.device = streams.get(index, 0), wanted.stream_id, index
    try:
        yield
    finally:
        streams[index], sim.local.device = before, device


def current_stream(device: Device = None) -> Stream:
    """Return this thread's current stream of a device."""
    queue = sim.current(device_index(device))
    return Stream(queue.index, queue.number)


def synchronize(device: Device = None) -> None:
    """Let the host wait for all streams of a device, and raise races found meanwhile."""
    index = device_index(device)
    sim.counters.contexts.add(index)
    sim.wait("device synchronize", *(q for q in list(sim.queues.values()) if q.index == index))


def memory(device: Device = None) -> Memory:
    """Return the account of a device's memory."""
    sim.counters.contexts.add(device_index(device))
    return sim.memory[device_index(device)]


def empty_cache() -> None:
    """Give up the memory that no tensor uses, on all devices."""
    for index, account in enumerate(sim.memory):
        account.release(index)


def reset() -> Counters:
    """Wait for all work, start new counters and return those until now. Raises RaceError if a race was found."""
    gc.collect()  # so that memory which only a cycle holds is freed
    counters, sim.counters = sim.counters, Counters()
    with sim.lock:
        for queue in list(sim.queues.values()):
            sim.finish(queue, queue.last)
        sim.raise_races()
    return counters


def backend() -> types.ModuleType:
    """Return the module that torch.get_device_module("simgpu") is to return."""
    module = types.ModuleType(f"torch.{NAME}", "The simulated accelerator of tests/simulated_device.py.")
    functions: list[Any] = [Stream, Event, current_device, set_device, stream, current_stream, synchronize, empty_cache]
    vars(module).update({function.__name__: function for function in functions})
    vars(module).update(
        is_available=lambda: True,
        device_count=lambda: sim.devices,
        mem_get_info=lambda device=None: (sim.limit_bytes - memory(device).reserved, sim.limit_bytes),
        memory_reserved=lambda device=None: memory(device).reserved,
        max_memory_allocated=lambda device=None: memory(device).max_allocated,
        reset_peak_memory_stats=lambda device=None: setattr(memory(device), "max_allocated", memory(device).allocated),
        get_device_name=lambda device=None: "Simulated GPU",
        is_bf16_supported=lambda: sim.bfloat16,
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
        _is_in_bad_fork=lambda: False,  # this and the next: torch.manual_seed calls them
        manual_seed_all=lambda seed: None,
    )
    return module


LOWER_PRECISION = "addmm addmv baddbmm bmm linear matmul mm mv"  # in autocast's dtype, as torch's list for CUDA says
FLOAT32 = "cross_entropy_loss layer_norm log_softmax.int logsumexp mse_loss nll_loss softmax.int sum sum.dim_IntList"


def autocast_kernel(op: Any, dtype: torch.dtype | None) -> Callable[..., Any]:
    """Return a kernel that casts an operator's floating-point arguments; None means autocast's dtype."""

    def cast(tensor: Tensor) -> Tensor:
        eligible = tensor.device.type == NAME and tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype or torch.get_autocast_dtype(NAME)) if eligible else tensor

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C._dispatch_key_parse(f"Autocast{KEY}"))):
            return op(*tree_map(cast, args), **{name: tree_map(cast, value) for name, value in kwargs.items()})

    return kernel


def register_kernels() -> None:
    """Register the kernels of the device and of autocast."""
    every, library = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    sim.kept += [every, library]
    every.fallback(fallback, KEY)
    every.fallback(torch.library.fallthrough_kernel, f"Autocast{KEY}")
    own = {"empty.memory_format": empty, "empty_strided": empty, "copy_": copy}
    for name, kernel in {**own, "record_stream": record_stream}.items():
        library.impl(name, kernel, KEY)
    # Torch composes these for unknown devices, the CPU has kernels. What it composes of index waits for masks only.
    composed = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeExplicitAutogradNonFunctional")
    for name in (*composed, "aten::clone", "aten::native_layer_norm", "aten::native_layer_norm_backward"):
        packet, _, overload = name.removeprefix("aten::").partition(".")
        op = getattr(getattr(aten, packet, None), overload or "default", None)
        if op is not None and torch.Tag.inplace_view not in op.tags and not signature(op).waits:
            library.impl(op, functools.partial(fallback, op), KEY)
    for names, dtype in ((LOWER_PRECISION, None), (FLOAT32, torch.float32)):
        for name in names.split():
            packet, _, overload = name.partition(".")
            op = getattr(getattr(aten, packet), overload or "default")
            library.impl(name, autocast_kernel(op, dtype), f"Autocast{KEY}")


def install() -> None:
    """Register the devices for the rest of the process, once. Raises RuntimeError with a build of torch for CUDA."""
    if torch.backends.cuda.is_built():
        raise RuntimeError("the simulated device needs a build of torch without CUDA")
    if sim.devices:
        return
    sim.devices = len(sim.memory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that replace torch's
        torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME, backend())
        register_kernels()
    torch.empty = pinned_empty  # type: ignore[assignment]


PROBE = """
import torch, simulated_device as simulated
simulated.install()
model = torch.nn.Linear(3, 2).to("simgpu:0")
model(torch.ones(4, 3).to("simgpu:1").to("simgpu:0")).sum().backward()
assert model.weight.grad.cpu().eq(4).all(), "wrong gradients"
ones = torch.ones(2, device="simgpu")
try:
    with simulated.stream(simulated.Stream()):
        ones + 1
except simulated.RaceError:
    print("it works")
"""


@functools.cache
def self_test() -> str:
    """Return "" or why the device does not work with this torch, after a try in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode == 0 and done.stdout == "it works\n":
        return ""
    reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return f"the simulated device does not work with torch {torch.__version__}: {reason}"


def run_inside(path: str | Path, *arguments: str, timeout_s: float = 600) -> None:
    """Run the functions of a file that are named simulated_*, as tests, in a process with the device installed.

    Skips the calling test if `self_test` fails, and fails with the output if a function does. `arguments` are pytest's.
    """
    if reason := self_test():
        pytest.skip(reason)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "simulated_device", "-q"]
    command += ["-o", "python_functions=simulated_*", *arguments, str(path)]
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    outer = ("PYTEST_ADDOPTS", "PYTEST_XDIST_")  # it is no worker of the session that runs the caller
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    environment |= {"FASTMLP_SIMULATED": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


if INSIDE:

    def pytest_configure() -> None:
        """Install the device before pytest imports any test: run_inside loads this module as a plugin."""
        install()

    @pytest.fixture(autouse=True)
    def simulated_races() -> Iterator[None]:
        """Raise the races that a test leaves, and let the next start with new counters."""
        sim.counters = Counters()
        yield
        reset()
        gc.freeze()  # what is alive now: each collection would take longer than most tests
