"""A tenant with thousands of queued tasks does not delay another tenant's first task, whichever way its tasks came."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from shared.broker.knobs import BrokerKnobs
from shared.broker.publisher import Publisher
from shared.client import FleetClient
from shared.contracts import FleetHeader, TaskMessage
from tests.integration.fleets import StartFleet
from tests.integration.live import eventually
from tests.integration.load import celery_of, send_plain, started_at
from workers.ops.background import BackgroundSupervisor

CROWD = {"many free slots": 10_000, "few slots, all of them busy": 5_000}
AHEAD = {"many free slots": 1 / 5, "few slots, all of them busy": 1 / 3}
"""Share of the crowd that may begin before another tenant's first task: whoever stands in line waits for all of it."""
AHEAD_PLAIN = 2 / 3
"""Plain messages are told apart only once they are off the queue."""
OTHERS = 6
EVERY_S = 0.25
WORKERS = ("worker-1", "worker-2")
IN_FLIGHT = 256
SLOTS = {"many free slots": ("200", 0.05), "few slots, all of them busy": ("20", 0.05)}


@pytest.fixture(scope="module", params=SLOTS)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def fleet(case: str, start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    slots, _ = SLOTS[case]
    more = {"FLEET_AGENTS": "tests.integration.diary_agents", "FLEET_WORKER_CONCURRENCY": slots}
    with start_fleet(2, more={**more, "FLEET_LOG_LEVEL": "WARNING"}) as started:
        yield started


@contextmanager
def workers_away(fleet: BackgroundSupervisor) -> Iterator[None]:
    """A crowd gathers faster than it is served, however fast this machine makes either."""
    for name in WORKERS:
        fleet.stop(name)
    yield
    with ThreadPoolExecutor() as both:
        list(both.map(fleet.start, WORKERS))


def test_through_the_client(case: str, fleet: BackgroundSupervisor, client: FleetClient, diary: Path) -> None:
    inputs = {"diary": str(diary), "number": 0, "seconds": 0.05}
    tenant, crowd = f"crowd-{time.time_ns()}", CROWD[case]

    async def flood() -> None:
        numbers = iter(range(crowd))

        async def submit_some() -> None:
            for _ in numbers:
                await client.asubmit("diary.start", inputs, tenant=tenant)

        await asyncio.gather(*(submit_some() for _ in range(IN_FLIGHT)))
        await client.aclose()

    with workers_away(fleet):
        asyncio.run(flood())

    def first_of(other: str) -> UUID:
        return client.submit("diary.start", {"diary": str(diary), "number": 1}, tenant=other).id

    tell_ledger_waits(fleet, tell_and_check("client", fleet, tenant, crowd, first_of, share=AHEAD[case]))


def test_as_plain_celery_messages(fleet: BackgroundSupervisor, diary: Path) -> None:
    tenant, crowd = f"crowd-{time.time_ns()}", min(CROWD.values())
    inputs = {"diary": str(diary), "number": 0, "seconds": 0.05}
    publisher = Publisher(BrokerKnobs(url=fleet.broker_url))
    with workers_away(fleet):
        wait(
            publisher.publish(TaskMessage("diary.start", inputs, fleet=FleetHeader(tenant=tenant)))
            for _ in range(crowd)
        )
        publisher.close()
    celery = celery_of(fleet)

    def first_of(other: str) -> UUID:
        return send_plain(celery, "diary.start", tenant=other, diary=str(diary), number=1)

    tell_and_check("plain Celery", fleet, tenant, crowd, first_of, share=AHEAD_PLAIN)
    celery.close()


def tell_and_check(
    way: str, fleet: BackgroundSupervisor, crowd: str, size: int, first_of: Callable[[str], UUID], *, share: float
) -> list[UUID]:
    """Other tenants come one after another while the crowd is still there. Returns: their first tasks."""
    left = size - ended(fleet, crowd)
    sent: dict[UUID, float] = {}
    for number in range(OTHERS):
        first = first_of(f"other-{number}-{time.time_ns()}")
        sent[first] = time.time()
        time.sleep(EVERY_S)
    eventually(lambda: len(started_at(fleet, list(sent))) == OTHERS, within_s=60)
    eventually(lambda: ended(fleet, crowd) == size, within_s=600)
    began = started_at(fleet, list(sent))
    waits = sorted(began[task_id] - at for task_id, at in sent.items())
    ahead = sorted(begun(fleet, crowd, after=at, before=began[task_id]) for task_id, at in sent.items())
    print(
        f"{way}: {left} of the crowd left at first; first tasks of {OTHERS} others waited {waits[0]:.2f} to "
        f"{waits[-1]:.2f} s, while {ahead[0]} to {ahead[-1]} of the crowd began"
    )
    assert left > size / 4, "the crowd must still be there"
    assert ahead[-1] < left * share
    return list(sent)


def tell_ledger_waits(fleet: BackgroundSupervisor, ids: list[UUID]) -> None:
    """Seconds from the acceptance of these tasks to their start, by PostgreSQL's clock alone."""
    query = "SELECT extract(epoch FROM started_at - created_at)::float8 FROM tasks WHERE id = ANY(%s) ORDER BY 1"
    with psycopg.connect(fleet.db_url.replace("+psycopg", "")) as connection:
        waits_s = [float(wait_s) for (wait_s,) in connection.execute(query, (ids,)).fetchall()]
    print(f"from acceptance to start, by the ledger: {waits_s[0]:.3f} to {waits_s[-1]:.3f} s")


def begun(fleet: BackgroundSupervisor, tenant: str, *, after: float, before: float) -> int:
    with psycopg.connect(fleet.db_url.replace("+psycopg", "")) as connection:
        query = """SELECT count(*) FROM tasks WHERE tenant = %s
                   AND started_at BETWEEN to_timestamp(%s) AND to_timestamp(%s)"""
        return int(connection.execute(query, (tenant, after, before)).fetchall()[0][0])


def ended(fleet: BackgroundSupervisor, tenant: str) -> int:
    with psycopg.connect(fleet.db_url.replace("+psycopg", "")) as connection:
        query = "SELECT count(*) FROM tasks WHERE tenant = %s AND state = 'succeeded'"
        return int(connection.execute(query, (tenant,)).fetchall()[0][0])
