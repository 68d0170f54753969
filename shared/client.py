"""The roof: what a producer imports to hand tasks to the fleet, to steer them and to ask for their results.

    client = FleetClient()                                        # FLEET_DB_URL and FLEET_BROKER_URL
    task = client.submit("chat", {"message": "hi"})               # Django, Flask, scripts
    task = await client.asubmit("chat", {"message": "hi"})        # asyncio services
    client.submit("chat", {"message": "hi"}, tx=session)          # in the producer's own transaction
    client.submit("report", priority="batch", delay_s=3600)       # later, behind everything else
    print(task.result(timeout_s=60))
    with client.unit() as session: …                              # the fleet's own database, on the node that will do
    client.signal(task.id, "approval", {"by": "ann"}); client.cancel(task.id)

A task is accepted when PostgreSQL or RabbitMQ has it on disk. The names without `a` run the same coroutines on a loop
of the client's own, so there is one implementation.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, Literal, TypeVar, overload
from uuid import UUID

from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, scoped_session

from shared.contracts import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_TENANT,
    Priority,
    TaskMessage,
)
from shared.db import carriage
from shared.db.database import Database
from shared.db.decide import Consistency, Mode, Wish
from shared.db.sessions import SyncReadSession, SyncWriteSession
from shared.db.shard_map import ShardKey
from shared.db.shards import Shards
from shared.db.tokens import CausalToken
from shared.errors import BadInput, TaskCancelled, TaskFailed
from shared.ledger.doors import Doors
from shared.ledger.helm import Helm, OnChange
from shared.ledger.intake import Intake, is_later
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.moving import Forget
from shared.ledger.order import checked_id, new_message
from shared.ledger.replaying import Preview
from shared.ledger.rows import TaskView, accept_statement
from shared.ledger.sealed_input import open_message, seal_message
from shared.ledger.vault import OUTPUT, Vault
from shared.ledger.views import latest, task_of
from shared.memory.forgetting import forget_sessions
from shared.settings import Settings, load

Transaction = Session | Connection | AsyncSession | AsyncConnection | scoped_session[Any]
AcceptedBy = Literal["ledger", "broker", "transaction"]
T = TypeVar("T")

HOOK_DISPATCH_S = 1.0
"""Seconds until the keeper publishes a task of a producer's transaction, should the commit hook not have done it."""


@dataclass(frozen=True, slots=True)
class SubmittedTask:
    """An accepted task. `accepted_by` says who has it on disk; `transaction` means: once the producer commits."""

    id: UUID
    agent: str
    accepted_by: AcceptedBy
    _client: "FleetClient" = field(repr=False, compare=False)

    def result(self, timeout_s: float = 60.0) -> Any:
        """Wait for the output; see FleetClient.result."""
        return self._client.result(self.id, timeout_s)

    def status(self) -> TaskView:
        """The task as the ledger has it now."""
        return self._client.status(self.id)

    async def aresult(self, timeout_s: float = 60.0) -> Any:
        """Wait for the output; see FleetClient.result."""
        return await self._client.aresult(self.id, timeout_s)

    async def astatus(self) -> TaskView:
        """The task as the ledger has it now."""
        return await self._client.astatus(self.id)


class FleetClient:
    """Submits tasks, steers them and reads their results. One per process is enough; safe from any thread and loop.

    Args:
        settings: Where the servers are; read from the environment when not given.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or load()
        self._vault = Vault(self._settings.ledger.master_keys)
        self._doors = Doors(self._settings.db, self._settings.ledger, self._settings.broker, self._settings.shards)

    def submit(
        self, agent: str, input: Mapping[str, Any] | None = None, *, session: str | None = None,
        tenant: str = DEFAULT_TENANT, idempotency_key: str | None = None, deadline_s: float | None = None,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS, priority: Priority = "normal", available_at: datetime | None = None,
        delay_s: float | None = None, tx: Session | Connection | scoped_session[Any] | None = None,
        token: CausalToken | str | None = None,
    ) -> SubmittedTask:  # fmt: skip
        """Hand a task to the fleet.

        Args:
            agent: The agent's name, as in `@agent("name")`.
            input: Its named inputs, JSON-safe; checked against the agent's schema.
            session: The conversation it belongs to.
            idempotency_key: Same tenant and key, same task: a repeated submit returns the first task. Where several
                shards are configured, a task with a session is on that session's: there a key holds within its session.
            deadline_s: Seconds from now until the task fails if it is not finished.
            max_attempts: How many workers may die under it before it fails.
            priority: `interactive`, `normal` or `batch`: which queue it stands in.
            available_at, delay_s: When it may start: a time with its zone, or seconds from now.
            tx: The caller's own SQLAlchemy session or connection: the task exists if, and only if, it commits.
            token: What its reads must not miss, beside what this thread or task has written and seen.

        Raises: BadInput naming the field; TooLarge; PromptTooLong; UnknownAgent; NotAccepted when neither PostgreSQL
            nor RabbitMQ took it.
        """
        message = self._message(
            agent, input, session=session, tenant=tenant, idempotency_key=idempotency_key, deadline_s=deadline_s,
            max_attempts=max_attempts, priority=priority, available_at=available_at, delay_s=delay_s, token=token,
        )  # fmt: skip
        if tx is None:
            return self._wait(self._asubmit(message))
        if isinstance(tx, AsyncSession | AsyncConnection):
            raise BadInput("submit() takes a sync session or connection as tx: await asubmit() with this one")
        message, is_held = self._wait(self._acheck(message, tx))
        message = seal_message(self._vault, message)
        tx.execute(accept_statement(message, dispatch_after_s=HOOK_DISPATCH_S, is_held=is_held))
        return self._hooked(message, tx() if isinstance(tx, scoped_session) else tx, is_held=is_held)

    async def asubmit(
        self, agent: str, input: Mapping[str, Any] | None = None, *, session: str | None = None,
        tenant: str = DEFAULT_TENANT, idempotency_key: str | None = None, deadline_s: float | None = None,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS, priority: Priority = "normal", available_at: datetime | None = None,
        delay_s: float | None = None, tx: AsyncSession | AsyncConnection | None = None,
        token: CausalToken | str | None = None,
    ) -> SubmittedTask:  # fmt: skip
        """Hand a task to the fleet; see `submit`."""
        message = self._message(
            agent, input, session=session, tenant=tenant, idempotency_key=idempotency_key, deadline_s=deadline_s,
            max_attempts=max_attempts, priority=priority, available_at=available_at, delay_s=delay_s, token=token,
        )  # fmt: skip
        if tx is None:
            return await self._asubmit(message)
        if not isinstance(tx, AsyncSession | AsyncConnection):
            raise BadInput("asubmit() takes an async session or connection as tx: call submit() with this one")
        message, is_held = await self._acheck(message, tx)
        message = seal_message(self._vault, message)
        await tx.execute(accept_statement(message, dispatch_after_s=HOOK_DISPATCH_S, is_held=is_held))
        sync = tx.sync_session if isinstance(tx, AsyncSession) else tx.sync_connection
        if sync is None:
            raise BadInput("the connection given as tx is not started: use it inside `async with engine.begin()`")
        return self._hooked(message, sync, is_held=is_held)

    def result(self, task_id: UUID | str, timeout_s: float = 60.0) -> Any:
        """Wait for a task's output.

        Raises: TaskFailed with the recorded error; TaskCancelled; ResultPending when it is not finished in time, saying
            what it waits for; UnknownTask when nobody has heard of it by then.
        """
        return self._wait(self.aresult(task_id, timeout_s))

    async def aresult(self, task_id: UUID | str, timeout_s: float = 60.0) -> Any:
        """Wait for a task's output; see `result`."""
        view = await self._doors.finished(checked_id(task_id), timeout_s=timeout_s)
        if view.state == "succeeded":
            return self._vault.open(view.output, task_id=view.id, role=OUTPUT)
        error = view.error or {"message": "no reason recorded"}
        if view.state == "cancelled":
            raise TaskCancelled(f"task {view.id}: {error['message']}", task_id=str(view.id), error=error)
        raise TaskFailed(f"task {view.id} failed: {error['message']}", task_id=str(view.id), error=error)

    def status(self, task_id: UUID | str) -> TaskView:
        """A task with its steps and children as the ledger has them now.

        Raises: UnknownTask.
        """
        return self._wait(self.astatus(task_id))

    async def astatus(self, task_id: UUID | str) -> TaskView:
        """A task with its steps and children; see `status`."""
        target = checked_id(task_id)
        return await self._doors.asking(target, lambda door: task_of(door.database, target, vault=self._vault))

    def tasks(self, *, limit: int = 20, **filters: str | None) -> list[TaskView]:
        """The newest tasks; filters: state, tenant, agent."""
        return self._wait(self.atasks(limit=limit, **filters))

    async def atasks(
        self, *, limit: int = 20, state: str | None = None, tenant: str | None = None, agent: str | None = None
    ) -> list[TaskView]:
        """The newest tasks; filters: state, tenant, agent."""
        newest: dict[UUID, TaskView] = {}
        for door in self._doors.everywhere():
            wanted = {"state": state, "tenant": tenant, "agent": agent}
            newest |= {one.id: one for one in await latest(door.database, limit=limit, vault=self._vault, **wanted)}
        return sorted(newest.values(), key=lambda one: one.created_at, reverse=True)[:limit]

    def cancel(self, task_id: UUID | str) -> TaskView:
        """Cancel a task and its children: what waits has ended on return, what runs stops within a second.

        Raises: UnknownTask; WrongState when it is finished or was cancelled before: then nothing is changed.
        """
        return self._wait(self.acancel(task_id))

    async def acancel(self, task_id: UUID | str) -> TaskView:
        """Cancel a task and its children; see `cancel`."""
        return await self._steer(task_id, lambda helm: helm.cancel(task_id))

    def signal(self, task_id: UUID | str, name: str, payload: Any = None) -> TaskView:
        """Give a task what `run.wait_for(name)` waits for; kept for it when it does not wait yet.

        Args:
            payload: JSON-safe; what the wait returns.

        Raises: UnknownTask; WrongState when it is finished; BadInput; TooLarge.
        """
        return self._wait(self.asignal(task_id, name, payload))

    async def asignal(self, task_id: UUID | str, name: str, payload: Any = None) -> TaskView:
        """Give a task what it waits for; see `signal`."""
        return await self._steer(task_id, lambda helm: helm.signal(task_id, name, payload))

    def resume(self, task_id: UUID | str, on_change: OnChange | None = None) -> TaskView:
        """Let a parked task go on.

        Args:
            on_change: Where a changed step stopped it: `reuse` its old result, or `rerun` it.

        Raises: UnknownTask; WrongState when it is not parked; BadInput when no changed step stopped it.
        """
        return self._wait(self.aresume(task_id, on_change))

    async def aresume(self, task_id: UUID | str, on_change: OnChange | None = None) -> TaskView:
        """Let a parked task go on; see `resume`."""
        return await self._steer(task_id, lambda helm: helm.resume(task_id, on_change))

    def replay(self, task_id: UUID | str, from_step: str | None = None) -> TaskView:
        """Try a failed or cancelled task again under its own id, with a new deadline and all its attempts.

        Args:
            from_step: `name` or `name#ordinal`: it and what followed is done, and paid, again. None: only the step
                that failed it.

        Raises: UnknownTask; WrongState when it is neither failed nor cancelled; BadInput when it has no such step.
        """
        return self._wait(self.areplay(task_id, from_step))

    async def areplay(self, task_id: UUID | str, from_step: str | None = None) -> TaskView:
        """Try a failed or cancelled task again; see `replay`."""
        return await self._steer(task_id, lambda helm: helm.replay(task_id, from_step))

    def preview(self, task_id: UUID | str, from_step: str | None = None) -> Preview:
        """What a replay or a fork would find done, and what it would pay again. Raises: UnknownTask; BadInput."""
        return self._wait(self.apreview(task_id, from_step))

    async def apreview(self, task_id: UUID | str, from_step: str | None = None) -> Preview:
        """What a replay or a fork would do; see `preview`."""
        return await self._steer(task_id, lambda helm: helm.preview(task_id, from_step))

    def fork(self, task_id: UUID | str, from_step: str | None = None) -> SubmittedTask:
        """Start a new task beside a task in any state: it finds the steps before `from_step` done, and paid for.

        Args:
            from_step: `name` or `name#ordinal`; None: all steps that the first one has completed.

        Raises: UnknownTask; BadInput when it has no such step.
        """
        return self._wait(self.afork(task_id, from_step))

    async def afork(self, task_id: UUID | str, from_step: str | None = None) -> SubmittedTask:
        """Start a new task that reuses the steps of another; see `fork`."""
        forked = await self._steer(task_id, lambda helm: helm.fork(task_id, from_step))
        return SubmittedTask(forked.id, forked.agent, "ledger", self)

    @overload
    def unit(
        self, *, mode: Literal["rw"] = "rw", consistency: Literal["primary"] = "primary",
        shard_key: ShardKey | None = None,
    ) -> AbstractContextManager[SyncWriteSession]: ...  # fmt: skip

    @overload
    def unit(
        self, *, mode: Literal["ro"], consistency: Consistency = "primary", max_staleness_s: float | None = None,
        token: CausalToken | str | None = None, shard_key: ShardKey | None = None,
    ) -> AbstractContextManager[SyncReadSession]: ...  # fmt: skip

    def unit(
        self, *, mode: Mode = "rw", consistency: Consistency = "primary", max_staleness_s: float | None = None,
        token: CausalToken | str | None = None, shard_key: ShardKey | None = None,
    ) -> AbstractContextManager[Any]:  # fmt: skip
        """A SQLAlchemy session for a thread, on one connection to one node of the fleet's database.

        Commits at the end of `rw`; a `submit(…, tx=session)` inside is part of it. See `Database.unit` for the rest:
        what each consistency may see, and what is raised. What follows in this thread reads at least as fresh.
        """
        return self._doors.unit(Wish.checked(mode, consistency, max_staleness_s), token, shard_key)

    def operate(self, work: Callable[[Database], Awaitable[T]]) -> T:
        """Run an operator's work (limits, schedules, dead letters, invariants) on this client's database."""

        async def on_this_loop() -> T:
            return await work(self._doors.here().database)

        return self._wait(on_this_loop())

    def operate_on_shards(self, work: Callable[[Shards, Forget], Awaitable[T]]) -> T:
        """Run an operator's work on all shards; `forget` drops sessions from the cache.

        Raises: Misconfigured when there is but one shard.
        """

        async def on_this_loop() -> T:
            return await work(await self._doors.all_shards(), partial(forget_sessions, self._settings.memory))

        return self._wait(on_this_loop())

    def submit_message(self, message: TaskMessage) -> SubmittedTask:
        """Hand in a message as it is, its id included.

        Raises: BadInput; UnknownAgent; NotAccepted; SealKeyUnknown and SealBroken when it is sealed and does not open.
        """
        return self._wait(self._asubmit(open_message(self._vault, message)))

    def close(self) -> None:
        """Send what waits and close the connections that sync calls opened."""
        self._doors.close()

    async def aclose(self) -> None:
        """Close the connections that this event loop opened."""
        await self._doors.aclose()

    @property
    def ledger(self) -> LedgerKnobs:
        """How patient this fleet is."""
        return self._settings.ledger

    @property
    def vault(self) -> Vault:
        """Seals and opens what this fleet keeps."""
        return self._vault

    async def _steer(self, task_id: UUID | str, steer: Callable[[Helm], Awaitable[T]]) -> T:
        def at(door: Intake) -> Awaitable[T]:
            return steer(Helm(door, self.ledger, redis_url=self._settings.memory.redis_url, vault=self._vault))

        return await self._doors.asking(checked_id(task_id), at)

    def _message(
        self, agent: str, input: Mapping[str, Any] | None, *, token: CausalToken | str | None, **how: Any
    ) -> TaskMessage:
        max_bytes, is_sharded = self.ledger.input_max_bytes, len(self._settings.shards) > 1
        message = new_message(agent, input, max_bytes=max_bytes, is_sharded=is_sharded, **how)
        return replace(message, token=carriage.onward(None if token is None else str(token)))

    async def _acheck(self, message: TaskMessage, tx: Any) -> tuple[TaskMessage, bool]:
        """Check what a producer's transaction is to insert, on its shard; returns whether it is to be held."""
        message = await self._doors.placed(message, tx)
        door = await self._doors.of(message.id)
        await door.catalogue.check(message.agent, message.kwargs)
        return message, await door.is_crowded(message.fleet.tenant)

    async def _asubmit(self, message: TaskMessage) -> SubmittedTask:
        door = await self._doors.of(message.id)
        await door.catalogue.check(message.agent, message.kwargs)
        accepted_by = await door.hand_in(seal_message(self._vault, message))
        return SubmittedTask(message.id, message.agent, accepted_by, self)

    def _hooked(self, message: TaskMessage, tx: Session | Connection, *, is_held: bool) -> SubmittedTask:
        """Publish once the caller's transaction is seen to be committed, whoever commits it."""
        hook = "after_commit" if isinstance(tx, Session) else "commit"
        if not is_held and not is_later(message):
            event.listen(tx, hook, lambda *_: self._doors.publish_later(message), once=True)
        return SubmittedTask(message.id, message.agent, "transaction", self)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return self._doors.wait(work)
