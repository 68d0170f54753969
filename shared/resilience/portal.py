"""An event loop in a thread of its own, for callers that have none."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

CANCELLED_WITHIN_S = 2.0
"""Seconds that cancelled work gets to put things back, before its loop may stop."""


class Portal:
    """Starts its thread at the first call; safe from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._spawned: set[asyncio.Future[None]] = set()

    @property
    def is_running(self) -> bool:
        """Whether there is a loop."""
        return self._loop is not None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return its result; Ctrl-C in the caller's thread cancels it.

        Raises: what the coroutine raises.
        """
        ended = threading.Event()

        async def to_its_end() -> T:
            try:
                return await work
            finally:
                ended.set()

        under_way = asyncio.run_coroutine_threadsafe(to_its_end(), self._started())
        try:
            return under_way.result()
        finally:
            if under_way.cancel():  # it was still running: nobody waits for it any more
                ended.wait(CANCELLED_WITHIN_S)

    def spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        """Start work that no caller waits for, nor hears the errors of."""
        self._started().call_soon_threadsafe(self._spawn, work)

    async def settled(self, within_s: float) -> None:
        """Wait for what was spawned, and cancel what has not ended by then; a coroutine of this loop."""
        if self._spawned:
            await asyncio.wait(self._spawned, timeout=within_s)
        await _cancelled(self._spawned)

    def stop(self) -> None:
        """Cancel what is under way, then end the loop and its thread; the next call starts new ones."""
        loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            asyncio.run_coroutine_threadsafe(_alone(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()

    def _spawn(self, work: Callable[[], Awaitable[None]]) -> None:
        spawned = asyncio.ensure_future(work())
        self._spawned.add(spawned)  # the loop itself would forget a task that only waits
        spawned.add_done_callback(self._spawned.discard)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="fleet-client", daemon=True)
                self._thread.start()
            return self._loop


async def _alone() -> None:
    await _cancelled(asyncio.all_tasks() - {asyncio.current_task()})


async def _cancelled(works: Iterable["asyncio.Future[Any]"]) -> None:
    rest = set(works)
    for work in rest:
        work.cancel()
    if rest:
        await asyncio.wait(rest, timeout=CANCELLED_WITHIN_S)
