"""A tenant with 10 000 queued tasks does not delay another tenant's first task, whichever way its tasks came."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from shared.broker.knobs import BrokerKnobs
from shared.broker.publisher import Publisher
from shared.client import FleetClient
from shared.contracts import FleetHeader, TaskMessage
from tests.integration.fleets import client_of, fleet_of
from tests.integration.live import eventually
from tests.integration.load import celery_of, send_plain, started_at
from workers.ops.background import BackgroundSupervisor

CROWD = 10_000
OTHERS = 8
LIMIT_S = 2.0
IN_FLIGHT = 256
SLOTS = {"many free slots": ("200", 0.05), "few slots, all of them busy": ("20", 0.05)}


@pytest.fixture(scope="module", params=SLOTS)
def fleet(request: pytest.FixtureRequest, run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    slots, _ = SLOTS[request.param]
    more = {"FLEET_AGENTS": "tests.integration.diary_agents", "FLEET_WORKER_CONCURRENCY": slots}
    with fleet_of(2, folder=run_folder(), more={**more, "FLEET_LOG_LEVEL": "WARNING"}) as started:
        yield started


@pytest.fixture
def client(fleet: BackgroundSupervisor) -> Iterator[FleetClient]:
    client = client_of(fleet)
    yield client
    client.close()


@pytest.fixture
def diary(run_folder: Callable[[], Path]) -> str:
    folder = run_folder()
    folder.mkdir()
    folder.chmod(0o777)
    return str(folder / "diary")


def test_through_the_client(fleet: BackgroundSupervisor, client: FleetClient, diary: str) -> None:
    inputs = {"diary": diary, "number": 0, "seconds": 0.05}
    tenant = f"crowd-{time.time_ns()}"

    async def flood() -> None:
        numbers = iter(range(CROWD))

        async def submit_some() -> None:
            for _ in numbers:
                await client.asubmit("diary.start", inputs, tenant=tenant)

        await asyncio.gather(*(submit_some() for _ in range(IN_FLIGHT)))
        await client.aclose()

    asyncio.run(flood())

    def first_of(other: str) -> UUID:
        return client.submit("diary.start", {"diary": diary, "number": 1}, tenant=other).id

    tell_and_check("client", fleet, tenant, first_of)


def test_as_plain_celery_messages(fleet: BackgroundSupervisor, diary: str) -> None:
    tenant = f"crowd-{time.time_ns()}"
    inputs = {"diary": diary, "number": 0, "seconds": 0.05}
    publisher = Publisher(BrokerKnobs(url=fleet.broker_url))
    wait(
        [publisher.publish(TaskMessage("diary.start", inputs, fleet=FleetHeader(tenant=tenant))) for _ in range(CROWD)]
    )
    publisher.close()
    celery = celery_of(fleet)

    def first_of(other: str) -> UUID:
        return send_plain(celery, "diary.start", tenant=other, diary=diary, number=1)

    tell_and_check("plain Celery", fleet, tenant, first_of)
    celery.close()


def tell_and_check(way: str, fleet: BackgroundSupervisor, crowd: str, first_of: Callable[[str], UUID]) -> None:
    """Other tenants come one after another while the crowd is still there."""
    left = CROWD - ended(fleet, crowd)
    sent: dict[UUID, float] = {}
    for number in range(OTHERS):
        at = time.time()
        sent[first_of(f"other-{number}-{at}")] = at
        time.sleep(0.4)
    still = CROWD - ended(fleet, crowd)
    eventually(lambda: len(started_at(fleet, list(sent))) == OTHERS, within_s=60)
    began = started_at(fleet, list(sent))
    waits = sorted(began[task_id] - at for task_id, at in sent.items())
    took = time.monotonic()
    eventually(lambda: ended(fleet, crowd) == CROWD, within_s=120)
    rate = still / (time.monotonic() - took + 1e-9)
    print(
        f"{way}: {left} of the crowd left at first, {still} at last; first tasks of {OTHERS} others waited "
        f"{waits[0]:.2f} to {waits[-1]:.2f} s; then {rate:.0f} tasks/s"
    )
    assert left > CROWD / 4, "the crowd must still be there"
    assert waits[-1] < LIMIT_S


def ended(fleet: BackgroundSupervisor, tenant: str) -> int:
    with psycopg.connect(fleet.db_url.replace("+psycopg", "")) as connection:
        query = "SELECT count(*) FROM tasks WHERE tenant = %s AND state = 'succeeded'"
        return int(connection.execute(query, (tenant,)).fetchall()[0][0])
