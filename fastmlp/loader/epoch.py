"""One pass over a loader: a thread fills slots ahead of the consumer and ends with it."""

import queue
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from .. import device
from .memory import Windows
from .program import Slot

if TYPE_CHECKING:
    from .loader import Loader


_EXHAUSTED = object()  # what the loading thread hands over after the last batch


class EpochIterator:
    """Yields the epoch's batches; made by `iter(loader)`.

    What goes wrong while loading is raised by next(). Exhausted, closed, dropped or at interpreter exit, it ends its
    thread and gives its slots back to the loader.
    """

    def __init__(self, loader: "Loader", epoch: int, done: int, batches: list[np.ndarray], windows: Windows | None):
        self._loader, self._epoch = loader, epoch
        self._received = done  # samples of this epoch that the consumer has been given
        self._producer = _Producer(loader, epoch, batches, windows)
        self._lent: Slot | None = None  # what the consumer works on
        # Neither the thread nor this finaliser refers to the iterator, so that dropping it ends the thread.
        self.close = weakref.finalize(self, self._producer.end)

    def __iter__(self) -> "EpochIterator":
        return self

    def __next__(self) -> tuple[Any, ...]:
        producer = self._producer
        if self._lent is not None:
            self._lent.event = producer.handover.give_back()
            producer.free.put(self._lent)
            self._lent = None
        if not self.close.alive:
            raise StopIteration
        slot, count, loaded, result = producer.ready.get()
        if slot is None:
            self.close()
            if isinstance(result, BaseException):
                raise result
            if result is _EXHAUSTED:
                self._loader.position = (self._epoch + 1, 0)
            raise StopIteration
        self._lent = slot
        producer.handover.receive(loaded)
        self._received += count
        self._loader.position = (self._epoch, self._received)
        return result


class SlotPool:
    """Slots that no iterator uses, kept from epoch to epoch."""

    def __init__(self, limit: int):
        self._limit, self._slots, self._lock = limit, list[Slot](), threading.RLock()

    def take(self) -> Slot | None:
        """A slot that nobody holds a tensor of; one that a caller still holds is left to that caller."""
        with self._lock:
            while self._slots:
                if not (slot := self._slots.pop()).held:
                    return slot
        return None

    def give(self, slots: list[Slot]) -> None:
        with self._lock:
            self._slots = (self._slots + slots)[: self._limit]

    def clear(self) -> None:
        with self._lock:
            self._slots = []


class _Producer:
    """The loading thread and what it shares with the consumer: slots go out through `ready` and come back by `free`.

    Slots are taken when none is free, so a consumer that keeps up is served from two or three. `end` may be called by
    the garbage collector in any thread at any moment: SimpleQueue's put and the pool's lock can be entered again.
    """

    def __init__(self, loader: "Loader", epoch: int, batches: list[np.ndarray], windows: Windows | None):
        self.ready: queue.SimpleQueue[tuple[Slot | None, int, Any, Any]] = queue.SimpleQueue()
        self.free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self.handover = device.Handover()
        self._loader, self._epoch, self._batches, self._windows = loader, epoch, batches, windows
        self._slots: list[Slot] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="fastmlp-loader", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        try:
            numba.set_num_threads(self._loader.num_workers)  # of this thread alone
            for number, indices in enumerate(self._batches):
                if (slot := self._take_slot()) is None:
                    return
                self._loader.reader.check_size()
                if self._windows is not None:
                    self._windows.enter(number)
                self.handover.reuse(slot.event)
                with self.handover.loading():
                    result = self._loader.code.run(indices, slot)
                self.ready.put((slot, len(indices), self.handover.loaded(), result))
                del slot, result  # so that what the consumer drops is free
            self.ready.put((None, 0, None, _EXHAUSTED))
        except BaseException as error:  # whatever it is, the consumer raises it
            where = f"while loading batch {number} of epoch {self._epoch} of {self._loader.fname}"
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(where)
            self.ready.put((None, 0, None, error))

    def _take_slot(self) -> Slot | None:
        """A free slot, at first a new one, up to the limit; None to end."""
        if len(self._slots) < self._loader.batches_ahead + 2 and self.free.empty():
            self._slots.append(self._loader.slots.take() or self._loader.code.new_slot(self._loader.batch_size))
            return self._slots[-1]
        slot = self.free.get()
        return None if self._closed else slot

    def end(self) -> None:
        """Ends the thread, within the time of one batch, and hands the slots on."""
        self._closed = True
        self.free.put(None)
        if self._windows is not None:
            self._windows.close()
        if threading.current_thread() is not self._thread:  # which may be collecting garbage
            self._thread.join()
        while not self.ready.empty():
            self.ready.get()  # what was loaded ahead must not look as if a caller held it
        self.ready.put((None, 0, None, None))  # for a consumer that waits in another thread
        for slot in self._slots:
            slot.event = self.handover.give_back()
        self._loader.slots.give(self._slots)
        self._slots = []
