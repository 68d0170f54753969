"""A worker dies, or is told to stop: its runs go on elsewhere, and nothing that was done is done again."""

import signal
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from shared.client import FleetClient
from shared.ledger.rows import TaskView
from tests.integration.fleets import QUICK, StartFleet
from tests.integration.live import eventually
from tests.integration.load import start_steps
from workers.ops.background import BackgroundSupervisor

RUNS = 40
STEPS = 6


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    with start_fleet(2, more={**QUICK, "FLEET_LEDGER_DEAD_AFTER_S": "5"}) as started:  # none that lives looks dead
        yield started


def running_on(fleet: BackgroundSupervisor) -> Counter[str]:
    """How many runs each worker holds, by name."""
    query = "SELECT w.name, count(*) FROM tasks t JOIN workers w ON w.id = t.worker_id GROUP BY w.name"
    with psycopg.connect(fleet.db_url.replace("+psycopg", "")) as connection:
        return Counter(dict(connection.execute(query).fetchall()))


def holders(attempt: int, fleet: BackgroundSupervisor, client: FleetClient) -> list[str]:
    """Who runs the newest task, once it is in this attempt."""
    return list(running_on(fleet)) if client.tasks(limit=1)[0].attempt == attempt else []


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
    runs = start_steps(client, diaries, runs=RUNS, count=STEPS, step_s=0.6)
    assert len(running_on(fleet)) == 2
    fleet.suspend("worker-1")
    fleet.kill("worker-1", signal.SIGKILL)
    views = finished(client, runs)
    fleet.resume("worker-1")
    assert_nothing_done_was_done_again(views, runs)
    assert sum(view.attempt == 2 for view in views) > 0
    assert sum((view.report or {})["steps_replayed"] for view in views) > 0


def test_a_worker_that_is_told_to_stop_finishes_what_runs(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    runs = start_steps(client, diaries, runs=RUNS, count=STEPS, step_s=0.2)
    fleet.restart("worker-1")
    fleet.restart("worker-2")
    views = finished(client, runs)
    assert {view.attempt for view in views} == {1}
    assert_nothing_done_was_done_again(views, runs)
    assert all(step.executions == 1 for view in views for step in view.steps)


def test_a_task_whose_every_worker_dies_fails_with_the_reason(fleet: BackgroundSupervisor, client: FleetClient) -> None:
    task = client.submit("test.sleep", {"seconds": 600}, max_attempts=2)
    for attempt in (1, 2):
        (holder,) = eventually(partial(holders, attempt, fleet, client))
        fleet.kill(holder.partition("@")[0], signal.SIGKILL)
    eventually(lambda: client.status(task.id).is_finished)
    view = client.status(task.id)
    assert (view.error or {})["code"] == "attempts_exhausted"
    assert (view.error or {})["message"] == "the worker died in attempt 2 of 2"
