"""A cancel reaches a running run at once by Redis, and without it by the ledger, where workers look twice a second.

Which of the two it was shows in what the worker never does: it has another way only where the test gives it one.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from shared.client import FleetClient
from shared.contracts import CANCEL_CHANNEL
from shared.ledger import hurry
from shared.ledger.hurry import WAIT_S
from tests.integration.fleets import STEADY, client_of, fleet_of
from tests.integration.live import eventually
from tests.integration.worker_of import own_worker
from workers.agents.knobs import WorkerKnobs
from workers.ops.background import BackgroundSupervisor

LOOKS_LATER = {"FLEET_WORKER_CANCEL_POLL_S": "3600"}
"""Only Redis tells such a worker of a cancel."""


@pytest.fixture(scope="module")
def fleet(run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    with fleet_of(0, folder=run_folder(), more=STEADY) as started:
        yield started


@pytest.fixture
def client(fleet: BackgroundSupervisor, monkeypatch: pytest.MonkeyPatch) -> Iterator[FleetClient]:
    monkeypatch.setenv("FLEET_MEMORY_REDIS_URL", fleet.redis_url)
    client = client_of(fleet)
    yield client
    client.close()


def strike(fleet: BackgroundSupervisor, how: str) -> None:
    if how == "stopped":
        fleet.stop("redis")
    else:
        fleet.freeze("redis")


def mend(fleet: BackgroundSupervisor, how: str) -> None:
    if how == "stopped":
        fleet.start("redis")
    else:
        fleet.thaw("redis")


def listeners(fleet: BackgroundSupervisor) -> int:
    with Redis.from_url(fleet.redis_url) as redis:
        return int(redis.pubsub_numsub(CANCEL_CHANNEL)[0][1])


def cancels_while_it_runs(client: FleetClient) -> None:
    task = client.submit("test.until", {"file": "/nowhere/to/be/found"})
    eventually(lambda: task.status().steps)  # earlier, the claim is on disk and its worker may not know it yet
    client.cancel(task.id)
    view = eventually(lambda: (found := task.status()).is_finished and found)
    assert view.state == "cancelled"
    print(f"cancelled within {(view.finished_at - view.cancel_requested_at).total_seconds():.3f} s")


def test_a_look_every_half_second_and_a_short_wait_for_redis_are_within_a_second() -> None:
    assert WorkerKnobs().cancel_poll_s + WAIT_S <= 1.0


def test_with_redis_at_once_also_when_it_is_back(
    fleet: BackgroundSupervisor, client: FleetClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hurry, "WAIT_S", 30.0)  # the word has no second way here, so it may take its time
    with own_worker(fleet, 1, **LOOKS_LATER):
        eventually(lambda: listeners(fleet))
        for _ in range(5):
            cancels_while_it_runs(client)
        for how in ("stopped", "hung"):
            strike(fleet, how)
            mend(fleet, how)
            eventually(lambda: listeners(fleet))
            cancels_while_it_runs(client)


def test_without_redis_by_the_ledger(fleet: BackgroundSupervisor, client: FleetClient) -> None:
    with own_worker(fleet, 2):
        eventually(lambda: listeners(fleet))
        for how in ("stopped", "hung"):
            strike(fleet, how)
            try:
                for _ in range(3):
                    cancels_while_it_runs(client)
            finally:
                mend(fleet, how)
