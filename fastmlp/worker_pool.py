"""Tasks given to processes of their own, which end with whoever gave them. Free of torch."""

import ctypes
import os
import pickle
import signal
from collections.abc import Callable, Generator, Iterable
from multiprocessing import connection, get_context
from multiprocessing.context import SpawnProcess
from typing import Any, Generic, TypeVar

PR_SET_PDEATHSIG = 1
Task = TypeVar("Task")
Answer = TypeVar("Answer")


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Pool(Generic[Task, Answer]):
    """Up to `count` processes that do `work`, started when there are tasks; use it as a context manager.

    work, tasks and answers are pickled. At the end the processes are waited for, after an error with SIGTERM. Each
    hangs on a pipe of its own, so that the death of one is seen at once. (A ProcessPoolExecutor can wait for ever then:
    CPython issues 94777 and 107219, mended in 3.11.6.)
    """

    def __init__(self, work: Callable[[Task], Answer], count: int):
        self._work, self._count = work, count
        self._workers: dict[Any, SpawnProcess] = {}  # by our end of the pipe
        self._context = get_context("spawn")  # a fork would copy locks that numba's or torch's threads may hold

    def __enter__(self) -> "Pool[Task, Answer]":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for pipe, process in self._workers.items():
            pipe.close()  # an idle process ends by itself, and cleans up
            if kind:
                process.terminate()
        for process in self._workers.values():
            process.join()
        self._workers.clear()

    def map(self, tasks: Iterable[Task]) -> Generator[Answer, None, None]:
        """work(task) of each task, in the order in which they are done. Raises what work raised, and ChildProcessError
        where a process died; the pool is of no use then."""
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
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C is not for it, not even at first
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()  # so that the worker's death ends the pipe
        self._workers[ours] = process
        return ours


DIED = "a process died (killed, or out of memory?)"


def _serve(tasks: Any, work: Callable[[Any], Any]) -> None:
    """A worker: tasks in, answers or exceptions out, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    while True:
        try:
            task = tasks.recv()
        except EOFError:
            return
        try:
            answer: Any = False, work(task)
        except Exception as error:  # whatever it is, the parent tells it
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:
                error = RuntimeError(repr(error))
            answer = True, error
        tasks.send(answer)
