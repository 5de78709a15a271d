"""One epoch of a loader: a thread loads batches ahead of the consumer and ends with it."""

import atexit
import queue
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..device import StreamHandoff
from ..transforms.numba_cache import numba
from .compiled_pipeline import Program
from .mapped_beton import MappedBeton
from .read_ahead import Windows
from .slots import Slot, SlotPool


@dataclass
class Cursor:
    """A position: an epoch, and the number of its samples that the consumer has received."""

    epoch: int = 0
    samples: int = 0

    def move(self, epoch: int, samples: int) -> None:
        self.epoch, self.samples = epoch, samples


@dataclass(frozen=True)
class EpochPlan:
    """The samples that one iterator reads."""

    epoch: int
    done: int  # samples of the epoch that had been received before this iterator
    order: np.ndarray  # (N,) indices of the samples that follow
    windows: Windows | None  # the read-ahead of QUASI_RANDOM


@dataclass(frozen=True)
class Source:
    """What an iterator uses of its loader, which keeps it over epochs."""

    reader: MappedBeton
    program: Program
    slots: SlotPool
    handoff: StreamHandoff
    batch_size: int
    num_workers: int
    batches_ahead: int
    cursor: Cursor  # of the loader, moved with each batch


@dataclass(frozen=True)
class Loaded:
    """A message of the loading thread: a batch in its slot; or, without a slot, the end and its reason."""

    slot: Slot | None = None
    num_samples: int = 0
    events: list[Any] = field(default_factory=list)  # of an accelerator, recorded after the batch was loaded
    batch: tuple[Any, ...] = ()
    error: BaseException | None = None
    exhausted: bool = False  # all batches of the epoch have been loaded


_STOPPED = Loaded()


class EpochIterator:
    """The batches of an epoch; made by `iter(loader)`.

    next() raises errors that occur while loading. If exhausted, closed or dropped, and at interpreter exit, it ends its
    thread and returns its slots to the loader.
    """

    def __init__(self, source: Source, plan: EpochPlan):
        self._cursor, self._epoch = source.cursor, plan.epoch
        self._received, self._handoff = plan.done, source.handoff
        self._producer = _Producer(source, plan)
        self._lent: Slot | None = None  # the slot that the consumer works on
        # Neither the thread nor this finaliser refers to the iterator, so dropping the iterator ends the thread.
        self._open = weakref.finalize(self, self._producer.stop)
        self._open.atexit = False  # _end_all does it, and waits

    def __iter__(self) -> "EpochIterator":
        return self

    def __next__(self) -> tuple[Any, ...]:
        producer = self._producer
        if self._lent is not None:
            self._give_back(self._lent)
            self._lent = None
        if not self._open.alive:
            raise StopIteration
        loaded = producer.ready.get()
        if loaded.slot is None:
            producer.ready.put(_STOPPED)  # for a consumer that waits in another thread
            self.close()
            if loaded.error is not None:
                raise loaded.error
            if loaded.exhausted:
                self._cursor.move(self._epoch + 1, 0)
            raise StopIteration
        self._lent = loaded.slot
        loaded.slot.readers |= self._handoff.receive(loaded.events, loaded.batch)
        self._received += loaded.num_samples
        self._cursor.move(self._epoch, self._received)
        return loaded.batch

    def _give_back(self, slot: Slot) -> None:
        """Return a slot to the loading thread, which waits for all work that the consumer has submitted by now."""
        slot.readers.update(self._handoff.current_streams())  # the consumer may have changed its stream
        slot.released = self._handoff.submitted(slot.readers)
        self._producer.free.put(slot)

    def close(self) -> None:
        """End the thread, within the time of one batch."""
        self._open()
        self._producer.join()


class _Producer:
    """The loading thread and what it shares with the consumer: slots go out through `ready` and return through `free`.

    A new slot is taken only if none is free, so two or three are enough for a consumer that keeps up. The garbage
    collector may call `stop` in any thread at any moment, so it waits for nothing and takes no lock of ours.
    """

    def __init__(self, source: Source, plan: EpochPlan):
        self.ready: queue.SimpleQueue[Loaded] = queue.SimpleQueue()
        self.free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._source, self._plan = source, plan
        self._limit = source.batches_ahead + 2
        self._slots: list[Slot] = []
        self._number = 0  # of the batch being loaded
        self._stopped = self._finished = False
        self._thread = threading.Thread(target=self._run, name="fastmlp-loader", daemon=True)
        _running.add(self)
        self._thread.start()

    def _run(self) -> None:
        """Load batch after batch: the thread's work."""
        try:
            numba.set_num_threads(self._source.num_workers)  # only in this thread
            with self._source.handoff.loading():
                try:
                    exhausted = self._load_all()
                finally:
                    self._source.handoff.finish()
            if exhausted:
                self.ready.put(Loaded(exhausted=True))
        except BaseException as error:  # of any kind: the consumer raises it
            if isinstance(error, StopIteration):  # which would end the consumer's loop silently
                error = RuntimeError("an operation raised StopIteration").with_traceback(error.__traceback__)
            where = f"while loading batch {self._number} of epoch {self._plan.epoch} of {self._source.reader.file_name}"
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(where)
            self.ready.put(Loaded(error=error))
        finally:
            self._finished = True
            if self._stopped:
                self._return_slots()
            _running.discard(self)

    def _load_all(self) -> bool:
        """Load the plan's batches; return False if asked to stop before the last."""
        source, plan = self._source, self._plan
        for self._number, (indices, found) in enumerate(source.program.batches(plan.order, source.batch_size)):
            if (slot := self._take_slot()) is None:
                return False
            source.reader.check_size()
            if plan.windows is not None:
                plan.windows.enter(self._number)
            if slot.released is None:
                slot.released = source.handoff.submitted(slot.readers)
            source.handoff.wait(slot.released)
            slot.readers.clear()
            result = source.program.run(indices, found, plan.epoch, slot)
            self.ready.put(Loaded(slot, len(indices), source.handoff.loaded(), result))
            del slot, result  # so that what the consumer drops is free
        return True

    def _take_slot(self) -> Slot | None:
        """Return a new slot if none is free and the limit allows, otherwise wait for one; None to end the thread."""
        if self._stopped:
            return None
        if len(self._slots) < self._limit and self.free.empty():
            self._slots.append(self._new_slot())
            return self._slots[-1]
        slot = self.free.get()
        return None if self._stopped else slot

    def _new_slot(self) -> Slot:
        """Return a slot of an earlier epoch if one is unused, otherwise a new one."""
        source = self._source
        return source.slots.take(source.batch_size) or source.program.new_slot(source.batch_size)

    def stop(self) -> None:
        """Ask the thread to end; after that the slots return to the pool."""
        self._stopped = True
        self.free.put(None)
        if self._plan.windows is not None:
            self._plan.windows.stop()
        if self._finished:
            self._return_slots()

    def join(self) -> None:
        """Wait for the end of the threads."""
        for thread in (self._thread, self._plan.windows and self._plan.windows.thread):
            if thread and thread is not threading.current_thread():
                thread.join()

    def _return_slots(self) -> None:
        """Return the slots to the pool, after the thread has ended; each only once, even if two threads do this."""
        while True:
            try:
                self.ready.get_nowait()  # a batch loaded ahead must not look as if a caller held it
            except queue.Empty:
                break
        self.ready.put(_STOPPED)  # for a consumer that waits in another thread
        while self._slots:
            try:
                slot = self._slots.pop()
            except IndexError:
                break
            slot.released = None
            self._source.slots.give(slot)


_running: set[_Producer] = set()


@atexit.register
def _end_all() -> None:
    """End all loading threads: one that still loads while the interpreter shuts down would crash it."""
    for producer in list(_running):
        producer.stop()
        producer.join()
