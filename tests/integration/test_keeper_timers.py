"""Waits that are over, deadlines that are spent, families and parked tasks, in a real ledger."""

from collections import Counter
from typing import Any

from shared.ledger.knobs import LedgerKnobs
from shared.ledger.parking import unpark
from shared.ledger.roster import offer
from tests.integration.keeping import Sql, add, add_many, add_worker, ago, ask, keeping, states, task
from tests.integration.live import Database


async def test_a_wait_that_is_over_goes_on_and_its_message_is_published(database: Database) -> None:
    over = add(database, state="waiting", wake_at=ago(1), waiting_for={"kind": "sleep"})
    later = add(database, state="waiting", wake_at=ago(-60), waiting_for={"kind": "sleep"})
    signal = add(database, state="waiting", waiting_for={"kind": "signal", "signals": ["go"]})
    async with keeping(database) as keeper:
        await keeper.ledger.timers()
        assert await keeper.sent() == [over]
    woken = task(database, over)
    assert (woken["state"], woken["wake_at"], woken["waiting_for"]) == ("queued", None, None)
    assert woken["published_at"] is not None
    assert states(database, [later, signal]) == ["waiting", "waiting"]


async def test_more_than_a_tenants_share_of_the_queue_stays_in_the_ledger_for_fair_turns(database: Database) -> None:
    add_many(database, 30, tenant="crowd", state="waiting", wake_at=ago(2))
    add(database, tenant="single", state="waiting", wake_at=ago(1))
    async with keeping(database, ledger=LedgerKnobs(fair_window=10)) as keeper:
        await keeper.ledger.timers()
        assert len(await keeper.sent()) == 11
    held = ask(database, "SELECT tenant FROM tasks WHERE state = 'queued' AND published_at IS NULL")
    assert Counter(row["tenant"] for row in held) == {"crowd": 20}


async def test_a_full_batch_is_followed_by_the_next_one_at_once(database: Database) -> None:
    add_many(database, 5, state="waiting", wake_at=ago(1))
    async with keeping(database, batch=3) as keeper:
        assert [await keeper.ledger.timers() for _ in range(3)] == [0.0, None, None]
        assert len(await keeper.sent()) == 5


async def test_what_the_broker_does_not_confirm_is_held_for_workers_to_poll(database: Database) -> None:
    over = add(database, state="waiting", wake_at=ago(1))
    async with keeping(database) as keeper:
        keeper.break_broker()
        await keeper.ledger.timers()
        await keeper.sent()
        assert task(database, over)["published_at"] is None
        next_one = add(database, state="waiting", wake_at=ago(1))
        keeper.break_broker(False)
        await keeper.ledger.timers()
        assert await keeper.sent() == [], "nothing is tried while the broker is known to be away"
    assert (task(database, next_one)["state"], task(database, next_one)["published_at"]) == ("queued", None)


async def test_a_task_whose_deadline_passed_ends_at_once_wherever_it_stands(database: Database) -> None:
    spent: dict[str, Any] = {"deadline_at": ago(1)}
    queued = add(database, **spent)
    waiting = add(database, state="waiting", wake_at=ago(-60), **spent)
    parked = add(database, state="parked", error={"code": "step_changed", "message": ""}, **spent)
    running = add(database, state="running", epoch=3, worker_id=add_worker(database), **spent)
    async with keeping(database, deadline_grace_s=10) as keeper:
        await keeper.ledger.deadlines()
    assert states(database, [queued, waiting, parked, running]) == ["failed", "failed", "failed", "running"]
    ended = task(database, parked)
    assert ended["error"] == {
        "code": "deadline_spent",
        "message": "the deadline passed while the task was parked",
        "context": {"state": "parked"},
    }
    assert ended["finished_at"] is not None
    assert (ended["epoch"], ended["wake_at"], ended["dispatch_at"]) == (1, None, None)


async def test_a_running_task_is_ended_after_a_grace_and_its_worker_can_write_no_more(database: Database) -> None:
    worker = add_worker(database)
    late = add(database, state="running", epoch=3, worker_id=worker, deadline_at=ago(11))
    cancelled = add(
        database, state="running", worker_id=worker, deadline_at=ago(11), cancel_requested_at=ago(30)
    )  # fmt: skip
    async with keeping(database, deadline_grace_s=10) as keeper:
        await keeper.ledger.deadlines()
    assert states(database, [late, cancelled]) == ["failed", "cancelled"]
    assert (task(database, late)["epoch"], task(database, late)["worker_id"]) == (4, None)
    assert task(database, cancelled)["error"]["code"] == "task_cancelled"


async def test_a_parent_goes_on_when_the_deadline_ended_its_last_child(database: Database) -> None:
    parent = add(database, state="waiting")
    child = add(database, parent_id=parent, deadline_at=ago(1))
    ask(
        database,
        "UPDATE tasks SET waiting_for = json_build_object('kind', 'children', 'ids', json_build_array(%s::text))"
        " WHERE id = %s",
        str(child),
        parent,
    )
    async with keeping(database) as keeper:
        await keeper.ledger.deadlines()
    assert states(database, [parent, child]) == ["queued", "failed"]
    assert task(database, parent)["wakes"] == 1


async def test_a_parent_whom_nobody_told_of_its_childrens_end_goes_on(database: Database) -> None:
    parents = add_many(database, 2, state="waiting")
    ended = add(database, state="succeeded", parent_id=parents[0], finished_at=ago(1))
    active = add(database, state="running", parent_id=parents[1], worker_id=add_worker(database))
    for parent, child in zip(parents, (ended, active), strict=True):
        waits = "UPDATE tasks SET waiting_for = json_build_object('ids', json_build_array(%s::text)) WHERE id = %s"
        ask(database, waits, str(child), parent)
    async with keeping(database) as keeper:
        await keeper.ledger.children()
        assert await keeper.sent() == [parents[0]]
    assert states(database, parents) == ["queued", "waiting"]


async def test_children_spawned_while_their_parent_was_cancelled_follow_it(database: Database) -> None:
    parent = add(database, state="cancelled", finished_at=ago(1), error={"code": "task_cancelled", "message": ""})
    queued, waiting, parked = (
        add(database, state=state, parent_id=parent, error={"code": "x", "message": ""} if state == "parked" else None)
        for state in ("queued", "waiting", "parked")
    )
    running = add(database, state="running", parent_id=parent, worker_id=add_worker(database))
    grandchild = add(database, parent_id=queued)
    healthy = add(database, parent_id=add(database, state="succeeded", finished_at=ago(1)))
    async with keeping(database) as keeper:
        await keeper.ledger.orphans()
        assert states(database, [queued, waiting, parked, running]) == ["cancelled"] * 3 + ["running"]
        assert task(database, running)["cancel_requested_at"] is not None
        assert task(database, queued)["error"] == {"code": "task_cancelled", "message": "cancelled with its parent"}
        await keeper.ledger.orphans()
    assert states(database, [grandchild, healthy]) == ["cancelled", "queued"]


async def test_children_of_a_failed_parent_follow_it_unless_they_are_replayed_on_their_own(database: Database) -> None:
    gone = add_worker(database, beat_ago_s=60)
    parent = add(database, state="running", worker_id=gone, attempt=3, max_attempts=3)
    queued = add(database, parent_id=parent)
    waiting = add(database, state="waiting", parent_id=parent, started_at=ago(5), epoch=1)
    running = add(database, state="running", parent_id=parent, worker_id=add_worker(database), started_at=ago(5))
    async with keeping(database) as keeper:
        await keeper.ledger.bury()
        assert states(database, [parent, queued, waiting, running]) == ["failed", "cancelled", "cancelled", "running"]
        assert task(database, running)["cancel_requested_at"] is not None
        replayed = add(database, parent_id=parent, epoch=4)
        again = add(database, state="waiting", parent_id=parent, epoch=5, attempt=1, started_at=Sql("now()"))
        await keeper.ledger.orphans()
    assert states(database, [replayed, again]) == ["queued", "waiting"]


async def test_tasks_parked_for_want_of_their_agent_go_on_when_it_is_offered_again(database: Database) -> None:
    gone = {"code": "unknown_agent", "message": "no worker knows it"}
    mine = add(database, agent="test.back", state="parked", error=gone, dispatch_at=ago(5))
    other = add(database, agent="test.gone", state="parked", error=gone, dispatch_at=ago(5))
    changed = add(database, agent="test.back", state="parked", error={"code": "step_changed", "message": ""})
    async with keeping(database) as keeper:
        await keeper.ledger.unpark()
        assert states(database, [mine, other, changed]) == ["parked"] * 3
        await offer(keeper.door, {"test.back": {}})
        await keeper.ledger.unpark()
        assert states(database, [mine, other, changed]) == ["queued", "parked", "parked"]
        assert task(database, mine)["error"] is None
        await offer(keeper.door, {"test.gone": {}})
        assert await unpark(keeper.door, ["test.gone"]) == [other]
        assert states(database, [other]) == ["queued"]
