"""Publishing to a real RabbitMQ: what has no queue is told, what is not confirmed ends in time, what died returns."""

from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest
from kombu import Connection

from shared.broker.knobs import BrokerKnobs
from shared.broker.publisher import Publisher
from shared.broker.topology import task_queue
from shared.contracts import DEAD_QUEUE, QUEUE, QUEUES, TaskMessage
from shared.errors import PublishUnconfirmed
from tests.integration.fleets import StartFleet
from tests.integration.live import eventually
from workers.ops.background import BackgroundSupervisor

DELIVERIES = 2
PATIENT_S = 20
"""What a broker that answers is given to do so, on a busy machine too."""
SOON_S = 90
"""Far above the sum of the limits above: it only ends a broken test."""


def drop_queues(servers: BackgroundSupervisor) -> None:
    with Connection(servers.broker_url) as broker:
        for queue in (*QUEUES.values(), DEAD_QUEUE):
            broker.default_channel.queue_delete(queue)


@pytest.fixture
def knobs(servers: BackgroundSupervisor) -> Iterator[BrokerKnobs]:
    drop_queues(servers)
    yield BrokerKnobs(
        url=servers.broker_url,
        confirm_timeout_s=PATIENT_S, connect_timeout_s=PATIENT_S, socket_timeout_s=PATIENT_S, retry_after_s=0.01,
    )  # fmt: skip
    drop_queues(servers)


@pytest.fixture
def publisher(knobs: BrokerKnobs) -> Iterator[Publisher]:
    publisher = Publisher(knobs)
    yield publisher
    publisher.close()


@pytest.fixture
def hasty(knobs: BrokerKnobs) -> Iterator[Publisher]:
    """One with short limits, over an open connection."""
    publisher = Publisher(hurried(knobs))
    eventually(lambda: publisher.publish(TaskMessage("a")).exception(SOON_S) is None)
    yield publisher
    publisher.close()


def hurried(knobs: BrokerKnobs) -> BrokerKnobs:
    """With limits for a broker that hangs."""
    return replace(knobs, confirm_timeout_s=1, connect_timeout_s=1, socket_timeout_s=2)


def ready(knobs: BrokerKnobs) -> int:
    with Connection(knobs.url) as broker:
        return int(task_queue(knobs).bind(broker.default_channel).queue_declare(passive=True).message_count)


def take_and_die(knobs: BrokerKnobs) -> None:
    """What a worker does to a message that kills it."""
    with Connection(knobs.url) as broker:
        eventually(lambda: broker.default_channel.basic_get(QUEUE))


def test_a_message_without_a_queue_is_told_and_its_neighbours_arrive(publisher: Publisher, knobs: BrokerKnobs) -> None:
    sent = [publisher.send({}, b"{}", task_id=str(n), routing_key="no.such" if n % 2 else QUEUE) for n in range(6)]
    for number, one in enumerate(sent):
        error = one.exception(SOON_S)
        if number % 2:
            assert isinstance(error, PublishUnconfirmed)
            assert "no queue 'no.such' exists on the broker" in str(error)
        else:
            assert error is None
    assert eventually(lambda: ready(knobs) == 3)


def test_a_broker_that_hangs_fails_a_publish_in_time_over_an_old_connection_and_a_new_one(
    servers: BackgroundSupervisor, hasty: Publisher, knobs: BrokerKnobs
) -> None:
    servers.freeze("rabbitmq")
    try:
        for one in (hasty, Publisher(hurried(knobs))):
            error = one.publish(TaskMessage("a")).exception(SOON_S)
            assert isinstance(error, PublishUnconfirmed), error
    finally:
        servers.thaw("rabbitmq")
    eventually(lambda: hasty.publish(TaskMessage("a")).exception(SOON_S) is None)


def test_a_message_that_is_given_out_too_often_without_a_claim_is_recorded_as_a_dead_letter(
    start_fleet: StartFleet, knobs: BrokerKnobs
) -> None:
    with start_fleet(0, more={"FLEET_BROKER_DELIVERY_LIMIT": str(DELIVERIES)}) as keeper_only:
        limited = replace(knobs, delivery_limit=DELIVERIES)
        publisher = Publisher(limited)
        message = TaskMessage("a")
        publisher.publish(message).result(SOON_S)
        publisher.close()
        for _ in range(DELIVERIES + 1):
            take_and_die(knobs)

        def letters() -> list[tuple[str, str]]:
            with psycopg.connect(keeper_only.db_url.replace("+psycopg", "")) as connection:
                query = "SELECT reason, headers ->> 'id' FROM dead_letters"
                return [(reason, task_id) for reason, task_id in connection.execute(query)]

        eventually(letters)
        assert letters() == [("delivered too often without a claim", str(message.id))]
