"""A deep queue taken off the broker as fast as it comes, so that nobody waits behind somebody else's ten thousand."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from kombu import Consumer

from shared.broker.connection import connect
from shared.broker.knobs import BrokerKnobs
from shared.broker.topology import task_queue
from shared.contracts import Priority

BATCH = 500
"""Messages that are kept together; as many more may be on their way meanwhile."""
PAUSE_S = 0.05
"""Seconds without a message after which the queue counts as empty."""

Read = Callable[[Any], Any | None]


def take_off(
    knobs: BrokerKnobs, priority: Priority, *, read: Read, keep: Callable[[Sequence[Any]], None], limit_s: float
) -> int:
    """Consume a queue until it is empty or the time is over. Blocks; for a thread of its own.

    Args:
        read: What a message brings; None for one that stays on the queue, or that it has settled itself.
        keep: Stores what was read. Only then are the messages acknowledged.

    Returns: How many were kept.
    Raises: what a failed connection raises (`publisher.BROKER_ERRORS`), and what `keep` raises: nothing is lost then,
        because the broker gives out again whatever was not acknowledged.
    """
    connection = connect(knobs)
    try:
        with connection.channel() as channel:
            return _Sorting(connection, channel, read=read, keep=keep).run(
                task_queue(knobs, priority), until=time.monotonic() + limit_s
            )
    finally:
        connection.collect(socket_timeout=0.5)


class _Sorting:
    """One consumer's messages, from the broker to `keep`."""

    def __init__(self, connection: Any, channel: Any, *, read: Read, keep: Callable[[Sequence[Any]], None]) -> None:
        self._connection = connection
        self._channel = channel
        self._read = read
        self._keep = keep
        self._open: list[tuple[Any, Any]] = []
        self._left: list[Any] = []

    def run(self, queue: Any, *, until: float) -> int:
        """Take, keep, acknowledge."""
        consumer = Consumer(self._channel, [queue], on_message=self._on_message, auto_declare=False, accept=["json"])
        consumer.qos(prefetch_count=2 * BATCH)
        consumer.consume()
        kept = 0
        while taken := self._next_batch():
            kept += taken
            if time.monotonic() >= until:
                break
        consumer.cancel()  # what was on its way has arrived by then
        kept += self._store()
        for message in self._left:
            message.requeue()
        return kept

    def _next_batch(self) -> int:
        """Keep what comes until a batch is full or nothing comes any more.

        Returns: How many were kept; 0 when the queue is empty.
        """
        while len(self._open) < BATCH:
            try:
                self._connection.drain_events(timeout=PAUSE_S)
            except TimeoutError:
                break
        return self._store()

    def _on_message(self, message: Any) -> None:
        one = self._read(message)
        if message.acknowledged:
            return
        if one is None:
            self._left.append(message)
        else:
            self._open.append((message, one))

    def _store(self) -> int:
        batch, self._open = self._open, []
        if batch:
            self._keep([one for _, one in batch])
        for message, _ in batch:
            message.ack()
        return len(batch)
