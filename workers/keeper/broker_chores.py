"""The chores that talk to the broker: messages that got lost, held tasks that nobody polls, letters nobody can read."""

import asyncio
from collections.abc import Callable

import structlog

from shared.broker.connection import connect
from shared.broker.dead_letters import DeadLetter, drain_dead_letters
from shared.broker.depth import messages_ready
from shared.broker.knobs import BrokerKnobs
from shared.broker.publisher import BROKER_ERRORS
from shared.broker.topology import mismatch
from shared.ledger import dispatch as ledger
from shared.ledger.rescue import record_dead_letter
from shared.ledger.terms import Term
from shared.telemetry.keeper_metrics import DECISIONS, TASKS
from workers.keeper.decisions import dispatch, relieve
from workers.keeper.knobs import KeeperKnobs
from workers.keeper.outbox import Outbox
from workers.keeper.rounds import Chore

log = structlog.get_logger()

DEAD_LETTERS_A_ROUND = 100


class BrokerChores:
    """What a leading keeper does with the broker in its term."""

    def __init__(self, term: Term, outbox: Outbox, *, broker: BrokerKnobs, knobs: KeeperKnobs) -> None:
        self._term = term
        self._outbox = outbox
        self._broker = broker
        self._knobs = knobs
        self._is_away = False

    def chores(self) -> dict[str, Chore]:
        """All of them, by name."""
        round_s = self._knobs.round_s
        all_of_them = (
            Chore("lost", self.lost, round_s),
            Chore("held", self.held, round_s),
            Chore("dead_letters", self.dead_letters, round_s),
        )
        return {chore.name: chore for chore in all_of_them}

    async def lost(self) -> None:
        """Publish tasks again whose message is missing."""
        published, overdue = await ledger.backlog(self._term.database)
        if overdue == 0:
            return
        ready = await self._ready()  # where the broker does not answer, the publish will find out, and put them back
        decision = dispatch(due=overdue, queued=published, ready=ready or 0, batch=self._knobs.publish_batch)
        if decision.limit == 0:
            return
        again_after_s = self._knobs.again_after_s
        messages = await ledger.lost(self._term, limit=decision.limit, again_after_s=again_after_s)
        self._outbox.send(messages)
        DECISIONS.labels("redispatch").inc()
        TASKS.labels("redispatched").inc(len(messages))
        log.info("keeper.republished", tasks=len(messages), reason=decision.reason)

    async def held(self) -> None:
        """Publish held tasks that nobody polls."""
        batch = self._knobs.publish_batch
        overdue = await ledger.overdue_held(self._term.database, held_after_s=self._knobs.held_after_s, limit=batch)
        if not overdue:
            return
        slots = await ledger.slots_now(self._term.database)
        decision = relieve(held=len(overdue), slots=slots, ready=await self._ready(), batch=batch)
        if decision.limit == 0:
            return
        async with self._term.unit() as unit:
            chosen = overdue[: decision.limit]
            messages = await ledger.take_off_hold(unit, chosen, again_after_s=self._knobs.again_after_s)
        self._outbox.send(messages)
        DECISIONS.labels("relieve").inc()
        TASKS.labels("relieved").inc(len(messages))
        log.info("keeper.held_published", tasks=len(messages), reason=decision.reason)

    async def dead_letters(self) -> None:
        """Record messages that no worker could read."""
        loop = asyncio.get_running_loop()

        def keep(letter: DeadLetter) -> None:
            log.error("keeper.dead_letter", reason=letter.reason, task=letter.headers.get("task"))
            record = record_dead_letter(self._term, reason=letter.reason, headers=letter.headers, body=letter.body)
            asyncio.run_coroutine_threadsafe(record, loop).result()
            TASKS.labels("dead_lettered").inc()

        try:
            await asyncio.to_thread(self._drain, keep)
        except BROKER_ERRORS as error:
            self._heard(error)
        else:
            self._heard(None)

    def _drain(self, keep: Callable[[DeadLetter], None]) -> None:
        connection = connect(self._broker)
        try:
            drain_dead_letters(connection, keep, limit=DEAD_LETTERS_A_ROUND)
        finally:
            connection.collect(socket_timeout=0.5)

    async def _ready(self) -> int | None:
        """Messages in the broker's queues; None where it does not answer."""
        try:
            ready = await asyncio.to_thread(messages_ready, self._broker)
        except BROKER_ERRORS as error:
            self._heard(error)
            return None
        self._heard(None)
        return ready

    def _heard(self, error: BaseException | None) -> None:
        if error is not None and not self._is_away:
            log.warning("keeper.broker_away", cause=mismatch(error) or str(error) or type(error).__name__)
        self._is_away = error is not None
        self._outbox.is_broker_away = self._is_away
