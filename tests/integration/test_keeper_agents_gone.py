"""Tasks of agents that a worker lacks are left to those that have them; what nobody has is parked till it is back."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from shared.contracts import FleetHeader, TaskMessage
from shared.ledger.parking import park, wanting
from shared.ledger.poll import poll_held, poll_lost
from shared.ledger.roster import offer
from shared.ledger.shelving import shelve_for_others
from tests.integration.by_hand import ByHand
from tests.integration.fleets import STEADY, StartFleet, client_of
from tests.integration.keeping import add, add_worker, ago, ask, keeping, states, task
from tests.integration.live import Database, eventually
from tests.integration.worker_of import own_worker
from workers.ops.background import BackgroundSupervisor


def offered(database: Database, **silent_s: float) -> None:
    """Agents, and how long ago they were offered last."""
    for name, seconds in silent_s.items():
        statement = """INSERT INTO agents (name, input_schema, updated_at)
            VALUES (%s, '{}', now() - make_interval(secs => %s)) ON CONFLICT (name) DO UPDATE SET
            updated_at = excluded.updated_at"""
        ask(database, statement, name, seconds)


async def test_a_poll_takes_only_tasks_of_agents_that_the_worker_has(database: Database, worker: ByHand) -> None:
    foreign = add(database, agent="theirs", dispatch_at=ago(60))
    mine = add(database, agent="mine")
    foreign_lost = add(database, agent="theirs", published_at=ago(60))
    lost = add(database, agent="mine", published_at=ago(60))
    how: dict[str, Any] = {"worker": worker.id, "agents": ["mine", "other"], "priority": "normal", "slots": 9}
    assert [one.claim.task_id for one in await poll_held(worker.database, **how)] == [mine]
    assert [one.claim.task_id for one in await poll_lost(worker.database, **how, lost_after_s=3)] == [lost]
    assert states(database, [foreign, foreign_lost]) == ["queued", "queued"]


async def test_a_message_of_an_agent_that_others_have_is_held_for_them(database: Database, worker: ByHand) -> None:
    offered(database, theirs=1)
    new, known = TaskMessage("theirs", {"x": 1}), TaskMessage("theirs", {})
    add(database, id=known.id, agent="theirs", published_at=ago(1))
    for message in (new, known, known):
        assert await shelve_for_others(worker.database, message)
    for message in (new, known):
        row = task(database, message.id)
        assert (row["state"], row["published_at"], row["attempt"], row["epoch"]) == ("queued", None, 0, 0)


async def test_a_message_that_comes_before_its_submit_is_committed_is_held_all_the_same(
    database: Database, worker: ByHand
) -> None:
    offered(database, theirs=1)
    message = TaskMessage("theirs", {})
    insert = """INSERT INTO tasks (id, tenant, agent, input, max_attempts, deadline_at, dispatch_at, published_at)
                VALUES (%s, 'default', 'theirs', '{}', 3, now() + interval '1 h', now(), now())"""
    with psycopg.connect(database.dsn) as producer:
        producer.execute(insert, [message.id])
        shelving = asyncio.create_task(shelve_for_others(worker.database, message))
        waits = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        await asyncio.to_thread(eventually, lambda: ask(database, waits))
        producer.commit()
    assert await shelving
    assert task(database, message.id)["published_at"] is None


async def test_a_message_of_an_agent_that_nobody_ever_had_is_not(database: Database, worker: ByHand) -> None:
    assert not await shelve_for_others(worker.database, TaskMessage("thiers"))
    assert ask(database, "SELECT id FROM tasks") == []
    known = add(database, agent="new", published_at=ago(1))
    assert await shelve_for_others(worker.database, TaskMessage("new", id=known)), "the ledger has accepted it"
    assert task(database, known)["published_at"] is None


async def test_what_a_limit_has_released_stays_released(database: Database, worker: ByHand) -> None:
    offered(database, theirs=1)
    ask(database, "INSERT INTO limits (scope, name, max_running) VALUES ('agent', 'theirs', 1)")
    released = add(database, agent="theirs", published_at=ago(1))
    running = add(database, agent="theirs", state="running")
    for task_id in (released, running):
        assert await shelve_for_others(worker.database, TaskMessage("theirs", id=task_id, fleet=FleetHeader()))
    assert task(database, released)["published_at"] is not None
    assert states(database, [running]) == ["running"]


async def test_tasks_whose_agent_nobody_offers_are_parked_with_the_reason_and_go_on_when_it_is_back(
    database: Database,
) -> None:
    add_worker(database)
    offered(database, here=60, gone=181)
    ok = [add(database, agent="here"), add(database, agent="here", published_at=ago(500))]
    gone = [add(database, agent="gone", tenant="u"), add(database, agent="gone", published_at=ago(1))]
    never = add(database, agent="never")
    async with keeping(database) as keeper:
        await keeper.ledger.park()
        assert states(database, [*ok, *gone, never]) == ["queued"] * 2 + ["parked"] * 3
        error = task(database, gone[0])["error"]
        assert error["code"] == "unknown_agent"
        silent = re.match(r"no worker has offered agent 'gone' for (\d+) s: start one that has it", error["message"])
        assert silent is not None and int(silent[1]) >= 181
        assert error["context"] == {"agent": "gone"}
        await keeper.ledger.unpark()
        assert states(database, gone) == ["parked"] * 2
        await offer(keeper.door, {"gone": {}})
        await keeper.ledger.unpark()
        assert states(database, gone) == ["queued"] * 2
        await keeper.ledger.park()
        assert states(database, gone) == ["queued"] * 2


async def test_an_agent_that_is_offered_just_now_is_not_gone(database: Database) -> None:
    add_worker(database)
    offered(database, gone=181)
    task_id = add(database, agent="gone")
    async with keeping(database) as keeper:
        [found] = await wanting(keeper.door, after_s=180, limit=10)
        offered(database, gone=0)
        assert await park(keeper.term, found, reason="gone", after_s=180) == 0
    assert states(database, [task_id]) == ["queued"]


async def test_without_any_worker_tasks_wait(database: Database) -> None:
    offered(database, gone=9999)
    task_id = add(database, agent="gone")
    async with keeping(database) as keeper:
        await keeper.ledger.park()
    assert states(database, [task_id]) == ["queued"]


async def test_what_stands_in_front_of_a_line_hides_nothing_for_ever(database: Database) -> None:
    """Only the first of each line are looked at: parking them brings the next ones to the front."""
    add_worker(database)
    offered(database, gone=9999)
    ask(database, """INSERT INTO tasks (id, tenant, agent, input, dispatch_at)
        SELECT gen_random_uuid(), 't', 'gone', '{}', now() FROM generate_series(1, 250)""")  # fmt: skip
    async with keeping(database) as keeper:
        for _ in range(3):
            await keeper.ledger.park()
    assert ask(database, "SELECT count(*) AS n FROM tasks WHERE state = 'parked'") == [{"n": 250}]


def column(fleet: BackgroundSupervisor, query: str) -> list[Any]:
    with psycopg.connect(fleet.db_url.replace("+psycopg", "")) as connection:
        return [value for (value,) in connection.execute(query).fetchall()]


FAST = {**STEADY, "FLEET_LEDGER_POLL_S": "0.3"}


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    with start_fleet(0, more=FAST) as started:
        yield started


def test_workers_with_different_agents_share_queues_and_each_task_finds_its_own(
    fleet: BackgroundSupervisor,
) -> None:
    """Half of the messages come to the wrong worker."""
    with (
        own_worker(fleet, 1, FLEET_AGENTS="tests.integration.agents"),
        own_worker(fleet, 2, FLEET_AGENTS="tests.chaos.agents"),
    ):
        client = client_of(fleet)
        try:
            eventually(lambda: len(column(fleet, "SELECT id FROM workers WHERE state = 'alive'")) == 2)
            tasks = [client.submit("test.echo", {"text": str(n)}) for n in range(60)]
            results = [one.result(30)["said"] for one in tasks]
            views = [one.status() for one in tasks]
        finally:
            client.close()
    assert results == [[str(n)] for n in range(60)]
    assert {(view.attempt, view.state) for view in views} == {(1, "succeeded")}
    assert column(fleet, "SELECT reason FROM dead_letters") == []
