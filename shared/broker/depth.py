"""How many messages wait in the task queue: asked of the queue itself, exact at once."""

from shared.broker.connection import connect
from shared.broker.knobs import BrokerKnobs
from shared.broker.topology import task_queue


def messages_ready(knobs: BrokerKnobs) -> int:
    """Messages that no worker has been given yet. Blocks for a round trip.

    Raises: what a failed connection raises (`publisher.BROKER_ERRORS`).
    """
    connection = connect(knobs)
    try:
        with connection.channel() as channel:
            return int(task_queue(knobs).bind(channel).queue_declare(passive=True).message_count)
    finally:
        connection.collect(socket_timeout=0.5)
