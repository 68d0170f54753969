"""What exists on the broker: one quorum queue of tasks and its quorum dead-letter queue, on the default exchange.

The default exchange routes by queue name, so producers in any language need no declaration, and a publish with
`mandatory` fails when the queue is missing. Limits are stated, since RabbitMQ's own defaults differ by version.
"""

from typing import Any

from kombu import Connection, Exchange, Queue

from shared.broker.knobs import BrokerKnobs
from shared.contracts import DEAD_QUEUE, QUEUE

DEFAULT_EXCHANGE = Exchange("")


def task_queue(knobs: BrokerKnobs) -> Queue:
    """The queue that workers consume."""
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": knobs.delivery_limit,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": DEAD_QUEUE,
        "x-dead-letter-strategy": "at-least-once",  # needs reject-publish: a full queue refuses instead of dropping
        "x-overflow": "reject-publish",
    }
    return Queue(QUEUE, exchange=DEFAULT_EXCHANGE, routing_key=QUEUE, queue_arguments=arguments)


def dead_queue() -> Queue:
    """The queue that holds what no worker could read, until the keeper has recorded it."""
    return Queue(
        DEAD_QUEUE, exchange=DEFAULT_EXCHANGE, routing_key=DEAD_QUEUE, queue_arguments={"x-queue-type": "quorum"}
    )


def declare(connection: Connection, knobs: BrokerKnobs) -> None:
    """Create both queues where they are missing.

    Raises: amqp.PreconditionFailed when a queue of that name exists with other arguments.
    """
    with connection.channel() as channel:
        dead_queue().bind(channel).declare()
        task_queue(knobs).bind(channel).declare()
