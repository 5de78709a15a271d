"""One pass over a loader: a thread fills slots ahead of the consumer and ends with it."""

import atexit
import queue
import threading
import weakref
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from .. import device
from .read_ahead import Windows
from .slots import Slot

if TYPE_CHECKING:
    from .loader import Loader


_EXHAUSTED = object()  # what the loading thread hands over after the last batch


class EpochIterator:
    """Yields the epoch's batches; made by `iter(loader)`.

    What goes wrong while loading is raised by next(). Exhausted, closed, dropped or at interpreter exit, it ends its
    thread and gives its slots back to the loader.
    """

    def __init__(self, loader: "Loader", epoch: int, done: int, order: np.ndarray, windows: Windows | None):
        self._loader, self._epoch = loader, epoch
        self._received = done  # samples of this epoch that the consumer has been given
        self._producer = _Producer(loader, epoch, order, windows)
        self._lent: Slot | None = None  # what the consumer works on
        # Neither the thread nor this finaliser refers to the iterator, so that dropping it ends the thread.
        self._open = weakref.finalize(self, self._producer.stop)
        self._open.atexit = False  # _end_all does it, and waits

    def __iter__(self) -> "EpochIterator":
        return self

    def __next__(self) -> tuple[Any, ...]:
        producer = self._producer
        if self._lent is not None:
            self._lent.event = producer.handoff.give_back()
            producer.free.put(self._lent)
            self._lent = None
        if not self._open.alive:
            raise StopIteration
        slot, count, loaded, result = producer.ready.get()
        if slot is None:
            producer.ready.put((None, 0, None, None))  # for a consumer that waits in another thread
            self.close()
            if isinstance(result, BaseException):
                raise result
            if result is _EXHAUSTED:
                self._loader.position = (self._epoch + 1, 0)
            raise StopIteration
        self._lent = slot
        producer.handoff.receive(loaded, result)
        self._received += count
        self._loader.position = (self._epoch, self._received)
        return result

    def close(self) -> None:
        """Ends the thread, within the time of one batch."""
        self._open()
        self._producer.join()


class _Producer:
    """The loading thread and what it shares with the consumer: slots go out through `ready` and come back by `free`.

    Slots are taken when none is free, so a consumer that keeps up is served from two or three. `stop` may be called
    by the garbage collector in any thread at any moment, so it waits for nothing and takes no lock of ours.
    """

    def __init__(self, loader: "Loader", epoch: int, order: np.ndarray, windows: Windows | None):
        self.ready: queue.SimpleQueue[tuple[Slot | None, int, Any, Any]] = queue.SimpleQueue()
        self.free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self.handoff = device.StreamHandoff()
        self._loader, self._epoch, self._order, self._windows = loader, epoch, order, windows
        self._batch_size, self._limit = loader.batch_size, loader.batches_ahead + 2
        self._program, self._pool = loader.program, loader.slots
        self._slots: list[Slot] = []
        self._stopped = self._finished = False
        self._thread = threading.Thread(target=self._run, name="fastmlp-loader", daemon=True)
        _running.add(self)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        try:
            numba.set_num_threads(self._loader.num_workers)  # of this thread alone
            for number, (indices, found) in enumerate(self._program.batches(self._order, self._batch_size)):
                if (slot := self._take_slot()) is None:
                    return
                self._loader.reader.check_size()
                if self._windows is not None:
                    self._windows.enter(number)
                self.handoff.reuse(slot.event)
                with self.handoff.loading():
                    result = self._program.run(indices, found, self._epoch, slot)
                self.ready.put((slot, len(indices), self.handoff.loaded(), result))
                del slot, result  # so that what the consumer drops is free
            self.ready.put((None, 0, None, _EXHAUSTED))
        except BaseException as error:  # whatever it is, the consumer raises it
            if isinstance(error, StopIteration):  # which would end the consumer's loop without a word
                error = RuntimeError("an operation raised StopIteration").with_traceback(error.__traceback__)
            where = f"while loading batch {number} of epoch {self._epoch} of {self._loader.fname}"
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(where)
            self.ready.put((None, 0, None, error))
        finally:
            self._finished = True
            if self._stopped:
                self._return_slots()
            _running.discard(self)

    def _take_slot(self) -> Slot | None:
        """A free slot, at first a new one, up to the limit; None to end."""
        if self._stopped:
            return None
        if len(self._slots) < self._limit and self.free.empty():
            with self.handoff.loading():
                self._slots.append(self._pool.take(self._batch_size) or self._program.new_slot(self._batch_size))
            return self._slots[-1]
        slot = self.free.get()
        return None if self._stopped else slot

    def stop(self) -> None:
        """Asks the thread to end; the slots go back to the pool when it has."""
        self._stopped = True
        self.free.put(None)
        if self._windows is not None:
            self._windows.stop()
        if self._finished:
            self._return_slots()

    def join(self) -> None:
        for thread in (self._thread, self._windows and self._windows.thread):
            if thread and thread is not threading.current_thread():
                thread.join()

    def _return_slots(self) -> None:
        """Once the thread has ended. Each slot goes back once, even if two threads do this."""
        while True:
            try:
                self.ready.get_nowait()  # what was loaded ahead must not look as if a caller held it
            except queue.Empty:
                break
        self.ready.put((None, 0, None, None))  # for a consumer that waits in another thread
        self.handoff.finish()
        while self._slots:
            try:
                slot = self._slots.pop()
            except IndexError:
                break
            slot.event = self.handoff.give_back()
            self._pool.give(slot)


_running: set[_Producer] = set()


@atexit.register
def _end_all() -> None:
    """A thread that still loads while the interpreter goes down would crash it."""
    for producer in list(_running):
        producer.stop()
        producer.join()
