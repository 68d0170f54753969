"""A running fleet goes through failovers of its database: all that was accepted is finished once, and all is well."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from shared.client import FleetClient
from shared.ledger.invariants import Patience, verify
from tests.integration.fleets import QUICK, fleet_of
from tests.integration.live import eventually
from workers.ops.background import BackgroundSupervisor
from workers.ops.replication.failover import Wish as FailoverWish

STEPS, STEP_S = 6, 0.4
TASKS = 12
DEAD_AFTER_S = 60.0
"""Longer than a failover on a busy machine: a worker fences itself at that age."""


@pytest.fixture
def ledger_first_s() -> None:
    """A submit waits for a primary that hangs no longer than in production."""


@pytest.fixture(scope="module")
def fleet(run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    """Two workers, a keeper, two replicas of which one has every acknowledged commit."""
    patient = QUICK | {"FLEET_LEDGER_DEAD_AFTER_S": str(DEAD_AFTER_S)}
    with fleet_of(2, folder=run_folder(), more=patient, replicas=2, synchronous=True) as started:
        yield started


@pytest.fixture
def client(fleet: BackgroundSupervisor) -> Iterator[FleetClient]:
    """A producer that was told the addresses when the fleet was started, and nothing since."""
    with patch.dict(os.environ, fleet.topology.env):
        client = FleetClient()
    yield client
    client.close()


def strike(fleet: BackgroundSupervisor, how: str) -> None:
    assert fleet.topology.group
    leader = fleet.topology.group.leader.name
    if how == "killed":
        fleet.suspend(leader)
        fleet.kill(leader)
    else:
        fleet.freeze(leader)


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_tasks_go_on_over_a_failover_and_end_once(
    fleet: BackgroundSupervisor, client: FleetClient, run_folder: Callable[[], Path], how: str
) -> None:
    folder = run_folder()
    folder.mkdir()
    folder.chmod(0o777)
    diaries = [folder / str(number) for number in range(TASKS)]
    inputs = [{"count": STEPS, "step_s": STEP_S, "diary": str(diary)} for diary in diaries]
    tasks = [client.submit("test.steps", one) for one in inputs[: TASKS // 2]]
    eventually(diaries[0].exists)
    pids = {name: fleet.pid(name) for name in ("worker-1", "worker-2", "keeper")}
    strike(fleet, how)
    outcome = fleet.failover_db(FailoverWish())
    assert outcome.lossless
    tasks += [client.submit("test.steps", one) for one in inputs[TASKS // 2 :]]
    assert [task.result(90) for task in tasks] == [list(range(STEPS))] * TASKS
    views = [task.status() for task in tasks]
    assert [(view.state, view.repeated_steps) for view in views] == [("succeeded", 0)] * TASKS
    said = [[int(line) for line in diary.read_text().split()] for diary in diaries]
    assert said == [list(range(STEPS))] * TASKS, "no step was done twice"
    assert {name: fleet.pid(name) for name in pids} == pids, "no process died with the primary"
    patience = Patience(dead_after_s=DEAD_AFTER_S, grace_s=15)
    broken = [one for one in client.operate(lambda database: verify(database, patience)) if not one.holds]
    assert broken == []
