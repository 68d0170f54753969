"""A worker's place in the ledger: its row, its heartbeat, and the end of all its runs when it loses that place."""

import asyncio
import gc
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from uuid import UUID, uuid4

import structlog

from shared.clock import Clock, SystemClock
from shared.db.database import Database
from shared.errors import DatabaseUnavailable
from shared.ledger.group_commit import GroupCommit
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.roster import beat, discharge, enlist, offer
from shared.ledger.runs import Runs
from shared.resilience.reconnect import until_available
from shared.telemetry import metrics
from workers.agents.agent import Agent
from workers.agents.knobs import WorkerKnobs
from workers.agents.pool import TaskPool
from workers.agents.run import Ports

log = structlog.get_logger()

LAG_PROBE_S = 0.25


class WorkerHost:
    """The pool's host: lives on the pool's loop from `start` to `stop`."""

    def __init__(
        self, *, database: Database, ledger: LedgerKnobs, knobs: WorkerKnobs, ports: Ports,
        agents: Mapping[str, Agent], warm_up: Callable[[], Awaitable[Any]] | None = None,
        close_ports: Callable[[], Awaitable[None]] | None = None, clock: Clock | None = None,
    ) -> None:  # fmt: skip
        self.name = "worker"
        self.knobs = knobs
        self.ports = ports
        self.running: set[UUID] = set()
        self.worker = uuid4()
        self._database = database
        self._ledger = ledger
        self._agents = agents
        self._warm_up = warm_up
        self._close_ports = close_ports
        self._clock = clock or SystemClock()
        self._pool: TaskPool | None = None
        self._is_draining = False
        self._last_beat = 0.0
        self._hurry = asyncio.Event()
        self._in_place = asyncio.Event()
        self._chores: list[asyncio.Task[Any]] = []
        self._new_hold()

    @property
    def drain_s(self) -> float:
        """Seconds that running tasks get to finish after SIGTERM."""
        return self.knobs.drain_s

    def runs_here(self, task_name: str) -> bool:
        """Agents await on the loop; any other Celery task runs in a thread."""
        return task_name.removeprefix("agents.") in self._agents

    async def start(self, pool: TaskPool) -> None:
        """Take a place in the ledger, however long the database needs to come up."""
        self._pool = pool
        await until_available(self._enlist, what="PostgreSQL")
        schemas = {name: one.inputs.schema() for name, one in self._agents.items()}
        await until_available(lambda: offer(self._database, schemas), what="PostgreSQL")
        self._chores = [asyncio.create_task(self._keep_beating()), asyncio.create_task(self._watch_lag())]
        if self._warm_up is not None:
            self._chores.append(asyncio.create_task(self._warm(self._warm_up)))
        metrics.serve_metrics(self.knobs.metrics_port)

    async def _warm(self, warm_up: Callable[[], Awaitable[Any]]) -> None:
        await until_available(warm_up, what="the vector store", cap_s=30.0)
        settle_memory()

    async def back_in_place(self) -> None:
        """Wait until this worker, fenced just now, has a place in the ledger again."""
        if self._in_place.is_set():
            self._in_place.clear()
            self._hurry.set()
        await self._in_place.wait()

    async def drain(self) -> None:
        """Say that this worker takes nothing new."""
        self._is_draining = True
        log.info("worker.draining", runs=len(self.running), drain_s=self.knobs.drain_s)

    async def stop(self) -> None:
        """Leave: write what waits, hand back what is left, close."""
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        try:
            async with asyncio.timeout(self._ledger.heartbeat_s):
                await self._commit.close()
                handed_back = await discharge(self._database, self.worker)
                await self._database.close()
                log.info("worker.stopped", handed_back=handed_back)
        except (DatabaseUnavailable, TimeoutError) as error:
            log.warning("worker.stopped_unheard", cause=str(error) or "PostgreSQL does not answer")
        if self._close_ports is not None:
            async with asyncio.timeout(self._ledger.heartbeat_s):
                await self._close_ports()

    def _new_hold(self) -> None:
        self._commit = GroupCommit(self._database, self._ledger, worker=self.worker, when_down="wait")
        self.runs = Runs(self._database, self._commit)

    async def _enlist(self) -> None:
        slots = self._pool.limit if self._pool is not None else self.knobs.concurrency
        asked_at = self._clock.monotonic()
        await enlist(
            self._database, worker=self.worker, name=self.name, host=socket.gethostname(), pid=os.getpid(), slots=slots
        )
        self._last_beat = asked_at
        self._in_place.set()
        log.info("worker.enlisted", worker=str(self.worker), slots=slots)

    async def _keep_beating(self) -> None:
        while True:
            await self._until_next_beat()
            asked_at = self._clock.monotonic()
            try:
                async with asyncio.timeout(self._ledger.heartbeat_s):
                    is_alive = await beat(self._database, self.worker, is_draining=self._is_draining)
            except (DatabaseUnavailable, TimeoutError) as error:
                await self._missed(str(error) or "PostgreSQL does not answer")
                continue
            if is_alive:
                self._last_beat = asked_at
            else:
                await self._start_over("declared dead by the keeper")

    async def _until_next_beat(self) -> None:
        try:
            async with asyncio.timeout(self._ledger.heartbeat_s):
                await self._hurry.wait()
        except TimeoutError:
            return
        self._hurry.clear()

    async def _missed(self, cause: str) -> None:
        """A heartbeat that was not written: after `dead_after_s` others may own the runs, so they end here."""
        age_s = self._clock.monotonic() - self._last_beat
        log.warning("worker.heartbeat_missed", age_s=round(age_s, 1), cause=cause)
        if age_s >= self._ledger.dead_after_s and self.running:
            await self._start_over(f"no heartbeat written for {age_s:.0f} s")

    async def _start_over(self, cause: str) -> None:
        """Fence this worker: its runs end without a write, and it returns under a new id."""
        metrics.FENCED.inc()
        self._in_place.clear()
        log.error("worker.fenced", worker=str(self.worker), runs=len(self.running), cause=cause)
        if self._pool is not None:
            self._pool.cancel_all("fenced")
        await self._commit.abandon()
        self.worker = uuid4()
        self._new_hold()
        await until_available(self._enlist, what="PostgreSQL")

    async def _watch_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            expected = loop.time() + LAG_PROBE_S
            await asyncio.sleep(LAG_PROBE_S)
            lag_s = loop.time() - expected
            metrics.LOOP_LAG_SECONDS.set(lag_s)
            if lag_s >= self.knobs.lag_warn_s:
                log.warning("worker.loop_lagged", lag_s=round(lag_s, 2), hint="an agent blocks the loop: use run.step")


def settle_memory() -> None:
    """Take what was loaded so far out of the garbage collector's sight: it lives for ever.

    A full collection over a quarter of a million module objects stops every run of the process for 0.3 s, and without
    this there were three in 4000 tasks.
    """
    gc.set_threshold(20_000, 20, 50)
    gc.collect()
    gc.freeze()
