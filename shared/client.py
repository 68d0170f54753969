"""The roof: what a producer imports to hand tasks to the fleet and to ask for their results.

    client = FleetClient()                                        # FLEET_DB_URL and FLEET_BROKER_URL
    task = client.submit("chat", {"message": "hi"})               # Django, Flask, scripts
    task = await client.asubmit("chat", {"message": "hi"})        # asyncio services
    client.submit("chat", {"message": "hi"}, tx=session)          # in the producer's own transaction
    print(task.result(timeout_s=60))

A task is accepted when PostgreSQL or RabbitMQ has it on disk. The names without `a` run the same coroutines on a loop
of the client's own, so there is one implementation.
"""

import asyncio
import os
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar
from uuid import UUID, uuid4
from weakref import WeakKeyDictionary

import structlog
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, scoped_session

from shared.broker.publisher import Publisher
from shared.contracts import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_TENANT,
    FleetHeader,
    TaskMessage,
    checked_agent_name,
    keyed_task_id,
)
from shared.errors import (
    BadInput,
    DatabaseUnavailable,
    FleetError,
    NotAccepted,
    PublishUnconfirmed,
    ResultPending,
    TaskFailed,
)
from shared.ledger.intake import Intake
from shared.ledger.rows import FINISHED, TaskView, accept_statement, refuse_nul, task_row
from shared.ledger.views import latest, state_of, task_of
from shared.resilience.portal import Portal
from shared.settings import Settings, load

log = structlog.get_logger()

Transaction = Session | Connection | AsyncSession | AsyncConnection | scoped_session[Any]
AcceptedBy = Literal["ledger", "broker", "transaction"]
T = TypeVar("T")

LONGEST_DEADLINE_S = 366 * 86_400.0
"""Seconds; a task that may take longer has no deadline."""
CONFIRM_WAIT_S = 0.5
"""Seconds a submit that the ledger accepted waits for the broker; the keeper publishes what is not confirmed."""
HOOK_DISPATCH_S = 1.0
"""Seconds until the keeper publishes a task of a producer's transaction, should the commit hook not have done it."""
VISIBLE_TRIES_S = (0.0, 0.02, 0.1, 0.5)
"""Waits between looks for a committed row after a producer's commit."""


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
    """Submits tasks and reads their results. One per process is enough; safe from any thread and any event loop.

    Args:
        settings: Where the servers are; read from the environment when not given.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or load()
        self._publisher = Publisher(self._settings.broker)
        self._doors: WeakKeyDictionary[asyncio.AbstractEventLoop, Intake] = WeakKeyDictionary()
        self._portal = Portal()
        self._pid = os.getpid()

    def submit(
        self, agent: str, input: Mapping[str, Any] | None = None, *, session: str | None = None,
        tenant: str = DEFAULT_TENANT, idempotency_key: str | None = None, deadline_s: float | None = None,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS, tx: Session | Connection | scoped_session[Any] | None = None,
    ) -> SubmittedTask:  # fmt: skip
        """Hand a task to the fleet.

        Args:
            agent: The agent's name, as in `@agent("name")`.
            input: Its named inputs, JSON-safe; checked against the agent's schema.
            session: The conversation it belongs to.
            idempotency_key: Same tenant and key, same task: a repeated submit returns the first task.
            deadline_s: Seconds from now until the task fails if it is not finished.
            max_attempts: How many workers may die under it before it fails.
            tx: The caller's own SQLAlchemy session or connection: the task exists if, and only if, it commits.

        Raises: BadInput naming the field; UnknownAgent; NotAccepted when neither PostgreSQL nor RabbitMQ took it.
        """
        message = self._message(agent, input, session, tenant, idempotency_key, deadline_s, max_attempts)
        if tx is None:
            return self._wait(self._asubmit(message))
        if isinstance(tx, AsyncSession | AsyncConnection):
            raise BadInput("submit() takes a sync session or connection as tx: await asubmit() with this one")
        self._wait(self._acheck(message))
        tx.execute(accept_statement(message, dispatch_after_s=HOOK_DISPATCH_S))
        return self._hooked(message, tx() if isinstance(tx, scoped_session) else tx)

    async def asubmit(
        self, agent: str, input: Mapping[str, Any] | None = None, *, session: str | None = None,
        tenant: str = DEFAULT_TENANT, idempotency_key: str | None = None, deadline_s: float | None = None,
        max_attempts: int = DEFAULT_MAX_ATTEMPTS, tx: AsyncSession | AsyncConnection | None = None,
    ) -> SubmittedTask:  # fmt: skip
        """Hand a task to the fleet; see `submit`."""
        message = self._message(agent, input, session, tenant, idempotency_key, deadline_s, max_attempts)
        if tx is None:
            return await self._asubmit(message)
        if not isinstance(tx, AsyncSession | AsyncConnection):
            raise BadInput("asubmit() takes an async session or connection as tx: call submit() with this one")
        await self._acheck(message)
        await tx.execute(accept_statement(message, dispatch_after_s=HOOK_DISPATCH_S))
        sync = tx.sync_session if isinstance(tx, AsyncSession) else tx.sync_connection
        if sync is None:
            raise BadInput("the connection given as tx is not started: use it inside `async with engine.begin()`")
        return self._hooked(message, sync)

    def result(self, task_id: UUID | str, timeout_s: float = 60.0) -> Any:
        """Wait for a task's output.

        Raises: TaskFailed with the recorded error; ResultPending when it is not finished in time; UnknownTask when
            nobody has heard of it by then.
        """
        return self._wait(self.aresult(task_id, timeout_s))

    async def aresult(self, task_id: UUID | str, timeout_s: float = 60.0) -> Any:
        """Wait for a task's output; see `result`."""
        view = await self._afinished(_uuid(task_id), timeout_s)
        if view.state == "succeeded":
            return view.output
        error = view.error or {"message": "no reason recorded"}
        raise TaskFailed(f"task {view.id} failed: {error['message']}", task_id=str(view.id), error=error)

    def status(self, task_id: UUID | str) -> TaskView:
        """A task and its steps as the ledger has them now.

        Raises: UnknownTask.
        """
        return self._wait(self.astatus(task_id))

    async def astatus(self, task_id: UUID | str) -> TaskView:
        """A task and its steps; see `status`."""
        return await task_of(self._door().database, _uuid(task_id))

    async def atasks(self, *, limit: int = 20, **filters: str | None) -> list[TaskView]:
        """The newest tasks; filters: state, tenant, agent."""
        return await latest(self._door().database, limit=limit, **filters)

    def tasks(self, *, limit: int = 20, **filters: str | None) -> list[TaskView]:
        """The newest tasks; filters: state, tenant, agent."""
        return self._wait(self.atasks(limit=limit, **filters))

    def close(self) -> None:
        """Send what waits and close the connections that sync calls opened."""
        if self._portal.is_running:
            self._wait(self.aclose())
        self._portal.stop()
        self._publisher.close()

    async def aclose(self) -> None:
        """Close the connections that this event loop opened."""
        door = self._doors.pop(asyncio.get_running_loop(), None)
        if door is not None:
            await door.close()

    def _message(
        self, agent: str, input: Mapping[str, Any] | None, session: str | None, tenant: str,
        idempotency_key: str | None, deadline_s: float | None, max_attempts: int,
    ) -> TaskMessage:  # fmt: skip
        if not isinstance(input, Mapping | None):
            raise BadInput(f"input must be an object of named inputs, not {type(input).__name__}", agent=agent)
        if deadline_s is not None and not 0 <= deadline_s <= LONGEST_DEADLINE_S:
            raise BadInput(f"deadline_s must be from 0 to {LONGEST_DEADLINE_S:g} (a year), not {deadline_s:g}")
        header = FleetHeader.checked(
            tenant=tenant,
            session=session,
            idempotency_key=idempotency_key,
            deadline_at=None if deadline_s is None else datetime.now(UTC) + timedelta(seconds=deadline_s),
            max_attempts=max_attempts,
        )
        task_id = keyed_task_id(tenant, idempotency_key) if idempotency_key else uuid4()
        message = TaskMessage(checked_agent_name(agent), dict(input or {}), (), task_id, header)
        message.wire_body()  # refuses what is not JSON before anything is stored
        refuse_nul(task_row(message))
        return message

    async def _acheck(self, message: TaskMessage) -> None:
        await self._door().catalogue.check(message.agent, message.kwargs)

    async def _asubmit(self, message: TaskMessage) -> SubmittedTask:
        door = self._door()
        await door.catalogue.check(message.agent, message.kwargs)
        confirmation = self._publish(message)  # at once with the ledger: either alone accepts the task
        try:
            await door.accept(message, redispatch_s=self._settings.ledger.redispatch_s)
        except DatabaseUnavailable as ledger_error:
            await self._accept_by_broker(message, confirmation, ledger_error)
            return SubmittedTask(message.id, message.agent, "broker", self)
        await self._confirmed(message, confirmation)
        return SubmittedTask(message.id, message.agent, "ledger", self)

    def _publish(self, message: TaskMessage) -> "asyncio.Future[None]":
        confirmation = asyncio.wrap_future(self._publisher.publish(message))
        confirmation.add_done_callback(lambda done: done.cancelled() or done.exception())  # heard, awaited or not
        return confirmation

    async def _accept_by_broker(
        self, message: TaskMessage, confirmation: "asyncio.Future[None]", ledger_error: FleetError
    ) -> None:
        try:
            await confirmation
        except PublishUnconfirmed as broker_error:
            raise NotAccepted(
                f"the task was not accepted: {ledger_error.message}; and {broker_error.message}; "
                "try again (with an idempotency_key, so that it can only be accepted once)",
                retry_after_s=1.0,
            ) from None
        log.warning("client.accepted_by_broker", task_id=str(message.id), cause=ledger_error.message)

    async def _confirmed(self, message: TaskMessage, confirmation: "asyncio.Future[None]") -> None:
        """The ledger has the task: a broker that is down costs it the keeper's round, no more."""
        door = self._door()
        try:
            async with asyncio.timeout(CONFIRM_WAIT_S):
                await asyncio.shield(confirmation)
        except TimeoutError:
            confirmation.add_done_callback(lambda done: door.settle(message.id, done.exception()))
        except PublishUnconfirmed as error:
            await door.mark_due(message.id, error)

    def _hooked(self, message: TaskMessage, tx: Session | Connection) -> SubmittedTask:
        """Publish once the caller's transaction is seen to be committed, whoever commits it."""
        hook = "after_commit" if isinstance(tx, Session) else "commit"
        event.listen(tx, hook, lambda *_: self._portal.spawn(lambda: self._apublish_when_visible(message)), once=True)
        return SubmittedTask(message.id, message.agent, "transaction", self)

    async def _apublish_when_visible(self, message: TaskMessage) -> None:
        for wait_s in VISIBLE_TRIES_S:
            await asyncio.sleep(wait_s)
            try:
                if await state_of(self._door().database, message.id) is not None:
                    await self._confirmed(message, self._publish(message))
                    return
            except DatabaseUnavailable:
                return
        log.info("client.left_to_keeper", task_id=str(message.id))

    async def _afinished(self, task_id: UUID, timeout_s: float) -> TaskView:
        database = self._door().database
        loop = asyncio.get_running_loop()
        until, wait_s, problem = loop.time() + timeout_s, 0.005, None
        state: str | None = None
        while True:
            try:
                state, problem = await state_of(database, task_id), None
                if state in FINISHED:
                    return await task_of(database, task_id)
            except DatabaseUnavailable as error:
                problem = error
            left_s = until - loop.time()
            if left_s <= 0:
                break
            await asyncio.sleep(min(wait_s, left_s))
            wait_s = min(0.2, wait_s * 1.3)
        if problem is not None:
            raise problem
        if state is None:
            await task_of(database, task_id)
        raise ResultPending(f"task {task_id} is {state} after {timeout_s:g} s: ask again later", task_id=str(task_id))

    def _door(self) -> Intake:
        loop = asyncio.get_running_loop()
        door = self._doors.get(loop)
        if door is None:
            door = self._doors[loop] = Intake(self._settings.db, self._settings.ledger)
        return door

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if os.getpid() != self._pid:  # forked (gunicorn, uWSGI): threads and sockets stayed with the parent
            self._pid = os.getpid()
            self._publisher, self._portal, self._doors = (
                Publisher(self._settings.broker),
                Portal(),
                WeakKeyDictionary(),
            )
        return self._portal.run(work)


def _uuid(task_id: UUID | str) -> UUID:
    try:
        return task_id if isinstance(task_id, UUID) else UUID(task_id)
    except ValueError:
        raise BadInput(f"task id {task_id!r} is not a UUID: copy it from `fleet submit` or `fleet tasks`") from None
