"""Chores at their intervals, in two lanes; a server that is away ends a chore's round, never the keeper."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from shared.errors import DatabaseUnavailable, Fenced
from shared.telemetry.keeper_metrics import CHORE_FAILURES, CHORE_SECONDS

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Chore:
    """One thing to do again and again.

    Attributes:
        act: Does one batch; returns the seconds until the next one is wanted, None: the usual interval.
        every_s: The usual interval.
    """

    name: str
    act: Callable[[], Awaitable[float | None]]
    every_s: float


class Lane:
    """Chores one after the other; those that are due together in the order given."""

    def __init__(self, chores: Sequence[Chore], *, on_outage: Callable[[], None]) -> None:
        self._chores = chores
        self._on_outage = on_outage
        self._is_database_away = False
        self.busy_with = ""
        self.busy_since: float | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Do the chores until told to stop. Raises: Fenced when another keeper leads."""
        due_at = dict.fromkeys(self._chores, 0.0)
        while not stop.is_set():
            for chore in self._chores:
                if due_at[chore] <= time.monotonic() and not stop.is_set():
                    due_at[chore] = await self._do(chore) + time.monotonic()
            await pause(stop, min(due_at.values()) - time.monotonic())

    async def _do(self, chore: Chore) -> float:
        self.busy_with, self.busy_since = chore.name, time.monotonic()
        try:
            again_s = await chore.act()
        except DatabaseUnavailable as error:
            if not self._is_database_away:
                log.warning("keeper.database_away", chore=chore.name, cause=error.message)
            self._is_database_away = True
            self._on_outage()
            return chore.every_s
        except Fenced:
            raise
        except Exception:  # the main loop: one chore that fails must not keep the others from being done
            CHORE_FAILURES.labels(chore.name).inc()
            log.exception("keeper.chore_failed", chore=chore.name)
            return chore.every_s
        finally:
            CHORE_SECONDS.labels(chore.name).observe(time.monotonic() - self.busy_since)
            self.busy_since = None
        self._is_database_away = False
        return chore.every_s if again_s is None else again_s


class Rounds:
    """All that one leading keeper does in its term.

    Args:
        close: Ends what the chores have begun.
    """

    def __init__(self, lanes: Sequence[Lane], *, close: Callable[[], Awaitable[None]]) -> None:
        self._lanes = lanes
        self._close = close

    @property
    def busy_with(self) -> str:
        """The chores under way."""
        return ", ".join(lane.busy_with for lane in self._lanes if lane.busy_since is not None)

    def busy_s(self) -> float:
        """For how long the longest chore has been under way."""
        now = time.monotonic()
        return max((now - lane.busy_since for lane in self._lanes if lane.busy_since is not None), default=0.0)

    async def run(self, stop: asyncio.Event) -> None:
        """All lanes at once. Raises: Fenced when another keeper leads."""
        running = [asyncio.create_task(lane.run(stop)) for lane in self._lanes]
        try:
            await asyncio.gather(*running)
        finally:
            for one in running:
                one.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def close(self) -> None:
        """Finish what is under way."""
        await self._close()


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait, or stop waiting because of `stop`."""
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
