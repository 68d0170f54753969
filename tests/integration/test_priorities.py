"""Each priority has a queue of its own: served by workers of its own, or by one worker in shares of its weights."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from shared.broker.depth import DepthGauge
from shared.broker.knobs import BrokerKnobs
from shared.client import FleetClient
from shared.contracts import QUEUES, Priority
from tests.integration.fleets import STEADY, StartFleet
from tests.integration.live import eventually
from tests.integration.load import celery_of, send_plain, started_at
from workers.ops.background import BackgroundSupervisor
from workers.ops.recipes import processes

EACH = 60
SLOTS = 4


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    agents = "tests.integration.agents,tests.integration.diary_agents"
    more = {**STEADY, "FLEET_AGENTS": agents, "FLEET_WORKER_CONCURRENCY": str(SLOTS)}
    with start_fleet(0, more=more) as started:
        yield started


@pytest.fixture
def worker(fleet: BackgroundSupervisor) -> Iterator[Callable[..., str]]:
    """Start a worker with options and settings of its own; stopped after the test."""
    names: list[str] = []

    def start(*options: str, **env: str) -> str:
        number = len(names) + 1
        needs = fleet.topology.needs_of_processes()
        spec = processes.worker(fleet.around, number, env={**fleet.env, **env}, needs=needs)
        fleet.add(replace(spec, argv=(*spec.argv, *options)))
        names.append(spec.name)
        return spec.name

    yield start
    for name in names:
        fleet.remove(name)


def submit_each(client: FleetClient, diary: Path, count: int, *, seconds: float = 0.0) -> dict[Priority, list[UUID]]:
    return {
        priority: [
            client.submit("diary.start", {"diary": str(diary), "number": n, "seconds": seconds}, priority=priority).id
            for n in range(count)
        ]
        for priority in QUEUES
    }


def hold(fleet: BackgroundSupervisor) -> None:
    """Take every message's task back into the ledger, as a crowd's are."""
    with psycopg.connect(fleet.db_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("UPDATE tasks SET published_at = NULL, dispatch_at = now() WHERE state = 'queued'")


def has_some_of_each(fleet: BackgroundSupervisor) -> bool:
    """Whether the worker has got messages of every queue, and all of those that the broker has given out."""
    with DepthGauge(BrokerKnobs(url=fleet.broker_url)) as gauge:
        given = [EACH - gauge.ready(priority) for priority in QUEUES]
    celery = celery_of(fleet)
    told = celery.control.inspect(timeout=10, limit=1).stats() or {}
    celery.close()
    return all(given) and [one["pool"]["reserved"] for one in told.values()] == [sum(given)]


def test_a_worker_serves_the_queues_that_it_was_given_and_no_other(
    fleet: BackgroundSupervisor, client: FleetClient, diary: Path, worker: Callable[..., str]
) -> None:
    worker("-Q", "agent.tasks.batch")
    tasks = submit_each(client, diary, 3)
    eventually(lambda: len(started_at(fleet, tasks["batch"])) == 3)
    hold(fleet)
    time.sleep(2.5)
    assert started_at(fleet, tasks["interactive"] + tasks["normal"]) == {}
    worker(FLEET_WORKER_QUEUES="interactive,normal")
    eventually(lambda: len(started_at(fleet, tasks["interactive"] + tasks["normal"])) == 6)


def test_a_plain_celery_message_has_the_priority_of_its_queue(
    fleet: BackgroundSupervisor, client: FleetClient, diary: Path, worker: Callable[..., str]
) -> None:
    worker()
    celery = celery_of(fleet)
    sent = {
        priority: send_plain(celery, "diary.start", priority=priority, diary=str(diary), number=1)
        for priority in QUEUES
    }
    celery.close()
    eventually(lambda: len(started_at(fleet, list(sent.values()))) == 3)
    assert {priority: client.status(task_id).priority for priority, task_id in sent.items()} == {p: p for p in QUEUES}


@pytest.mark.parametrize("way", ["messages", "held"])
def test_one_worker_shares_its_slots_by_weight_and_starves_nobody(
    way: str, fleet: BackgroundSupervisor, client: FleetClient, diary: Path, worker: Callable[..., str]
) -> None:
    worker()
    gate = diary.with_name("gate")
    closed = [client.submit("test.until", {"file": str(gate)}).id for _ in range(SLOTS)]
    eventually(lambda: len(started_at(fleet, closed)) == SLOTS)
    tasks = submit_each(client, diary, EACH, seconds=0.1)
    if way == "held":
        hold(fleet)
    eventually(lambda: has_some_of_each(fleet), within_s=60)  # else those that come first take what all shall share
    gate.touch()
    every = [task_id for ids in tasks.values() for task_id in ids]
    eventually(lambda: len(started_at(fleet, every)) == len(every), within_s=60)
    began = started_at(fleet, every)
    priority_of = {task_id: priority for priority, ids in tasks.items() for task_id in ids}
    order = [priority_of[task_id] for task_id in sorted(every, key=began.__getitem__)]
    first = Counter(order[: 5 * 13])
    print(way, first)
    assert first["interactive"] > first["normal"] > first["batch"] > 0
    assert 30 <= first["interactive"] <= 50, "8 of 13"
    assert 12 <= first["normal"] <= 28, "4 of 13"
