"""Replay, fork and resume with real workers: what was completed is not executed again, and the ledger stays sound."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest

from shared.client import FleetClient
from shared.errors import ResultPending, TaskFailed
from tests.integration.fleets import STEADY, StartFleet
from tests.integration.live import eventually
from tests.integration.terminal import fleet_json
from workers.ops.background import BackgroundSupervisor


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    with start_fleet(1, more=STEADY) as started:
        yield started
        verdict = fleet_json("verify", "--grace-s", "10", env=started.env)
        assert verdict["holds"] is True, verdict


@pytest.fixture
def diary(diaries: Path) -> str:
    return str(diaries / "diary")


def written(diary: str) -> list[str]:
    return Path(diary).read_text("utf-8").split()


def is_waiting(client: FleetClient, task_id: UUID) -> Callable[[], bool]:
    return lambda: client.status(task_id).state == "waiting"


def test_a_task_that_failed_is_replayed_from_a_step_and_executes_no_other(client: FleetClient, diary: str) -> None:
    inputs = {"number": 7, "count": 3, "step_s": 0.0, "diary": diary, "fail": True}
    task = client.submit("test.kid", inputs)
    with pytest.raises(TaskFailed, match="kid 7 has had enough"):
        task.result(30)
    assert len(written(diary)) == 3
    client.replay(task.id)
    with pytest.raises(TaskFailed, match="kid 7 has had enough"):
        task.result(30)
    assert len(written(diary)) == 3, "it ended in its own code, after its last step"
    assert [one.label for one in client.preview(task.id, "share#2").again] == ["share#2"]
    client.replay(task.id, "share#2")
    with pytest.raises(TaskFailed):
        task.result(30)
    assert len(written(diary)) == 4
    assert task.status().repeated_steps == 0


def test_a_fork_executes_only_the_steps_from_its_own_on(client: FleetClient, diary: str) -> None:
    task = client.submit("test.steps", {"count": 4, "step_s": 0.0, "diary": diary})
    assert task.result(30) == [0, 1, 2, 3]
    forked = client.fork(task.id, "slow#2")
    assert forked.result(30) == [0, 1, 2, 3]
    assert written(diary) == ["0", "1", "2", "3", "2", "3"]
    assert forked.status().forked_from == task.id
    assert task.status().finished_at < forked.status().finished_at  # type: ignore[operator]


def test_a_fork_of_a_parent_takes_the_children_that_the_first_one_paid_for(client: FleetClient, diary: str) -> None:
    task = client.submit("test.family", {"count": 2, "diary": diary, "steps": 1})
    assert task.result(30) == [0, 10]
    forked = client.fork(task.id, "done")
    assert forked.result(30) == [0, 10]
    assert sorted(written(diary)) == sorted(["0", "1", "1000", "1000"])


def test_a_signal_reaches_a_waiting_task_through_the_client_and_a_cancel_its_children(
    client: FleetClient, diary: str
) -> None:
    task = client.submit("test.approval", {"diary": diary, "timeout_s": 60})
    eventually(is_waiting(client, task.id))
    with pytest.raises(ResultPending, match="is waiting for signal approval"):
        client.result(task.id, 0)
    client.signal(task.id, "approval", "yes")
    assert task.result(30) == ["yes"]
    parent = client.submit("test.family", {"count": 2, "diary": diary, "step_s": 3600.0})
    eventually(lambda: [one.state for one in parent.status().children] == ["running", "running"])
    client.cancel(parent.id)
    eventually(lambda: {one.state for one in parent.status().children} == {"cancelled"})
    eventually(lambda: client.status(parent.id).state == "cancelled")  # it ran, and so may have ended after them


def test_a_task_stopped_by_a_changed_step_goes_on_as_the_operator_says(client: FleetClient, diary: str) -> None:
    asked = Path(f"{diary}-asked")
    for on_change, first in [("reuse", "one"), ("rerun", "two")]:
        asked.write_text("one")
        asked.chmod(0o666)
        task = client.submit("test.change.pause", {"diary": diary, "asked": str(asked)})
        eventually(is_waiting(client, task.id))
        asked.write_text("two")
        client.signal(task.id, "go", "gone")
        eventually(lambda task=task: client.status(task.id).state == "parked")  # type: ignore[misc]
        client.resume(task.id, on_change)  # type: ignore[arg-type]
        assert task.result(30) == [first, "gone", "second"]
