"""FFCV's pipeline graph as a list of steps that turn sample indices into a batch."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numba
import numpy as np
import torch

from .. import device as devices
from ..beton import layout
from ..beton.records import jpeg_size, other_size
from ..transforms.cpu_decoder import AugmentedRGBImageDecoder
from ..transforms.ffcv_import import (
    IMAGE_MODES,
    NOT_BY_ROW,
    AllocationQuery,
    Compiler,
    DecoderNode,
    FloatDecoder,
    Graph,
    IntDecoder,
    Operation,
    RefNode,
    SimpleRGBImageDecoder,
    ToDevice,
    ToTensor,
)
from .device_cache import DeviceCache, check_room
from .gather import PART_BYTES, gather_rows
from .mapped_beton import MappedBeton
from .row_threads import RowThreads
from .slots import Slot, on_accelerator

LOOK_UP_SAMPLES = 1 << 16  # whose records are read at once: each is a cold cache line


@dataclass
class Step:
    """One operation: its function, the node whose result it takes, and its other arguments."""

    node: int
    function: Callable[..., Any]
    parent: int | None  # None for a decoder, which takes the batch's indices
    column: np.ndarray | None = None  # (num_samples,) of the metadata: a decoder takes the batch's rows, not indices
    field: str | None = None  # of the metadata, for a decoder that receives all of it
    needs_state: bool = False  # a decoder of FFCV looks addresses up in the allocation table
    with_indices: bool = False
    with_epoch: bool = False  # only our own operations
    with_staging: bool = False  # it sends the batch's indices to a device, from a buffer of the slot's
    with_threads: bool = False  # it divides the batch itself
    by_row: bool = False  # each row of its result depends only on that row: threads divide the batch
    part_bytes: int = 64 << 10  # of its result, at least, that a thread works on
    adjustable: bool = False  # a decoder whose output size scripts may change between epochs
    shared: int | None = None  # the node whose shared memory the operation uses: its first place in the graph
    init_shared: Callable[..., Any] | None = None  # only at that first place


class Program:
    """The pipelines' operations, compiled as FFCV compiles them, which turn sample indices into a batch.

    A plain `SimpleRGBImageDecoder` on raw images of one size becomes a gather of rows by address, `IntDecoder` and
    `FloatDecoder` become one vectorised read. The bytes are those of FFCV's own decoders, without a compilation and
    without a search for each sample.
    """

    def __init__(self, graph: Graph, beton: MappedBeton, cached: np.ndarray | None = None):
        """cached: indices of the samples whose pixels are kept on the device; None streams from the file."""
        self._graph, self._beton, self._cached = graph, beton, cached
        queries, self._code = graph.collect_requirements()
        self.requirements = queries
        self.steps: list[Step] = []
        self._shared: dict[Operation, int] = {}
        waiting = list(graph.root_nodes)
        while waiting:
            node = waiting.pop(0)
            if isinstance(node, DecoderNode):
                node, step = self._decoder_step(node)
                self.steps.append(step)
            elif not isinstance(node, RefNode):
                self.steps.append(self._transform_step(node))
            waiting += graph.adjacency_list[node]
        self.adjustable = any(step.adjustable for step in self.steps)
        self.outputs: list[int] = [_resolved(leaf).id for leaf in graph.leaf_nodes.values()]
        used = {step.node for step in self.steps}
        self._queries = {
            (kind, node): _with_device_number(query)
            for kind, of_node in queries.items()
            for node, query in of_node.items()
            if node in used
        }
        self._queries |= {
            ("staging", step.node): AllocationQuery((1,), np.dtype(np.int64))
            for step in self.steps
            if step.with_staging
        }
        self.devices = self._find_devices()

    def _find_devices(self) -> list[torch.device]:
        """Return the accelerators that the operations have buffers on."""
        found: dict[torch.device, None] = {}
        for query in self._queries.values():
            for one in query if isinstance(query, Sequence) else [query]:
                if one is not None and on_accelerator(one):
                    found[one.device] = None
        return list(found)

    def _decoder_step(self, node: DecoderNode) -> tuple[Any, Step]:
        """Return the last node that the decoder's step covers, and the step."""
        records, kind = self._beton.metadata[f"f{node.f_ix}"], type(node.decoder)
        if Compiler.is_enabled and kind in (IntDecoder, FloatDecoder):
            return node, Step(node.id, _write_scalars, parent=None, column=records)
        if isinstance(node.decoder, AugmentedRGBImageDecoder):
            return node, self._augment_step(node, records)
        if Compiler.is_enabled and kind is SimpleRGBImageDecoder and (records["mode"] == IMAGE_MODES["raw"]).all():
            image_bytes = 3 * int(records["height"][0]) * int(records["width"][0])  # FFCV's decoder wants one size
            _check_addresses(self._beton, records, np.uint64(image_bytes))
            if self._cached is not None and (to_device := self._path_to_device(node)):
                return to_device, self._cache_step(to_device, records, image_bytes, self._cached)
            return node, self._gather_step(node, records)
        return node, self._ffcv_step(node)

    def _augment_step(self, node: DecoderNode, records: np.ndarray) -> Step:
        """Return the step of our own decoder, which draws boxes and flips by sample and epoch."""
        beton, decoder = self._beton, node.decoder
        _check_addresses(beton, records, 3 * records["height"].astype(np.uint64) * records["width"])
        self._load_if_cached()

        def augment(records, destination, indices, epoch, in_parts):
            return decoder.load(beton.bytes, records, indices, epoch, destination, in_parts)

        return Step(
            node.id,
            augment,
            parent=None,
            column=records,
            with_indices=True,
            with_epoch=True,
            with_threads=True,
            adjustable=True,
        )

    def _cache_step(self, to_device: Any, records: np.ndarray, image_bytes: int, cached: np.ndarray) -> Step:
        """Return the step that gathers raw images on the device."""
        target = str(devices.resolve(torch.device(to_device.operation.device)))
        cache = DeviceCache(self._beton, records["data_ptr"], image_bytes, cached, target)
        return Step(to_device.id, cache.gather, parent=None, with_staging=True)

    def _gather_step(self, node: DecoderNode, records: np.ndarray) -> Step:
        """Return the step that gathers raw images of one size from the file."""
        self._load_if_cached()
        beton = self._beton

        def gather(addresses, destination):  # not a method: a cycle would keep the mapping
            gather_rows(beton.bytes, addresses, destination)
            return destination

        return Step(node.id, gather, parent=None, column=records["data_ptr"], by_row=True, part_bytes=PART_BYTES)

    def _ffcv_step(self, node: DecoderNode) -> Step:
        """Return the step of a decoder that FFCV compiles."""
        self._load_if_cached()
        function, decode = self._code["operation"][node.id], _compile(self._code["operation"][node.id])
        records = self._beton.metadata[f"f{node.f_ix}"]
        if (
            self._beton.fields[node.f_ix].type_id == layout.RGB_IMAGE_FIELD
            and (records["mode"] == layout.JPEG_MODE).any()
        ):
            decode = _check_jpegs_before(decode, self._beton, records)
        return Step(
            node.id,
            decode,
            parent=None,
            field=f"f{node.f_ix}",
            needs_state=True,
            with_indices=getattr(function, "with_indices", False),
            by_row=_is_by_row(node.decoder, function),
            adjustable=True,
        )

    def _path_to_device(self, node: DecoderNode) -> Any | None:
        """Return the ToDevice node if only a ToTensor is between it and the decoder, and nothing else uses either."""
        for kind in (ToTensor, ToDevice):
            following = self._graph.adjacency_list[node]
            if len(following) != 1 or type(getattr(following[0], "operation", None)) is not kind:
                return None
            node = following[0]
        return node

    def _load_if_cached(self) -> None:
        """Load the file into memory if it is to be cached but its decoder cannot gather on the device."""
        if self._cached is not None and not self._beton.in_ram:
            check_room(self._beton.file_bytes, torch.device("cpu"), self._beton.file_name)
            self._beton.load()

    def _transform_step(self, node: Any) -> Step:
        """Return the step of an operation that takes another step's result."""
        function, init_shared = self._code["operation"][node.id], self._code["shared"][node.id]
        with_indices, with_epoch = (getattr(function, name, False) for name in ("with_indices", "with_epoch"))
        parent = _resolved(node.parent).id
        step = Step(node.id, function, parent, with_indices=with_indices, with_epoch=with_epoch)
        if init_shared is not None:
            step.shared = self._shared.setdefault(node.operation, node.id)
            step.init_shared = init_shared if step.shared == node.id else None
        if node.is_jitted:
            step.by_row = step.shared is None and _is_by_row(node.operation, function)
            step.function = _compile(function)
            step.init_shared = step.init_shared and _compile(step.init_shared)
        return step

    def new_slot(self, batch_size: int) -> Slot:
        """Return new buffers for a batch."""
        return Slot(self._queries, batch_size, pinned=bool(self.devices))

    def batches(
        self,
        order: np.ndarray,  # (N,) sample indices
        batch_size: int,
    ) -> Iterator[tuple[np.ndarray, dict[int, np.ndarray]]]:
        """Yield each batch's sample indices and, for each step with a column, the rows of that column."""
        columns = {step.node: step.column for step in self.steps if step.column is not None}
        block_size = max(1, LOOK_UP_SAMPLES // batch_size) * batch_size
        for start in range(0, len(order), block_size):
            block = order[start : start + block_size]
            found = {node: column.take(block) for node, column in columns.items()}
            for first in range(0, len(block), batch_size):
                part = slice(first, first + batch_size)
                yield block[part], {node: values[part] for node, values in found.items()}

    def run(
        self,
        indices: np.ndarray,  # (b,) sample indices
        found: dict[int, np.ndarray],  # rows of the columns, from `batches`
        epoch: int,
        slot: Slot,
        threads: RowThreads,
    ) -> tuple[Any, ...]:
        """Return the batch, one result for each output, in the slot's buffers."""
        count = len(indices)
        results: dict[int, Any] = {}
        given: Any
        by_row: Any
        whole: Any

        def memory(kind: str, node: int) -> Any:
            view = slot.buffers.get((kind, node))
            return tuple(v(count) for v in view) if isinstance(view, tuple) else view and view(count)

        for step in self.steps:
            given = found.get(step.node, indices) if step.parent is None else results[step.parent]
            by_row = [given, memory("operation", step.node)]
            if step.with_staging:
                by_row.append(memory("staging", step.node))
            if step.with_indices:
                by_row.append(indices)
            whole = [epoch] if step.with_epoch else []
            if step.field is not None:
                whole += [self._beton.metadata[step.field], self._beton.state if step.needs_state else None]
            if step.shared is not None:
                whole.append(memory("shared", step.shared))
                if step.init_shared is not None:
                    step.init_shared(whole[-1])
            if step.with_threads:
                whole.append(threads.run)
            if step.by_row:
                results[step.node] = _run_in_parts(step, by_row, whole, count, threads)
            else:
                results[step.node] = step.function(*by_row, *whole)
        try:
            return tuple(results[node] for node in self.outputs)
        finally:
            # Errors that numba has caught while it compiled keep this frame until garbage is collected; what is in it
            # must not look as if a caller held the batch.
            results.clear()
            given = by_row = whole = None


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile as FFCV does, except that no loop is parallel: numba's threads are not used (row_threads.py)."""
    if not Compiler.is_enabled:
        return function
    return numba.njit(fastmath=True, nogil=True, error_model="numpy")(function)


def _is_by_row(operation: Operation, function: Callable[..., Any]) -> bool:
    """Return whether threads may call an operation's function for parts of a batch.

    FFCV's may, unless they mix images. One of your own may if it has the attribute `by_row`, True; then it returns its
    input or its memory. A parallel loop in any other runs on one thread.
    """
    if not Compiler.is_enabled:
        return False  # FFCV's debugging mode: one call in one thread
    if getattr(function, "__module__", "").startswith("ffcv."):
        return not isinstance(operation, NOT_BY_ROW)
    if getattr(function, "is_parallel", False) and not hasattr(function, "by_row"):
        warnings.warn(
            f"the parallel loop of {type(operation).__name__} runs on one thread: give its function the attribute "
            "by_row = True if each row of its result depends only on the same row of its input",
            stacklevel=2,
        )
    return getattr(function, "by_row", False)


def _run_in_parts(step: Step, by_row: list[Any], whole: list[Any], count: int, threads: RowThreads) -> Any:
    """Return the result of a step, after threads have called its function for parts of the batch."""

    def rows(argument: Any, part: slice) -> Any:
        if isinstance(argument, tuple):
            return tuple(one[part] for one in argument)
        return None if argument is None else argument[part]

    def work(first: int, last: int) -> None:
        part = slice(first, last)
        result = step.function(*(rows(argument, part) for argument in by_row), *whole)
        if first == 0:
            starts_at.append(result.ctypes.data)

    given, memory = by_row[0], by_row[1][0] if isinstance(by_row[1], tuple) else by_row[1]
    starts_at: list[int] = []
    threads.run(work, count, step.part_bytes * count // max(1, (given if memory is None else memory).nbytes))
    in_place = step.parent is not None and starts_at[0] == given.ctypes.data
    return given if in_place else memory


def _with_device_number(query: Any) -> Any:
    """Return an allocation query, or several, with the number of the device: "cuda" is that of the caller's thread."""
    if isinstance(query, Sequence):
        return [_with_device_number(one) for one in query]
    if query is None or not on_accelerator(query):
        return query
    return replace(query, device=devices.resolve(torch.device(query.device)))


def _check_addresses(beton: MappedBeton, records: np.ndarray, image_bytes: np.ndarray | np.uint64) -> None:
    """Raise ValueError unless each image is within the file's data."""
    first, size = records["data_ptr"], np.uint64(beton.file_bytes)
    inside = (first >= np.uint64(beton.records_end)) & (first <= size)
    if not (inside & (image_bytes > 0) & (image_bytes <= size - np.minimum(first, size))).all():
        raise ValueError(f"{beton.file_name} is corrupt: an image is stored outside of its data, or has no pixels")


def _check_jpegs_before(decode: Callable[..., Any], beton: MappedBeton, records: np.ndarray) -> Callable[..., Any]:
    """Return `decode`, preceded by a look at the JPEGs' own sizes, which FFCV takes from the records.

    On a JPEG of another size, libturbojpeg writes another picture or none, and FFCV does not look at what it returns.
    """
    size_of = _compile(jpeg_size)

    def find_other(content, records, indices):
        for position in range(len(indices)):
            record = records[indices[position]]
            if record["mode"] == layout.JPEG_MODE:
                height, width = size_of(content, np.int64(record["data_ptr"]), len(content))
                if height != record["height"] or width != record["width"]:
                    return position
        return -1

    find_other = _compile(find_other)

    def checked(indices, *others):
        if (position := find_other(beton.bytes, records, indices)) >= 0:
            sample = indices[position]
            raise ValueError(f"{beton.file_name} is corrupt: sample {sample:,} {other_size(records[sample])}")
        return decode(indices, *others)

    return checked


def _write_scalars(values, destination):
    destination[:, 0] = values
    return destination


def _resolved(node: Any) -> Any:
    """Return the node that a reference stands for, or the node itself."""
    return _resolved(node.parent) if isinstance(node, RefNode) else node
