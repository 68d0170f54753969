"""Children: tasks of their own, gathered in the ledger, cancelled with their parent, started once whoever dies."""

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import dict_row

from shared.client import FleetClient
from shared.errors import TaskCancelled, TaskFailed
from tests.integration.fleets import QUICK, WAITING, StartFleet
from tests.integration.live import eventually
from workers.ops.background import BackgroundSupervisor


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    with start_fleet(2, more={**QUICK, **WAITING}) as started:
        yield started


def children_of(fleet: BackgroundSupervisor, parent: UUID) -> list[dict[str, object]]:
    with psycopg.connect(fleet.db_url.replace("+psycopg", ""), row_factory=dict_row) as connection:
        return connection.execute(
            "SELECT id, state, epoch, attempt, tenant, root_agent, error FROM tasks WHERE parent_id = %s", [parent]
        ).fetchall()


def family_states(fleet: BackgroundSupervisor, parent: UUID) -> Counter[object]:
    return Counter(child["state"] for child in children_of(fleet, parent))


def written(diary: Path) -> Counter[int]:
    return Counter(int(line) for line in diary.read_text().split()) if diary.exists() else Counter()


def test_a_parent_gathers_what_fifty_children_bring_and_holds_no_slot_meanwhile(
    fleet: BackgroundSupervisor, client: FleetClient, diary: Path
) -> None:
    gate = diary.with_name("gate")
    task = client.submit("test.family", {"count": 50, "diary": str(diary), "until": str(gate)}, tenant="acme")
    waiting = eventually(lambda: (found := task.status()).state == "waiting" and found)
    assert waiting.waiting_for["kind"] == "children"
    assert len(waiting.waiting_for["ids"]) == 50
    gate.touch()
    assert task.result(60) == [number * 10 for number in range(50)]
    view = task.status()
    assert (view.attempt, view.repeated_steps, view.in_doubt_steps) == (1, 0, 0)
    assert written(diary) == Counter({1000: 1}) + Counter(dict.fromkeys(range(50), 2))
    children = children_of(fleet, task.id)
    assert len(children) == 50
    assert {(child["state"], child["tenant"], child["root_agent"]) for child in children} == {
        ("succeeded", "acme", "test.family")
    }


def test_a_parent_goes_on_with_its_last_child_though_no_keeper_looks(
    fleet: BackgroundSupervisor, client: FleetClient, diary: Path
) -> None:
    fleet.stop("keeper")
    try:
        gate = diary.with_name("gate")
        task = client.submit("test.family", {"count": 3, "diary": str(diary), "steps": 1, "until": str(gate)})
        eventually(lambda: task.status().state == "waiting")
        gate.touch()
        assert task.result(60) == [0, 10, 20]
    finally:
        fleet.start("keeper")


def test_a_child_that_fails_fails_the_parent_with_its_error_once_all_have_ended(
    client: FleetClient, diary: Path
) -> None:
    task = client.submit("test.family", {"count": 4, "diary": str(diary), "fail": 2})
    with pytest.raises(TaskFailed, match=r"child test.kid \S+ failed: RuntimeError: kid 2 has had enough"):
        task.result(30)
    assert (task.status().error or {})["code"] == "child_failed"


def test_a_parent_may_take_a_failed_child_as_a_result(client: FleetClient, diary: Path) -> None:
    task = client.submit("test.family", {"count": 1, "diary": str(diary), "fail": -2})
    assert task.result(30) == [0]


def test_a_family_whose_workers_are_killed_again_and_again_has_each_child_once(
    fleet: BackgroundSupervisor, client: FleetClient, diary: Path
) -> None:
    tasks = [
        client.submit(
            "test.family", {"count": 6, "diary": f"{diary}{number}", "step_s": 0.4, "steps": 4}, max_attempts=20
        )
        for number in range(8)
    ]
    for victim in ("worker-1", "worker-2", "worker-1"):
        time.sleep(1.5)
        eventually(lambda name=victim: fleet.status(name) == "ready")  # type: ignore[misc]
        fleet.kill(victim, signal.SIGKILL)
    for number, task in enumerate(tasks):
        assert task.result(90) == [kid * 10 for kid in range(6)]
        children = children_of(fleet, task.id)
        assert len(children) == 6
        views = [client.status(str(child["id"])) for child in children] + [task.status()]
        assert [view.repeated_steps for view in views] == [0] * 7
        lines = written(Path(f"{diary}{number}"))
        doubts = sum(view.in_doubt_steps for view in views)
        assert sum(lines.values()) - (6 * 4 + 1) <= doubts, "calls beyond the plan are told as in doubt"
        assert all(lines[kid] >= 4 for kid in range(6))


def test_a_cancelled_parent_takes_its_children_and_theirs_with_it(
    fleet: BackgroundSupervisor, client: FleetClient, diary: Path
) -> None:
    task = client.submit("test.dynasty", {"depth": 3, "diary": str(diary), "seconds": 3600})
    generation: list[UUID] = [task.id]
    for _ in range(3):
        found = eventually(lambda: children_of(fleet, generation[-1]))
        generation.append(UUID(str(found[0]["id"])))
    eventually(lambda: client.status(generation[-1]).state == "running" and client.status(generation[-1]).steps)
    client.cancel(task.id)
    eventually(lambda: {client.status(one).state for one in generation} == {"cancelled"})
    with pytest.raises(TaskCancelled):
        task.result(1)
    assert written(diary) == Counter(), "the last of them was cut off in its step"


def test_children_of_a_parent_that_fails_are_cancelled(
    fleet: BackgroundSupervisor, client: FleetClient, diary: Path
) -> None:
    task = client.submit("test.bankrupt", {"diary": str(diary)})
    with pytest.raises(TaskFailed, match="spent it all"):
        task.result(30)
    eventually(lambda: family_states(fleet, task.id) == Counter(cancelled=2))


def test_a_child_that_is_cancelled_by_itself_is_told_to_its_parent(
    fleet: BackgroundSupervisor, client: FleetClient, diary: Path
) -> None:
    task = client.submit("test.family", {"count": 2, "diary": str(diary), "step_s": 600})
    children = eventually(lambda: (found := children_of(fleet, task.id)) and len(found) == 2 and found)
    eventually(lambda: task.status().state == "waiting")
    for child in children:
        client.cancel(str(child["id"]))
    with pytest.raises(TaskFailed, match=r"child test.kid \S+ was cancelled"):
        task.result(30)
