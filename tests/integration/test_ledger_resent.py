"""A batch whose answer was lost is sent again, and changes nothing that it had changed already."""

from typing import Any
from uuid import UUID

import pytest

from shared.client import FleetClient
from shared.errors import Fenced
from shared.ledger.suspension import Suspension
from tests.integration.by_hand import ByHand


def lose_answers(worker: ByHand, monkeypatch: pytest.MonkeyPatch, *kinds: str) -> list[str]:
    """Let the connection break after the next commit of each of these kinds; returns those that are still to come."""
    left, answer = list(kinds), worker.commit._answer

    def lost(batch: Any, rows: Any) -> None:
        for write in batch:
            if write.kind in left:
                left.remove(write.kind)
                raise OSError("the answer was lost")
        answer(batch, rows)

    monkeypatch.setattr(worker.commit, "_answer", lost)
    return left


async def taken(producer: FleetClient) -> UUID:
    return (await producer.asubmit("a", {"x": 1})).id


async def test_an_intent_that_is_sent_again_counts_one_execution(
    producer: FleetClient, worker: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = await taken(producer)
    claim = await worker.claim(task_id)
    left = lose_answers(worker, monkeypatch, "intent", "result")
    assert await worker.steps(claim, "one") == ["one"]
    [row] = await worker.all("SELECT executions, in_doubt, repeats, state FROM steps WHERE task_id = :id", id=task_id)
    assert (row.executions, row.in_doubt, row.repeats, row.state) == (1, 0, 0, "done")
    assert left == []


async def test_a_wait_that_is_sent_again_is_no_longer_for_that(producer: FleetClient, worker: ByHand) -> None:
    task_id = await taken(producer)
    claim = await worker.claim(task_id)
    row = {
        "task_id": str(task_id), "name": "sleep", "ordinal": 0, "epoch": claim.epoch, "kind": "sleep",
        "fingerprint": "f", "waits": True, "wait_s": 60.0,
    }  # fmt: skip
    seen = set()
    for _ in range(2):
        assert await worker.commit.write("intent", ("intent", task_id, "sleep", 0), row)
        [step] = await worker.all("SELECT until, started_at, executions FROM steps WHERE task_id = :id", id=task_id)
        seen.add(tuple(step))
    assert len(seen) == 1


@pytest.mark.parametrize("state", ["waiting", "queued", "parked"])
async def test_a_run_that_is_put_down_again_reads_as_put_down(
    producer: FleetClient, worker: ByHand, monkeypatch: pytest.MonkeyPatch, state: Any
) -> None:
    task_id = await taken(producer)
    claim = await worker.claim(task_id)
    lose_answers(worker, monkeypatch, "suspend")
    error = {"code": "c", "message": "m"} if state == "parked" else None
    assert await worker.runs.suspend(claim, Suspension(state=state, error=error)) == state
    [row] = await worker.all("SELECT state, epoch, attempt FROM tasks WHERE id = :id", id=task_id)
    assert tuple(row) == (state, claim.epoch + 1, 0)
    with pytest.raises(Fenced):  # not sent again, but stale
        await worker.runs.suspend(claim, Suspension(state=state, error=error))


async def test_a_run_that_was_put_down_and_has_gone_on_elsewhere_meanwhile_reads_as_queued(
    producer: FleetClient, worker: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = await taken(producer)
    claim = await worker.claim(task_id)
    lose_answers(worker, monkeypatch, "suspend")
    disconnect = worker.commit._disconnect

    async def meanwhile() -> None:
        await worker.do("UPDATE tasks SET state = 'succeeded', epoch = epoch + 1 WHERE id = :id", id=task_id)
        await disconnect()

    monkeypatch.setattr(worker.commit, "_disconnect", meanwhile)
    assert await worker.runs.suspend(claim, Suspension(state="queued")) == "queued"


async def test_a_run_whose_deadline_ended_it_while_the_database_was_away_is_fenced(
    producer: FleetClient, worker: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = await taken(producer)
    claim = await worker.claim(task_id)
    commit = worker.commit._commit

    async def refused(batch: Any, *, again: bool) -> None:
        monkeypatch.setattr(worker.commit, "_commit", commit)
        await worker.do("UPDATE tasks SET state = 'failed', epoch = epoch + 1 WHERE id = :id", id=task_id)
        raise OSError("the server is away")

    monkeypatch.setattr(worker.commit, "_commit", refused)
    with pytest.raises(Fenced):
        await worker.runs.suspend(claim, Suspension(kind="sleep", wait_s=60))


async def test_a_run_that_was_overtaken_and_whose_answer_is_lost_reads_as_queued_and_changes_nothing(
    producer: FleetClient, worker: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be told from one that was put down and has gone on: it ends here either way."""
    task_id = await taken(producer)
    stale = await worker.claim(task_id)
    await worker.do("UPDATE tasks SET epoch = epoch + 2 WHERE id = :id", id=task_id)
    before = await worker.all("SELECT * FROM tasks WHERE id = :id", id=task_id)
    left = lose_answers(worker, monkeypatch, "suspend")
    assert await worker.runs.suspend(stale, Suspension(kind="sleep", wait_s=60)) == "queued"
    assert not left
    assert await worker.all("SELECT * FROM tasks WHERE id = :id", id=task_id) == before
    with pytest.raises(Fenced):  # the answer came
        await worker.runs.suspend(stale, Suspension(kind="sleep", wait_s=60))
