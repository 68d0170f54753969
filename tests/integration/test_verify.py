"""`fleet verify`: silent on a sound ledger, and each invariant finds what breaks it and names the task."""

import asyncio
import json
from uuid import UUID, uuid4

import pytest

from shared.client import FleetClient
from shared.ledger.caps import set_limit
from shared.ledger.invariants import INVARIANTS, Patience, Verdict, verify
from tests.integration.by_hand import ByHand
from tests.integration.live import Database
from tests.integration.terminal import fleet, fleet_json
from workers.ops.background import BackgroundSupervisor

AT_ONCE = Patience(dead_after_s=15, grace_s=0)


async def lively(producer: FleetClient, worker: ByHand) -> dict[str, UUID]:
    """A ledger in which there is something of everything, by what it is."""
    names = ("queued", "running", "succeeded", "failed", "parked", "later", "asleep", "parent")
    delays = {"later": 3600.0}
    ids = {name: (await producer.asubmit("a", {}, delay_s=delays.get(name))).id for name in names}
    claims = {name: await worker.claim(ids[name]) for name in names if name not in ("queued", "later")}
    await worker.steps(claims["running"], "one", "two")
    await worker.runs.succeed(claims["succeeded"], None, {})
    await worker.do("UPDATE tasks SET state = 'queued', worker_id = NULL WHERE id = :id", id=ids["failed"])
    await producer.acancel(ids["failed"])
    await worker.wait(claims["parked"], state="parked", error={"code": "x", "message": "why"})
    await worker.wait(claims["asleep"], kind="sleep", wait_s=60)
    ids["child"] = await worker.spawn(ids["parent"])
    await worker.wait(claims["parent"], kind="children", children=((str(ids["child"]),),))
    await worker.do("UPDATE workers SET heartbeat_at = now()")  # however long all this took
    return ids


def broken(verdicts: list[Verdict]) -> dict[str, set[str | None]]:
    return {one.name: {violation.task_id for violation in one.violations} for one in verdicts if not one.holds}


async def test_a_ledger_with_something_of_everything_is_sound(producer: FleetClient, worker: ByHand) -> None:
    await lively(producer, worker)
    verdicts = await verify(worker.database, AT_ONCE)
    assert broken(verdicts) == {}
    assert len(verdicts) == len(INVARIANTS) >= 11


@pytest.mark.parametrize(
    ("invariant", "task", "damage"),
    [
        ("finished_tasks_are_complete", "succeeded", "UPDATE tasks SET finished_at = NULL WHERE id = :id"),
        ("finished_tasks_are_complete", "succeeded", "UPDATE tasks SET worker_id = gen_random_uuid() WHERE id = :id"),
        ("finished_tasks_are_complete", "failed", "UPDATE tasks SET error = NULL WHERE id = :id"),
        ("unfinished_tasks_have_no_end", "queued", "UPDATE tasks SET finished_at = now() WHERE id = :id"),
        ("unfinished_tasks_have_no_end", "queued", "UPDATE tasks SET worker_id = gen_random_uuid() WHERE id = :id"),
        ("running_tasks_have_a_live_worker", "running", "UPDATE workers SET heartbeat_at = now() - interval '16 s'"),
        ("running_tasks_have_a_live_worker", "running", "UPDATE workers SET state = 'dead'"),
        ("running_tasks_have_a_live_worker", "running", "DELETE FROM workers"),
        ("attempts_are_within_bounds", "running", "UPDATE tasks SET attempt = 4 WHERE id = :id"),
        ("attempts_are_within_bounds", "queued", "UPDATE tasks SET attempt = -1 WHERE id = :id"),
        ("completed_steps_are_not_repeated", "running", "UPDATE steps SET repeats = 1 WHERE task_id = :id"),
        ("ended_steps_have_a_result", "running", "UPDATE steps SET in_blob = true WHERE task_id = :id"),
        ("ended_steps_have_a_result", "running", "UPDATE steps SET finished_at = NULL WHERE task_id = :id"),
        (
            "ended_steps_have_a_result",
            "running",
            "UPDATE steps SET state = 'failed', result = NULL WHERE task_id = :id",
        ),
        ("steps_are_not_ahead_of_their_task", "running", "UPDATE steps SET epoch = 9 WHERE task_id = :id"),
        ("steps_have_a_task", "running", "DELETE FROM tasks WHERE id = :id"),
        ("waiting_tasks_can_wake", "asleep", "UPDATE tasks SET wake_at = NULL WHERE id = :id"),
        ("waiting_tasks_can_wake", "later", "UPDATE tasks SET wake_at = now() - interval '1 s' WHERE id = :id"),
        ("waiting_tasks_can_wake", "asleep", "UPDATE tasks SET cancel_requested_at = now() WHERE id = :id"),
        (
            "waiting_tasks_can_wake",
            "parent",
            "UPDATE tasks SET state = 'succeeded', finished_at = now() - interval '1 s' WHERE parent_id = :id",
        ),
        ("queued_tasks_will_be_dispatched", "queued", "UPDATE tasks SET dispatch_at = NULL WHERE id = :id"),
        ("parked_tasks_say_why", "parked", "UPDATE tasks SET error = NULL WHERE id = :id"),
        (
            "cancelled_trees_are_still",
            "child",
            "UPDATE tasks SET parent_id = (SELECT id FROM tasks WHERE state = 'cancelled') WHERE id = :id",
        ),
        (
            "cancelled_trees_are_still",
            "child",
            "WITH p AS (UPDATE tasks SET state = 'failed', epoch = 1 WHERE state = 'cancelled' RETURNING id) "
            "UPDATE tasks SET parent_id = p.id FROM p WHERE tasks.id = :id",
        ),
        (
            "cancelled_trees_are_still",
            "running",
            "UPDATE tasks SET cancel_requested_at = now() - interval '1 s' WHERE id = :id",
        ),
    ],
)
async def test_each_invariant_finds_what_breaks_it(
    producer: FleetClient, worker: ByHand, invariant: str, task: str, damage: str
) -> None:
    ids = await lively(producer, worker)
    await worker.do(damage, **({"id": ids[task]} if ":id" in damage else {}))
    found = broken(await verify(worker.database, AT_ONCE))
    assert found[invariant] == {str(ids[task])}


async def test_limits_and_ticks_are_checked_too(producer: FleetClient, worker: ByHand) -> None:
    await lively(producer, worker)
    await worker.do(
        "INSERT INTO limits SELECT * FROM (VALUES ('tenant', 'default', 0), ('agent', 'b', 0)) x, "
        "(SELECT now() - interval '1 h') y"
    )
    await worker.do(
        "INSERT INTO schedules (name, agent, input, tenant, cron, next_at, last_at, last_task_id) "
        "VALUES ('odd', 'a', '{}', 't', '* * * * *', now() - interval '1 min', now(), :id)", id=uuid4(),
    )  # fmt: skip
    verdicts = {one.name: one for one in await verify(worker.database, AT_ONCE)}
    (over,) = verdicts["limits_are_respected"].violations
    assert over.what == "tenant default runs 1, its limit is 0"
    told = [one.what for one in verdicts["one_task_a_tick"].violations]
    assert ["is not this tick's" in told[0], "goes back in time" in told[1], "should have ticked" in told[2]] == [
        True
    ] * 3


async def test_what_ran_before_a_limit_was_lowered_does_not_break_it(producer: FleetClient, worker: ByHand) -> None:
    await lively(producer, worker)
    await set_limit(worker.database, "agent", "a", 0)
    assert broken(await verify(worker.database, AT_ONCE)) == {}
    await worker.do("UPDATE tasks SET published_at = now() WHERE state = 'running'")
    assert set(broken(await verify(worker.database, AT_ONCE))) == {"limits_are_respected"}


async def test_the_command_tells_people_and_machines_and_its_exit_code_tells_scripts(
    producer: FleetClient, worker: ByHand, servers: BackgroundSupervisor, database: Database
) -> None:
    env = {**servers.env, "FLEET_DB_URL": database.url}
    ids = await lively(producer, worker)
    sound = await asyncio.to_thread(fleet, "verify", env=env)
    assert (sound.returncode, sound.stdout.count("holds"), sound.stdout.count("BROKEN")) == (0, len(INVARIANTS), 0)
    assert f"All {len(INVARIANTS)} invariants hold." in sound.stdout
    await worker.do("UPDATE steps SET repeats = 2 WHERE name = 'one'")
    said = await asyncio.to_thread(fleet, "verify", env=env)
    assert said.returncode == 1
    assert f"{ids['running']}: step one#0 was completed, and yet executed again 2x" in said.stdout
    facts = await asyncio.to_thread(fleet_json, "verify", env=env, code=1)
    assert facts["holds"] is False
    assert json.dumps(facts["invariants"]).count(str(ids["running"])) == 1
