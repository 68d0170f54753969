"""Leaving in good order: runs are put down between their steps, go on elsewhere at once, and nothing is repeated."""

import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from shared.client import FleetClient
from shared.errors import TaskFailed
from shared.ledger.knobs import LedgerKnobs
from tests.integration.fleets import STEADY, WAITING, StartFleet
from tests.integration.live import eventually
from tests.integration.load import start_steps
from tests.integration.test_worker_death import running_on
from tests.integration.worker_of import own_worker
from workers.ops.background import BackgroundSupervisor
from workers.ops.census import identify, is_alive

RUNS = 30
STEPS = 8
HEARTBEAT_S = 2


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    """Patient: a worker hands back within a heartbeat's time, and calls of less than a second are not to be cut."""
    patience = {"FLEET_LEDGER_HEARTBEAT_S": "5", "FLEET_WORKER_CUT_S": "8"}
    more = {**WAITING, **STEADY, **patience, "FLEET_WORKER_DRAIN_S": "0.5"}
    with start_fleet(2, more=more) as started:
        yield started


def test_a_rolling_restart_under_load_repeats_nothing_leaves_nothing_in_doubt_and_costs_no_attempt(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    runs = start_steps(client, diaries, runs=RUNS, count=STEPS, step_s=0.7)
    assert min(running_on(fleet).values()) > 0
    for name in ("worker-1", "worker-2"):
        fleet.restart(name)
    handed_back = 0
    for task_id, diary in runs.items():
        assert client.result(task_id, 60) == list(range(STEPS))
        view = client.status(task_id)
        assert (view.attempt, view.in_doubt_steps, view.repeated_steps) == (1, 0, 0)
        assert diary.read_text().split() == [str(number) for number in range(STEPS)], "every step once, in order"
        handed_back += view.epoch > 1
    assert handed_back > 0


def test_a_run_that_is_handed_back_goes_on_elsewhere_at_once(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    runs = start_steps(client, diaries, runs=RUNS, count=STEPS, step_s=0.5)
    fleet.stop("worker-1")
    try:
        for task_id in runs:
            assert client.result(task_id, 60) == list(range(STEPS))
            view = client.status(task_id)
            starts = [step.started_at for step in view.steps]
            gaps = [(after - before).total_seconds() for before, after in pairwise(starts)]
            assert max(gaps) < LedgerKnobs().redispatch_s, "nobody had to publish it again"
            assert view.attempt == 1
    finally:
        fleet.start("worker-1")


def test_a_call_that_does_not_end_before_the_last_deadline_is_cut_and_told_as_in_doubt(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    fleet.stop("worker-2")
    try:
        end = diaries / "end"
        task = client.submit("test.until", {"file": str(end)})
        eventually(lambda: task.status().steps)
        fleet.stop("worker-1")
        assert task.status().state == "queued", "it did not wait for the end of the call"
        end.touch()
        fleet.start("worker-2")
        assert task.result(60) is True
        view = task.status()
        assert (view.attempt, view.in_doubt_steps, view.repeated_steps) == (1, 1, 0)
        assert (view.report or {})["in_doubt"] == 1
    finally:
        for name in ("worker-1", "worker-2"):
            if fleet.status(name) != "ready":
                fleet.start(name)


def test_a_worker_leaves_in_time_whatever_its_agents_do_and_their_runs_are_handed_back(
    fleet: BackgroundSupervisor, client: FleetClient, diaries: Path
) -> None:
    more = {"FLEET_AGENTS": "tests.integration.leaving_agents", "FLEET_WORKER_DRAIN_S": "0.2"}
    with own_worker(fleet, 3, **more, FLEET_WORKER_CUT_S="0.2") as worker:
        with pytest.raises(TaskFailed, match="the hard time limit passed"):
            client.submit("leaving.overstays", {"diary": str(diaries / "overstays")}).result(30)
        tasks = [client.submit(f"leaving.{what}", {"diary": str(diaries / what)}) for what in ("clings", "blocks")]
        eventually(lambda: len(list(diaries.iterdir())) == 3)
        process = identify(fleet.pid(worker.name))
        fleet.suspend(worker.name)
        fleet.kill(worker.name, signal.SIGTERM)
        assert process is not None
        eventually(lambda: not is_alive(process))
        log = fleet.around.run.log(worker.name).read_text()
        assert '"event": "worker.stopped"' in log
        assert "pool.runs_left_behind" in log
        assert [task.status().state for task in tasks] == ["queued", "queued"]


def test_a_drain_that_outlasts_several_broker_heartbeats_keeps_the_connection_and_the_run(
    fleet: BackgroundSupervisor, servers: BackgroundSupervisor, client: FleetClient
) -> None:
    broker_log = servers.around.run.log("rabbitmq")
    said_before = len(broker_log.read_text())
    more = {"FLEET_BROKER_HEARTBEAT_S": str(HEARTBEAT_S), "FLEET_WORKER_DRAIN_S": "60"}
    fleet.stop("worker-1")
    fleet.stop("worker-2")
    try:
        with own_worker(fleet, 4, **more) as worker:
            task = client.submit("test.sleep", {"seconds": 4 * HEARTBEAT_S})
            eventually(lambda: task.status().state == "running")
            fleet.suspend(worker.name)
            fleet.kill(worker.name, signal.SIGTERM)
            assert task.result(60)
            assert task.status().attempt == 1
            eventually(lambda: fleet.status(worker.name) != "ready")
            log = fleet.around.run.log(worker.name).read_text()
    finally:
        for name in ("worker-1", "worker-2"):
            fleet.start(name)
    assert '"event": "worker.stopped"' in log
    assert "hub_callback_failed" not in log
    assert "missed heartbeats" not in broker_log.read_text()[said_before:]
