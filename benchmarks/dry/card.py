"""A card that is not there: what torch, Inductor and Triton ask a CUDA device for, answered from a table."""

import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from torch._dynamo import device_interface
from torch._inductor.fx_passes import joint_graph
from torch._inductor.runtime.hints import DeviceProperties
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaDriver

from fastmlp.cost.budget import RESERVED_BYTES
from fastmlp.cost.hardware import CARDS

from .chips import CHIPS, Chip


@dataclass
class FakeCard:
    """The pretended card; used_bytes is what torch would see allocated on it."""

    name: str
    used_bytes: int = 0

    @property
    def chip(self) -> Chip:
        return CHIPS[self.name]

    @property
    def total_bytes(self) -> int:
        return int(CARDS[self.name].memory_bytes)

    def mem_get_info(self, *_: Any) -> tuple[int, int]:
        return self.total_bytes - RESERVED_BYTES - self.used_bytes, self.total_bytes

    def properties(self) -> Any:
        """Return what torch.cuda.get_device_properties() returns."""
        chip = self.chip
        major, minor = chip.capability
        return types.SimpleNamespace(
            name=chip.device_name,
            major=major,
            minor=minor,
            total_memory=self.total_bytes,
            multi_processor_count=chip.multiprocessors,
            regs_per_multiprocessor=65536,
            max_threads_per_multi_processor=chip.threads,
            max_threads_per_block=1024,
            warp_size=32,
            shared_memory_per_block=49152,
            shared_memory_per_block_optin=chip.shared_bytes,
            shared_memory_per_multiprocessor=chip.shared_bytes + 1024,
            L2_cache_size=chip.l2_bytes,
            is_integrated=0,
            is_multi_gpu_board=0,
            gcnArchName="",
            uuid="0",
        )


class _Driver(CudaDriver):
    """Triton's driver of the card, without libcuda. Clocks are only read for Triton's own estimates."""

    def __init__(self, card: FakeCard):
        major, minor = card.chip.capability
        self._target = GPUTarget("cuda", major * 10 + minor, 32)
        about = {
            "max_shared_mem": card.chip.shared_bytes,
            "max_num_regs": 65536,
            "multiprocessor_count": card.chip.multiprocessors,
            "warpSize": 32,
            "sm_clock_rate": 1_695_000,
            "mem_clock_rate": 8_001_000,
            "mem_bus_width": 384,
        }
        self.utils: Any = types.SimpleNamespace(get_device_properties=lambda _: about)
        self.get_device_capability = lambda *_: (major, minor)
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda *_: 0
        self.set_current_device = lambda *_: None
        self.launcher_cls: Any = None

    def get_current_target(self) -> GPUTarget:
        return self._target


@contextmanager
def pretend(card: FakeCard) -> Iterator[FakeTensorMode]:
    """A context in which torch sees the card, and tensors on it have shapes and no memory.

    One card per process: Inductor caches what a device is.
    """
    mode, kept = FakeTensorMode(allow_non_fake_inputs=True), triton.runtime.driver._active
    with ExitStack() as stack:
        stack.enter_context(
            mode
        )  # before is_available() answers yes: it then takes torch's device guard that does nothing
        for where, name, answer in _answers(card):
            stack.enter_context(mock.patch.object(where, name, answer, create=not hasattr(where, name)))
        remembered = {"cuda": [card.properties()]}
        stack.enter_context(mock.patch.dict(device_interface.caching_worker_device_properties, remembered))
        stack.enter_context(mock.patch.dict(device_interface.caching_worker_current_devices, {"cuda": 0}))
        deduce = joint_graph.UniformValueConstantFolder._deduce_value
        folding = mock.patch.object(joint_graph.UniformValueConstantFolder, "_deduce_value", _on_cpu(deduce))
        stack.enter_context(folding)
        triton.runtime.driver.set_active(_Driver(card))
        _forget()
        try:
            yield mode
        finally:
            triton.runtime.driver._active = kept
            _forget()


def _forget() -> None:
    """Clear what torch remembers of devices."""
    torch._dynamo.reset()
    DeviceProperties.create.cache_clear()


def _answers(card: FakeCard) -> Iterator[tuple[Any, str, Any]]:
    """Yield what to patch: where, the name, and the function that answers for the card."""
    capability, properties = card.chip.capability, card.properties()

    def zero() -> Any:
        return lambda *_: 0  # a function of its own for each: Dynamo keeps a table by function

    def nothing() -> Any:
        return lambda *_: None

    cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": zero(),
        "get_device_properties": lambda *_: properties,
        "get_device_capability": lambda *_: capability,
        "get_device_name": lambda *_: card.chip.device_name,
        "is_bf16_supported": lambda including_emulation=True: capability >= (8, 0) or including_emulation,
        "mem_get_info": card.mem_get_info,
        "empty_cache": nothing(),
        "synchronize": nothing(),
        "set_device": nothing(),
        "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": nothing(),
        "_lazy_init": nothing(),
        "_exchange_device": zero(),
        "_maybe_exchange_device": zero(),
    }
    interface: dict[str, Any] = {
        "get_device_properties": lambda *_: properties,
        "current_device": zero(),
        "device_count": lambda: 1,
        "synchronize": nothing(),
        "exchange_device": zero(),
        "maybe_exchange_device": zero(),
    }
    yield from ((torch.cuda, name, answer) for name, answer in cuda.items())
    for name in ("_cuda_getDevice", "_cuda_exchangeDevice", "_cuda_maybeExchangeDevice"):
        yield torch._C, name, zero()
    for name, answer in interface.items():
        yield device_interface.CudaInterface, name, staticmethod(answer)
    yield FakeTensorMode, "avoid_device_init", property(lambda self: True)


def _on_cpu(deduce: Any) -> Any:
    """Return Inductor's constant folding, which runs operations of one element on the card, for the CPU."""

    def deduce_on_cpu(self: Any, node: Any) -> Any:
        kept = node.kwargs
        if isinstance(kept.get("device"), torch.device):
            node.kwargs = {**kept, "device": torch.device("cpu")}
        try:
            return deduce(self, node)
        finally:
            node.kwargs = kept

    return deduce_on_cpu
