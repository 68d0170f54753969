"""Where a submitted task stands: later, in another queue, held for a fair turn; or too large to stand anywhere."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from shared.client import FleetClient
from shared.errors import ResultPending, TooLarge
from shared.ledger import intake
from shared.ledger.knobs import LedgerKnobs
from tests.integration.by_hand import ByHand
from tests.integration.fleets import client_of
from tests.integration.live import Database
from workers.ops.background import BackgroundSupervisor


@pytest.fixture
def ledger_knobs() -> LedgerKnobs:
    return LedgerKnobs(fair_window=5, input_max_bytes=1000)


@pytest.fixture(autouse=True)
def a_crowd_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is crowded stays so while the test lasts."""
    monkeypatch.setattr(intake, "CROWDED_FOR_S", 3600.0)


async def submitted(producer: FleetClient, **how: Any) -> UUID:
    return (await producer.asubmit("a", {"x": 1}, **how)).id


async def test_a_task_can_start_later_and_in_another_queue(producer: FleetClient, worker: ByHand) -> None:
    later = await submitted(producer, delay_s=3600, priority="batch")
    view = await producer.astatus(later)
    assert (view.state, view.priority, view.condition) == ("waiting", "batch", "waiting for its start")
    assert view.wake_at is not None
    assert timedelta(minutes=59) < view.wake_at - datetime.now(UTC) <= timedelta(hours=1)
    assert await worker.try_claim(later) is None
    at_once = await submitted(producer, delay_s=0)
    assert (await producer.astatus(at_once)).state == "queued"
    with pytest.raises(ResultPending, match="is waiting for its start after 0 s"):
        await producer.aresult(later, 0)


async def test_an_input_over_the_limit_is_refused_with_the_remedy(producer: FleetClient, worker: ByHand) -> None:
    with pytest.raises(TooLarge, match=r"is 1\d{3} bytes long as JSON, and the limit is 1000 .*pass a reference"):
        await producer.asubmit("a", {"text": "x" * 1000})
    task = await submitted(producer)
    with pytest.raises(TooLarge, match="the payload of signal 'go' is"):
        await producer.asignal(task, "go", "x" * 1000)
    assert [row.wakes for row in await worker.all("SELECT wakes FROM tasks")] == [0]


async def test_a_crowded_tenants_tasks_are_held_in_the_ledger_and_others_are_not(
    producer: FleetClient, worker: ByHand
) -> None:
    for _ in range(8):
        await submitted(producer, tenant="crowd")
    await submitted(producer, tenant="alone")
    held = await worker.all("SELECT tenant, count(*) AS n FROM tasks WHERE published_at IS NULL GROUP BY tenant")
    assert [(row.tenant, row.n) for row in held] == [("crowd", 2)]


async def test_many_submits_at_once_are_held_beyond_the_window_too(producer: FleetClient, worker: ByHand) -> None:
    await asyncio.gather(*(submitted(producer, tenant="crowd") for _ in range(50)))
    published = await worker.all("SELECT count(*) AS n FROM tasks WHERE published_at IS NOT NULL")
    assert published[0].n <= 10


async def test_a_crowded_tenants_tasks_in_a_producers_transaction_are_held_too(
    producer: FleetClient, worker: ByHand, database: Database
) -> None:
    engine = create_async_engine(database.url)
    for _ in range(5):
        await submitted(producer, tenant="crowd")
    async with engine.begin() as connection:
        held = await producer.asubmit("a", {}, tenant="crowd", tx=connection)
        alone = await producer.asubmit("a", {}, tenant="alone", tx=connection)
        later = await producer.asubmit("a", {}, tenant="alone", delay_s=60, tx=connection)
    await engine.dispose()
    assert (await worker.row(held.id)).published_at is None
    assert (await worker.row(alone.id)).published_at is not None
    assert (await producer.astatus(later.id)).condition == "waiting for its start"


async def test_a_task_whose_publish_failed_is_held_in_the_ledger(
    servers: BackgroundSupervisor, worker: ByHand, database: Database
) -> None:
    client = client_of(servers, db_url=database.url, broker_url="amqp://guest@127.0.0.1:1//")
    task = await client.asubmit("a", {})
    assert task.accepted_by == "ledger"
    async with asyncio.timeout(30):
        while (await worker.row(task.id)).published_at is not None:
            await asyncio.sleep(0.02)
    await client.aclose()
    await asyncio.to_thread(client.close)
