"""A worker's place in the ledger: its row, kept alive by heartbeats; and the end of all its runs when it loses it.

Who cannot write its heartbeat for a term may have been declared dead, so its runs end. Unless the ledger's server is
absent for everybody: then nobody can have taken them over, calls in flight may end, and no new step can start anyhow,
because its intent cannot be written. When the server is back, the first heartbeat tells whether the place is ours.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

import structlog

from shared.clock import Clock
from shared.db.database import Database
from shared.errors import DatabaseUnavailable
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.roster import beat, discharge, enlist
from shared.resilience.reconnect import until_available

log = structlog.get_logger()

AGAIN_S = 1.0
"""Seconds between two tries of a heartbeat that was missed, unless heartbeats come faster."""


class Lease:
    """Says that this worker lives, and fences it when it cannot say so any longer.

    Args:
        has_runs: Whether there is anything to fence.
        fence: Ends all runs; they write nothing more.
    Attributes:
        worker: The id under which it claims; a new one after each fence.
        is_draining: Told with every heartbeat.
    """

    def __init__(
        self, *, database: Database, ledger: LedgerKnobs, clock: Clock, has_runs: Callable[[], bool],
        fence: Callable[[str], Awaitable[None]], enlisted: Callable[[UUID], None],
    ) -> None:  # fmt: skip
        self.worker = uuid4()
        self.is_draining = False
        self._database = database
        self._ledger = ledger
        self._clock = clock
        self._has_runs = has_runs
        self._fence = fence
        self._enlisted = enlisted
        self._name = "worker"
        self._slots = 1
        self._last_beat = 0.0
        self._is_missed = False
        self._is_stretched = False
        self._asked = asyncio.Event()
        self._beaten = asyncio.Event()
        self._in_place = asyncio.Event()

    async def take(self, *, name: str, slots: int) -> None:
        """Take a place, however long the database needs to come up."""
        self._name, self._slots = name, slots
        await until_available(self._enlist, what="PostgreSQL")

    async def back_in_place(self) -> None:
        """Wait until this worker, fenced just now, has a place again."""
        if self._in_place.is_set():
            self._in_place.clear()
            self._asked.set()
        await self._in_place.wait()

    async def sure(self) -> None:
        """Return while nobody else can own this worker's runs: at once, unless it stood still for a term.

        A process that was stopped between an intent and its call would make that call long after others took over.
        """
        while self.left_s() <= 0:
            self._beaten.clear()
            self._asked.set()
            await self._beaten.wait()

    async def keep(self) -> None:
        """Beat, for ever."""
        while True:
            await self._until_next_beat()
            asked_at = self._clock.monotonic()
            try:
                is_alive = await self._beat()
            except (DatabaseUnavailable, TimeoutError) as error:
                await self._missed(str(error) or "PostgreSQL does not answer")
                continue
            self._is_missed = self._is_stretched = False
            if is_alive:
                self._last_beat = asked_at
                self._in_place.set()
                self._beaten.set()
            else:
                await self._start_over("declared dead by the keeper")

    async def leave(self) -> int:
        """Give the place up in good order.

        Returns: How many runs were handed back.
        Raises: DatabaseUnavailable.
        """
        return await discharge(self._database, self.worker)

    async def _beat(self) -> bool:
        """One heartbeat that is not waited for beyond its limit, nor for its end then.

        A driver that is cancelled asks the server to cancel too, and waits for its answer: 10 s with a hung one.
        """
        beating = asyncio.create_task(beat(self._database, self.worker, is_draining=self.is_draining))
        done, _ = await asyncio.wait({beating}, timeout=self._limit_s())
        if done:
            return beating.result()
        beating.cancel()
        beating.add_done_callback(lambda late: late.cancelled() or late.exception())
        raise TimeoutError

    def left_s(self) -> float:
        """Seconds until others may own this worker's runs."""
        return self._last_beat + self._ledger.dead_after_s - self._clock.monotonic()

    def _limit_s(self) -> float:
        """Seconds that one heartbeat may take: half of what is left, so that there is always time for another."""
        left_s = self.left_s()
        return min(left_s, max(left_s / 2, self._ledger.heartbeat_s)) if left_s > 0 else self._ledger.heartbeat_s

    async def _until_next_beat(self) -> None:
        wait_s = min(self._ledger.heartbeat_s, max(0.0, self.left_s()) or self._ledger.heartbeat_s)
        wait_s = min(wait_s, AGAIN_S) if self._is_missed else wait_s
        try:
            async with asyncio.timeout(wait_s):
                await self._asked.wait()
        except TimeoutError:
            return
        self._asked.clear()

    async def _missed(self, cause: str) -> None:
        """A heartbeat that was not written: at the age of `dead_after_s` others may own the runs, so they end here."""
        self._is_missed = True
        age_s = self._clock.monotonic() - self._last_beat
        log.warning("worker.heartbeat_missed", age_s=round(age_s, 1), cause=cause)
        if self.left_s() > 0 or not self._has_runs():
            return
        if not await self._database.is_absent(within_s=AGAIN_S):
            if self._is_stretched:  # it has come back since: one heartbeat, at once, tells whether the place is ours
                self._is_stretched = False
                self._asked.set()
                return
            await self._start_over(f"no heartbeat written for {age_s:.0f} s")
        elif not self._is_stretched:
            self._is_stretched = True
            log.warning("worker.term_stretched", cause="PostgreSQL serves nobody now: no one can take the runs over")

    async def _start_over(self, cause: str) -> None:
        """Fence this worker: its runs end without a write, and it returns under a new id.

        What it held is given up at once under the old id, which writes nothing any more: no need for the keeper to
        find it dead, and no attempt is spent.
        """
        old = self.worker
        self._in_place.clear()
        log.error("worker.fenced", worker=str(old), cause=cause)
        await self._fence(cause)
        given_up = await until_available(lambda: discharge(self._database, old), what="PostgreSQL")
        log.info("worker.gave_up", worker=str(old), runs=given_up)
        self.worker = uuid4()
        await until_available(self._enlist, what="PostgreSQL")

    async def _enlist(self) -> None:
        asked_at = self._clock.monotonic()
        await enlist(
            self._database, worker=self.worker, name=self._name, host=socket.gethostname(), pid=os.getpid(),
            slots=self._slots,
        )  # fmt: skip
        self._last_beat = asked_at
        self._is_missed = self._is_stretched = False
        self._enlisted(self.worker)
        self._in_place.set()
        log.info("worker.enlisted", worker=str(self.worker), slots=self._slots)
