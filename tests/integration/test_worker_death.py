"""A worker dies, freezes, or is told to stop: its runs go on elsewhere, and nothing that was done is done again."""

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from shared.client import FleetClient
from shared.ledger.rows import TaskView
from tests.integration.fleets import QUICK, client_of, fleet_of
from tests.integration.live import eventually
from workers.ops.background import BackgroundSupervisor

RUNS = 40
STEPS = 6


@pytest.fixture(scope="module")
def fleet(run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    with fleet_of(2, folder=run_folder(), more=QUICK) as started:
        yield started


@pytest.fixture
def client(fleet: BackgroundSupervisor) -> Iterator[FleetClient]:
    client = client_of(fleet)
    yield client
    client.close()


@pytest.fixture
def diaries(run_folder: Callable[[], Path]) -> Path:
    """A folder in which runs of any user can write."""
    folder = run_folder()
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def start_runs(client: FleetClient, diaries: Path, *, step_s: float) -> dict[UUID, Path]:
    """Submit runs that each write a diary of their steps; return once every one of them has begun."""
    runs = {}
    for number in range(RUNS):
        diary = diaries / str(number)
        runs[client.submit("test.steps", {"count": STEPS, "step_s": step_s, "diary": str(diary)}).id] = diary
    eventually(lambda: all(diary.exists() for diary in runs.values()))
    return runs


def running_on(fleet: BackgroundSupervisor) -> Counter[str]:
    """How many runs each worker holds, by name."""
    query = "SELECT w.name, count(*) FROM tasks t JOIN workers w ON w.id = t.worker_id GROUP BY w.name"
    with psycopg.connect(fleet.db_url.replace("+psycopg", "")) as connection:
        return Counter(dict(connection.execute(query).fetchall()))


def is_running_attempt(attempt: int, fleet: BackgroundSupervisor, client: FleetClient) -> bool:
    return client.tasks(limit=1)[0].attempt == attempt and bool(running_on(fleet))


def finished(client: FleetClient, runs: dict[UUID, Path]) -> list[TaskView]:
    for task_id in runs:
        assert client.result(task_id, 60) == list(range(STEPS))
    return [client.status(task_id) for task_id in runs]


def assert_nothing_done_was_done_again(views: list[TaskView], runs: dict[UUID, Path]) -> None:
    """By the ledger's account, and by the diaries': only a step in doubt may stand there twice."""
    for view in views:
        assert view.repeated_steps == 0
        executions = {step.ordinal: step.executions for step in view.steps}
        written = Counter(int(line) for line in runs[view.id].read_text().split())
        assert set(written) == set(range(STEPS))
        for number, times in written.items():
            assert times <= executions[number]
        assert sum(executions.values()) - STEPS < view.epoch, "at most one step in doubt for each takeover"


def test_runs_of_a_killed_worker_finish_on_another(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    runs = start_runs(client, diaries, step_s=0.3)
    assert min(running_on(fleet).values()) > 0
    fleet.suspend("worker-1")
    fleet.kill("worker-1", signal.SIGKILL)
    views = finished(client, runs)
    fleet.resume("worker-1")
    assert_nothing_done_was_done_again(views, runs)
    assert sum(view.attempt == 2 for view in views) > 0
    assert sum((view.report or {})["steps_replayed"] for view in views) > 0


def test_a_frozen_worker_that_wakes_after_the_takeover_changes_nothing(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    eventually(lambda: fleet.status("worker-1") == "ready")
    runs = start_runs(client, diaries, step_s=0.3)
    fleet.freeze("worker-1")
    views = finished(client, runs)
    fleet.thaw("worker-1")
    assert sum(view.attempt == 2 for view in views) > 0
    task = client.submit("test.echo", {"text": "afterwards"})
    assert task.result(30)["said"] == ["afterwards"]
    again = [client.status(task_id) for task_id in runs]
    assert again == views
    assert_nothing_done_was_done_again(again, runs)


def test_a_worker_that_is_told_to_stop_finishes_what_runs(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    runs = start_runs(client, diaries, step_s=0.2)
    fleet.restart("worker-1")
    fleet.restart("worker-2")
    views = finished(client, runs)
    assert {view.attempt for view in views} == {1}
    assert_nothing_done_was_done_again(views, runs)
    assert all(step.executions == 1 for view in views for step in view.steps)


def test_what_does_not_finish_before_the_drain_deadline_is_handed_back_and_costs_no_attempt(
    run_folder: Callable[[], Path], diaries: Path
) -> None:
    with fleet_of(2, folder=run_folder(), more={**QUICK, "FLEET_WORKER_DRAIN_S": "0.5"}) as fleet:
        client = client_of(fleet)
        runs = start_runs(client, diaries, step_s=0.6)
        fleet.stop("worker-1")
        views = finished(client, runs)
        client.close()
    assert {view.attempt for view in views} == {1}
    assert max(view.epoch for view in views) > 1
    assert_nothing_done_was_done_again(views, runs)


def test_a_task_whose_every_worker_dies_fails_with_the_reason(run_folder: Callable[[], Path]) -> None:
    with fleet_of(1, folder=run_folder(), more=QUICK) as fleet:
        client = client_of(fleet)
        task = client.submit("test.sleep", {"seconds": 600}, max_attempts=2)
        for attempt in (1, 2):
            eventually(partial(is_running_attempt, attempt, fleet, client))
            fleet.kill("worker-1", signal.SIGKILL)
        eventually(lambda: client.status(task.id).is_finished)
        view = client.status(task.id)
        client.close()
    assert (view.error or {})["code"] == "attempts_exhausted"
    assert (view.error or {})["message"] == "the worker died in attempt 2 of 2"
