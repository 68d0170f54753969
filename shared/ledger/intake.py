"""A producer's way into the ledger: a task is accepted once PostgreSQL or the broker has it on disk.

A tenant with many tasks on the queue is crowded: its next ones are held in the ledger for a fair turn and not
published. So is a task whose publish failed: workers fetch from the ledger what has no message.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

import structlog
from sqlalchemy import text

from shared.broker.publisher import Publisher
from shared.contracts import TaskMessage
from shared.db.database import Database
from shared.errors import DatabaseUnavailable, FleetError, NotAccepted
from shared.ledger.catalogue import Catalogue
from shared.ledger.group_commit import GroupCommit, Written
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.rows import task_row
from shared.ledger.steering import hold
from shared.ledger.views import state_of

log = structlog.get_logger()

LEDGER_WAIT_S = 0.5
"""Seconds a submit waits for PostgreSQL alone; then whoever answers first, it or the broker, accepts the task."""
LEDGER_LAST_S = 2.0
"""Seconds more that a submit waits for PostgreSQL when the broker did not take the task."""
CONFIRM_WAIT_S = 0.3
"""Seconds a submit that the ledger accepts waits for the broker, counted from the publish; what is not confirmed by
then is held in the ledger."""
VISIBLE_TRIES_S = (0.0, 0.02, 0.1, 0.5)
"""Waits between looks for a committed row after a producer's commit."""
CROWDED_FOR_S = 0.5
"""Seconds for which a crowded tenant's tasks are held before the next one tries the queue again."""
CROWDED = """
    SELECT EXISTS (SELECT FROM tasks WHERE tenant = :tenant AND state = 'queued' AND published_at IS NULL
                   AND priority IN ('interactive', 'normal', 'batch'))
        OR (SELECT count(*) FROM (SELECT FROM tasks WHERE tenant = :tenant AND state = 'queued'
                                  AND published_at IS NOT NULL LIMIT :window) s) >= :window"""


class Intake:
    """A producer's way to the ledger and the queue. Belongs to one event loop; close it there."""

    def __init__(self, database: Database, ledger: LedgerKnobs, publisher: Publisher) -> None:
        self.database = database
        self.catalogue = Catalogue(self.database)
        self._commit = GroupCommit(self.database, ledger, worker=None, when_down="raise")
        self._publisher = publisher
        self._knobs = ledger
        self._crowded_until: dict[str, float] = {}
        self._looked_at: dict[str, float] = {}
        self._open: Counter[str] = Counter()
        self._to_hold: set[UUID] = set()
        self._holding: asyncio.Task[None] | None = None

    async def hand_in(self, message: TaskMessage) -> Literal["ledger", "broker"]:
        """Have a task accepted; a second time it changes nothing.

        Returns: Who has it on disk.
        Raises: NotAccepted when neither PostgreSQL nor the broker took it; BadInput when it cannot be stored.
        """
        tenant = message.fleet.tenant
        is_held = is_later(message) or self._is_crowded(tenant)
        began = time.monotonic()
        confirmation = None if is_held else self.publish(message)  # with the ledger, not after it: either accepts
        writing = asyncio.ensure_future(self._accept(message, published=not is_held))
        self._open[tenant] += 1
        try:
            await asyncio.wait({writing}, timeout=0.0 if self.catalogue.is_overdue else LEDGER_WAIT_S)
            if not writing.done() or isinstance(writing.exception(), DatabaseUnavailable):
                confirmation = confirmation or self.publish(message)
                if await self._is_brokers(message, writing, confirmation):
                    return "broker"
            written = writing.result()
        finally:
            writing.cancel()
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]
        if written is not None and tenant in written.crowded:
            self._crowded_until[tenant] = time.monotonic() + CROWDED_FOR_S
        if confirmation is not None:
            await self.confirmed(message.id, confirmation, waited_s=time.monotonic() - began)
        return "ledger"

    async def is_crowded(self, tenant: str) -> bool:
        """Whether the tenant's next task shall be held, for a caller whose INSERT cannot tell; asked now and then."""
        now = time.monotonic()
        if not self._is_crowded(tenant) and now - self._looked_at.get(tenant, float("-inf")) > CROWDED_FOR_S:
            try:
                async with self.database.unit(mode="ro") as unit:
                    values = {"tenant": tenant, "window": self._knobs.fair_window}
                    if (await unit.execute(text(CROWDED), values)).scalar_one():
                        self._crowded_until[tenant] = now + CROWDED_FOR_S
            except DatabaseUnavailable:  # the caller's own transaction will tell
                return False
            self._looked_at = {one: at for one, at in self._looked_at.items() if now - at <= CROWDED_FOR_S}
            self._looked_at[tenant] = now
        return self._is_crowded(tenant)

    def publish(self, message: TaskMessage) -> "asyncio.Future[None]":
        """Send a task to its queue; the future ends with the broker's confirmation, and need not be awaited."""
        sent = self._publisher.send(
            message.wire_headers(), message.wire_body(), task_id=str(message.id), routing_key=message.queue
        )
        confirmation = asyncio.wrap_future(sent)
        confirmation.add_done_callback(lambda done: done.cancelled() or done.exception())  # heard, awaited or not
        return confirmation

    async def confirmed(self, task_id: UUID, confirmation: "asyncio.Future[None]", *, waited_s: float = 0.0) -> None:
        """The ledger has the task: a broker that is down costs it a worker's next look into the ledger, no more.

        Args:
            waited_s: For how long the broker has had it by now.
        """
        await asyncio.wait({confirmation}, timeout=max(0.0, CONFIRM_WAIT_S - waited_s))
        if confirmation.done():
            self._settle(task_id, confirmation.exception())
        else:
            confirmation.add_done_callback(lambda done: self._settle(task_id, done.exception()))

    async def publish_all(self, messages: Iterable[TaskMessage]) -> None:
        """Publish what the ledger says may run now."""
        sent = [(message.id, self.publish(message)) for message in messages]
        await asyncio.gather(*(self.confirmed(task_id, confirmation) for task_id, confirmation in sent))

    async def publish_committed(self, message: TaskMessage) -> None:
        """Publish a task of a producer's transaction that has just ended, once it is seen in the ledger."""
        for wait_s in VISIBLE_TRIES_S:
            await asyncio.sleep(wait_s)
            try:
                if await state_of(self.database, message.id) is not None:
                    await self.confirmed(message.id, self.publish(message))
                    return
            except DatabaseUnavailable:
                return
        log.info("client.left_to_keeper", task_id=str(message.id))

    async def close(self) -> None:
        """Write what waits, then close the connections."""
        if self._holding is not None:
            await self._holding
        await self._commit.close()
        await self.catalogue.close()
        await self.database.close()

    async def _accept(self, message: TaskMessage, *, published: bool) -> Written | None:
        row = task_row(message) | {"redispatch_s": self._knobs.redispatch_s, "published": published}
        return await self._commit.write("accept", ("accept", message.id, None, 0), row)

    async def _is_brokers(
        self, message: TaskMessage, writing: "asyncio.Future[Written | None]", confirmation: "asyncio.Future[None]"
    ) -> bool:
        """PostgreSQL is away or silent: whoever answers first has the task.

        Returns: Whether that is the broker.
        Raises: NotAccepted when neither does.
        """
        pending: set[asyncio.Future[Any]] = {writing, confirmation}
        while pending:
            last_s = None if confirmation in pending else LEDGER_LAST_S
            done, pending = await asyncio.wait(pending, timeout=last_s, return_when=asyncio.FIRST_COMPLETED)
            if writing.done() and not isinstance(writing.exception(), DatabaseUnavailable):
                return False
            if confirmation.done() and confirmation.exception() is None:
                log.warning("client.accepted_by_broker", task_id=str(message.id), cause=_cause(writing))
                return True
            if not done:
                break
        raise NotAccepted(
            f"the task was not accepted: {_cause(writing)}; and {_cause(confirmation)}; "
            "try again (with an idempotency_key, so that it can only be accepted once)",
            retry_after_s=1.0,
        )

    def _is_crowded(self, tenant: str) -> bool:
        until = self._crowded_until.get(tenant)
        if until is not None and time.monotonic() >= until:
            del self._crowded_until[tenant]
            until = None
        return until is not None or self._open[tenant] >= self._knobs.fair_window

    def _settle(self, task_id: UUID, error: BaseException | None) -> None:
        """A publish has ended: one that failed is held, and no submit waits for that."""
        if error is None:
            return
        log.warning("client.held_in_ledger", task_id=str(task_id), cause=str(error))
        self._to_hold.add(task_id)
        if self._holding is None or self._holding.done():
            self._holding = asyncio.ensure_future(self._hold_all())

    async def _hold_all(self) -> None:
        while self._to_hold:
            ids, self._to_hold = sorted(self._to_hold), set()
            try:
                await hold(self.database, ids)
            except DatabaseUnavailable as error:
                log.warning("client.left_to_redispatch", tasks=len(ids), cause=error.message)


def _cause(answer: "asyncio.Future[Any]") -> str:
    error = answer.exception() if answer.done() else None
    return error.message if isinstance(error, FleetError) else str(error or "PostgreSQL does not answer")


def is_later(message: TaskMessage) -> bool:
    """Whether it has to wait for its time first."""
    available_at = message.fleet.available_at
    return available_at is not None and available_at > datetime.now(UTC)
