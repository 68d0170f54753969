"""A worker from its first heartbeat to its last: what its runs hold on to, and the chores that go on beside them."""

import asyncio
from collections.abc import Awaitable, Callable, Container, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from celery.exceptions import Ignore

from shared.clock import Clock, SystemClock
from shared.contracts import QUEUES, TASK_PREFIX, Priority, TaskMessage
from shared.db import carriage
from shared.db.database import Database
from shared.errors import DatabaseUnavailable, Misconfigured
from shared.ledger.group_commit import GroupCommit
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.own_runs import asked_to_cancel, overlooked
from shared.ledger.parking import unpark
from shared.ledger.poll import Polled, poll_held, poll_lost
from shared.ledger.revoking import is_untouched, revoke
from shared.ledger.roster import Elder, elders, offer
from shared.ledger.runs import Claim, Runs
from shared.ledger.sealed_input import seal_received
from shared.ledger.shelving import shelve, shelve_for_others
from shared.ledger.vault import Vault
from shared.resilience.reconnect import until_available
from shared.telemetry import metrics
from shared.telemetry.exposition import serve_metrics
from workers.agents.active import Active
from workers.agents.agent import Agent
from workers.agents.chores import Chore, Chores
from workers.agents.events import failed, left
from workers.agents.execution import execute_polled
from workers.agents.hurry import Hurry
from workers.agents.knobs import WorkerKnobs
from workers.agents.lease import Lease
from workers.agents.namesake import refuse_second
from workers.agents.poller import Poller
from workers.agents.pool import TaskPool
from workers.agents.run import Ports
from workers.agents.settling import settle_memory
from workers.agents.shelf import Shelf
from workers.agents.sources import parse_queues

log = structlog.get_logger()

LAG_PROBE_S = 0.25
OFFER_S = 60.0
"""Seconds between two offers of the agents: brings back what a worker without them has parked since."""
BEGUN = 4096
"""Claims that are remembered: many more than can be under way at once."""
LAST_PUBLISH_S = 2.0
"""Seconds that a leaving worker waits for the confirmations of what it handed back; it is held in the ledger anyway."""


Sort = Callable[[Priority, Callable[[Sequence[TaskMessage]], None]], Awaitable[int]]


class WorkerHost:
    """The pool's host: lives on the pool's loop from `start` to `stop`.

    Args:
        chores: The worker's own connections, apart from those of its runs: a heartbeat must not wait for them.
        publish: Sends a task to the queue of its priority.
        depth: How many messages of a priority wait on the broker.
        sort: Takes a priority's queue off the broker and hands its tasks over.
        hurry: Makes the listener for cancels.
        beside: Further chores, for as long as the worker lives.
    Attributes:
        active: Runs from their claim to their last write.
        runs: The hold on the ledger; a new one after each fence.
    """

    def __init__(
        self, *, database: Database, chores: Database, ledger: LedgerKnobs, knobs: WorkerKnobs, ports: Ports,
        agents: Mapping[str, Agent], publish: Callable[[TaskMessage], "Future[None]"],
        depth: Callable[[Priority], Awaitable[int]], sort: Sort, hurry: Callable[..., Hurry] | None = None,
        warm_up: Callable[[], Awaitable[Any]] | None = None,
        close_ports: Callable[[], Awaitable[None]] | None = None, clock: Clock | None = None,
        beside: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
    ) -> None:  # fmt: skip
        self.name = "worker"
        self.knobs = knobs
        self.ports = ports
        self.ledger = ledger
        self.vault = Vault(ledger.master_keys)
        self.active: dict[UUID, Active] = {}
        self.weights: dict[Priority, int] = knobs.served
        self._database = database
        self._chores_database = chores
        self._agents = agents
        self._publish = publish
        self._sort = sort
        self._hurry = hurry
        self._warm_up = warm_up
        self._close_ports = close_ports
        self._beside = beside
        self._clock = clock or SystemClock()
        self._pool: TaskPool | None = None
        self._is_ready = False
        self._begun: dict[UUID, int] = {}
        self._last_words: set[Future[None]] = set()
        self._chores = Chores()
        self.lease = Lease(
            database=chores, ledger=ledger, clock=self._clock, has_runs=lambda: bool(self.active),
            fence=self._fence, enlisted=self._new_hold,
        )  # fmt: skip
        self.poller: Poller | None = None
        self.shelf = Shelf(
            reserved=lambda: self._pool.reserved() if self._pool is not None else {}, depth=depth,
            take_off=self._take_off, deep=2 * ledger.fair_window, window=knobs.prefetch,
        )  # fmt: skip
        self._new_hold(self.lease.worker)

    @property
    def drain_s(self) -> float:
        """Seconds that running tasks get to finish after SIGTERM."""
        return self.knobs.drain_s

    @property
    def cut_s(self) -> float:
        """Seconds more that they get to reach the end of a step."""
        return self.knobs.cut_s

    @property
    def is_ready(self) -> bool:
        """Whether this worker takes tasks."""
        return self._is_ready and self._chores.are_well and not self.lease.is_draining

    def serve(self, queues: Container[str]) -> None:
        """Serve the priorities of these queues, as `celery worker -Q` chose them."""
        served = [priority for priority, queue in QUEUES.items() if queue in queues]
        self.weights = parse_queues(",".join(served), self.knobs.weights)

    def runs_here(self, task_name: str) -> bool:
        """Agents await on the loop; any other Celery task runs in a thread."""
        return task_name.removeprefix(TASK_PREFIX) in self._agents

    async def start(self, pool: TaskPool) -> None:
        """Take a place in the ledger, however long the database needs to come up; then see to all chores."""
        port = self.knobs.metrics_port
        serve_metrics(port, variable="FLEET_WORKER_METRICS_PORT", is_ready=lambda: self.is_ready)
        self._pool = pool
        self.shelf.window = min(self.knobs.prefetch, pool.limit)
        await self.lease.take(name=self.name, slots=pool.limit)
        await self._refuse_second()
        await until_available(self._offer, what="PostgreSQL")
        self.poller = Poller(
            slots=pool, ledger=_Polls(self), start=self._start, priorities=self.weights, poll_s=self.ledger.poll_s,
            lost_after_s=self.ledger.lost_after_s, batch=self.knobs.poll_batch, clock=self._clock,
        )  # fmt: skip
        chores: dict[str, Chore] = {
            "lease": self.lease.keep, "poller": self.poller.run, "shelf": self.shelf.watch,
            "offers": self._keep_offering, "lag": self._watch_lag,
        }  # fmt: skip
        chores |= {f"beside-{number}": chore for number, chore in enumerate(self._beside)}
        if self._hurry is not None:
            hurry = self._hurry(active=self.active, asked=self._asked_to_cancel, poll_s=self.knobs.cancel_poll_s)
            chores |= {"cancels": hurry.listen, "cancels-in-ledger": hurry.watch}
        self._chores.start(chores)
        if self._warm_up is not None:  # without it a search is late, or raises what it raises
            self._chores.start({"warm-up": partial(self._warm, self._warm_up)}, are_vital=False)
        self._is_ready = True

    async def _refuse_second(self) -> None:
        """Leave where another worker of this name lives. Raises: Misconfigured."""

        async def look() -> list[Elder]:
            return await until_available(lambda: elders(self._chores_database, self.lease.worker), what="PostgreSQL")

        try:
            await refuse_second(self.name, look, heartbeat_s=self.ledger.heartbeat_s)
        except Misconfigured:
            await self.lease.leave()
            raise

    async def back_in_place(self) -> None:
        """Wait until this worker, fenced just now, has a place in the ledger again."""
        await self.lease.back_in_place()

    def begin(self, claim: Claim) -> bool:
        """Whether this claim is new here: a late message of a task that was polled meanwhile brings the same again."""
        active = self.active.get(claim.task_id)
        if max(self._begun.get(claim.task_id, 0), active.claim.epoch if active is not None else 0) >= claim.epoch:
            return False
        self._begun.pop(claim.task_id, None)  # to the end of the order of age
        self._begun[claim.task_id] = claim.epoch
        if len(self._begun) > BEGUN:
            del self._begun[next(iter(self._begun))]
        return True

    def publish(self, message: TaskMessage) -> "Future[None]":
        """Send a task to its queue, sealed where there are keys; it sees what the run under way has seen."""
        message = replace(message, token=carriage.onward(message.token))
        return self._publish(seal_received(self.vault, message))

    def hurry_poll(self) -> None:
        """Something may be held in the ledger that was not before: look at once."""
        if self.poller is not None:
            self.poller.hurry()

    def handed_back(self, message: TaskMessage) -> None:
        """A run was put down that can go on at once: elsewhere, told by a message, if this worker is leaving."""
        if not self.lease.is_draining:
            self.hurry_poll()
            return
        sent = self.publish(message)
        self._last_words.add(sent)
        sent.add_done_callback(lambda done: done.exception() and log.info("worker.unsent", cause=str(done.exception())))

    def broker_is(self, *, away: bool) -> None:
        """Celery lost, or found, the broker; called on the loop."""
        metrics.BROKER_AWAY.set(away)
        if self.poller is not None and self.poller.is_broker_away != away:
            self.poller.is_broker_away = away
            log.info("worker.broker_away" if away else "worker.broker_back")
            if away:
                self.poller.hurry()

    def shut(self) -> None:
        """Take nothing new: neither messages nor tasks of the ledger; not ready any longer."""
        if self.lease.is_draining:
            return
        self.lease.is_draining = True
        if self.poller is not None:
            self.poller.stop()
        log.info("worker.draining", runs=len(self.active), drain_s=self.knobs.drain_s)

    def put_down(self) -> None:
        """Let every run end at its next step."""
        for active in list(self.active.values()):
            active.put_down()

    async def stop(self) -> None:
        """Leave: write what waits, hand back what is left, close."""
        await self._chores.stop()
        try:
            async with asyncio.timeout(self.ledger.heartbeat_s):
                await (self._commit.abandon() if self.active else self._commit.close())  # runs were left behind
                handed_back = await self.lease.leave()
                await self._database.close()
                await self._chores_database.close()
                log.info("worker.stopped", handed_back=handed_back)
        except (DatabaseUnavailable, TimeoutError) as error:
            log.warning("worker.stopped_unheard", cause=str(error) or "PostgreSQL does not answer")
        await self._say_last_words()
        if self._close_ports is not None:
            async with asyncio.timeout(self.ledger.heartbeat_s):
                await self._close_ports()

    async def _say_last_words(self) -> None:
        open_words = [asyncio.wrap_future(sent) for sent in self._last_words if not sent.done()]
        if open_words:
            await asyncio.wait(open_words, timeout=LAST_PUBLISH_S)

    def _new_hold(self, worker: UUID) -> None:
        self._commit = GroupCommit(self._database, self.ledger, worker=worker, when_down="wait", sure=self.lease.sure)
        self.runs = Runs(self._database, self._commit, self.ledger, vault=self.vault)

    async def _fence(self, cause: str) -> None:
        """End every run without a write."""
        metrics.FENCED.inc()
        log.error("worker.runs_fenced", runs=len(self.active), cause=cause)
        if self._pool is not None:
            self._pool.cancel_all("fenced")
        await self._commit.abandon()

    async def _start(self, polled: Polled) -> None:
        """Run a polled task, and tell those who watch Celery."""
        message, agent = polled.message, self._agents[polled.message.agent]
        assert self._pool is not None
        task_id = str(message.id)
        self._pool.tell(
            "task-received", uuid=task_id, name=TASK_PREFIX + agent.name, args="()",
            kwargs=f"{{{', '.join(sorted(message.kwargs))}}}", root_id=task_id, parent_id=None, retries=0, eta=None,
            expires=None,
        )  # fmt: skip
        self._pool.tell("task-started", uuid=task_id)
        began = self._clock.monotonic()
        try:
            result = await execute_polled(self, agent, polled)
        except Ignore as end:
            if end.args and (event := left(end.args[0])) is not None:
                kind, fields = event
                self._pool.tell(kind, uuid=task_id, **fields)
        except Exception as error:  # the agent's own, written to the ledger: Celery is only told
            kind, fields = failed(repr(error))
            self._pool.tell(kind, uuid=task_id, **fields)
        else:
            self._pool.tell(
                "task-succeeded", uuid=task_id, result=repr(result), runtime=self._clock.monotonic() - began
            )

    async def hold_for_others(self, message: TaskMessage) -> bool:
        """A message of an agent that this worker lacks: its task is held in the ledger for those that have it.

        Returns: False when nobody has ever offered such an agent.
        """
        sealed = seal_received(self.vault, message)
        return await until_available(lambda: shelve_for_others(self._chores_database, sealed), what="PostgreSQL")

    async def hold_revoked(self, message: TaskMessage) -> bool:
        """A message that was revoked before anybody claimed it: its task ends in the ledger, as cancelled.

        Celery remembers an id for hours: a task that was replayed since then goes on.
        """
        is_held = await self.hold_for_others(message)
        if await until_available(lambda: is_untouched(self._chores_database, message.id), what="PostgreSQL"):
            await self.revoke([message.id])
        return is_held

    async def revoke(self, task_ids: Sequence[UUID]) -> Sequence[UUID]:
        """Cancel what does not run yet; returns those that the ledger does not know."""
        redispatch_s = self.ledger.redispatch_s
        done = await until_available(
            lambda: revoke(self._chores_database, task_ids, redispatch_s=redispatch_s), what="PostgreSQL"
        )
        for message in done.due:
            self.publish(message)
        return done.unknown

    async def _asked_to_cancel(self) -> Sequence[UUID]:
        return await asked_to_cancel(self._chores_database, self.lease.worker)

    async def _take_off(self, priority: Priority) -> int:
        """Move a crowded queue into the ledger; its tasks are held from then on, and polled."""
        loop = asyncio.get_running_loop()

        def keep(messages: Sequence[TaskMessage]) -> None:
            sealed = [seal_received(self.vault, message) for message in messages]
            asyncio.run_coroutine_threadsafe(shelve(self._chores_database, sealed), loop).result()
            loop.call_soon_threadsafe(self.hurry_poll)

        return await self._sort(priority, keep)

    async def _offer(self) -> None:
        room = self.ports.prompt_tokens
        schemas = {name: one.offered(prompt_tokens=room(name)) for name, one in self._agents.items()}
        limits = {name: one.max_running for name, one in self._agents.items() if one.max_running is not None}
        await offer(self._chores_database, schemas, max_running=limits)
        await unpark(self._chores_database, list(self._agents))

    async def _keep_offering(self) -> None:
        while True:
            await asyncio.sleep(OFFER_S)
            await until_available(self._offer, what="PostgreSQL")

    async def _warm(self, warm_up: Callable[[], Awaitable[Any]]) -> None:
        await until_available(warm_up, what="the vector store", cap_s=30.0)
        settle_memory()

    async def _watch_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            expected = loop.time() + LAG_PROBE_S
            await asyncio.sleep(LAG_PROBE_S)
            lag_s = loop.time() - expected
            metrics.LOOP_LAG_SECONDS.set(lag_s)
            if lag_s >= self.knobs.lag_warn_s:
                log.warning("worker.loop_lagged", lag_s=round(lag_s, 2), hint="an agent blocks the loop: use run.step")


class _Polls:
    """The ledger as this worker polls it, under whatever id it has by then."""

    def __init__(self, host: WorkerHost) -> None:
        self._host = host

    async def held(self, priority: Priority, slots: int) -> Sequence[Polled]:
        """Claim held tasks, tenants in turn."""
        host = self._host
        return await poll_held(
            host._chores_database, worker=host.lease.worker, agents=list(host._agents), priority=priority, slots=slots
        )

    async def lost(self, priority: Priority, slots: int, *, lost_after_s: float) -> Sequence[Polled]:
        """Claim tasks whose message has not come."""
        host = self._host
        return await poll_lost(
            host._chores_database, worker=host.lease.worker, agents=list(host._agents), priority=priority, slots=slots,
            lost_after_s=lost_after_s,
        )  # fmt: skip

    async def overlooked(self) -> Sequence[Polled]:
        """Tasks that are this worker's and that it does not run."""
        host = self._host
        return await overlooked(host._chores_database, host.lease.worker, known=list(host.active))
