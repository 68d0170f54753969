"""The keeper's round: look, decide, act; a server that is away ends the round, not the keeper."""

import asyncio
import time
from collections.abc import Callable
from uuid import UUID

import structlog

from shared.broker.connection import connect
from shared.broker.dead_letters import DeadLetter, drain_dead_letters
from shared.broker.depth import messages_ready
from shared.broker.knobs import BrokerKnobs
from shared.broker.publisher import BROKER_ERRORS, Publisher
from shared.contracts import TaskMessage
from shared.db.database import Database
from shared.errors import DatabaseUnavailable, PublishUnconfirmed
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.rescue import backlog, bury, due, pulses, put_back, record_dead_letter
from workers.keeper.decisions import dispatch, judge
from workers.keeper.knobs import KeeperKnobs

log = structlog.get_logger()

DEAD_LETTERS_A_ROUND = 100


class Rounds:
    """All that one leading keeper does."""

    def __init__(
        self, *, database: Database, publisher: Publisher, broker: BrokerKnobs, ledger: LedgerKnobs, knobs: KeeperKnobs
    ) -> None:
        self._database = database
        self._publisher = publisher
        self._broker = broker
        self._ledger = ledger
        self._knobs = knobs
        self._watching_since = time.monotonic()
        self._is_broker_away = False

    async def round(self) -> None:
        """One look at everything.

        Raises: DatabaseUnavailable.
        """
        try:
            await self._bury_the_dead()
            await self._publish_the_due()
            await self._record_dead_letters()
        except DatabaseUnavailable:
            self._watching_since = time.monotonic()
            raise

    async def _bury_the_dead(self) -> None:
        watched_s = time.monotonic() - self._watching_since
        found = await pulses(self._database)
        for decision in judge(found, dead_after_s=self._ledger.dead_after_s, watched_s=watched_s):
            if decision.action == "bury":
                taken = await bury(self._database, decision.worker, dead_after_s=self._ledger.dead_after_s)
                log.warning("keeper.worker_buried", worker=str(decision.worker), runs=taken, reason=decision.reason)

    async def _publish_the_due(self) -> None:
        queued, overdue = await backlog(self._database)
        if overdue == 0:
            return
        decision = dispatch(due=overdue, queued=queued, ready=await self._ready(), batch=self._knobs.publish_batch)
        if decision.limit == 0:
            return
        messages = await due(self._database, limit=decision.limit, again_after_s=self._knobs.again_after_s)
        unsent = await self._publish(messages)
        await put_back(self._database, unsent)
        log.info("keeper.republished", sent=len(messages) - len(unsent), unsent=len(unsent), reason=decision.reason)

    async def _ready(self) -> int:
        """Messages in the broker's queue; none where the broker does not answer, and the publish will find out."""
        try:
            return await asyncio.to_thread(messages_ready, self._broker)
        except BROKER_ERRORS:
            return 0

    async def _publish(self, messages: list[TaskMessage]) -> list[UUID]:
        sent = await asyncio.gather(
            *(asyncio.wrap_future(self._publisher.publish(message)) for message in messages), return_exceptions=True
        )
        unsent = []
        for message, outcome in zip(messages, sent, strict=True):
            if isinstance(outcome, PublishUnconfirmed):
                unsent.append(message.id)
            elif outcome is not None:
                raise outcome
        return unsent

    async def _record_dead_letters(self) -> None:
        loop = asyncio.get_running_loop()

        def keep(letter: DeadLetter) -> None:
            log.error("keeper.dead_letter", reason=letter.reason, task=letter.headers.get("task"))
            record = record_dead_letter(self._database, reason=letter.reason, headers=letter.headers, body=letter.body)
            asyncio.run_coroutine_threadsafe(record, loop).result()

        try:
            await asyncio.to_thread(self._drain, keep)
            self._is_broker_away = False
        except BROKER_ERRORS as error:
            if not self._is_broker_away:
                log.warning("keeper.broker_away", cause=str(error))
            self._is_broker_away = True

    def _drain(self, keep: Callable[[DeadLetter], None]) -> None:
        connection = connect(self._broker)
        try:
            drain_dead_letters(connection, keep, limit=DEAD_LETTERS_A_ROUND)
        finally:
            connection.collect(socket_timeout=0.5)
