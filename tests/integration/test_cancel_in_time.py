"""A cancel reaches a running run within a second by Redis, and without it by the ledger."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.client import FleetClient
from tests.integration.fleets import QUICK, client_of, fleet_of
from tests.integration.live import eventually
from tests.integration.load import started_at
from workers.ops.background import BackgroundSupervisor

MARGIN_S = 1.0
"""On a machine that is busy with other things; a worker looks every half second."""


@pytest.fixture(scope="module")
def fleet(run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    with fleet_of(1, folder=run_folder(), more=QUICK) as started:
        yield started


@pytest.fixture
def client(fleet: BackgroundSupervisor, monkeypatch: pytest.MonkeyPatch) -> Iterator[FleetClient]:
    monkeypatch.setenv("FLEET_MEMORY_REDIS_URL", fleet.redis_url)
    client = client_of(fleet)
    yield client
    client.close()


def seconds_to_cancel(fleet: BackgroundSupervisor, client: FleetClient) -> float:
    task = client.submit("test.sleep", {"seconds": 60})
    eventually(lambda: started_at(fleet, [task.id]))
    asked_at = time.time()
    client.cancel(task.id)
    view = eventually(lambda: (found := client.status(task.id)).is_finished and found)
    assert view.state == "cancelled"
    return float(view.finished_at.timestamp() - asked_at)


def test_with_redis_at_once(fleet: BackgroundSupervisor, client: FleetClient) -> None:
    took = sorted(seconds_to_cancel(fleet, client) for _ in range(5))
    print(f"cancelled within {took[0]:.3f} to {took[-1]:.3f} s")
    assert took[-1] < 1.0
    assert took[2] < 0.25, "told by Redis, not found by a look every half second"


@pytest.mark.parametrize("how", ["stopped", "hung"])
def test_without_redis_by_the_ledger_and_at_once_again_when_it_is_back(
    how: str, fleet: BackgroundSupervisor, client: FleetClient
) -> None:
    if how == "stopped":
        fleet.stop("redis")
    else:
        fleet.freeze("redis")
    try:
        took = sorted(seconds_to_cancel(fleet, client) for _ in range(3))
    finally:
        if how == "stopped":
            fleet.start("redis")
        else:
            fleet.thaw("redis")
    print(f"{how}: cancelled within {took[0]:.3f} to {took[-1]:.3f} s")
    assert took[-1] < 1.0 + MARGIN_S
    eventually(lambda: seconds_to_cancel(fleet, client) < 0.4)
