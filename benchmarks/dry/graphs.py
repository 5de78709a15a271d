"""torch.compile that writes its kernels and launches none: each graph runs on fake tensors, and tells its launches."""

import functools
import re
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch._inductor import compile_fx
from torch._inductor import config as inductor_config
from torch._inductor.graph import GraphLowering

Launched = Callable[["Graph", str, dict[str, Any]], None]  # the graph, the kernel's name, its arguments by name


@dataclass
class Graph:
    """A graph that Inductor has compiled: the wrapper module that it wrote, and the sources of the Triton kernels."""

    number: int
    wrapper: str
    kernels: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pattern = r"^(\w+) = async_compile\.triton\('\w+', '''\n(.*?)''', device_str='cuda'\)"
        self.kernels = dict(re.findall(pattern, self.wrapper, re.S | re.M))


@contextmanager
def captured(on_launch: Launched) -> Iterator[list[Graph]]:
    """A context in which torch.compile compiles for the pretended card; yields the list of graphs, which grows.

    on_launch is called for each launch of a Triton kernel. Calls of libraries run on fake tensors.
    """
    graphs: list[Graph] = []
    inner_compile = compile_fx.compile_fx_inner
    compile_real = torch.compile

    def write_wrapper(lowering: Any) -> Any:
        wrapper, _ = lowering.codegen()
        graphs.append(Graph(len(graphs), wrapper.value))
        return types.SimpleNamespace(call=lambda *_: None, __file__="/dev/null")

    def inner(module: Any, example_inputs: Any, **options: Any) -> Any:
        with mock.patch.object(GraphLowering, "compile_to_module", write_wrapper):
            inner_compile(module, example_inputs, **options)
        call = _call_on_fakes(graphs[-1], on_launch)

        def run(arguments: list[Any]) -> Any:
            given = list(arguments)
            arguments.clear()  # as the real one does, so that they are freed when the graph is done with them
            return call(given)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def backend(module: Any, example_inputs: Any, options: Any = None, **_: Any) -> Any:
        return compile_fx.compile_fx(module, example_inputs, inner_compile=inner, config_patches=options)

    def compile_(function: Any = None, *, options: Any = None, **kwargs: Any) -> Any:
        return compile_real(function, backend=functools.partial(backend, options=options), **kwargs)

    with (
        mock.patch.object(compile_fx, "compile_fx_inner", inner),
        mock.patch.object(torch, "compile", compile_),
        # Whether products of odd sizes are padded is decided by timing them.
        inductor_config.patch(force_disable_caches=True, compile_threads=1, shape_padding=False),
    ):
        yield graphs


class _Kernel:
    """Stands for a compiled Triton kernel in a wrapper module."""

    def __init__(self, graph: Graph, name: str, on_launch: Launched):
        signature = re.search(rf"^def {name}\(([^)]*)\)", graph.kernels[name], re.M)
        assert signature
        self._names = [argument.split(":")[0].strip() for argument in signature[1].split(",")]
        self._launched = functools.partial(on_launch, graph, name)

    def run(self, *arguments: Any, **_: Any) -> None:
        self._launched(dict(zip(self._names, arguments, strict=False)))  # the block sizes are the tuner's


class _Libraries:
    """Stands for Inductor's extern_kernels: torch's own operations, on fake tensors."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return getattr(torch.ops.aten, {"bias_addmm": "addmm"}.get(name, name))


def _call_on_fakes(graph: Graph, on_launch: Launched) -> Callable[[list[Any]], Any]:
    """Return the wrapper module's `call`, which allocates fake tensors on the pretended card."""
    replaced = (
        "from torch._inductor.async_compile import AsyncCompile",
        "from torch._C import _cuda_getCurrentRawStream as get_raw_stream",
        "from torch._inductor.select_algorithm import extern_kernels",
    )
    code = graph.wrapper
    for line in replaced:
        code = code.replace(line, "")

    class Compile:
        def triton(self, name: str, *_: Any, **__: Any) -> _Kernel:
            return _Kernel(graph, name, on_launch)

        def wait(self, *_: Any) -> None:
            pass

    space: dict[str, Any] = {"__name__": "wrapper", "AsyncCompile": Compile, "extern_kernels": _Libraries()}
    exec(compile(code, f"<graph {graph.number}>", "exec"), space)
    without_device = types.SimpleNamespace(**{name: getattr(torch, name) for name in dir(torch) if name[:2] != "__"})
    no_context = {name: lambda *_: nullcontext() for name in ("_DeviceGuard", "device")}
    without_device.cuda = types.SimpleNamespace(set_device=lambda *_: None, **no_context)
    nothing = {
        name: lambda *_: None for name in ("assert_size_stride", "assert_size_stride_grouped", "assert_alignment")
    }
    space.update(
        nothing,
        torch=without_device,
        empty_strided_cuda=lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype, device="cuda"),
        reinterpret_tensor=lambda tensor, size, stride, offset=0: torch.as_strided(
            tensor, size, stride, tensor.storage_offset() + offset
        ),
        get_raw_stream=lambda *_: 0,
        copy_if_misaligned=lambda tensor: tensor,
    )
    return space["call"]
