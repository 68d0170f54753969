"""The journal on a real fleet: changed steps, large results, calls in doubt, agents that are gone."""

import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from shared.client import FleetClient
from tests.integration.fleets import QUICK, WAITING, StartFleet
from tests.integration.live import eventually
from workers.ops.background import BackgroundSupervisor


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    with start_fleet(1, more={**QUICK, **WAITING}) as started:
        yield started


def changed(client: FleetClient, diaries: Path, policy: str) -> UUID:
    """A task that waits after its first step; what that step asks for has changed since."""
    asked = diaries / "asked"
    asked.write_text("old")
    task = client.submit(f"test.change.{policy}", {"diary": str(diaries / "diary"), "asked": str(asked)})
    eventually(lambda: task.status().state == "waiting")
    asked.write_text("new")
    client.signal(task.id, "go", 1)
    return task.id


def written(diaries: Path) -> list[str]:
    return (diaries / "diary").read_text().split()


def test_an_agent_that_wants_old_results_gets_them(client: FleetClient, diaries: Path) -> None:
    task_id = changed(client, diaries, "reuse")
    assert client.result(task_id, 30) == ["old", 1, "second"]
    assert written(diaries) == ["old", "second"]


def test_an_agent_that_wants_changed_steps_done_again_gets_that(client: FleetClient, diaries: Path) -> None:
    task_id = changed(client, diaries, "rerun")
    assert client.result(task_id, 30) == ["new", 1, "second"]
    assert written(diaries) == ["old", "new", "second"]
    assert client.status(task_id).repeated_steps == 0, "another question is not a repetition"


@pytest.mark.parametrize(("choice", "first"), [("reuse", "old"), ("rerun", "new")])
def test_by_default_a_changed_step_parks_the_task_until_an_operator_decides(
    client: FleetClient, diaries: Path, choice: str, first: str
) -> None:
    task_id = changed(client, diaries, "pause")
    view = eventually(lambda: (found := client.status(task_id)).state == "parked" and found)
    assert view.error["code"] == "step_changed"
    assert "step 'first' #0 asks for something else than before the restart" in view.error["message"]
    assert (view.attempt, view.finished_at) == (0, None), "it costs no attempt"
    assert written(diaries) == ["old"]
    client.resume(task_id, choice)  # type: ignore[arg-type]
    assert client.result(task_id, 30) == [first, 1, "second"]
    assert written(diaries) == (["old", "second"] if choice == "reuse" else ["old", "new", "second"])


def test_a_parked_task_goes_on_by_itself_when_the_change_is_taken_back(client: FleetClient, diaries: Path) -> None:
    task_id = changed(client, diaries, "pause")
    eventually(lambda: client.status(task_id).state == "parked")
    (diaries / "asked").write_text("old")
    client.resume(task_id)
    assert client.result(task_id, 30) == ["old", 1, "second"]


def test_a_large_result_is_kept_beside_the_journal_and_comes_back_after_a_crash(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    diary, gate = diaries / "diary", diaries / "gate"
    task = client.submit("test.large", {"size": 300_000, "diary": str(diary), "until": str(gate)})
    eventually(lambda: len(task.status().steps) == 2)
    with psycopg.connect(fleet.db_url.replace("+psycopg", "")) as connection:
        query = """SELECT s.in_blob, s.result, length(b.data::text) FROM steps s
                   JOIN blobs b USING (task_id, name, ordinal)"""
        ((in_blob, result, length),) = connection.execute(query).fetchall()
    assert (in_blob, result) == (True, None)
    assert length > 300_000
    fleet.kill("worker-1", signal.SIGKILL)
    gate.touch()
    assert task.result(60) == 300_000
    view = task.status()
    assert diary.read_text().split() == ["1", "2"], "made once, and the slow step was cut before it had written"
    assert [(step.name, step.executions, step.in_doubt) for step in view.steps] == [("large", 1, 0), ("slow", 2, 1)]
    assert view.repeated_steps == 0


def test_a_call_that_nobody_saw_end_is_told_on_the_task_and_in_its_report(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    eventually(lambda: fleet.status("worker-1") == "ready")
    gate = diaries / "gate"
    task = client.submit("test.until", {"file": str(gate)})
    eventually(lambda: task.status().steps)
    fleet.kill("worker-1", signal.SIGKILL)
    gate.touch()
    assert task.result(60) is True
    view = task.status()
    assert (view.in_doubt_steps, view.repeated_steps) == (1, 0)
    assert (view.report or {})["in_doubt"] == 1
