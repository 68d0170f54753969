"""What goes on beside a worker's runs for as long as it lives: a chore that fails is told, and begun anew."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog

from shared.telemetry import metrics

log = structlog.get_logger()

Chore = Callable[[], Coroutine[Any, Any, None]]
AGAIN_S = 1.0
"""Seconds until a chore that failed is begun anew; twice as long each time, up to `LONGEST_S`."""
LONGEST_S = 30.0
"""A chore that lasted longer than this has begun well."""


class Chores:
    """Chores by their names. Belongs to one event loop."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._down: set[str] = set()

    @property
    def are_well(self) -> bool:
        """Whether none lies still because it failed: a worker without one of them is not to be trusted with tasks."""
        return not self._down

    def start(self, chores: Mapping[str, Chore], *, are_vital: bool = True) -> None:
        """Begin all of these; one that returns is done, and one that fails is missed only where it is vital."""
        self._tasks += [
            asyncio.create_task(self._keep(name, chore, is_vital=are_vital), name=name)
            for name, chore in chores.items()
        ]

    async def stop(self) -> None:
        """End all of them."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, name: str, chore: Chore, *, is_vital: bool) -> None:
        loop, wait_s = asyncio.get_running_loop(), AGAIN_S
        while True:
            began = loop.time()
            try:
                await chore()
                return
            except Exception as error:  # what nobody has thought of: without the chore the worker would rot in silence
                wait_s = AGAIN_S if loop.time() - began > LONGEST_S else wait_s
                metrics.CHORE_FAILURES.labels(name).inc()
                log.critical("worker.chore_failed", chore=name, again_in_s=wait_s, cause=repr(error), exc_info=True)
            if is_vital:
                self._down.add(name)
            await asyncio.sleep(wait_s)
            self._down.discard(name)
            wait_s = min(LONGEST_S, wait_s * 2)
