"""What exists on the broker: a quorum queue of tasks for each priority, and one quorum dead-letter queue for all.

The default exchange routes by queue name, so producers in any language need no declaration, and a publish with
`mandatory` fails when the queue is missing. Limits are stated, since RabbitMQ's own defaults differ by version.
"""

import re
from typing import Any

from kombu import Connection, Exchange, Queue

from shared.broker.knobs import BrokerKnobs
from shared.contracts import DEAD_QUEUE, QUEUES, Priority

DEFAULT_EXCHANGE = Exchange("")


def task_queue(knobs: BrokerKnobs, priority: Priority = "normal") -> Queue:
    """The queue that workers of this priority consume; all of them are alike but for the name."""
    name = QUEUES[priority]
    arguments: dict[str, Any] = {
        "x-queue-type": "quorum",
        "x-delivery-limit": knobs.delivery_limit,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": DEAD_QUEUE,
        "x-dead-letter-strategy": "at-least-once",  # needs reject-publish: a full queue refuses instead of dropping
        "x-overflow": "reject-publish",
    }
    return Queue(name, exchange=DEFAULT_EXCHANGE, routing_key=name, queue_arguments=arguments)


def task_queues(knobs: BrokerKnobs) -> tuple[Queue, ...]:
    """The queues of all priorities, the most urgent first."""
    return tuple(task_queue(knobs, priority) for priority in QUEUES)


def dead_queue() -> Queue:
    """The queue that holds what no worker could read, until the keeper has recorded it."""
    return Queue(
        DEAD_QUEUE, exchange=DEFAULT_EXCHANGE, routing_key=DEAD_QUEUE, queue_arguments={"x-queue-type": "quorum"}
    )


def declare(connection: Connection, knobs: BrokerKnobs) -> None:
    """Create the queues where they are missing.

    Raises: amqp.PreconditionFailed when a queue of that name exists with other arguments.
    """
    with connection.channel() as channel:
        dead_queue().bind(channel).declare()
        for queue in task_queues(knobs):
            queue.bind(channel).declare()


_MISMATCH = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for queue '(?P<queue>[^']+)'.*?: (?P<how>.*)", re.DOTALL
)


def mismatch(error: BaseException) -> str | None:
    """What to do about a queue that exists with other arguments than ours; None for any other error."""
    found = _MISMATCH.search(str(error))
    if found is None:
        return None
    queue, argument, how = found["queue"], found["argument"], " ".join(found["how"].split())
    return (
        f"queue {queue!r} exists on the broker with another {argument} ({how}): delete it once nothing is in it "
        f"(rabbitmqctl delete_queue {queue}), or set FLEET_BROKER_DELIVERY_LIMIT to what it was declared with"
    )
