"""A pool of worker processes that end together with their parent. Does not import torch."""

import ctypes
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

PR_SET_PDEATHSIG = 1
Task = TypeVar("Task")
Answer = TypeVar("Answer")


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cores_per_process() -> int:
    """Return this process's share of the cores: torchrun starts LOCAL_WORLD_SIZE processes on a machine."""
    return max(1, num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


class Pool(Generic[Task, Answer]):
    """Up to `count` processes that do `work`, started when there are tasks; use it as a context manager.

    work, tasks and answers are pickled. At the end the pool waits for the processes; after an error it also sends
    SIGTERM. Each has its own pipe, so that the death of one is noticed at once. (A ProcessPoolExecutor can then wait
    forever: CPython issues 94777 and 107219, fixed in 3.11.6.)
    """

    def __init__(self, work: Callable[[Task], Answer], count: int):
        self._work, self._count = work, count
        self._workers: dict[Any, SpawnProcess] = {}  # our end of the pipe -> its process
        self._context = get_context("spawn")  # a fork would copy locks that threads of numba or torch may hold

    def __enter__(self) -> "Pool[Task, Answer]":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for pipe, process in self._workers.items():
            pipe.close()  # an idle process then ends by itself, and cleans up
            if kind:
                process.terminate()
        for process in self._workers.values():
            process.join()
        self._workers.clear()

    def map(self, tasks: Iterable[Task]) -> Generator[Answer, None, None]:
        """Yield work(task) of each task, in the order in which they finish.

        Raises what work raised, or ChildProcessError if a process died; after that the pool is unusable.
        """
        todo, idle, busy = iter(tasks), list(self._workers), set()
        for task in todo:
            try:
                pipe = idle.pop() if idle else self._start()
                pipe.send(task)
                busy.add(pipe)
                if not idle and len(self._workers) == self._count:
                    yield self._answer(busy, idle)
            except ConnectionError as error:
                raise ChildProcessError(DIED) from error
        while busy:
            yield self._answer(busy, idle)

    def _answer(self, busy: set[Any], idle: list[Any]) -> Answer:
        pipe: Any = connection.wait(list(busy))[0]
        try:
            failed, answer = pipe.recv()
        except (EOFError, ConnectionError) as error:
            raise ChildProcessError(DIED) from error
        if failed:
            raise answer
        busy.remove(pipe)
        idle.append(pipe)
        return answer

    def _start(self) -> Any:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._work), daemon=True)
        with _signals_held():
            process.start()
        theirs.close()  # so that the worker's death ends the pipe
        self._workers[ours] = process
        return ours


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold signals back while a process starts, here and there: half-started, it would print a traceback.

    It inherits the mask, until `_serve` is ready for them. Here the mask is not enough, since any thread may receive a
    signal; Python then calls the handler in the main one.
    """
    held: list[int] = []
    here = threading.current_thread() is threading.main_thread()  # only there does Python allow handlers
    numbers = [number for number in SIGNALS if here and signal.getsignal(number) is not None]
    before = {number: signal.signal(number, lambda number, _: held.append(number)) for number in numbers}
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        for number, handler in before.items():
            signal.signal(number, handler)
        for received in held:
            signal.raise_signal(received)


DIED = "a process died (killed, or out of memory?)"


def _serve(tasks: Any, work: Callable[[Any], Any]) -> None:
    """Run a worker: receive tasks, send answers or exceptions, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent ends the workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    while True:
        try:
            task = tasks.recv()
        except EOFError:
            return
        try:
            answer: Any = False, work(task)
        except Exception as error:  # of any type: the parent raises it
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:
                error = RuntimeError(repr(error))
            answer = True, error
        tasks.send(answer)
