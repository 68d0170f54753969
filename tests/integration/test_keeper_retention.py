"""What finished long ago is deleted with all that belongs to it; what still goes on is not touched."""

import time
from uuid import UUID

from shared.db.database import Database as Door
from shared.db.knobs import DbKnobs
from shared.ledger.retention import sweep
from tests.integration.keeping import add, add_many, add_worker, ago, ask, keeping
from tests.integration.live import Database

DAY_S = 86_400.0
OLD = {"created_at": ago(40 * DAY_S), "finished_at": ago(35 * DAY_S)}


def ids(database: Database) -> set[UUID]:
    return {row["id"] for row in ask(database, "SELECT id FROM tasks")}


def with_belongings(database: Database) -> None:
    """Give every task two steps, a large result and a signal."""
    for number in (0, 1):
        ask(
            database,
            "INSERT INTO steps (task_id, name, ordinal, kind, fingerprint, epoch)"
            f" SELECT id, 's', {number}, 'step', 'f', 1 FROM tasks",
        )
    ask(database, "INSERT INTO blobs SELECT id, 's', 0, '{}' FROM tasks")
    ask(database, "INSERT INTO signals (task_id, name, payload) SELECT id, 'go', '{}' FROM tasks")


async def test_tasks_that_finished_long_ago_go_with_all_that_belongs_to_them(database: Database) -> None:
    add_many(database, 2, state="succeeded", **OLD)
    add(database, state="failed", **OLD)
    add(database, state="cancelled", **OLD)
    young = add(database, state="succeeded", created_at=ago(40 * DAY_S), finished_at=ago(29 * DAY_S))
    waiting = add(database, state="waiting", created_at=ago(90 * DAY_S), waiting_for={"signals": ["go"]})
    with_belongings(database)
    async with keeping(database) as keeper:
        assert await keeper.ledger.retention() is None
    assert ids(database) == {young, waiting}
    for table in ("steps", "blobs", "signals"):
        left = ask(database, f"SELECT DISTINCT task_id FROM {table}")
        assert {row["task_id"] for row in left} == {young, waiting}, table


async def test_a_childs_end_is_kept_for_a_parent_that_may_still_ask_for_it(database: Database) -> None:
    parent = add(database, state="waiting", created_at=ago(50 * DAY_S), waiting_for={"signals": ["go"]})
    child = add(database, state="succeeded", parent_id=parent, **OLD)
    add(database, state="succeeded", parent_id=add(database, state="succeeded", **OLD), **OLD)
    async with keeping(database) as keeper:
        await keeper.ledger.retention()
    assert ids(database) == {parent, child}


async def test_zero_keeps_for_ever(database: Database) -> None:
    kept = add(database, state="succeeded", **OLD)
    async with keeping(database, retention_s=0) as keeper:
        assert await keeper.ledger.retention() is None
    assert ids(database) == {kept}


async def test_batches_follow_one_another_and_pass_over_old_tasks_that_still_wait(database: Database) -> None:
    waiting = add_many(database, 5, state="waiting", created_at=ago(90 * DAY_S), wake_at=ago(-9))
    add_many(database, 10, state="succeeded", **OLD)
    async with keeping(database, retention_batch=4, retention_pause_s=0.1) as keeper:
        assert [await keeper.ledger.retention() for _ in range(3)] == [0.1, 0.1, None]
    assert ids(database) == set(waiting)


async def test_rows_of_workers_that_left_long_ago_go_too(database: Database) -> None:
    alive = add_worker(database, beat_ago_s=40 * DAY_S)
    recent = add_worker(database, state="stopped", beat_ago_s=DAY_S)
    for state in ("stopped", "dead"):
        add_worker(database, state=state, beat_ago_s=40 * DAY_S)
    async with keeping(database) as keeper:
        await keeper.ledger.retention()
    assert {row["id"] for row in ask(database, "SELECT id FROM workers")} == {alive, recent}


async def test_ten_thousand_old_tasks_go_in_ten_batches_with_all_that_belongs_to_them(database: Database) -> None:
    add_many(database, 10_000, state="succeeded", **OLD)
    add_many(database, 2_000, state="succeeded", created_at=ago(DAY_S), finished_at=ago(DAY_S))
    with_belongings(database)
    door = Door(DbKnobs(url=database.url))
    began, deleted, batches, since = time.perf_counter(), 0, 0, None
    while True:
        swept = await sweep(door, keep_s=30 * DAY_S, since=since, limit=1000)
        deleted, batches, since = deleted + swept.tasks, batches + 1, swept.next_since
        if since is None:
            break
    took_s = time.perf_counter() - began
    await door.close()
    print(f"\nretention: {deleted} tasks with 4 rows each in {took_s:.2f} s: {deleted / took_s:.0f} tasks/s")
    assert deleted == 10_000
    assert batches <= 11
