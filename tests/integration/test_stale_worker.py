"""A worker that others took over from writes nothing more: no step, no end, no child."""

import pytest

from shared.client import FleetClient
from shared.errors import Fenced
from shared.ledger.rescue import bury
from tests.integration.by_hand import ByHand, by_hand
from tests.integration.live import Database


async def test_a_buried_worker_gives_its_run_no_child(
    producer: FleetClient, worker: ByHand, database: Database
) -> None:
    """Nothing tells it before its spawn comes back: the keeper would have the child run all the same."""
    parent = (await producer.asubmit("a", {})).id
    claim = await worker.claim(parent)
    await worker.spawn(parent)
    await worker.do("UPDATE workers SET heartbeat_at = now() - interval '1 h'")
    assert [one.state for one in await bury(worker.database, [worker.id], dead_after_s=15)] == ["queued"]
    with pytest.raises(Fenced):
        await worker.spawn(parent, epoch=claim.epoch)
    assert len(await worker.all("SELECT FROM tasks WHERE parent_id = :id", id=parent)) == 1
    async with by_hand(database.url) as other:
        again = await other.claim(parent)
        assert again.epoch > claim.epoch
        with pytest.raises(Fenced):
            await worker.spawn(parent, epoch=again.epoch)
        await other.spawn(parent)


async def test_a_living_worker_gives_a_run_that_it_lost_no_child(producer: FleetClient, worker: ByHand) -> None:
    """Such as one whose deadline the keeper has spent: the worker itself is not fenced."""
    parent = (await producer.asubmit("a", {})).id
    claim = await worker.claim(parent)
    await worker.do("UPDATE tasks SET epoch = epoch + 1, state = 'queued', worker_id = NULL WHERE id = :id", id=parent)
    for epoch in (claim.epoch, claim.epoch + 1):
        with pytest.raises(Fenced, match="no longer at epoch"):
            await worker.spawn(parent, epoch=epoch)
    assert await worker.all("SELECT FROM tasks WHERE parent_id = :id", id=parent) == []
