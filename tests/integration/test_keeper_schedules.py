"""Cron schedules: one task a tick however many keepers run, one for all missed ones, a clear no to nonsense."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.contracts import bucket_in, bucket_of, tick_task_id
from shared.errors import BadInput, UnknownAgent
from shared.ledger import schedules
from shared.ledger.roster import offer
from shared.ledger.schedules import (
    create_schedule,
    delete_schedule,
    list_schedules,
    pause_schedule,
    resume_schedule,
)
from tests.integration.keeping import Keeping, ago, ask, keeping, task
from tests.integration.live import Database

RARELY = "0 3 29 2 *"
"""A moment that does not come while a test runs, whatever the hour."""


async def make(keeper: Keeping, **changes: Any) -> schedules.Schedule:
    wanted: dict[str, Any] = {"name": "nightly", "agent": "test.echo", "cron": RARELY, **changes}
    return await create_schedule(keeper.door, **wanted)


def due_since(database: Database, seconds: float, name: str = "nightly") -> datetime:
    """Let the schedule be due since then; returns its tick."""
    rows = ask(database, f"UPDATE schedules SET next_at = {ago(seconds)} WHERE name = %s RETURNING next_at", name)
    return rows[0]["next_at"]  # type: ignore[no-any-return]


async def test_a_tick_makes_one_task_with_the_schedules_settings(database: Database) -> None:
    async with keeping(database) as keeper:
        made = await make(
            keeper, input={"text": "hi"}, tenant="acme", session="s1", priority="batch", max_attempts=5, deadline_s=60
        )
        assert made.next_at is not None
        assert made.next_at > datetime.now(UTC)
        tick = due_since(database, 0.5)
        await keeper.ledger.schedules()
        task_id = tick_task_id("nightly", tick, tenant="acme", session="s1")
        assert bucket_in(task_id) == bucket_of("acme", "s1")
        assert await keeper.sent() == [task_id]
        (after,) = await list_schedules(keeper.door)
        assert (after.last_at, after.last_task_id, after.next_at) == (tick, task_id, made.next_at)
        row = task(database, task_id)
    shown = {name: row[name] for name in ("tenant", "agent", "session_id", "priority", "max_attempts", "input")}
    assert shown == {
        "tenant": "acme", "agent": "test.echo", "session_id": "s1", "priority": "batch", "max_attempts": 5,
        "input": {"args": [], "kwargs": {"text": "hi"}},
    }  # fmt: skip
    assert abs(row["deadline_at"] - row["created_at"] - timedelta(seconds=60)) < timedelta(seconds=1)


async def test_after_an_outage_all_missed_ticks_are_one_task(database: Database) -> None:
    async with keeping(database) as keeper:
        hour = datetime.now(UTC).hour
        await make(keeper, cron=f"* {(hour - 2) % 24},{(hour - 1) % 24} * * *")
        due_since(database, 3 * 3600)
        for _ in range(3):
            await keeper.ledger.schedules()
        assert len(await keeper.sent()) == 1
        (after,) = await list_schedules(keeper.door)
        assert after.next_at is not None
        assert after.next_at > datetime.now(UTC)


async def test_keepers_that_tick_at_once_make_one_task(database: Database) -> None:
    async with keeping(database) as keeper:
        await make(keeper)
        due_since(database, 1)
        async with keeper.door.unit() as unit:
            now, (stale,) = await schedules.due_schedules(unit, limit=9)
        for _ in range(3):
            await asyncio.gather(*(keeper.ledger.schedules() for _ in range(4)))
        async with keeper.door.unit() as unit:
            header = schedules.header_of(stale, now=now)
            assert await schedules.tick(unit, stale, header, next_at=now) is None, "its tick was made already"
        assert len(await keeper.sent()) == 1
    assert ask(database, "SELECT count(*) AS n FROM tasks")[0]["n"] == 1


async def test_a_paused_schedule_does_not_tick_and_what_it_missed_stays_undone(database: Database) -> None:
    async with keeping(database) as keeper:
        await make(keeper)
        due_since(database, 600)
        assert (await pause_schedule(keeper.door, "nightly")).is_paused
        await keeper.ledger.schedules()
        resumed = await resume_schedule(keeper.door, "nightly")
        assert not resumed.is_paused
        assert resumed.next_at is not None
        assert resumed.next_at > datetime.now(UTC)
        await keeper.ledger.schedules()
        assert await keeper.sent() == []
        await delete_schedule(keeper.door, "nightly")
        assert await list_schedules(keeper.door) == []


async def test_a_schedule_written_past_the_door_that_cannot_tick_is_paused_and_the_others_tick(
    database: Database,
) -> None:
    async with keeping(database) as keeper:
        await make(keeper, name="good")
        await make(keeper, name="bad")
        due_since(database, 1, "good")
        due_since(database, 2, "bad")
        ask(database, "UPDATE schedules SET cron = 'nonsense' WHERE name = 'bad'")
        await keeper.ledger.schedules()
        assert len(await keeper.sent()) == 1
        assert {one.name: one.is_paused for one in await list_schedules(keeper.door)} == {"bad": True, "good": False}


NONSENSE: list[tuple[dict[str, Any], str]] = [
    ({"cron": "every day"}, "cron 'every day' is not a cron expression"),
    ({"cron": "0 0 31 2 *"}, "cron '0 0 31 2 *' is not a cron expression: bad day-of-month"),
    ({"cron": ""}, "cron '' is not a cron expression"),
    ({"timezone": "Europe/Berln"}, "timezone 'Europe/Berln' is not known; did you mean Europe/Berlin?"),
    ({"timezone": "../../etc/passwd"}, "timezone '../../etc/passwd' is not known"),
    ({"name": ""}, "name must be text of 1 to 200 characters"),
    ({"name": "a\x00"}, "name must be text"),
    ({"agent": "No Agent"}, "agent name 'No Agent' must start"),
    ({"tenant": ""}, "tenant:"),
    ({"priority": "asap"}, "priority:"),
    ({"max_attempts": 0}, "max_attempts:"),
    ({"deadline_s": -1}, "deadline_s must be above 0"),
    ({"input": {"x": "\x00"}}, "the input holds the character U+0000"),
    ({"input": {"x": object()}}, "the input cannot be stored"),
]


async def test_nonsense_is_refused_with_the_fields_name_and_nothing_is_stored(database: Database) -> None:
    async with keeping(database) as keeper:
        for changes, said in NONSENSE:
            with pytest.raises(BadInput) as refused:
                await make(keeper, **changes)
            assert refused.value.message.startswith(said)
        assert await list_schedules(keeper.door) == []


async def test_a_name_that_is_taken_or_unknown_is_said(database: Database) -> None:
    async with keeping(database) as keeper:
        await make(keeper)
        with pytest.raises(BadInput, match="there is a schedule 'nightly' already"):
            await make(keeper)
        for change in (pause_schedule, resume_schedule, delete_schedule):
            with pytest.raises(BadInput, match="there is no schedule 'daily'"):
                await change(keeper.door, "daily")


async def test_an_agent_or_input_that_no_worker_takes_is_refused(database: Database) -> None:
    async with keeping(database) as keeper:
        await offer(keeper.door, {"test.echo": {"type": "object", "required": ["text"]}})
        with pytest.raises(UnknownAgent, match=r"test\.other"):
            await make(keeper, agent="test.other")
        with pytest.raises(BadInput, match="'text' is a required property"):
            await make(keeper)
