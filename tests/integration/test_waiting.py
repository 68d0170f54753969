"""Waiting without a worker: runs that sleep, wait for people or for a late retry hold no slot and outlive all."""

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from shared.client import FleetClient
from shared.errors import TaskFailed
from shared.ledger.rows import TaskView
from tests.integration.fleets import QUICK, WAITING, StartFleet
from tests.integration.live import eventually
from workers.ops.background import BackgroundSupervisor

RUNS = 40
NAP_S = 12


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    with start_fleet(2, more={**QUICK, **WAITING}) as started:
        yield started


def count(fleet: BackgroundSupervisor, state: str) -> int:
    with psycopg.connect(fleet.db_url.replace("+psycopg", "")) as connection:
        row = connection.execute("SELECT count(*) FROM tasks WHERE state = %s", [state]).fetchone()
    return int(row[0]) if row else 0


def state(client: FleetClient, task_id: UUID) -> str:
    return client.status(task_id).state


def written(diary: Path) -> list[int]:
    return [int(line) for line in diary.read_text().split()]


def kill_all(fleet: BackgroundSupervisor) -> None:
    for name in ("worker-1", "worker-2"):
        fleet.suspend(name)
        fleet.kill(name, signal.SIGKILL)


def revive_all(fleet: BackgroundSupervisor) -> None:
    for name in ("worker-1", "worker-2"):
        fleet.resume(name)
        fleet.start(name)


def assert_nothing_was_repeated(view: TaskView) -> None:
    assert view.repeated_steps == 0
    assert view.in_doubt_steps == 0
    assert view.attempt == 1, "waiting costs no attempt"
    assert all(step.executions <= 1 for step in view.steps)


def test_a_hundred_runs_that_sleep_hold_no_slot_and_each_goes_on_after_its_time(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    runs = {}
    with client.unit() as session:  # all are there at once: the last one sleeps before the first one wakes
        for number in range(100):
            diary = diaries / str(number)
            inputs = {"seconds": NAP_S, "diary": str(diary)}
            runs[client.submit("test.nap", inputs, tx=session).id] = diary
    eventually(lambda: count(fleet, "waiting") == 100)
    assert count(fleet, "running") == 0
    for task_id, diary in runs.items():
        assert client.result(task_id, 60) == [1, 2]
        assert written(diary) == [1, 2]
        assert_nothing_was_repeated(client.status(task_id))
    view = client.status(next(iter(runs)))
    assert view.started_at is not None
    assert view.finished_at is not None
    assert (view.finished_at - view.started_at).total_seconds() >= NAP_S
    assert view.report is not None
    assert view.report["steps_replayed"] == 1


def test_a_run_that_waits_outlives_every_worker_and_goes_on_with_the_signal(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    runs = {}
    for number in range(RUNS):
        diary = diaries / str(number)
        runs[client.submit("test.approval", {"diary": str(diary)}).id] = diary
    eventually(lambda: count(fleet, "waiting") == RUNS)
    kill_all(fleet)
    for number, task_id in enumerate(runs):
        assert client.signal(task_id, "approval", {"by": number}).state == "queued"
    revive_all(fleet)
    for number, (task_id, diary) in enumerate(runs.items()):
        assert client.result(task_id, 60) == [{"by": number}]
        assert written(diary) == [1, 2]
        assert_nothing_was_repeated(client.status(task_id))


def test_runs_that_are_killed_again_and_again_while_they_wait_and_go_on_repeat_nothing(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    runs = {}
    for number in range(RUNS):
        diary = diaries / str(number)
        inputs = {"seconds": 0.5 + number / 10, "diary": str(diary)}
        runs[client.submit("test.nap", inputs, max_attempts=20).id] = diary
    for victim in ("worker-1", "worker-2", "worker-1"):
        time.sleep(1.2)
        eventually(lambda name=victim: fleet.status(name) == "ready")  # type: ignore[misc]
        fleet.kill(victim, signal.SIGKILL)
    for task_id, diary in runs.items():
        assert client.result(task_id, 60) == [1, 2]
        view = client.status(task_id)
        assert view.repeated_steps == 0
        executions = Counter({step.name: step.executions for step in view.steps})
        lines = Counter(written(diary))
        assert set(lines) == {1, 2}
        assert lines[1] <= executions["before"]
        assert lines[2] <= executions["after"]
        assert executions["before"] + executions["after"] - 2 == view.in_doubt_steps, "what was cut off is told"


def test_a_signal_that_comes_before_its_wait_is_not_lost_and_the_second_wait_takes_the_second(
    client: FleetClient, diaries: Path
) -> None:
    diary = diaries / "early"
    task = client.submit("test.approval", {"diary": str(diary), "times": 3})
    for number in range(3):
        client.signal(task.id, "approval", number)
    assert task.result(30) == [0, 1, 2]


def test_a_signal_is_what_a_run_goes_on_with_and_not_a_later_look(client: FleetClient, diaries: Path) -> None:
    task = client.submit("test.approval", {"diary": str(diaries / "quick")})
    eventually(lambda: state(client, task.id) == "waiting")
    woken = client.signal(task.id, "approval", "yes")
    assert woken.state != "waiting", "the signal itself has put it into the queue"
    assert task.result(30) == ["yes"]


def test_a_run_that_was_woken_before_sleeps_undisturbed(client: FleetClient, diaries: Path) -> None:
    diary = diaries / "nap"
    task = client.submit("test.nap", {"seconds": 2.5, "diary": str(diary)})
    for number in range(3):
        client.signal(task.id, "nobody.waits", number)
    assert task.result(30) == [1, 2]
    assert task.status().epoch <= 3, "it was claimed twice, and put down once"


def test_a_wait_that_nobody_answers_ends_the_task_with_the_reason(client: FleetClient, diaries: Path) -> None:
    task = client.submit("test.approval", {"diary": str(diaries / "late"), "timeout_s": 1.0})
    with pytest.raises(TaskFailed, match="signal 'approval' did not come within 1 s"):
        task.result(30)
    assert (task.status().error or {})["code"] == "wait_timeout"


@pytest.mark.parametrize("wait_s", [0.1, 1.5])
def test_a_retry_is_made_after_its_time_here_when_that_is_soon_and_by_anybody_when_it_is_late(
    client: FleetClient, diaries: Path, wait_s: float
) -> None:
    diary = diaries / f"flaky-{wait_s}"
    task = client.submit("test.flaky", {"diary": str(diary), "failures": 2, "wait_s": wait_s})
    assert task.result(30) == 3
    view = task.status()
    assert written(diary) == [1, 1, 1]
    assert [(step.executions, step.repeats, step.in_doubt) for step in view.steps] == [(3, 0, 0)]
    assert view.attempt == 1
    assert (view.epoch > 1) is (wait_s > 1), "only a late one gave its slot back"


def test_a_branch_that_waits_does_not_stop_another_that_works(client: FleetClient, diaries: Path) -> None:
    diary = diaries / "busy"
    task = client.submit("test.busy", {"diary": str(diary), "count": 5, "step_s": 0.4})
    eventually(lambda: state(client, task.id) == "waiting")
    assert written(diary) == [0, 1, 2, 3, 4], "it gave its slot back only when nothing was left to do"
    client.signal(task.id, "go", 7)
    assert task.result(30) == [7, 0, 1, 2, 3, 4]
    assert_nothing_was_repeated(task.status())
    assert written(diary) == [0, 1, 2, 3, 4]


def test_a_waiting_task_shows_what_it_waits_for_and_until_when(client: FleetClient, diaries: Path) -> None:
    task = client.submit("test.approval", {"diary": str(diaries / "shown"), "timeout_s": 600})
    view = eventually(lambda: (found := task.status()).state == "waiting" and found)
    assert view.waiting_for == {"kind": "signal", "signals": ["approval"]}
    assert 590 < (view.wake_at - view.created_at).total_seconds() < 610
    client.signal(task.id, "approval")
    assert task.result(30) == [None]
