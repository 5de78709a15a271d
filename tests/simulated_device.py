"""A simulated accelerator in host memory: torch tensors of a device "simgpu" whose streams run as late as they may.

Operations are queued on the thread's current stream, with the CPU's kernels, and run only when the host forces them
(synchronize, item, a copy to the host). Until then memory holds NaN or 0xFF, so work that is read too early shows.
Each access is checked against vector clocks: RaceError names an access that no event orders, memory that is freed
while another stream uses it (raised by the next operation or wait), and a pinned buffer that the host overwrites before
it is copied. Memory is accounted like that of a caching allocator, which gives memory back only to the same stream.

`install()` registers the device for the rest of the process. `run_inside(__file__)`, in a test, runs the functions of
a file that are named simulated_* in a process of their own with the device installed, each followed by a check that no
race is left. A wait hides races from what follows, so tests wait rarely: they clone, and compare at the end.

Limits: backward runs on the main thread's current stream, wherever forward ran; no torch.compile, CUDA graphs,
torch.Generator(device="simgpu") and torch.accelerator streams. A pinned buffer that a queued copy fills must not be
sent by another queued copy: that is taken for a race. Torch's private API may change: see `self_test`.
"""

import contextlib
import ctypes
import functools
import gc
import os
import re
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
from typing import Any

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
    by_thread: Counter = field(default_factory=Counter)  # (thread's name, kind of wait or one of the names below)
    launches: int = 0  # operations, copies and events queued
    streams: int = 0  # made
    pinned_buffers: int = 0  # made
    contexts: set[int] = field(default_factory=set)  # indices of the devices that were touched

    def add(self, what: str) -> None:
        setattr(self, what, getattr(self, what) + 1)
        self.by_thread[threading.current_thread().name, what] += 1


class Queue:
    """The work of one stream, and its share of the device's memory."""

    def __init__(self, number: int, index: int):
        self.number, self.index = number, index
        self.items: deque[tuple[int, Callable[[], Any]]] = deque()
        self.last = self.done = 0  # numbers of the work queued last, and finished last
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

    root: Tensor
    owner: Queue
    size_bytes: int
    recorded: set[Queue] = field(default_factory=set)  # by record_stream
    write: tuple[Queue, int, str] | None = None
    reads: dict[Queue, tuple[int, str]] = field(default_factory=dict)


class Memory:
    """The memory of one device: bytes in tensors, and bytes that the allocator has reserved."""

    def __init__(self) -> None:
        self.allocated = self.reserved = self.max_allocated = self.max_reserved = 0

    def take(self, queue: Queue, size_bytes: int) -> None:
        """Give a stream memory: its own free memory, or new memory up to the limit. Raises torch.OutOfMemoryError."""
        queue.collect()
        if self.reserved + max(0, size_bytes - queue.free_bytes) > sim.limit_bytes:
            self.release(queue.index)  # as CUDA's allocator does before it fails
        more = max(0, size_bytes - queue.free_bytes)
        if self.reserved + more > sim.limit_bytes:
            raise torch.OutOfMemoryError(
                f"{NAME} out of memory. Tried to allocate {size_bytes} bytes. Device {queue.index} has a total "
                f"capacity of {sim.limit_bytes} bytes of which {sim.limit_bytes - self.reserved} bytes are free."
            )
        queue.free_bytes += more - size_bytes
        self.reserved += more
        self.allocated += size_bytes
        self.max_allocated = max(self.max_allocated, self.allocated)
        self.max_reserved = max(self.max_reserved, self.reserved)

    def release(self, index: int) -> None:
        """Give up the memory that no tensor uses, after waiting for the streams of record_stream as CUDA does."""
        for queue in [q for q in list(sim.queues.values()) if q.index == index]:
            for _, uses in queue.pending:
                for user, number in uses:
                    sim.run(user, number)
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
        self.memory: dict[int, Memory] = {}
        self.generators: dict[int, torch.Generator] = {}
        self.main_streams: dict[int, int] = {}
        self.kept: list[Any] = []  # what C++ refers to
        self.next_stream = 1
        self.counters = Counters()

    def queue(self, number: int, index: int) -> Queue:
        with self.lock:
            if (number, index) not in self.queues:
                self.queues[number, index] = Queue(number, index)
            return self.queues[number, index]

    def streams(self) -> dict[int, int]:
        """Return this thread's current stream by device. The threads of autograd follow the main thread."""
        if not hasattr(self.local, "streams"):
            thread = threading.current_thread()
            follows = thread is threading.main_thread() or isinstance(thread, threading._DummyThread)
            self.local.streams = self.main_streams if follows else {}
        return self.local.streams

    def current(self, index: int | None = None) -> Queue:
        index = current_device() if index is None else index
        return self.queue(self.streams().get(index, 0), index)

    def run(self, queue: Queue, last: int) -> None:
        """Run a stream's work up to number `last`, and what that waits for."""
        with self.lock, torch.inference_mode(False), torch.no_grad():
            while queue.items and queue.items[0][0] <= last:
                number, work = queue.items.popleft()
                try:
                    work()
                finally:
                    queue.done = number

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
                self.run(queue, queue.last if last is None else last)
            self.raise_races()

    def check(self, what: str, queue: Queue, block: Block, writes: bool) -> None:
        """Raise RaceError if an access on `queue` is not ordered after all others that conflict with it."""
        others = [(block.write[0], block.write[1], f"written by {block.write[2]}")] if block.write else []
        if writes:
            others += [(other, number, f"read by {by}") for other, (number, by) in list(block.reads.items())]
        for other, number, how in others:
            if not queue.knows(other, number):
                access = "writes" if writes else "reads"
                raise RaceError(
                    f"race: {what} on {queue} {access} memory {how} on {other}, without waiting for it [{call_site()}]"
                )

    def launch(
        self,
        what: str,
        work: Callable[[], Any],
        queue: Queue,
        reads: Sequence[Block] = (),
        writes: Sequence[Block] = (),
    ) -> int:
        """Queue work that reads and writes blocks; return its number on the stream. Raises RaceError."""
        with self.lock:
            self.raise_races()
            for block in reads:
                self.check(what, queue, block, writes=False)
            for block in writes:
                self.check(what, queue, block, writes=True)
            queue.last += 1
            for block in reads:
                block.reads[queue] = (queue.last, what)
            for block in writes:
                block.write, block.reads = (queue, queue.last, what), {}
            self.counters.add("launches")
            self.counters.contexts.add(queue.index)
            queue.items.append((queue.last, work))
            return queue.last

    def freed(self, address: int) -> None:
        """Take back the memory of a block whose last tensor is gone."""
        with self.lock:
            block = self.blocks.pop(address)
            owner, memory = block.owner, self.memory[block.owner.index]
            uses = [(queue, number, by) for queue, (number, by) in block.reads.items()]
            uses += [block.write] if block.write else []
            for queue, number, by in uses:
                if queue not in block.recorded and not owner.knows(queue, number):
                    self.races.append(
                        f"race: memory of {owner} is freed while {by} on {queue} uses it, without record_stream"
                    )
            memory.allocated -= block.size_bytes
            waits = [(queue, queue.last) for queue in block.recorded if queue is not owner]
            owner.pending.append((block.size_bytes, waits))


sim = Simulator()


def call_site() -> str:
    """Return where the project is, or else who called torch: "fastmlp/loader/slots.py:40 buffer"."""
    frame, other = sys._getframe(1), ""
    while frame is not None:
        file = frame.f_code.co_filename
        here = f"{file.removeprefix(ROOT)}:{frame.f_lineno} {frame.f_code.co_name}"
        if file != __file__ and "site-packages" not in file:
            if file.startswith(ROOT):
                return here
            other = other or here
        frame = frame.f_back  # type: ignore[assignment]
    return other or "autograd"


# --- tensors ---------------------------------------------------------------------------------------------------------


def device_index(device: Device) -> int:
    """Return the index that a device, its name or None (the current device) means."""
    index = device if isinstance(device, int) or device is None else torch.device(device).index
    return current_device() if index is None else index


def on_device(value: Any) -> bool:
    """Return whether a value is a tensor of a simulated device."""
    return isinstance(value, Tensor) and value.device.type == NAME


def poison(tensor: Tensor) -> Tensor:
    """Fill a tensor on the host with what nobody expects: NaN, -1, 255, True."""
    return tensor.fill_(torch.nan if tensor.is_floating_point() or tensor.is_complex() else -1)


_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def allocate(size: Sequence[int], stride: Sequence[int], dtype: torch.dtype, device: Device) -> Tensor:
    """Return an uninitialised tensor on the device: memory of the host in a DLPack capsule that names the device.

    Raises torch.OutOfMemoryError.
    """
    index = device_index(device)
    if index not in sim.memory:
        raise RuntimeError(f"{NAME}:{index} does not exist: there are {sim.devices} devices")
    span = 0 if 0 in size else 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    size_bytes = -(-span * dtype.itemsize // 512) * 512
    queue = sim.current(index)
    with sim.lock:
        sim.counters.contexts.add(index)
        sim.memory[index].take(queue, size_bytes)
    with torch.inference_mode(False), torch.no_grad():
        root = torch.empty(max(64, span * dtype.itemsize), dtype=torch.uint8).fill_(1 if dtype == torch.bool else 255)
        head = root[: span * dtype.itemsize].view(dtype)
        host = head.as_strided(size, stride) if span else torch.empty_strided(size, stride, dtype=dtype)
        capsule = torch._C._to_dlpack(host)
        fields = (ctypes.c_int32 * 2).from_address(_capsule_pointer(capsule, b"dltensor") + 8)
        fields[0], fields[1] = DLPACK_DEVICE, index
        tensor = torch._C._from_dlpack(capsule)
    if tensor.stride() != tuple(stride):  # DLPack normalises the strides of dimensions of size 1
        tensor = on_host(aten.as_strided.default, tensor, list(size), list(stride), 0)
    if span:
        with sim.lock:
            sim.blocks[root.data_ptr()] = Block(root, queue, size_bytes)
        weakref.finalize(tensor.untyped_storage(), sim.freed, root.data_ptr()).atexit = False
    return tensor


def block_of(tensor: Tensor) -> list[Block]:
    """Return the block that a device tensor lives in, in a list; none if the tensor is empty."""
    return [sim.blocks[tensor.untyped_storage().data_ptr()]] if tensor.numel() else []


def alias(tensor: Tensor) -> Tensor:
    """Return the CPU tensor that shares a tensor's memory, without its history."""
    with torch.inference_mode(False), torch.no_grad():
        if not tensor.numel():
            return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
        storage = block_of(tensor)[0].root.untyped_storage() if on_device(tensor) else tensor.untyped_storage()
        bare = torch.empty(0, dtype=tensor.dtype)
        return bare.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())


def on_host(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the CPU's kernel on device tensors, for what touches no memory."""
    return op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs)


def tree_map(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Return a value with function(tensor) instead of each tensor in it; lists and tuples are searched."""
    if isinstance(value, list | tuple):
        return type(value)(tree_map(function, each) for each in value)
    return function(value) if isinstance(value, Tensor) else value


def flatten(value: Any) -> list[Tensor]:
    """Return the tensors in a value."""
    found: list[Tensor] = []
    tree_map(found.append, value)
    return found


# --- operations ------------------------------------------------------------------------------------------------------

DATA_DEPENDENT = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}


@dataclass
class Signature:
    """The arguments of an operator, by what it does to their memory."""

    names: list[str]
    views: bool  # whether its result shares memory with an argument
    written: set[str]
    returned: list[str | None]  # for each result the argument that it is, None for a new tensor


@functools.cache
def signature(op: Any) -> Signature:
    """Return what an operator's schema says about memory."""
    schema = op._schema
    arguments = [(a.name, a.alias_info) for a in schema.arguments]
    return Signature(
        names=[name for name, _ in arguments],
        views=any(r.alias_info and not r.alias_info.is_write for r in schema.returns),
        written={name for name, info in arguments if info and info.is_write},
        returned=[
            next((n for n, i in arguments if i and r.alias_info and i.before_set == r.alias_info.before_set), None)
            for r in schema.returns
        ],
    )


class Call:
    """A call of an operator: its arguments for the CPU's kernel, the device, and the blocks read and written."""

    def __init__(self, op: Any, given: dict[str, Any]):
        self.op, self.name, self.given, self.signature = op, op.overloadpacket.__name__, given, signature(op)
        self.index: int | None = device_index(given["device"]) if given.get("device") is not None else None
        self.reads: list[Block] = []
        self.writes: list[Block] = []
        self.real = {name: self._real(name, value) for name, value in given.items()}
        self.queue = sim.current(self.index)
        if "generator" in self.signature.names and given.get("generator") is None:
            seed = int(torch.randint(1 << 62, (), generator=sim.generators[self.queue.index]))
            self.real["generator"] = torch.Generator().manual_seed(seed)  # the state advances with the launch

    def _real(self, name: str, value: Any) -> Any:
        if name == "device" and value is not None:
            return torch.device("cpu")
        return None if name == "pin_memory" else tree_map(lambda tensor: self._real_tensor(name, tensor), value)

    def _real_tensor(self, name: str, tensor: Tensor) -> Tensor:
        if on_device(tensor):
            if self.index not in (None, tensor.device.index):
                raise RaceError(f"{self.name} mixes tensors of {NAME}:{self.index} and {tensor.device} [{call_site()}]")
            self.index = tensor.device.index
            (self.writes if name in self.signature.written else self.reads).extend(block_of(tensor))
            return alias(tensor)
        if tensor.dim() == 0 and name not in self.signature.written:  # a number; a clone would lose "it is a number"
            wide = tensor.dtype in (torch.float64, torch.int64, torch.bool, torch.complex128)
            return tensor if wide else tensor.clone()
        if name == "indices":  # advanced indexing takes them from the host, and waits
            sim.wait("indices sent to the device", sim.current(self.index))
            return tensor.clone()
        raise RuntimeError(f"{self.name}: expected all tensors on the same device, but {name} is on the CPU")

    def meta(self) -> dict[str, Any]:
        """Return the arguments as meta tensors."""

        def to_meta(t: Tensor) -> Tensor:
            return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device="meta")

        replaced = {"device": torch.device("meta"), "generator": None}
        replaced = {name: value for name, value in replaced.items() if self.given.get(name) is not None}
        return {n: tree_map(lambda t: to_meta(t) if on_device(t) else t, v) for n, v in self.given.items()} | replaced

    def new(self, like: Tensor) -> Tensor:
        return allocate(like.size(), like.stride(), like.dtype, self.index)

    def launch(self, outputs: Any = ()) -> None:
        """Queue the CPU's kernel, whose results are copied to the new tensors `outputs`."""
        op, real, places = self.op, self.real, [alias(tensor) for tensor in flatten(outputs)]

        def work() -> None:  # holds no tensor of the device: they are freed when the program drops them
            results = op(**real)
            if places:
                for place, result in zip(places, flatten(results), strict=True):
                    place.copy_(result)

        writes = self.writes + [block for tensor in flatten(outputs) for block in block_of(tensor)]
        sim.launch(self.name, work, self.queue, self.reads, writes)

    def now(self) -> Any:
        """Wait for the device and return the results: their shape, or their type, depends on the data."""
        for block in self.reads:
            sim.check(self.name, self.queue, block, writes=False)
        sim.wait(f"{self.name} depends on data", self.queue)
        results = self.op(**self.real)
        outputs = tree_map(self.new, results)
        for output, result in zip(flatten(outputs), flatten(results), strict=True):
            alias(output).copy_(result)
        return outputs


def fallback(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Queue an operator's CPU kernel on the current stream; any operator of the device without a kernel of its own."""
    what = signature(op)
    if what.views or op.overloadpacket is aten.set_:
        return on_host(op, *args, **kwargs)
    with torch.inference_mode(False), torch.no_grad():
        call = Call(op, dict(zip(what.names, args, strict=False)) | kwargs)
        if None not in what.returned:
            if any(isinstance(call.given.get(n), Tensor) and not call.given[n].numel() for n in what.written):
                if grow(call):
                    return fallback(op, *args, **kwargs)
            call.launch()
            results = [call.given[name] for name in what.returned if name is not None]
            return results[0] if len(results) == 1 else tuple(results) or None
        if DATA_DEPENDENT.isdisjoint(op.tags):
            with contextlib.suppress(NotImplementedError):  # by operators of which torch has no meta kernel
                outputs = tree_map(call.new, op(**call.meta()))
                call.launch(outputs)
                return outputs
        return call.now()


def grow(call: Call) -> bool:
    """Give the empty outputs of a call with out= their size; return whether any has grown."""
    shapes = call.meta()
    call.op(**shapes)
    small = [n for n in call.signature.written if shapes[n].size() != call.given[n].size()]
    for name in small:
        resize(call.given[name], shapes[name].size())
    return bool(small)


def resize(tensor: Tensor, size: Sequence[int], memory_format: torch.memory_format | None = None) -> Tensor:
    """Implement resize_ for tensors without elements."""
    if tensor.size() != torch.Size(size):
        if tensor.numel():
            raise NotImplementedError(f"{NAME}: resize_ of a tensor with elements")
        on_host(aten.set_.source_Tensor, tensor, torch.empty(size, dtype=tensor.dtype, device=tensor.device))
    return tensor


def empty(
    size: Sequence[int], *, dtype: Any = None, device: Device = None, memory_format: Any = None, **_: Any
) -> Tensor:
    """Implement empty."""
    with torch.inference_mode(False):
        like = _torch_empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format, device="meta")
    return allocate(like.size(), like.stride(), like.dtype, device)


def empty_strided(
    size: Sequence[int], stride: Sequence[int], *, dtype: Any = None, device: Device = None, **_: Any
) -> Tensor:
    """Implement empty_strided."""
    return allocate(size, stride, dtype or torch.get_default_dtype(), device)


def copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Implement copy_ on a device, to it, from it, and between devices."""
    source = source.expand(target.size())
    if not on_device(target):
        download(target, source, non_blocking)
    elif not on_device(source):
        upload(target, source, non_blocking)
    else:
        to, by = sim.current(target.device.index), sim.current(source.device.index)
        place, value = alias(target), alias(source)
        if to is not by:  # as CUDA does: on the source's stream, with both streams waiting before and after
            Event().record_on(to).wait_on(by)
        sim.launch("copy_", lambda: place.copy_(value), by, block_of(source), block_of(target))
        if to is not by:
            Event().record_on(by).wait_on(to)
    return target


def upload(target: Tensor, source: Tensor, non_blocking: bool) -> None:
    """Copy from the host: a pinned buffer is read when the copy runs, other memory now."""
    queue, place, site = sim.current(target.device.index), alias(target), call_site()
    sent = alias(source).clone()
    buffer = pinned_alias(source) if non_blocking else None

    def work() -> None:
        if buffer is not None and not torch.equal(as_bytes(buffer), as_bytes(sent)):
            sim.races.append(f"race: the host overwrote a pinned buffer before it was copied to the device [{site}]")
        place.copy_(sent if buffer is None else buffer)

    sim.launch("copy_ from the host", work, queue, (), block_of(target))
    if not non_blocking:
        sim.wait("copy to the device", queue)


def download(target: Tensor, source: Tensor, non_blocking: bool) -> None:
    """Copy to the host: into a pinned buffer later, if asked to."""
    queue, value = sim.current(source.device.index), alias(source)
    buffer = pinned_alias(target) if non_blocking else None
    place = alias(target) if buffer is None else buffer
    sim.launch("copy_ to the host", lambda: place.copy_(value), queue, block_of(source))
    if buffer is None:
        sim.wait("copy to the host", queue)


def as_bytes(tensor: Tensor) -> Tensor:
    """Return a tensor's elements as uint8, so that NaN equals NaN."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def to_copy(tensor: Tensor, *, device: Device = None, non_blocking: bool = False, **kwargs: Any) -> Tensor:
    """Implement _to_copy, whose result is pinned if a copy to the host does not block."""
    if non_blocking and device is not None and torch.device(device).type == "cpu":
        out = pinned_empty(tensor.size(), dtype=kwargs.get("dtype") or tensor.dtype, pin_memory=True)
        return out.copy_(tensor, non_blocking=True)
    composite = torch._C.DispatchKey.CompositeExplicitAutograd
    return aten._to_copy.default._op_dk(composite, tensor, device=device, non_blocking=non_blocking, **kwargs)


def item(tensor: Tensor) -> Any:
    """Implement _local_scalar_dense, which item(), bool() and float() call."""
    queue = sim.current(tensor.device.index)
    for block in block_of(tensor):
        sim.check("item", queue, block, writes=False)
    sim.wait("item", queue)
    return alias(tensor).item()


def record_stream(tensor: Tensor, stream: torch.Stream) -> None:
    """Implement Tensor.record_stream."""
    for block in block_of(tensor):
        block.recorded.add(sim.queue(stream.stream_id, stream.device_index))


# --- pinned memory ---------------------------------------------------------------------------------------------------

_torch_empty = torch.empty


def pinned_empty(*args: Any, pin_memory: bool = False, **kwargs: Any) -> Tensor:
    """Replace torch.empty: the same, with pinned memory, which queued copies keep alive but do not refer to."""
    out = _torch_empty(*args, **kwargs)
    if pin_memory and out.numel():
        root = poison(_torch_empty(out.nbytes, dtype=torch.uint8))
        out = torch.from_dlpack(root).view(out.dtype).view(out.shape)
        first = root.data_ptr()
        with sim.lock:
            sim.pinned[first] = root
            sim.counters.add("pinned_buffers")
            if not sim.counters.contexts:  # pinning needs a context, that of any device
                sim.counters.contexts.add(current_device())
        weakref.finalize(out.untyped_storage(), sim.pinned.pop, first, None).atexit = False
    return out


def pin(tensor: Tensor, device: Device = None) -> Tensor:
    """Implement Tensor.pin_memory."""
    return pinned_empty(tensor.size(), dtype=tensor.dtype, pin_memory=True).copy_(tensor)


def pinned_alias(tensor: Tensor) -> Tensor | None:
    """Return a tensor of the same pinned memory that does not refer to the other; None if it is not pinned."""
    address = tensor.data_ptr()
    for first, root in list(sim.pinned.items()):
        if first <= address < first + root.nbytes and tensor.numel():
            offset = (address - first) // tensor.itemsize
            with torch.inference_mode(False):
                return torch.empty(0, dtype=tensor.dtype).set_(
                    root.untyped_storage(), offset, tensor.size(), tensor.stride()
                )
    return None


def is_pinned(tensor: Tensor, device: Device = None) -> bool:
    """Implement Tensor.is_pinned."""
    return pinned_alias(tensor) is not None


# --- the module, as torch.cuda has it ---------------------------------------------------------------------------------


class Stream(torch.Stream):
    """A new stream of a device."""

    def __new__(cls, device: Device = None, priority: int = 0, number: int | None = None) -> "Stream":
        index = device_index(device)
        if number is None:
            with sim.lock:
                number, sim.next_stream = sim.next_stream, sim.next_stream + 1
                sim.counters.add("streams")
                sim.counters.contexts.add(index)
        return super().__new__(cls, stream_id=number, device_index=index, device_type=DEVICE_TYPE)

    @property
    def queue(self) -> Queue:
        return sim.queue(self.stream_id, self.device_index)

    def record_event(self, event: "Event | None" = None) -> "Event":  # type: ignore[override]
        """Return an event that stands for the work queued so far."""
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:  # type: ignore[override]
        """Let the work queued from now on wait for an event."""
        event.wait(self)

    def wait_stream(self, stream: "Stream") -> None:  # type: ignore[override]
        """Let the work queued from now on wait for what is queued on a stream now."""
        event = Event()
        event.record(stream)
        event.wait(self)

    def synchronize(self) -> None:
        """Let the host wait for the work queued so far."""
        sim.wait("stream.synchronize", self.queue)

    def query(self) -> bool:
        """Return whether all work has run."""
        return self.queue.done >= self.queue.last

    def __enter__(self) -> "Stream":
        self._before = contextlib.ExitStack()
        self._before.enter_context(stream(self))
        return self

    def __exit__(self, *_: Any) -> None:
        self._before.close()


class Event:
    """A point in a stream's work. The times of those with enable_timing are of the host, when it runs the work."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False):
        self.enable_timing, self.time = enable_timing, 0.0
        self.queue: Queue | None = None
        self.number, self.clock = 0, dict[Queue, int]()

    def record_on(self, queue: Queue) -> "Event":
        def note() -> None:
            self.time = time.perf_counter()

        with sim.lock:
            self.queue, self.number = queue, sim.launch("event", note, queue)
            self.clock = {**queue.clock, queue: self.number}
        return self

    def wait_on(self, queue: Queue) -> None:
        with sim.lock:
            if self.queue in (None, queue):
                return
            target, number = self.queue, self.number
            for other, known in self.clock.items():
                queue.clock[other] = max(known, queue.clock.get(other, 0))
            sim.launch("wait", lambda: sim.run(target, number), queue)

    def record(self, stream: "Stream | None" = None) -> None:
        """Stand for the work queued so far on a stream, by default the current one."""
        self.record_on(stream.queue if stream is not None else sim.current())

    def wait(self, stream: "Stream | None" = None) -> None:
        """Let a stream, by default the current one, wait for this event."""
        self.wait_on(stream.queue if stream is not None else sim.current())

    def query(self) -> bool:
        """Return whether the work has run; True if the event was never recorded."""
        return self.queue is None or self.queue.done >= self.number

    def synchronize(self) -> None:
        """Let the host wait for the work."""
        if self.queue is not None:
            sim.wait("event.synchronize", self.queue, last=self.number)

    def elapsed_time(self, end: "Event") -> float:
        """Return the milliseconds between two events. Raises ValueError or RuntimeError where torch.cuda does."""
        if not (self.enable_timing and end.enable_timing):
            raise ValueError("both events must be created with enable_timing=True")
        if self.queue is None or end.queue is None or not (self.query() and end.query()):
            raise RuntimeError("both events must be recorded and completed before calculating elapsed time")
        return 1e3 * (end.time - self.time)


def current_device() -> int:
    """Return the index of this thread's current device."""
    return getattr(sim.local, "device", 0)


def set_device(device: Device) -> None:
    """Make a device this thread's current one."""
    sim.local.device = device_index(device)
    sim.counters.contexts.add(sim.local.device)


@contextlib.contextmanager
def device(device: Device) -> Iterator[None]:
    """Make a device the current one for a while."""
    before, sim.local.device = current_device(), device_index(device)
    try:
        yield
    finally:
        sim.local.device = before


@contextlib.contextmanager
def stream(wanted: Stream | None) -> Iterator[None]:
    """Make a stream, and its device, the current ones of this thread for a while."""
    if wanted is None:
        yield
        return
    streams, index = sim.streams(), wanted.device_index
    before = streams.get(index, 0)
    with device(index):
        streams[index] = wanted.stream_id
        try:
            yield
        finally:
            streams[index] = before


def current_stream(device: Device = None) -> Stream:
    """Return this thread's current stream of a device."""
    queue = sim.current(device_index(device))
    return Stream(queue.index, number=queue.number)


def synchronize(device: Device = None) -> None:
    """Let the host wait for all streams of a device, and raise races found meanwhile."""
    index = device_index(device)
    sim.counters.contexts.add(index)
    sim.wait("device synchronize", *(q for q in list(sim.queues.values()) if q.index == index))


def memory(device: Device = None) -> Memory:
    """Return the account of a device's memory."""
    return sim.memory[device_index(device)]


def mem_get_info(device: Device = None) -> tuple[int, int]:
    """Return the free and the total memory of a device in bytes."""
    sim.counters.contexts.add(device_index(device))
    return sim.limit_bytes - memory(device).reserved, sim.limit_bytes


def reset_peak_memory_stats(device: Device = None) -> None:
    """Forget the peaks of a device's memory."""
    account = memory(device)
    account.max_allocated, account.max_reserved = account.allocated, account.reserved


def empty_cache() -> None:
    """Give up the memory that no tensor uses, on all devices."""
    for index, account in sim.memory.items():
        account.release(index)


def manual_seed_all(seed: int) -> None:
    """Seed the generators of all devices."""
    for generator in sim.generators.values():
        generator.manual_seed(seed)


def reset() -> Counters:
    """Run all queued work, start new counters and return those until now. Raises RaceError if a race was found."""
    gc.collect()  # so that memory which only a cycle holds is freed
    counters, sim.counters = sim.counters, Counters()
    with sim.lock:
        for queue in list(sim.queues.values()):
            sim.run(queue, queue.last)
        sim.raise_races()
    return counters


def backend() -> types.ModuleType:
    """Return the module that torch.get_device_module("simgpu") is to return."""
    module = types.ModuleType(f"torch.{NAME}", "The simulated accelerator of tests/simulated_device.py.")
    functions: list[Any] = [Stream, Event, current_device, set_device, device, stream, current_stream, synchronize]
    functions += [mem_get_info, reset_peak_memory_stats, empty_cache, manual_seed_all]
    vars(module).update({function.__name__: function for function in functions})
    vars(module).update(
        is_available=lambda: True,
        is_initialized=lambda: True,
        _lazy_init=lambda: None,
        _is_in_bad_fork=lambda: False,
        device_count=lambda: sim.devices,
        default_stream=lambda device=None: Stream(device, number=0),
        memory_allocated=lambda device=None: memory(device).allocated,
        memory_reserved=lambda device=None: memory(device).reserved,
        max_memory_allocated=lambda device=None: memory(device).max_allocated,
        max_memory_reserved=lambda device=None: memory(device).max_reserved,
        get_device_name=lambda device=None: "Simulated GPU",
        get_device_capability=lambda device=None: (8, 0) if sim.bfloat16 else (7, 0),
        get_device_properties=lambda device=None: types.SimpleNamespace(
            name="Simulated GPU", total_memory=sim.limit_bytes, major=8 if sim.bfloat16 else 7, minor=0
        ),
        is_bf16_supported=lambda including_emulation=True: sim.bfloat16,
        get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
        manual_seed=lambda seed: sim.generators[current_device()].manual_seed(seed) and None,
        get_rng_state=lambda device=NAME: sim.generators[device_index(device)].get_state(),
        set_rng_state=lambda state, device=NAME: sim.generators[device_index(device)].set_state(state) and None,
    )
    return module


# --- registration ----------------------------------------------------------------------------------------------------

LOWER_PRECISION = "addmm addmv baddbmm bmm linear matmul mm mv"  # in autocast's dtype, as torch's list for CUDA says
FLOAT32 = "cross_entropy_loss layer_norm log_softmax.int logsumexp mse_loss nll_loss softmax.int sum sum.dim_IntList"


def autocast_kernel(op: Any, dtype: torch.dtype | None) -> Callable[..., Any]:
    """Return a kernel that casts an operator's floating-point arguments; None means autocast's dtype."""
    outside = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{KEY}"))

    def cast(tensor: Tensor) -> Tensor:
        eligible = on_device(tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype or torch.get_autocast_dtype(NAME)) if eligible else tensor

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(outside):
            return op(*tree_map(cast, args), **{name: tree_map(cast, value) for name, value in kwargs.items()})

    return kernel


def register_kernels() -> None:
    """Register the kernels of the device, of pinned memory, and of autocast."""
    every, library = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    sim.kept += [every, library]
    every.fallback(fallback, KEY)
    every.fallback(torch.library.fallthrough_kernel, f"Autocast{KEY}")
    library.impl("empty.memory_format", empty, KEY)
    library.impl("empty_strided", empty_strided, KEY)
    library.impl("resize_", resize, KEY)
    library.impl("copy_", copy, KEY)
    library.impl("_to_copy", to_copy, KEY)
    library.impl("_local_scalar_dense", item, KEY)
    library.impl("record_stream", record_stream, KEY)
    library.impl("_pin_memory", pin, "CPU")
    library.impl("is_pinned", is_pinned, "CPU")
    for op in (aten.native_layer_norm.default, aten.native_layer_norm_backward.default):
        library.impl(
            op, functools.partial(fallback, op), KEY
        )  # torch composes it for unknown devices; the CPU does not
    for names, dtype in ((LOWER_PRECISION, None), (FLOAT32, torch.float32)):
        for name in names.split():
            packet, _, overload = name.partition(".")
            op = getattr(getattr(aten, packet), overload or "default")
            library.impl(name, autocast_kernel(op, dtype), f"Autocast{KEY}")


def count_devices(guard: Any) -> None:
    """Let C++ see several devices and a current one: torch's guard for Python devices knows only number 0.

    The guard's table of virtual functions is replaced by a copy with five functions of ours. Their places are read from
    the header that torch ships. A c10::Device, two bytes, is passed and returned like an integer of two bytes.
    """
    header = Path(torch.__path__[0], "include/c10/core/impl/DeviceGuardImplInterface.h").read_text()
    header = header.split("struct C10_API DeviceGuardImplInterface")[1].split("\n};")[0]
    places = re.findall(r"virtual [\w:*]+ (\w+)\(", header)
    instance = ctypes.c_void_p.from_address(ctypes.c_void_p.from_address(id(guard) + 16).value or 0)  # pybind11's
    before = 2  # words ahead of the functions: the offset to the whole object, and its type
    table = (ctypes.c_void_p * (before + len(places) + 2)).from_address((instance.value or 0) - 8 * before)
    table = type(table)(*table)

    def replace(name: str, result: Any, arguments: list[Any], function: Callable[..., Any]) -> None:
        callback = ctypes.CFUNCTYPE(result, ctypes.c_void_p, *arguments)(lambda this, *rest: function(*rest))
        table[before + places.index(name)] = ctypes.cast(callback, ctypes.c_void_p)
        sim.kept.append(callback)

    def exchange(wanted: int) -> int:
        was = current_device()
        sim.local.device = wanted >> 8
        return DEVICE_TYPE | was << 8

    replace("exchangeDevice", ctypes.c_uint16, [ctypes.c_uint16], exchange)
    replace("getDevice", ctypes.c_uint16, [], lambda: DEVICE_TYPE | current_device() << 8)
    replace("setDevice", None, [ctypes.c_uint16], exchange)
    replace("uncheckedSetDevice", None, [ctypes.c_uint16], exchange)
    replace("deviceCount", ctypes.c_int8, [], lambda: sim.devices)
    replace("synchronizeDevice", None, [ctypes.c_int8], synchronize)
    sim.kept.append(table)
    instance.value = ctypes.addressof(table) + 8 * before


def load_storage(storage: Any, location: str) -> Any:
    """Implement torch.load with map_location on the device."""
    if not location.startswith(NAME):
        return None
    return _torch_empty(0, dtype=torch.uint8).set_(storage).to(location).untyped_storage()


def clone_storage(storage: Any) -> Any:
    """Replace UntypedStorage.clone, which deepcopy calls: as before, but for the device, too."""
    if storage.device.type != NAME:
        return _clone_storage(storage)
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage).clone().untyped_storage()


_clone_storage = torch.UntypedStorage.clone


def install(devices: int = 2, bfloat16: bool = True, name: str = NAME) -> Simulator:
    """Register the devices for the rest of the process, once; return their state. Raises RuntimeError with CUDA."""
    global NAME
    if sim.devices:
        return sim
    if torch.backends.cuda.is_built():
        raise RuntimeError("the simulated device needs a build of torch without CUDA")
    NAME, sim.devices, sim.bfloat16 = name, devices, bfloat16
    sim.memory = {index: Memory() for index in range(devices)}
    sim.generators = {index: torch.Generator() for index in range(devices)}

    class Guard(torch._C._acc.DeviceGuard):
        def type_(self) -> Any:
            return torch._C._autograd.DeviceType.PrivateUse1

    class Hooks(torch._C._acc.PrivateUse1Hooks):
        def is_available(self) -> bool:
            return True

        def is_built(self) -> bool:
            return True

        def has_primary_context(self, index: int) -> bool:
            return index < sim.devices

    guard, hooks = Guard(), Hooks()
    sim.kept += [guard, hooks]
    count_devices(guard)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that replace torch's
        torch.utils.backend_registration._setup_privateuseone_for_python_backend(name, backend(), hooks, guard)
        register_kernels()
    torch.serialization.register_package(5, lambda storage: None, load_storage)
    torch.empty, torch.UntypedStorage.clone = pinned_empty, clone_storage  # type: ignore[assignment]
    return sim


# --- tests that run on the device ------------------------------------------------------------------------------------

PROBE = """
import torch, simulated_device as simulated
simulated.install()
assert torch.accelerator.current_accelerator().type == "simgpu"
for name in ("simgpu:0", "simgpu:1"):
    model = torch.nn.Linear(3, 2).to(name)
    model(torch.ones(4, 3).to(name)).sum().backward()
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
    if torch.backends.cuda.is_built():
        return "the simulated device needs a build of torch without CUDA"
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
    environment = {**os.environ, "FASTMLP_SIMULATED": "1", "PYTHONPATH": os.pathsep.join(paths)}
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
