"""Messages of tasks that are marked as published, sent beside the rounds: a broker that hangs holds no chore up."""

import asyncio
from collections.abc import Sequence

import structlog

from shared.broker.publisher import Publisher
from shared.contracts import TaskMessage
from shared.errors import DatabaseUnavailable, Fenced, PublishUnconfirmed
from shared.ledger.rescue import put_back
from shared.ledger.terms import Units

log = structlog.get_logger()

FLUSH_S = 8.0
"""Seconds that messages under way get at the end of a term; the next one publishes again what has not arrived."""


class Outbox:
    """Sends; what the broker does not confirm goes back into the ledger's keeping."""

    def __init__(self, publisher: Publisher, units: Units) -> None:
        self._publisher = publisher
        self._units = units
        self._sending: set[asyncio.Task[None]] = set()
        self.is_broker_away = False
        """Whether the last message was not confirmed: meanwhile workers poll, and nothing more is tried than needed."""

    def send(self, messages: Sequence[TaskMessage]) -> None:
        """Publish these; returns at once."""
        if messages:
            sending = asyncio.create_task(self._send(messages))
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)

    async def flush(self) -> None:
        """Wait for what is under way, for a while."""
        if self._sending:
            await asyncio.wait(self._sending, timeout=FLUSH_S)

    async def _send(self, messages: Sequence[TaskMessage]) -> None:
        sent = await asyncio.gather(
            *(asyncio.wrap_future(self._publisher.publish(message)) for message in messages), return_exceptions=True
        )
        failures = [(message.id, error) for message, error in zip(messages, sent, strict=True) if error is not None]
        self.is_broker_away = any(isinstance(error, PublishUnconfirmed) for _, error in failures)
        if not failures:
            return
        log.warning("keeper.publish_failed", unsent=len(failures), of=len(messages), cause=str(failures[0][1]))
        try:
            await put_back(self._units, [task_id for task_id, _ in failures])
        except (DatabaseUnavailable, Fenced) as error:
            log.warning("keeper.left_to_redispatch", unsent=len(failures), cause=error.message)
