"""The storm: thousands of tasks while workers, keepers and the broker are killed, frozen and restarted; then the books.

What the world outside has counted is compared with the ledger. The seed is printed; CHAOS_SEED replays its plan.
"""

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from shared.client import FleetClient
from shared.contracts import tick_task_id
from shared.db.database import Database
from shared.ledger.schedules import create_schedule, pause_schedule
from tests.chaos.length import length
from tests.chaos.nemesis import BROKER, DEEDS, Nemesis, plan
from tests.fakes.call_counter import CallCounter
from tests.integration.fleets import QUICK, client_of, fleet_of
from tests.integration.live import eventually
from tests.integration.soundness import broken_promises
from workers.ops.background import BackgroundSupervisor
from workers.ops.recipes import processes

WORKERS = ("worker-1", "worker-2", "worker-3")
KEEPERS = ("keeper", "keeper-2")
VICTIMS = (*WORKERS, *KEEPERS, BROKER)
ATTEMPTS = 100
"""None of these tasks may fail: whoever is hit often gets another try."""
CALL_S = 0.15
TICKER = "ticker"
SETTLE_S = 120.0
ENV = {**QUICK, "FLEET_AGENTS": "tests.chaos.agents", "FLEET_LEDGER_SUSPEND_AFTER_S": "0.3", "FLEET_LOG_LEVEL": "ERROR"}
STATES = "SELECT state, count(*) FROM tasks GROUP BY state"
STEPS = """
    SELECT s.task_id::text, s.name, s.ordinal, s.state, s.executions, s.in_doubt, s.repeats,
           extract(epoch FROM s.finished_at)::float8 AS finished_at
    FROM steps s WHERE s.kind = 'step'"""


@dataclass(frozen=True, slots=True)
class Order:
    """One task of the storm: its agent, its input and what must come of it."""

    agent: str
    input: dict[str, Any]
    answer: list[str]


@pytest.fixture(scope="module")
def seed() -> int:
    """What the storm is drawn from."""
    return int(os.environ.get("CHAOS_SEED", random.SystemRandom().randrange(10**6)))


@pytest.fixture(scope="module")
def counter() -> Iterator[CallCounter]:
    with CallCounter(delay_s=CALL_S) as started:
        yield started


@pytest.fixture(scope="module")
def fleet(run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    with fleet_of(len(WORKERS), folder=run_folder(), more=ENV) as started:
        second = processes.keeper(started.around, env=started.env, needs=started.topology.needs_of_processes())
        started.add(replace(second, name="keeper-2"))
        yield started


def orders(rng: random.Random, count: int, url: str) -> list[Order]:
    """Tasks of 3 to 6 steps: most call, some sleep in between, some have children."""
    found = []
    for _ in range(count):
        steps = rng.randint(3, 6)
        agent = rng.choices(("storm.steps", "storm.sleeper", "storm.family"), (6, 2, 1))[0]
        input: dict[str, Any] = {"count": steps, "url": url}
        answer = [str(number) for number in range(steps)]
        if agent == "storm.sleeper":
            input["sleep_s"] = round(rng.uniform(0.5, 2.0), 2)
        if agent == "storm.family":
            answer = ["0", *["0"] * (steps - 2), "1"]
        found.append(Order(agent, input, answer))
    return found


async def submit_all(client: FleetClient, todo: list[Order], *, within_s: float) -> dict[UUID, Order]:
    """Submit them evenly over that time; whatever is down, each is accepted."""
    began, accepted = time.monotonic(), {}
    for number, order in enumerate(todo):
        await asyncio.sleep(max(0.0, began + number * within_s / len(todo) - time.monotonic()))
        task = await client.asubmit(order.agent, order.input, max_attempts=ATTEMPTS)
        accepted[task.id] = order
    await client.aclose()
    return accepted


def test_a_storm_loses_nothing_and_repeats_nothing(
    fleet: BackgroundSupervisor, counter: CallCounter, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = length()
    rng = random.Random(seed)

    def say(text: str) -> None:
        with capsys.disabled():
            print(f"  storm: {text}", flush=True)

    say(f"seed {seed} (CHAOS_SEED={seed} replays the plan), {asked.tasks} tasks in {asked.storm_s:g} s")
    todo = orders(rng, asked.tasks, counter.url)
    accepted: dict[UUID, Order] = {}
    client = client_of(fleet)
    offered(client)
    producer = threading.Thread(
        target=lambda: accepted.update(asyncio.run(submit_all(client, todo, within_s=asked.storm_s * 0.8)))
    )
    nemesis = Nemesis(fleet, say=say)
    client.operate(every_second)
    producer.start()
    nemesis.rage(plan(seed, lasts_s=asked.storm_s, victims=VICTIMS))
    nemesis.make_up(VICTIMS)
    producer.join()
    nemesis.let_all_get_well(VICTIMS)
    client.operate(lambda database: pause_schedule(database, TICKER))
    client.close()
    assert set(nemesis.landed) == set(DEEDS), "a strike of each kind has hit"
    assert len(accepted) == asked.tasks, "every submit was accepted"
    with psycopg.connect(fleet.db_url.replace("+psycopg", ""), autocommit=True) as ledger:
        began = time.monotonic()
        try:
            eventually(lambda: set(states(ledger)) == {"succeeded"}, within_s=SETTLE_S)
        finally:
            say(f"{dict(nemesis.landed)}; {states(ledger)} {time.monotonic() - began:.1f} s after the last one")
        every_task_finished_once(ledger, accepted)
        no_completed_step_was_repeated(ledger, counter)
        doubts = calls_beyond_the_ledger_are_in_doubt(ledger, counter)
        ticks = one_task_a_tick(ledger)
        taken_over = ledger.execute("SELECT count(*) FROM tasks WHERE attempt > 1").fetchall()[0][0]
    assert taken_over > 0, "some run has outlived its worker"
    assert ticks > asked.storm_s / 4, "keepers died, and the schedule went on"
    say(f"{taken_over} tasks taken over, {ticks} ticks of a schedule in {asked.storm_s:g} s")
    say(f"{counter.total} calls outside, {doubts} of them in doubt, 0 repeated")
    assert broken_promises(fleet.db_url, dead_after_s=2.0) == []


def offered(client: FleetClient) -> None:
    """The producer knows the agents before the weather turns: it checks inputs against their schemas."""
    client.result(client.submit("storm.steps", {"count": 0, "url": ""}).id, 60)


async def every_second(database: Database) -> None:
    """A schedule that two keepers, of which one leads, see come due again and again."""
    input = {"count": 0, "url": ""}
    await create_schedule(
        database, name=TICKER, agent="storm.steps", cron="* * * * * *", input=input, tenant=TICKER,
        max_attempts=ATTEMPTS,
    )  # fmt: skip


def one_task_a_tick(ledger: psycopg.Connection[Any]) -> int:
    """Each task of the schedule is that of one second, and no other. Returns: how many there are."""
    query = "SELECT min(created_at), max(created_at), array_agg(id) FROM tasks WHERE tenant = %s"
    [(first, last, ids)] = ledger.execute(query, (TICKER,)).fetchall()
    seconds = [first.replace(microsecond=0) + timedelta(seconds=s) for s in range(-30, int((last - first).seconds) + 2)]
    assert set(ids) <= {tick_task_id(TICKER, second) for second in seconds}
    return len(ids)


def states(ledger: psycopg.Connection[Any]) -> dict[str, int]:
    """How many tasks are in which state."""
    return dict(ledger.execute(STATES).fetchall())


def every_task_finished_once(ledger: psycopg.Connection[Any], accepted: dict[UUID, Order]) -> None:
    """Each with its own answer; nothing else has been made but children."""
    rows = ledger.execute("SELECT id, output FROM tasks WHERE parent_id IS NULL").fetchall()
    outputs = {task_id: output for task_id, output in rows if output != []}
    assert outputs == {task_id: order.answer for task_id, order in accepted.items()}


def no_completed_step_was_repeated(ledger: psycopg.Connection[Any], counter: CallCounter) -> None:
    """By the ledger's account, and by the world's: nobody called once the result was on disk.

    But for a call in doubt: its worker was stopped with the request in its hands, and sent it when it went on.
    """
    for task_id, _, ordinal, state, _, in_doubt, repeats, finished_at in ledger.execute(STEPS):
        assert (state, repeats) == ("done", 0)
        late = [at for at in counter.calls[task_id, str(ordinal)] if at > finished_at]
        told = f"step {ordinal} of task {task_id} was called {len(late)} times after its result was on disk"
        assert len(late) <= in_doubt, told


def calls_beyond_the_ledger_are_in_doubt(ledger: psycopg.Connection[Any], counter: CallCounter) -> int:
    """Every call has its completed step, or is reported as in doubt.

    Returns: The calls in doubt.
    """
    known: dict[tuple[str, str], int] = {}
    doubts = 0
    for task_id, _, ordinal, _, _, in_doubt, _, _ in ledger.execute(STEPS):
        known[task_id, str(ordinal)] = in_doubt
        doubts += in_doubt
    for place, times in counter.calls.items():
        assert place in known, f"{place} was called, and the ledger does not know it"
        assert len(times) - 1 <= known[place], f"{place} was called {len(times)} times, {known[place]} in doubt"
    return doubts
