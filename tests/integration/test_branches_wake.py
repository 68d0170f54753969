"""A run whose branches gather children of their own goes on as soon as one branch's children have ended."""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from shared.client import FleetClient
from shared.errors import TaskCancelled
from shared.ledger.families import TELL, WAKE, wake_bereft, wake_parents
from shared.ledger.steering import wake
from shared.ledger.suspension import Suspension, merged
from tests.integration.by_hand import ByHand
from tests.integration.keeping import add_many, ago
from tests.integration.live import Database

Waker = Callable[[ByHand, UUID], Awaitable[object]]


async def by_the_worker(worker: ByHand, parent: UUID) -> None:
    await worker.runs.wake(parent)


async def by_the_client(worker: ByHand, parent: UUID) -> None:
    await wake(worker.database, [parent], redispatch_s=30)


async def by_the_keeper(worker: ByHand, parent: UUID) -> None:
    await wake_parents(worker.database, [parent])


async def by_the_keepers_look(worker: ByHand, parent: UUID) -> None:
    async with worker.database.unit() as unit:
        await wake_bereft(unit, limit=10)


@pytest.mark.parametrize("tell", [by_the_worker, by_the_client, by_the_keeper, by_the_keepers_look])
async def test_the_end_of_one_branchs_children_wakes_the_run(
    producer: FleetClient, worker: ByHand, tell: Waker
) -> None:
    parent = (await producer.asubmit("a", {"x": 1})).id
    claim = await worker.claim(parent)
    one, two, three = [await worker.spawn(parent) for _ in range(3)]
    waits = [Suspension(kind="children", children=(tuple(map(str, ids)),)) for ids in ((one, two), (three,))]
    state = await worker.runs.suspend(claim, merged(*waits))
    assert state == "waiting"
    assert (await producer.astatus(parent)).condition == "waiting for 3 children"

    async def ends(child: UUID) -> str:
        await worker.runs.cancel(await worker.claim(child), TaskCancelled("enough"), {})
        await tell(worker, parent)
        return (await producer.astatus(parent)).state

    assert await ends(one) == "waiting", "each branch has one left"
    assert await ends(two) == "queued", "the first branch has what it waits for"


async def test_the_children_of_a_parent_are_looked_up_by_their_keys_however_many_tasks_there_are(
    worker: ByHand, database: Database
) -> None:
    """As a join with the tasks, each wake would read all of them."""
    add_many(database, 20_000, state="succeeded", finished_at=ago(60))
    await worker.do("ANALYZE tasks")
    for statement in (TELL, WAKE):
        query = f"EXPLAIN {statement.text}"
        values: dict[str, Any] = {name: value for name, value in (("ids", []), ("limit", 500)) if f":{name}" in query}
        plan = "\n".join(row[0] for row in await worker.all(query, **values))
        assert "tasks_pkey on tasks c" in plan
        assert "Seq Scan on tasks c" not in plan
    assert (await worker.all("SHOW jit"))[0][0] == "off", "such plans look expensive, and are compiled for longer"
