"""How many messages wait in the task queues: asked of the queues themselves, exact at once."""

import threading
from dataclasses import replace
from types import TracebackType
from typing import Self

from kombu import Connection

from shared.broker.connection import connect
from shared.broker.knobs import BrokerKnobs
from shared.broker.publisher import BROKER_ERRORS
from shared.broker.topology import task_queue
from shared.contracts import QUEUES, Priority

ANSWER_S = 2.0
"""Seconds that one question may take: a figure that comes late is worth nothing."""


class DepthGauge:
    """Asks over one connection that it keeps between questions; safe to call from any thread. `close()` ends it."""

    def __init__(self, knobs: BrokerKnobs) -> None:
        self._knobs = replace(knobs, socket_timeout_s=min(ANSWER_S, knobs.socket_timeout_s))
        self._connection: Connection | None = None
        self._lock = threading.Lock()

    def ready(self, priority: Priority) -> int:
        """Messages of this priority that no worker has been given yet. Blocks for a round trip.

        Raises: what a failed connection raises (`publisher.BROKER_ERRORS`), such as NotFound for a missing queue.
        """
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = connect(self._knobs)
                with self._connection.channel() as channel:
                    queue = task_queue(self._knobs, priority).bind(channel)
                    passive = self._knobs.is_amqp  # to Valkey a queue without messages is none
                    return int(queue.queue_declare(passive=passive).message_count)
            except BROKER_ERRORS:
                self._drop()
                raise

    def close(self) -> None:
        """Close the connection, if there is one."""
        with self._lock:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.collect(socket_timeout=0.5)


def messages_ready(knobs: BrokerKnobs) -> int:
    """Messages of all priorities that no worker has been given yet. Blocks for a few round trips.

    Raises: what a failed connection raises (`publisher.BROKER_ERRORS`).
    """
    with DepthGauge(knobs) as gauge:
        return sum(gauge.ready(priority) for priority in QUEUES)
