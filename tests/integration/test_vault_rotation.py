"""A master key is replaced while tasks are stored and changed: every value opens under the new key, nothing is lost."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
import pytest_asyncio
from sqlalchemy import func, insert, select, update

from shared.contracts import TaskMessage, tick_task_id
from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.db.tables import blobs, signals, steps, tasks
from shared.errors import Misconfigured, SealKeyUnknown
from shared.ledger.rotation import Bookmark, Progress, rotate
from shared.ledger.rows import accept_statement
from shared.ledger.schedules import create_schedule, list_schedules
from shared.ledger.sealed_input import open_input, seal_message, tick_input
from shared.ledger.vault import OUTPUT, SEALED, Vault, blob_role, is_sealed, signal_role, step_role
from shared.ledger.vault_knobs import MasterKey
from tests.integration.live import Database as Place

FIRST, SECOND, THIRD = (MasterKey(name, os.urandom(32)) for name in ("first", "second", "third"))
BEFORE, DURING, AFTER = Vault([FIRST]), Vault([SECOND, FIRST]), Vault([SECOND])
NAMES = ("fetch", "with: colon", "ünïcode \" '")


@pytest_asyncio.fixture
async def ledger(database: Place) -> AsyncIterator[Database]:
    opened = Database(DbKnobs(url=database.url))
    yield opened
    await opened.close()


async def fill(ledger: Database, vault: Vault, *, count: int) -> list[UUID]:
    """Finished tasks with an input, an output, three steps and a blob each."""
    found = []
    async with ledger.unit() as unit:
        for number in range(count):
            message = TaskMessage("chat", {"text": f"question {number}"}, (number,))
            found.append(message.id)
            await unit.execute(accept_statement(seal_message(vault, message), dispatch_after_s=60))
            output = vault.seal([f"answer {number}"], task_id=message.id, role=OUTPUT)
            await unit.execute(update(tasks).where(tasks.c.id == message.id).values(output=output, state="succeeded"))
            for ordinal, name in enumerate(NAMES):
                key = {"task_id": message.id, "name": name, "ordinal": ordinal}
                result = vault.seal({"step": number}, task_id=message.id, role=step_role(name, ordinal))
                row = {**key, "kind": "tool", "fingerprint": "f", "epoch": 1, "state": "done", "result": result}
                await unit.execute(insert(steps).values(row))
            data = vault.seal({"large": number}, task_id=message.id, role=blob_role("fetch", 0))
            await unit.execute(insert(blobs).values(task_id=message.id, name="fetch", ordinal=0, data=data))
    return found


async def everything(ledger: Database, vault: Vault, task_id: UUID) -> list[Any]:
    """All that is stored of a task, opened."""
    async with ledger.unit(mode="ro") as unit:
        task = (await unit.execute(select(tasks.c.input, tasks.c.output).where(tasks.c.id == task_id))).one()
        done = (await unit.execute(select(steps).where(steps.c.task_id == task_id).order_by(steps.c.ordinal))).all()
        blob = (await unit.execute(select(blobs).where(blobs.c.task_id == task_id))).one()
    return [
        open_input(vault, task.input, task_id=task_id),
        vault.open(task.output, task_id=task_id, role=OUTPUT),
        *(vault.open(row.result, task_id=task_id, role=step_role(row.name, row.ordinal)) for row in done),
        vault.open(blob.data, task_id=task_id, role=blob_role(blob.name, blob.ordinal)),
    ]


def expected(number: int) -> list[Any]:
    return [
        ([number], {"text": f"question {number}"}),
        [f"answer {number}"],
        *[{"step": number}] * 3,
        {"large": number},
    ]


async def test_after_a_rotation_the_old_key_can_be_given_up(ledger: Database) -> None:
    found = await fill(ledger, BEFORE, count=25)
    pages: list[int] = []
    done = await rotate(ledger, DURING, page_rows=10, on_page=lambda seen: pages.append(seen.rewrapped))
    assert (done.read, done.rewrapped, done.is_complete) == (25 * 6, 25 * 6, True)
    assert len(pages) == 3 + 3 + 8 + 25 and pages == sorted(pages)
    assert [await everything(ledger, AFTER, task_id) for task_id in found] == [expected(n) for n in range(25)]
    with pytest.raises(SealKeyUnknown):
        await everything(ledger, BEFORE, found[0])


async def test_a_second_pass_finds_nothing_to_do(ledger: Database) -> None:
    await fill(ledger, BEFORE, count=3)
    await rotate(ledger, DURING)
    again = await rotate(ledger, DURING)
    assert (again.rewrapped, again.current, again.plain, again.is_complete) == (0, 18, 0, True)
    assert not again.still_under


async def test_the_sealed_data_is_not_touched_and_neither_is_what_is_not_sealed(ledger: Database) -> None:
    (sealed,) = await fill(ledger, BEFORE, count=1)
    (plain,) = await fill(ledger, Vault(), count=1)
    odd = [{SEALED: {"v": 1}, "other": 1}, [1], "text", 5, True, {"$sealed ": 1}]
    for number, value in enumerate(odd):
        row = {"task_id": plain, "name": "odd", "ordinal": number, "kind": "step", "fingerprint": "f", "epoch": 1}
        async with ledger.unit() as unit:
            await unit.execute(insert(steps).values(**row, state="done", result=value))
            await unit.execute(insert(steps).values(**{**row, "name": "no result yet"}))
    before = await texts(ledger)
    done = await rotate(ledger, DURING)
    after = await texts(ledger)
    assert (done.rewrapped, done.plain, done.is_complete) == (6, 6 + len(odd), True)
    assert [before[key] == after[key] for key in before] == [sealed not in key for key in before]
    for key in (key for key in before if sealed in key):
        was, now = (json.loads(one[key]) for one in (before, after))
        was, now = (one.get("kwargs", one)[SEALED] for one in (was, now))
        assert was["data"] == now["data"] and was["key"] != now["key"] and now["kid"] == "second"


async def texts(ledger: Database) -> dict[tuple[Any, ...], str]:
    """Every stored value to the letter."""
    async with ledger.unit(mode="ro") as unit:
        rows = [
            *((*row[:-1], "input", row[-1]) for row in await unit.execute(select(tasks.c.id, text_of(tasks.c.input)))),
            *(
                (*row[:-1], "output", row[-1])
                for row in await unit.execute(select(tasks.c.id, text_of(tasks.c.output)))
            ),
            *(
                await unit.execute(select(steps.c.task_id, steps.c.name, steps.c.ordinal, text_of(steps.c.result)))
            ).all(),
            *(await unit.execute(select(blobs.c.task_id, text_of(blobs.c.data)))).all(),
        ]
    return {tuple(row[:-1]): row[-1] for row in rows}


def text_of(column: Any) -> Any:
    return func.json_build_array(column).op("->>")(0)


async def test_a_pass_that_was_cut_off_goes_on_at_its_bookmark(ledger: Database) -> None:
    found = await fill(ledger, BEFORE, count=12)
    cut: list[Bookmark] = []

    def stop_in_the_steps(seen: Progress) -> None:
        if seen.bookmark and seen.bookmark.shelf == "steps.result" and seen.read >= 34:
            cut.append(seen.bookmark)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        await rotate(ledger, DURING, page_rows=10, on_page=stop_in_the_steps)
    kept = json.loads(json.dumps([cut[0].shelf, cut[0].after]))
    rest = await rotate(ledger, DURING, page_rows=10, since=Bookmark(kept[0], tuple(kept[1])))
    assert (rest.read, rest.rewrapped, rest.is_complete) == (36 - 10 * len(cut) + 12, 36 - 10 * len(cut) + 12, True)
    assert [await everything(ledger, AFTER, task_id) for task_id in found] == [expected(n) for n in range(12)]


async def test_a_row_that_a_worker_holds_is_left_and_found_by_the_next_pass(ledger: Database) -> None:
    held, free = await fill(ledger, BEFORE, count=2)
    async with ledger.unit() as worker:
        await worker.execute(select(tasks.c.id).where(tasks.c.id == held).with_for_update())
        async with asyncio.timeout(60):  # it does not wait for the worker; a task of its own: units in a unit join it
            first = await asyncio.create_task(rotate(ledger, DURING))
        assert (first.left, first.rewrapped, first.still_under, first.is_complete) == (2, 10, {"first": 2}, False)
        fresh = BEFORE.seal("written meanwhile", task_id=held, role=OUTPUT)
        await worker.execute(update(tasks).where(tasks.c.id == held).values(output=fresh))
    second = await rotate(ledger, DURING)
    assert (second.rewrapped, second.is_complete) == (2, True)
    assert (await everything(ledger, AFTER, held))[1] == "written meanwhile"
    assert (await everything(ledger, AFTER, free)) == expected(1)


async def test_a_value_that_changes_while_it_is_rewrapped_keeps_what_was_written(ledger: Database) -> None:
    found = await fill(ledger, BEFORE, count=20)
    done = asyncio.Event()
    last: dict[UUID, int] = {}

    async def write() -> None:
        number = 0
        while not done.is_set():
            task_id, number = found[number % len(found)], number + 1
            output = (DURING if number % 2 else BEFORE).seal(number, task_id=task_id, role=OUTPUT)
            async with ledger.unit() as unit:
                await unit.execute(update(tasks).where(tasks.c.id == task_id).values(output=output))
            last[task_id] = number

    writer = asyncio.create_task(write())
    for _ in range(20):
        await rotate(ledger, DURING, page_rows=5)
    done.set()
    await writer
    assert len(last) == len(found)
    assert (await rotate(ledger, DURING)).is_complete
    assert {task_id: (await everything(ledger, AFTER, task_id))[1] for task_id in found} == last


async def test_what_cannot_be_read_is_counted_by_its_key_and_stops_nothing(ledger: Database) -> None:
    foreign = (await fill(ledger, Vault([THIRD]), count=1))[0]
    broken, fine = await fill(ledger, BEFORE, count=2)
    sealed = BEFORE.seal(1, task_id=broken, role=OUTPUT)
    for forged in ({**sealed[SEALED], "key": "AAAA"}, {**sealed[SEALED], "more": 1}, {**sealed[SEALED], "v": "x"}):
        async with ledger.unit() as unit:
            await unit.execute(update(tasks).where(tasks.c.id == broken).values(output={SEALED: forged}))
        done = await rotate(ledger, DURING)
        assert done.unreadable == 6 + 1 and done.still_under == {"third": 6, "first": 1}
    assert not done.is_complete and foreign != fine
    assert await everything(ledger, AFTER, fine) == expected(1)


async def test_payloads_of_signals_are_rewrapped_too(ledger: Database) -> None:
    (task_id,) = await fill(ledger, BEFORE, count=1)
    role = signal_role("approved")
    async with ledger.unit() as unit:
        for by in ("Grace", "Ada"):
            payload = BEFORE.seal({"by": by}, task_id=task_id, role=role)
            await unit.execute(insert(signals).values(task_id=task_id, name="approved", payload=payload))
    assert (await rotate(ledger, DURING, page_rows=1)).rewrapped == 6 + 2
    async with ledger.unit(mode="ro") as unit:
        found = (await unit.execute(select(signals.c.payload).order_by(signals.c.id))).scalars().all()
    assert [AFTER.open(one, task_id=task_id, role=role)["by"] for one in found] == ["Grace", "Ada"]


async def test_schedules_are_put_under_the_new_key_too(ledger: Database) -> None:
    for name in ("daily", "ünïcode \" '"):
        await create_schedule(ledger, name=name, agent="a", cron="0 8 * * *", input={"by": "Grace"}, vault=BEFORE)
    assert [is_sealed(one.input["kwargs"]) for one in await list_schedules(ledger)] == [True, True]
    assert (await rotate(ledger, DURING, page_rows=1)).rewrapped == 2
    for one in await list_schedules(ledger, vault=AFTER):
        assert one.input == {"args": [], "kwargs": {"by": "Grace"}}
    at = datetime(2027, 1, 1, 8, tzinfo=UTC)
    for one in await list_schedules(ledger):
        tick = tick_input(one.name, at, one.input)
        assert open_input(AFTER, tick, task_id=tick_task_id(one.name, at)) == ([], {"by": "Grace"})


async def test_without_a_key_there_is_nothing_to_rotate_to(ledger: Database) -> None:
    with pytest.raises(Misconfigured, match="FLEET_LEDGER_KEYS is empty"):
        await rotate(ledger, Vault())


async def test_an_empty_ledger_is_rotated_at_once(ledger: Database) -> None:
    done = await rotate(ledger, DURING)
    assert (done.read, done.bookmark, done.is_complete) == (0, None, True)
    assert (await rotate(ledger, DURING, since=Bookmark("blobs.data", (str(uuid4()), "x", 0)))).is_complete
