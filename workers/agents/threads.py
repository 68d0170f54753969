"""Threads for blocking code: not those that asyncio looks names up in, and none that the process's exit waits for."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any


class DaemonThreads(Executor):
    """Threads that are made when they are needed, and kept; whoever leaves the process does not wait for them.

    The standard library's own are joined at exit: one blocking call would keep a drained worker alive.

    Attributes:
        most: Threads at once; further calls wait in line.
    """

    def __init__(self, most: int, *, name: str) -> None:
        self.most = most
        self._name = name
        self._count = 0
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Call in a thread; the future brings what it returns or raises."""
        done: Future[Any] = Future()
        with self._lock:
            if not self._idle.acquire(blocking=False) and self._count < self.most:
                name = f"{self._name}-{self._count + 1}"
                threading.Thread(target=self._serve, name=name, daemon=True).start()  # or it raises: nothing is queued
                self._count += 1
        self._calls.put((done, partial(function, *args, **kwargs)))
        return done

    def _serve(self) -> None:
        while True:
            done, call = self._calls.get()
            if done.set_running_or_notify_cancel():
                try:
                    done.set_result(call())
                except BaseException as error:  # whatever it raises belongs to whoever called
                    done.set_exception(error)
            del done, call  # or the last call's arguments live until the next one
            self._idle.release()


STEPS = DaemonThreads(200, name="step")
"""Of this process; the pool sets how many, one for each slot."""


async def in_thread(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a blocking function in a thread, with the context variables of the caller.

    Raises: what it raises; RuntimeError for what no future can carry or what would end the caller's loop.
    """
    call = partial(copy_context().run, _called, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(STEPS, call)


def _called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except (StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit) as error:
        raise RuntimeError(f"a blocking function raised {error!r}") from error
