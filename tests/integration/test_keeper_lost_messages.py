"""Dead workers, lost messages and held tasks that nobody polls, over a real ledger and a real RabbitMQ."""

from collections.abc import Iterator
from uuid import UUID

import pytest
from kombu import Connection

from shared.broker.connection import connect
from shared.broker.knobs import BrokerKnobs
from shared.broker.topology import dead_queue, declare
from shared.contracts import DEAD_QUEUE, QUEUES
from tests.integration.keeping import NOBODY, add, add_many, add_worker, ago, ask, keeping, states, task
from tests.integration.live import Database
from workers.ops.background import BackgroundSupervisor


@pytest.fixture
def broker(servers: BackgroundSupervisor) -> Iterator[str]:
    """The address of a RabbitMQ whose queues are there, and empty before and after the test."""
    knobs = BrokerKnobs(url=servers.broker_url)
    with connect(knobs) as connection:
        declare(connection, knobs)
        _purge(connection)
        yield knobs.url
        _purge(connection)


def _purge(connection: Connection) -> None:
    with connection.channel() as channel:
        for name in (*QUEUES.values(), DEAD_QUEUE):
            channel.queue_purge(name)


def messages(broker: str) -> list[tuple[str, UUID]]:
    """Take every message off the queues: (queue, task id)."""
    found = []
    with connect(BrokerKnobs(url=broker)) as connection, connection.channel() as channel:
        for name in QUEUES.values():
            while (message := channel.basic_get(name, no_ack=True)) is not None:
                found.append((name, UUID(message.headers["id"])))
    return found


async def test_tasks_whose_message_was_lost_are_published_again_each_to_its_queue(
    database: Database, broker: str
) -> None:
    lost = {
        (queue, add(database, priority=name, published_at=ago(60), dispatch_at=ago(1)))
        for name, queue in QUEUES.items()
    }
    young = add(database, published_at=ago(1), dispatch_at=ago(-29))
    held = add(database, dispatch_at=ago(1))
    async with keeping(database, broker_url=broker) as keeper:
        await keeper.broker.lost()
        await keeper.broker.lost()
        await keeper.outbox.flush()
    assert set(messages(broker)) == lost
    assert states(database, [young, held]) == ["queued", "queued"]


async def test_a_long_queue_is_no_reason_to_publish_its_tasks_again(database: Database, broker: str) -> None:
    ids = add_many(database, 20, published_at=ago(60), dispatch_at=ago(1))
    async with keeping(database, broker_url=broker) as keeper:
        await keeper.broker.lost()
        await keeper.outbox.flush()
        for _ in range(3):
            ask(database, f"UPDATE tasks SET dispatch_at = {ago(1)}")
            await keeper.broker.lost()
            await keeper.outbox.flush()
    assert sorted(task_id for _, task_id in messages(broker)) == sorted(ids)


async def test_without_a_broker_the_lost_are_held_for_workers_to_poll(database: Database) -> None:
    lost = add(database, published_at=ago(60), dispatch_at=ago(1))
    async with keeping(database, broker_url=NOBODY) as keeper:
        await keeper.broker.lost()
        await keeper.outbox.flush()
    row = task(database, lost)
    assert (row["state"], row["published_at"]) == ("queued", None)


async def test_held_tasks_are_published_only_when_nobody_polls_them_though_some_have_room(
    database: Database, broker: str
) -> None:
    overdue = add(database, dispatch_at=ago(301))
    fresh = add(database, dispatch_at=ago(2))
    async with keeping(database, broker_url=broker, held_after_s=300.0) as keeper:
        worker = add_worker(database, slots=1)
        run = add(database, state="running", worker_id=worker)
        await keeper.broker.held()
        await keeper.outbox.flush()
        assert messages(broker) == [], "its only slot is taken"
        ask(database, "DELETE FROM tasks WHERE id = %s", run)
        await keeper.broker.held()
        await keeper.outbox.flush()
        assert messages(broker) == [("agent.tasks", overdue)]
    assert task(database, fresh)["published_at"] is None


async def test_a_limit_is_not_evaded_by_waiting(database: Database, broker: str) -> None:
    ask(database, "INSERT INTO limits VALUES ('tenant', 'small', 1), ('agent', 'test.few', 1)")
    add_worker(database)
    add(database, tenant="small", dispatch_at=ago(60))
    add(database, agent="test.few", dispatch_at=ago(60))
    add(database, root_agent="test.few", dispatch_at=ago(60))
    async with keeping(database, broker_url=broker) as keeper:
        await keeper.broker.held()
        await keeper.outbox.flush()
    assert messages(broker) == []


async def test_runs_of_dead_workers_go_on_or_end_with_the_reason(database: Database) -> None:
    dead, alive = add_worker(database, beat_ago_s=16), add_worker(database, beat_ago_s=1)
    other = add_worker(database, beat_ago_s=60)
    parent = add(database, state="waiting")
    again = add(database, state="running", worker_id=dead, attempt=2, epoch=5, published_at=ago(9))
    spent = add(database, state="running", worker_id=other, attempt=3, epoch=5, parent_id=parent)
    cancelled = add(database, state="running", worker_id=dead, attempt=1, cancel_requested_at=ago(1))
    mine = add(database, state="running", worker_id=alive)
    waits = "UPDATE tasks SET waiting_for = json_build_object('ids', json_build_array(%s::text)) WHERE id = %s"
    ask(database, waits, str(spent), parent)
    async with keeping(database) as keeper:
        await keeper.ledger.bury()
        assert await keeper.sent() == [again]
    assert states(database, [again, spent, cancelled, mine, parent]) == [
        "queued", "failed", "cancelled", "running", "queued",
    ]  # fmt: skip
    assert task(database, spent)["error"] == {
        "code": "attempts_exhausted",
        "message": "the worker died in attempt 3 of 3",
    }
    row = task(database, again)
    assert (row["epoch"], row["attempt"], row["worker_id"]) == (6, 2, None)
    assert {row["id"]: row["state"] for row in ask(database, "SELECT * FROM workers")} == {
        dead: "dead", other: "dead", alive: "alive",
    }  # fmt: skip


async def test_a_thousand_runs_of_a_dead_worker_are_taken_in_one_go(database: Database) -> None:
    worker = add_worker(database, beat_ago_s=60)
    add_many(database, 1000, state="running", worker_id=worker, attempt=1, epoch=1)
    async with keeping(database) as keeper:
        await keeper.ledger.bury()
        assert len(await keeper.sent()) == 256, "the tenant's share of the queue; workers poll the rest"
    assert ask(database, "SELECT state, count(*) AS n FROM tasks GROUP BY state") == [{"state": "queued", "n": 1000}]


async def test_messages_that_no_worker_could_read_are_recorded(database: Database, broker: str) -> None:
    with connect(BrokerKnobs(url=broker)) as connection, connection.channel() as channel:
        dead_queue().bind(channel).declare()
        with connection.Producer() as producer:
            producer.publish(
                b"\xff?", routing_key=DEAD_QUEUE, headers={"x-fleet-reason": "no"}, content_type="application/x",
                content_encoding="binary",
            )  # fmt: skip
    async with keeping(database, broker_url=broker) as keeper:
        await keeper.broker.dead_letters()
        await keeper.broker.dead_letters()
    (letter,) = ask(database, "SELECT reason, body FROM dead_letters")
    assert letter == {"reason": "no", "body": "/z8="}


async def test_a_row_that_cannot_be_a_message_does_not_stand_in_the_way_of_others(database: Database) -> None:
    add(database, tenant="x" * 300, state="waiting", wake_at=ago(1))
    good = add(database, state="waiting", wake_at=ago(1))
    async with keeping(database) as keeper:
        await keeper.ledger.timers()
        assert await keeper.sent() == [good]
