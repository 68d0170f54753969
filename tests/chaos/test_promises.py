"""Each promise of the durable heart once, on a whole fleet whose servers may be broken; details are tested elsewhere.

The fleet has keys, so all of it also holds for sealed tasks. It ends with a look at every invariant of the ledger.
"""

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from kombu import Connection
from pydantic import SecretStr

from shared.client import FleetClient
from shared.contracts import QUEUE, tick_task_id
from shared.errors import TaskFailed, TooLarge
from shared.ledger.caps import set_limit, unset_limit
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.schedules import create_schedule, delete_schedule
from shared.ledger.vault_knobs import new_key_line
from tests.chaos.length import length
from tests.integration.fleets import client_of, fleet_of
from tests.integration.live import eventually
from tests.integration.load import start_steps, started_at
from tests.integration.terminal import fleet_json
from workers.ops.background import BackgroundSupervisor
from workers.ops.recipes import processes

KEYS = new_key_line()
TERM_S = 5.0
"""Longer than a worker of a busy machine stands still, or waits for its disk."""
ENV = {
    "FLEET_AGENTS": "tests.integration.agents",
    "FLEET_LEDGER_KEYS": KEYS,
    "FLEET_LEDGER_HEARTBEAT_S": "0.5",
    "FLEET_LEDGER_DEAD_AFTER_S": str(TERM_S),
    "FLEET_LEDGER_SUSPEND_AFTER_S": "0.4",
    "FLEET_DB_IDLE_IN_TRANSACTION_S": str(TERM_S),
    "FLEET_KEEPER_ROUND_S": "0.3",
    "FLEET_WORKER_DRAIN_S": "0.5",
    "FLEET_BROKER_HEARTBEAT_S": "2",
}
RUNS = 20
STEPS = 5
IN_A_HEARTBEAT = """
    SELECT 1 FROM pg_stat_activity a JOIN workers w ON a.application_name LIKE concat('%%:', w.pid)
    WHERE a.state = 'idle in transaction' AND a.query LIKE 'UPDATE workers%%' AND w.name LIKE %s"""
LEADING = """
    SELECT epoch FROM terms WHERE role = 'keeper' AND holder IN (SELECT application_name FROM pg_stat_activity)"""


@pytest.fixture(scope="module")
def fleet(run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    with fleet_of(2, folder=run_folder(), more=ENV) as started:
        second = processes.keeper(started.around, env=started.env, needs=started.topology.needs_of_processes())
        started.add(replace(second, name="keeper-2"))
        yield started


@pytest.fixture
def client(fleet: BackgroundSupervisor) -> Iterator[FleetClient]:
    client = client_of(fleet, ledger=LedgerKnobs(keys=SecretStr(KEYS)))
    assert client.submit("test.echo", {"text": "all is well"}).result(60)
    yield client
    client.close()


@pytest.fixture
def diaries(run_folder: Callable[[], Path]) -> Path:
    folder = run_folder()
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@contextmanager
def away(fleet: BackgroundSupervisor, name: str, signum: int = signal.SIGKILL) -> Iterator[None]:
    """A process is down for as long as the block lasts."""
    fleet.suspend(name)
    fleet.kill(name, signum)
    yield
    fleet.resume(name)
    fleet.start(name)


def ask(fleet: BackgroundSupervisor, query: str, *values: object) -> list[Any]:
    with psycopg.connect(fleet.db_url.replace("+psycopg", ""), autocommit=True) as connection:
        return connection.execute(query.encode(), values).fetchall()


def alive(fleet: BackgroundSupervisor, name: str) -> set[UUID]:
    """The ids under which a worker lives: a new one after each fence."""
    query = "SELECT id FROM workers WHERE state = 'alive' AND name LIKE %s"
    return {row[0] for row in ask(fleet, query, f"{name}@%")}


def holder(fleet: BackgroundSupervisor, task_id: UUID) -> str:
    """Which worker runs a task."""
    query = "SELECT w.name FROM tasks t JOIN workers w ON w.id = t.worker_id WHERE t.id = %s"
    return str(eventually(lambda: ask(fleet, query, task_id))[0][0]).partition("@")[0]


def written(diary: Path) -> list[str]:
    return diary.read_text().split()


def test_promise_01_a_frozen_worker_that_wakes_after_the_takeover_changes_nothing(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    runs = start_steps(client, diaries, runs=RUNS, count=STEPS, step_s=1.5)
    fleet.freeze("worker-1")
    try:
        assert [client.result(task_id, 60) for task_id in runs] == [list(range(STEPS))] * RUNS
        views = [client.status(task_id) for task_id in runs]
        before = alive(fleet, "worker-1")
    finally:
        fleet.thaw("worker-1")
    eventually(lambda: alive(fleet, "worker-1") - before)  # it has tried, was fenced, and is back under a new id
    assert sum(view.attempt == 2 for view in views) > 0
    assert [client.status(task_id) for task_id in runs] == views
    assert sum(view.repeated_steps for view in views) == 0


def test_promise_01_a_worker_that_is_frozen_in_the_middle_of_a_heartbeat_is_taken_over_all_the_same(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    def is_caught() -> bool:
        fleet.freeze("worker-1")
        if ask(fleet, IN_A_HEARTBEAT, "worker-1@%") and ask(fleet, IN_A_HEARTBEAT, "worker-1@%"):
            return True  # twice: what it had sent before is done, and it holds its own row locked
        fleet.thaw("worker-1")
        return False

    held = """SELECT count(*) FROM tasks t JOIN workers w ON w.id = t.worker_id
        WHERE t.agent = 'test.until' AND t.state = 'running' AND w.name LIKE %s"""
    runs = [client.submit("test.until", {"file": str(diaries / "end")}) for _ in range(RUNS)]
    eventually(lambda: all(task.status().steps for task in runs))
    try:
        assert ask(fleet, held, "worker-1@%") != [(0,)]
        eventually(is_caught, within_s=180)
        eventually(lambda: ask(fleet, held, "worker-2@%") == [(RUNS,)], within_s=60)
    finally:
        fleet.thaw("worker-1")
    (diaries / "end").touch()
    for task in runs:
        task.result(60)


def test_promise_02_another_keeper_takes_over_and_gives_the_runs_of_a_dead_worker_away(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    fleet.stop("keeper-2")
    [(epoch,)] = eventually(lambda: ask(fleet, LEADING))
    fleet.start("keeper-2")  # stands by: the other one leads
    task = client.submit("test.steps", {"count": 3, "step_s": 3.0, "diary": str(diaries / "page")})
    last = client.submit("test.sleep", {"seconds": 600}, max_attempts=1)
    victims = {holder(fleet, one.id) for one in (task, last)}
    with away(fleet, "keeper"):
        for name in victims:
            fleet.kill(name, signal.SIGKILL)
        eventually(lambda: ask(fleet, f"{LEADING} AND epoch > %s", epoch))
        assert task.result(60) == [0, 1, 2]
        eventually(lambda: last.status().is_finished)
    assert task.status().attempt > 1
    assert last.status().error == {"code": "attempts_exhausted", "message": "the worker died in attempt 1 of 1"}


def test_promise_03_a_broker_that_is_wiped_delays_neither_submits_nor_starts_until_it_is_back(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    fleet.stop("rabbitmq")
    shutil.rmtree(fleet.around.folder("rabbitmq") / "mnesia")
    tasks = [client.submit("test.echo", {"text": str(number)}) for number in range(10)]
    eventually(lambda: len(started_at(fleet, [one.id for one in tasks])) == len(tasks))
    [(wait_s,)] = ask(
        fleet, "SELECT max(extract(epoch FROM started_at - created_at))::float8 FROM tasks WHERE id = ANY(%s)",
        [one.id for one in tasks],
    )  # fmt: skip
    fleet.start("rabbitmq")
    print(f"the tasks waited up to {wait_s:.2f} s, and none for the broker")
    assert [one.result(60)["said"] for one in tasks] == [[str(number)] for number in range(10)]
    assert {one.status().epoch for one in tasks} == {1}


def test_promise_04_while_the_ledger_is_down_steps_wait_within_their_deadline_and_the_broker_accepts(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    outage_s = length().outage_s
    inputs = {"count": 2, "step_s": 0.6 * outage_s, "diary": str(diaries / "patient")}
    patient = client.submit("test.steps", inputs)
    hasty = client.submit("test.sleep", {"seconds": 600}, deadline_s=0.5 * outage_s)
    eventually(lambda: len(started_at(fleet, [patient.id, hasty.id])) == 2)
    eventually(lambda: patient.status().steps)
    pids = [fleet.pid(name) for name in ("worker-1", "worker-2")]
    with away(fleet, "postgres"):
        down_at = time.monotonic()
        accepted = [client.submit("test.echo", {"text": str(number)}) for number in range(5)]
        time.sleep(max(0.0, down_at + outage_s - time.monotonic()))
        assert {one.accepted_by for one in accepted} == {"broker"}
    assert patient.result(60) == [0, 1]
    view = patient.status()
    assert (view.attempt, view.in_doubt_steps, view.repeated_steps) == (1, 0, 0)
    assert written(diaries / "patient") == ["0", "1"]
    with pytest.raises(TaskFailed):
        hasty.result(60)
    assert (hasty.status().error or {})["code"] == "deadline_spent"
    assert [one.result(60)["said"] for one in accepted] == [[str(number)] for number in range(5)]
    assert [fleet.pid(name) for name in ("worker-1", "worker-2")] == pids, "no worker dies with the database"


def test_promise_05_what_is_journaled_is_not_done_again_large_or_not_and_a_cut_off_call_is_in_doubt(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    diary, size = diaries / "page", 300_000
    task = client.submit("test.large", {"size": size, "crash_s": 6.0, "diary": str(diary)})
    eventually(lambda: [step.state for step in task.status().steps] == ["done", "intent"])
    fleet.kill(holder(fleet, task.id), signal.SIGKILL)
    assert task.result(60) == size
    view = task.status()
    assert (view.repeated_steps, view.in_doubt_steps, (view.report or {})["in_doubt"]) == (0, 1, 1)
    assert written(diary) == ["1", "2"]
    assert ask(fleet, "SELECT name FROM blobs WHERE task_id = %s", task.id) == [("large",)]
    assert client.fork(task.id, "slow").result(60) == size
    assert written(diary) == ["1", "2", "2"], "the fork has the large result, and does only what is after it"


def test_promise_06_what_waits_holds_no_worker_and_goes_on_at_the_same_place(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    asked = client.submit("test.approval", {"diary": str(diaries / "asked")})
    asleep = client.submit("test.nap", {"seconds": 8, "diary": str(diaries / "asleep")})
    parent = client.submit("test.family", {"count": 2, "step_s": 4.0, "diary": str(diaries / "family")})
    eventually(lambda: [one.status().state for one in (asked, asleep, parent)] == ["waiting"] * 3)
    assert ask(fleet, "SELECT count(worker_id) FROM tasks WHERE state = 'waiting'") == [(0,)]
    client.signal(asked.id, "approval", "yes")
    assert (asked.result(60), asleep.result(60), parent.result(60)) == (["yes"], [1, 2], [0, 10])
    assert written(diaries / "asked") == written(diaries / "asleep") == ["1", "2"]
    assert {one.status().attempt for one in (asked, asleep, parent)} == {1}


def test_promise_07_a_cancel_reaches_a_run_in_the_middle_of_a_step_and_its_children_follow(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    parent = client.submit("test.family", {"count": 2, "step_s": 3600.0, "diary": str(diaries / "page")})
    eventually(lambda: [one.state for one in parent.status().children] == ["running"] * 2)
    asked_at = ask(fleet, "SELECT now()")[0][0]
    client.cancel(parent.id)
    eventually(lambda: parent.status().state == "cancelled")
    eventually(lambda: {one.state for one in parent.status().children} == {"cancelled"})
    query = "SELECT max(finished_at) FROM tasks WHERE id = %s OR parent_id = %s"
    took_s = (ask(fleet, query, parent.id, parent.id)[0][0] - asked_at).total_seconds()
    print(f"cancelled with its children within {took_s:.2f} s")


def test_promise_08_one_task_a_tick_however_many_keepers_and_no_more_running_than_a_limit(
    fleet: BackgroundSupervisor, client: FleetClient
) -> None:
    tenant = f"tenant-{uuid4().hex[:8]}"
    later = client.submit("test.echo", {"text": "later"}, delay_s=2.0)
    client.operate(lambda database: set_limit(database, "tenant", tenant, 2))
    client.operate(
        lambda database: create_schedule(
            database, name=tenant, agent="test.sleep", cron="* * * * * *", input={"seconds": 1.5}, tenant=tenant,
            vault=client.vault,
        )
    )  # fmt: skip
    seen = set()

    def has_ticked() -> bool:
        seen.add(ask(fleet, "SELECT count(*) FROM tasks WHERE tenant = %s AND state = 'running'", tenant)[0][0])
        return bool(ask(fleet, "SELECT count(*) >= 5 FROM tasks WHERE tenant = %s", tenant)[0][0]) and len(seen) > 1

    eventually(has_ticked)
    client.operate(lambda database: delete_schedule(database, tenant))
    client.operate(lambda database: unset_limit(database, "tenant", tenant))
    [(first, ids)] = ask(fleet, "SELECT min(created_at), array_agg(id) FROM tasks WHERE tenant = %s", tenant)
    seconds = [first.replace(microsecond=0) + timedelta(seconds=number) for number in range(-5, 60)]
    assert set(ids) <= {tick_task_id(tenant, second) for second in seconds}
    assert 0 < max(seen) <= 2
    assert later.result(30)["said"] == ["later"]
    view = later.status()
    assert view.started_at is not None
    assert view.started_at - view.created_at >= timedelta(seconds=1.9)


def test_promise_09_a_restart_of_all_workers_hands_runs_on_and_costs_no_attempt(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    runs = start_steps(client, diaries, runs=RUNS, count=2 * STEPS, step_s=0.5)
    for name in ("worker-1", "worker-2"):
        fleet.restart(name)
    handed_back, gaps_s = 0, []
    for task_id, diary in runs.items():
        assert client.result(task_id, 60) == list(range(2 * STEPS))
        view = client.status(task_id)
        assert (view.attempt, view.in_doubt_steps, view.repeated_steps) == (1, 0, 0)
        assert written(diary) == [str(number) for number in range(2 * STEPS)]
        handed_back += view.epoch > 1
        gaps_s += [(after.started_at - before.started_at).total_seconds() for before, after in pairwise(view.steps)]
    print(f"{handed_back} of {RUNS} handed back, longest time from step to step {max(gaps_s):.2f} s")
    assert handed_back > 0
    assert max(gaps_s) < LedgerKnobs().redispatch_s, "nobody had to publish them again"


def test_promise_10_what_failed_and_what_nobody_can_read_is_among_the_dead_letters_and_is_tried_again(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    env = {**fleet.env, "FLEET_LEDGER_KEYS": KEYS}
    diary, tenant = diaries / "page", f"tenant-{uuid4().hex[:8]}"
    inputs = {"number": 7, "count": 3, "step_s": 0.0, "diary": str(diary), "fail": True}
    task = client.submit("test.kid", inputs, tenant=tenant)
    eventually(lambda: task.status().is_finished)
    [letter] = fleet_json("dead", "list", "--tenant", tenant, env=env)
    assert (letter["id"], letter["error"]["message"]) == (str(task.id), "RuntimeError: kid 7 has had enough")
    fleet_json("dead", "replay", str(task.id), "--from-step", "share#2", env=env)
    eventually(lambda: len(written(diary)) == 4)  # and none of the two steps before
    with Connection(fleet.broker_url, transport_options={"confirm_publish": True}) as connection:
        connection.Producer().publish(
            b"[[], {", exchange="", routing_key=QUEUE, content_type="application/json", content_encoding="utf-8",
            headers={"task": f"agents.{tenant}", "id": str(uuid4())},
        )  # fmt: skip
    [message] = eventually(lambda: fleet_json("dead", "list", "--agent", tenant, env=env))
    assert message["error"]["code"] == "bad_message"
    eventually(lambda: task.status().is_finished)
    for one in (str(task.id), message["id"]):
        fleet_json("dead", "discard", one, env=env)
    assert fleet_json("dead", "list", "--tenant", tenant, env=env) == []


def test_promise_11_payloads_are_sealed_at_rest_and_too_large_ones_refused_at_the_door(
    fleet: BackgroundSupervisor, client: FleetClient
) -> None:
    word = f"word{uuid4().hex}"
    task = client.submit("test.echo", {"text": word})
    assert task.result(30)["said"] == [word]
    [row] = ask(fleet, "SELECT input::text, output::text FROM tasks WHERE id = %s", task.id)
    steps = ask(fleet, "SELECT result::text FROM steps WHERE task_id = %s", task.id)
    assert steps
    assert [word in text for text in (*row, *steps[0])] == [False] * 3
    limit = LedgerKnobs().input_max_bytes
    with pytest.raises(TooLarge, match=rf"the limit is {limit} \(FLEET_LEDGER_INPUT_MAX_BYTES\)"):
        client.submit("test.echo", {"text": "x" * limit})
