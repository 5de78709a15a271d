"""`Loader`: a drop-in for ffcv.loader.Loader at memory speed."""

import copy
import os
import warnings
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import device as devices
from ..transforms.ffcv_import import Field, Graph, Operation, OrderOption, PipelineSpec, TraversalOrder
from ..worker_pool import cores_per_process, num_cores
from .compiled_pipeline import Program
from .iterator import Cursor, EpochIterator, EpochPlan, Source
from .mapped_beton import MappedBeton
from .order import random_order, shard, windowed_order
from .read_ahead import Windows
from .slots import SlotPool

__all__ = ["Loader", "OrderOption", "TraversalOrder", "clamp_workers"]


def clamp_workers(num_workers: int) -> int:
    """Return the number of threads to use: at most every core, with a warning.

    For 0 and below it is every core, divided by the processes that torchrun has started on this machine.
    """
    cores = num_cores()
    if num_workers > cores:
        warnings.warn(f"num_workers={num_workers} is more than the {cores} cores here: using {cores}", stacklevel=3)
    return min(num_workers if num_workers > 0 else cores_per_process(), cores)


class EpochOrder(NamedTuple):
    """The order of an epoch; with QUASI_RANDOM also the window of each position, and each window's pages."""

    samples: np.ndarray  # (N,) sample indices
    window_of_sample: np.ndarray | None = None  # (N,)
    pages_of_window: list[np.ndarray] | None = None


class StatelessOrder(TraversalOrder):
    """RANDOM, SEQUENTIAL or QUASI_RANDOM of a loader, as FFCV's scripts use it: its indices are the loader's."""

    def __init__(self, loader: "Loader"):
        self._loader = weakref.ref(loader)  # not a cycle: a dropped loader ends at once
        self.distributed, self.sampler = loader.distributed, None

    @property
    def loader(self) -> "Loader":
        loader = self._loader()
        if loader is None:
            raise ValueError("the loader of this traversal order is gone")
        return loader

    @property
    def indices(self) -> np.ndarray:
        return self.loader.indices

    @indices.setter
    def indices(self, indices: Sequence[int] | np.ndarray | None) -> None:
        self.loader.indices = indices

    @property
    def seed(self) -> int:
        return self.loader.seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self.loader.seed = seed

    def __getstate__(self) -> Any:
        return self.loader.__getstate__()  # raises

    def sample_order(self, epoch: int) -> np.ndarray:
        """Return the sample indices of an epoch, in order."""
        return self.loader._epoch_order(epoch).samples


class Loader:
    """A drop-in for ffcv.loader.Loader: the same arguments, pipelines and batches.

    A batch is a tuple of one tensor for each field. Without pipelines, those of a beton of fastmlp are images
    (B, H, W, 3) uint8 and labels (B, 1) int64; image_pipelines gives those for training.

    A batch is valid until the next `next()`, and longer while the caller holds no more than (batches_ahead + 2); a
    warning tells who holds more. Buffers are kept over epochs: at most (batches_ahead + 2) batches of each
    operation's output, fewer if the consumer keeps up, and one more while the caller holds a batch of the epoch before.
    They are page-locked if the pipelines send to an accelerator, on one stream for all epochs. If the caller still
    holds tensors of a buffer when a new iterator starts, the buffer is not reused but replaced.

    Arguments that differ from FFCV's, or are not in FFCV:
      fname: a beton.
      seed: of the order; None is one at random, or 0 if `distributed`.
      indices: (N,) integers, the samples to read, None for all.
      num_workers: clamped to the number of cores; torch's own thread count stays as it is.
      order: RANDOM, SEQUENTIAL and QUASI_RANDOM are functions of (seed, epoch, rank, world size); all may be
        `distributed`. QUASI_RANDOM is for betons larger than memory: the file's pages are shuffled and divided into
        windows, which are in memory one after the other; within a window the samples are shuffled.
        A custom traversal order may be a class or an instance.
      window_bytes: the bytes of the file that QUASI_RANDOM keeps in memory: batches come from one half of it, the other
        half is read ahead. If the file is larger than half of the free memory, pages that have been read are dropped
        from the page cache too.
      os_cache: accepted and ignored; the page cache is always used.
      cache: "none", or "device": all pixels are read once, to where the pipeline's ToDevice sends them (otherwise to
        RAM), and batches are gathered there. They are bit for bit the batches of streaming.

    Raises FileNotFoundError if the beton is missing, ValueError if it is damaged or no beton or for an argument that
    cannot be, RuntimeError for `distributed` without torch's process group. next() raises every error that occurs while
    loading, with a note that names the batch and the file.
    """

    def __init__(
        self,
        fname: str | os.PathLike[str],
        batch_size: int,
        num_workers: int = -1,
        os_cache: bool = True,
        order: Any = OrderOption.SEQUENTIAL,
        distributed: bool = False,
        seed: int | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        pipelines: Mapping[str, Sequence[Operation | torch.nn.Module] | PipelineSpec | None] | None = None,
        custom_fields: Mapping[str, type[Field]] | None = None,
        drop_last: bool = True,
        batches_ahead: int = 3,
        recompile: bool = False,
        order_kwargs: Mapping[str, Any] | None = None,
        *,
        window_bytes: int = 1 << 30,
        cache: str = "none",
    ):
        _check_arguments(batch_size, batches_ahead, cache)
        drawn, seed = seed is None, _choose_seed(seed, distributed)
        self._drawn_seed = seed if drawn else None  # for which a state's seed may be taken
        self._args: dict[str, Any] = {
            "fname": os.path.abspath(fname),  # the current folder may change
            "batch_size": batch_size,
            "num_workers": num_workers,
            "os_cache": os_cache,
            "order": order,
            "distributed": distributed,
            "seed": seed,
            "indices": indices,
            "pipelines": pipelines,
            "custom_fields": custom_fields,
            "drop_last": drop_last,
            "batches_ahead": batches_ahead,
            "recompile": recompile,
            "order_kwargs": order_kwargs,
            "window_bytes": window_bytes,
            "cache": cache,
        }  # for `filter`, which makes loaders that differ in a few of them
        self.fname, self.batch_size, self.batches_ahead = str(fname), batch_size, batches_ahead
        self.seed, self.distributed, self.drop_last, self.recompile = seed, distributed, drop_last, recompile
        self.num_workers = clamp_workers(num_workers)
        self._next = Cursor()  # where the next iterator starts
        self._cursor = Cursor()  # how far the consumer has come
        self.reader = self.memory_manager = MappedBeton(self.fname, custom_fields)
        self.indices = indices
        self.rank, self.world_size = _rank_and_world_size() if distributed else (0, 1)
        self._order, self.traversal_order = order, self._choose_order(order, order_kwargs or {})
        self._window_bytes, self._cache = window_bytes, cache
        if order == OrderOption.RANDOM and self.reader.exceeds_memory:
            self.reader.expect_random_reads()

        self._build_graph(pipelines or {})
        self.generate_code()
        self.slots = self._new_slot_pool()
        self.handoff = devices.StreamHandoff(self.program.devices)
        self._iterators: weakref.WeakSet[EpochIterator] = weakref.WeakSet()
        self._closed = False
        self._first: tuple[TraversalOrder, Any, np.ndarray] | None = None

    def _build_graph(self, pipelines: Mapping[str, Any]) -> None:
        """Make FFCV's graph of the pipelines."""
        reader = self.reader
        self.field_name_to_f_ix = {name: number for number, name in enumerate(reader.handlers)}
        self.pipeline_specs = self._specs(pipelines)
        for name, spec in self.pipeline_specs.items():
            if isinstance(spec.source, str) and spec.source not in reader.handlers:
                fields = ", ".join(reader.handlers)
                raise ValueError(f"pipelines[{name!r}]: {self.fname} has no field {spec.source!r}, but {fields}")
        self.graph = Graph(
            self.pipeline_specs, reader.handlers, self.field_name_to_f_ix, reader.metadata, reader.compile_reader()
        )

    def _new_slot_pool(self) -> SlotPool:
        return SlotPool(self.batches_ahead + 3)  # a caller may hold one: a loop leaves its last batch bound

    @property
    def indices(self) -> np.ndarray:
        """The samples that are read, (N,) uint64 if all are, else integers of the type that was given.

        What is set is checked as the constructor's argument is: ValueError for samples that are not in the file.
        """
        return self._indices

    @indices.setter
    def indices(self, indices: Sequence[int] | np.ndarray | None) -> None:
        self._indices = self._check_indices(None if indices is None else np.array(indices))  # a copy

    def _check_indices(self, indices: Sequence[int] | np.ndarray | None) -> np.ndarray:
        """Return the indices as an array, of all samples for None. Raises ValueError for others than the file's."""
        samples = int(self.reader.num_samples)
        if indices is None:
            return np.arange(samples, dtype=np.uint64)
        array = np.asarray(indices)
        if array.ndim != 1:
            raise ValueError(f"indices have shape {array.shape}, expected one dimension")
        if array.size and array.dtype.kind not in "iu":
            raise ValueError(f"indices have dtype {array.dtype}, expected integers")
        if array.size and not 0 <= array.min() <= array.max() < samples:
            raise ValueError(
                f"indices from {array.min()} to {array.max()} reach outside of the {samples} samples of {self.fname}"
            )
        return array if array.size else np.empty(0, np.uint64)

    def _choose_order(self, order: Any, keywords: Mapping[str, Any]) -> TraversalOrder:
        """Return the traversal order that the user brings, ours for one of FFCV's options."""
        if isinstance(order, OrderOption):
            return StatelessOrder(self)
        if isinstance(order, type) and issubclass(order, TraversalOrder):
            return order(self, **keywords)
        if isinstance(order, TraversalOrder):
            return order(self, **keywords) if callable(order) else order
        raise ValueError(f"order={order!r}: expected an OrderOption or a TraversalOrder (class or instance)")

    def _specs(self, pipelines: Mapping[str, Any]) -> dict[str, PipelineSpec]:
        """Return a PipelineSpec for each output, with FFCV's default for a field that has no pipeline."""
        given: dict[str, PipelineSpec] = {}
        for name, pipeline in pipelines.items():
            if isinstance(pipeline, PipelineSpec):
                given[name] = copy.copy(pipeline)
                given[name].transforms = list(pipeline.transforms)
            elif isinstance(pipeline, Sequence):  # a copy: PipelineSpec takes the decoder out of its list
                given[name] = PipelineSpec(name, decoder=None, transforms=list(pipeline))
            elif pipeline is not None:
                raise ValueError(
                    f"pipelines[{name!r}]={pipeline!r}: expected a PipelineSpec or a sequence of operations"
                )
        specs = {
            name: given.get(name, PipelineSpec(name))
            for name in self.reader.handlers
            if name in given or name not in pipelines  # None disables a field
        }
        return {**specs, **given}  # those of the fields first, in the file's order

    def generate_code(self) -> None:
        """Prepare the pipelines' operations; FFCV compiles each when it is first called."""
        self.program = Program(self.graph, self.reader, self.indices if self._cache == "device" else None)

    def next_traversal_order(self) -> np.ndarray:
        """Return the sample indices of the next epoch in order, (N,) uint64 or of the type of `indices`.

        With several processes they are this one's part. Raises ValueError for indices that are not in the file.
        """
        return self._epoch_order(self.next_epoch).samples

    @property
    def first_traversal_order(self) -> np.ndarray:
        """The order of the epoch that was next at the first access; the length of a custom order, as in FFCV.

        It is (N,) uint64 or of the type of `indices`. It is another one after traversal_order or its indices have been
        set: some orders have a state, and must not be asked each time.
        """
        order = self.traversal_order
        if self._first is None or self._first[0] is not order or self._first[1] is not order.indices:
            self._first = order, order.indices, self.next_traversal_order()
        return self._first[2]

    def _epoch_order(self, epoch: int) -> EpochOrder:
        """Return the order of an epoch: this rank's part."""
        if not isinstance(self.traversal_order, StatelessOrder):
            return EpochOrder(self._check_indices(self.traversal_order.sample_order(epoch)))
        window_of_sample: np.ndarray | None = None
        windows: list[np.ndarray] = []
        self._check_indices(self.indices)  # again: the array may have been changed in place
        if self._order == OrderOption.SEQUENTIAL:
            order = self.indices
        elif self._order == OrderOption.RANDOM:
            order = random_order(self.indices, self.seed, epoch)
        else:
            page_bytes = int(self.reader.page_size)
            pages_per_window = max(1, self._window_bytes // 2 // page_bytes)
            pages = self.reader.pages[self.indices]
            order, window_of_sample, windows = windowed_order(self.indices, pages, pages_per_window, self.seed, epoch)
        if self.world_size > 1:
            order = shard(order, self.rank, self.world_size)
            if window_of_sample is not None:
                window_of_sample = shard(window_of_sample, self.rank, self.world_size)
        return EpochOrder(order, window_of_sample, windows)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        if isinstance(self.traversal_order, StatelessOrder):
            count = -(-len(self.indices) // self.world_size)
        else:
            count = len(self.first_traversal_order)
        return count // self.batch_size if self.drop_last else -(-count // self.batch_size)

    def __iter__(self) -> EpochIterator:
        if self._closed:
            raise ValueError(f"the loader of {self.fname} is closed")
        _check_arguments(self.batch_size, self.batches_ahead, self._cache)
        self.reader.check_size()
        self._regenerate_if_changed()
        epoch, done = self._next.epoch, self._next.samples
        self._next = Cursor(epoch + 1)
        self._cursor.move(epoch, done)
        plan = self._plan(epoch, done)
        if self.drop_last and not done and not len(plan.order):
            warnings.warn(
                f"an epoch of {self.fname} has fewer samples than batch_size={self.batch_size}, so no batch: "
                "drop_last=False gives what there is",
                stacklevel=2,
            )
        source = Source(
            self.reader,
            self.program,
            self.slots,
            self.handoff,
            self.batch_size,
            clamp_workers(self.num_workers),
            self.batches_ahead,
            self._cursor,
        )
        iterator = EpochIterator(source, plan)
        self._iterators.add(iterator)
        return iterator

    def _regenerate_if_changed(self) -> None:
        """Prepare the operations anew if a script has changed a decoder's output size (FFCV's progressive resizing)."""
        if self.recompile or (
            self.program.adjustable and self.graph.collect_requirements()[0] != self.program.requirements
        ):
            self.generate_code()
            self.slots = self._new_slot_pool()

    def _plan(self, epoch: int, done: int) -> EpochPlan:
        """Return what an iterator reads of an epoch after its first `done` samples; start the read-ahead."""
        order, window_of_sample, pages = self._epoch_order(epoch)
        size = self.batch_size
        end = len(order) - (len(order) - done) % size if self.drop_last else len(order)
        windows = None
        if window_of_sample is not None and end > done and self._cache == "none":
            firsts = range(done, end, size)
            spans = [
                (int(window_of_sample[first]), int(window_of_sample[min(first + size, end) - 1])) for first in firsts
            ]
            windows = Windows(self.reader, pages or [], spans)
        return EpochPlan(epoch, done, order[done:end], windows)

    def filter(self, field_name: str, condition: Callable[[Any], bool]) -> "Loader":
        """Return a loader of the samples whose decoded field meets the condition.

        condition: called with one sample's value of the field, as its pipeline gives it; its result is taken as a bool.
        """
        only = {name: None for name in self.reader.handlers if name != field_name}
        mine = {name: spec for name, spec in (self._args["pipelines"] or {}).items() if name == field_name}
        changed = ("indices", "seed", "batch_size", "num_workers", "batches_ahead", "drop_last", "recompile")
        arguments = {**self._args, **{name: getattr(self, name) for name in changed}}
        with Loader(
            **{
                **arguments,
                "pipelines": {**only, **mine},
                "order": OrderOption.SEQUENTIAL,
                "drop_last": False,
                "distributed": False,
                "cache": "none",
            }
        ) as every:
            keep = [bool(condition(value)) for (batch,) in every for value in batch]
        found = Loader(**{**arguments, "indices": self.indices[np.array(keep, bool)]})
        found._drawn_seed = self._drawn_seed
        return found

    def state_dict(self) -> dict[str, int]:
        """Return the consumer's position (epoch, samples received of it) and what determines the order.

        It is exact in the middle of an epoch: batches loaded ahead do not count. With several iterators at once it is
        the position of the one that was made, or gave a batch, last.
        """
        return {**self._identity(), "epoch": self._cursor.epoch, "samples": self._cursor.samples}

    def _identity(self) -> dict[str, int]:
        """Return numbers that are equal only if two loaders give the same samples in the same order."""
        stateless = isinstance(self.traversal_order, StatelessOrder)
        options = [OrderOption.SEQUENTIAL, OrderOption.RANDOM, OrderOption.QUASI_RANDOM]
        return {
            "beton": self.reader.fingerprint,
            "indices": zlib.crc32(self.indices.astype(np.int64).tobytes()),
            "order": options.index(self._order) if stateless else -1,
            "window_bytes": self._window_bytes if stateless and self._order == OrderOption.QUASI_RANDOM else 0,
            "seed": self.seed,
            "world_size": self.world_size,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Make the next iterator resume where `state` was taken, at the right sample even with another batch size.

        A loader that was made without a seed takes that of the state, unless its traversal order is a custom one.
        Raises ValueError if the state is of another beton, subset, order, world size or, if one was given, seed.
        """
        mine = self._identity()
        # A custom order has its own copy of the seed.
        takes_seed = self.seed == self._drawn_seed and isinstance(self.traversal_order, StatelessOrder)
        if takes_seed and "seed" in state:
            mine["seed"] = _choose_seed(state["seed"], self.distributed)
        other = [f"{name} {state.get(name)} (here {value})" for name, value in mine.items() if state.get(name) != value]
        if other or not {"epoch", "samples"} <= set(state):
            raise ValueError(f"the state is not of this loader of {self.fname}: it has {', '.join(other) or state}")
        epoch, samples = int(state["epoch"]), int(state["samples"])
        if epoch < 0 or not 0 <= samples <= len(self.indices):
            raise ValueError(
                f"the state does not fit {self.fname}: epoch {epoch}, {samples} samples received of {len(self.indices)}"
            )
        if takes_seed:
            self._drawn_seed = self.seed = mine["seed"]
        self._next = Cursor(epoch, samples)
        self._cursor.move(epoch, samples)

    @property
    def next_epoch(self) -> int:
        """The epoch that the next iterator reads; setting it starts that epoch from its beginning."""
        return self._next.epoch

    @next_epoch.setter
    def next_epoch(self, epoch: int) -> None:
        self._next = Cursor(epoch)

    def __getstate__(self) -> Any:
        raise TypeError(
            f"the loader of {self.fname} cannot be pickled or copied, since it has threads and a mapped file: make one "
            "with the same arguments in the process that uses it"
        )

    def close(self) -> None:
        """End all threads and free the buffers; another epoch is a ValueError."""
        self._closed = True
        for iterator in list(self._iterators):
            iterator.close()
        self.slots.clear()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check_arguments(batch_size: int, batches_ahead: int, cache: str) -> None:
    """Raise ValueError for arguments that no loader can have."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    if batches_ahead < 0:
        raise ValueError(f"batches_ahead={batches_ahead}: expected at least 0")
    if cache not in ("none", "device"):
        raise ValueError(f"cache={cache!r}: expected 'none' or 'device'")


def _choose_seed(seed: int | None, distributed: bool) -> int:
    """Return the seed given; for None 0 with several processes, otherwise one at random, as FFCV does."""
    if seed is None:
        seed = 0 if distributed else int(np.random.randint(0, 2**31 - 1))
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r}: expected an integer from 0 to 2**32 - 1")
    return int(seed)  # of numpy, in a state, torch.load would refuse it


def _rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes. Raises RuntimeError without a process group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise RuntimeError("distributed=True needs a process group: call torch.distributed.init_process_group first")
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
