"""A worker that cannot say that it lives ends its runs in time, writes nothing more, and comes back."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.client import FleetClient
from tests.integration.fleets import QUICK, WAITING, client_of, fleet_of
from tests.integration.live import eventually
from tests.integration.load import started_at
from tests.integration.worker_of import OwnWorker, own_worker
from workers.ops.background import BackgroundSupervisor

RUNS = 5
FENCED = 'state="fenced"'


@pytest.fixture(scope="module")
def fleet(run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    more = {**QUICK, **WAITING, "FLEET_AGENTS": "tests.integration.diary_agents"}
    with fleet_of(0, folder=run_folder(), more=more) as started:
        yield started


@pytest.fixture
def client(fleet: BackgroundSupervisor) -> Iterator[FleetClient]:
    client = client_of(fleet)
    yield client
    client.close()


@pytest.fixture
def worker(fleet: BackgroundSupervisor) -> Iterator[OwnWorker]:
    with own_worker(fleet, 1) as started:
        yield started


@pytest.fixture
def diaries(run_folder: Callable[[], Path]) -> Path:
    folder = run_folder()
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def test_a_worker_that_cannot_write_its_heartbeat_ends_its_runs_in_time_and_goes_on_with_them_later(
    fleet: BackgroundSupervisor, client: FleetClient, worker: OwnWorker, diaries: Path
) -> None:
    """Its runs beat into diaries, so their end shows outside of the ledger."""
    runs = [client.submit("diary.ticks", {"diary": str(diaries / str(n)), "ticks": 150}).id for n in range(RUNS)]
    eventually(lambda: len(list(diaries.iterdir())) == RUNS)
    fleet.freeze("postgres")
    try:
        eventually(lambda: worker.metric("fleet_worker_fenced_total") == 1)
        lines = {page.name: page.read_text() for page in diaries.iterdir()}
        time.sleep(1)
        assert {page.name: page.read_text() for page in diaries.iterdir()} == lines, "nothing runs on behind the fence"
    finally:
        fleet.thaw("postgres")
    thawed_at = time.time()
    eventually(lambda: worker.metric("fleet_tasks_ended_total", FENCED) == RUNS)  # before they were through
    eventually(lambda: all(client.status(task_id).epoch > 1 for task_id in runs))
    print(f"running again {time.time() - thawed_at:.2f} s after the ledger was back")
    assert [client.result(task_id, 60) for task_id in runs] == [150] * RUNS


def test_runs_of_a_frozen_worker_that_wakes_after_the_takeover_are_fenced_and_counted(
    fleet: BackgroundSupervisor, client: FleetClient, worker: OwnWorker, diaries: Path
) -> None:
    with own_worker(fleet, 2) as other:
        inputs = [{"diary": str(diaries / str(n)), "number": n, "count": 20, "step_s": 0.3} for n in range(20)]
        runs = [client.submit("diary.steps", each).id for each in inputs]
        eventually(lambda: len(started_at(fleet, runs)) == len(runs))
        fleet.kill(worker.name, signal.SIGSTOP)
        eventually(lambda: any(client.status(task_id).attempt == 2 for task_id in runs))
        fleet.kill(worker.name, signal.SIGCONT)
        eventually(lambda: worker.metric("fleet_worker_fenced_total") == 1)
        eventually(lambda: worker.metric("fleet_tasks_ended_total", FENCED) > 0)
        assert other.metric("fleet_worker_fenced_total") == 0
        assert [client.result(task_id, 60) for task_id in runs] == list(range(20))
    views = [client.status(task_id) for task_id in runs]
    assert {view.repeated_steps for view in views} == {0}
    assert max(view.attempt for view in views) == 2
