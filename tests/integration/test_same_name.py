"""A second worker under a name that is in use: one line says what to do, and the first one never notices."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from threading import Thread

import psycopg
import pytest
from kombu import Connection, Queue

from shared.client import FleetClient
from tests.integration.fleets import StartFleet
from tests.integration.live import eventually
from tests.integration.worker_of import own_worker
from workers.ops.background import BackgroundSupervisor
from workers.ops.surroundings import ROOT

PULSE = {"FLEET_LEDGER_HEARTBEAT_S": "6", "FLEET_LEDGER_DEAD_AFTER_S": "15"}
"""A second worker looks for one heartbeat and a half: on a busy machine, one of half a second comes too late for it."""
LOST = "Connection to broker lost"
TRIES = 3
"""How often the worker finds its name taken: each time it says no more than Celery does."""


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    with start_fleet(0, more=PULSE) as started:
        yield started


def workers(fleet: BackgroundSupervisor) -> list[tuple[str, int]]:
    with psycopg.connect(fleet.db_url.replace("+psycopg", "")) as connection:
        rows = connection.execute("SELECT state, pid FROM workers ORDER BY started_at").fetchall()
    return [(state, pid) for state, pid in rows]


def test_a_second_worker_of_one_name_says_what_to_do_and_leaves_the_first_alone(
    fleet: BackgroundSupervisor, client: FleetClient
) -> None:
    with own_worker(fleet, 1) as first:
        task = client.submit("test.sleep", {"seconds": 600})
        eventually(lambda: task.status().state == "running")
        second = subprocess.run(
            [sys.executable, "-m", "celery", "-A", "workers.agents.main", "worker", "-n", f"{first.name}@%h"],
            cwd=ROOT,
            env={**os.environ, **fleet.env, "FLEET_AGENTS": "tests.integration.agents"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert second.returncode == 2
        told = [line for line in (second.stdout + second.stderr).splitlines() if "another worker named" in line]
        assert len(told) == 1
        assert "give each its own name, for example -n worker-2@%h" in told[0]
        assert "Traceback" not in second.stderr + second.stdout
        assert [state for state, _ in workers(fleet)] == ["alive", "stopped"]
        assert (task.status().state, task.status().attempt) == ("running", 1)
        client.cancel(task.id)
        assert first.metric("fleet_worker_fenced_total") == first.metric("fleet_broker_away") == 0


def test_a_killed_worker_is_replaced_under_its_name_at_once(fleet: BackgroundSupervisor, client: FleetClient) -> None:
    with own_worker(fleet, 2) as worker:
        eventually(lambda: worker.ask("/readyz")[0] == 200)
        state, pid = workers(fleet)[-1]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: workers(fleet)[-1][1] != pid and worker.ask("/readyz")[0] == 200, within_s=120)
        assert state == "alive"
        assert client.submit("test.echo", {"text": "back"}).result(30)["said"] == ["back"]


def test_a_worker_whose_name_a_lost_connection_still_holds_waits_for_it_quietly(
    fleet: BackgroundSupervisor, client: FleetClient
) -> None:
    """Such as its own from before the network broke: RabbitMQ gives that up only after some missed heartbeats."""
    with Connection(fleet.broker_url) as ghost:
        name = f"worker-3@{socket.gethostname()}"
        Queue(f"{name}.celery.pidbox", exclusive=True, auto_delete=True)(ghost.channel()).declare()
        page = fleet.around.run.log("worker-3")

        def leave() -> None:
            eventually(lambda: page.exists() and page.read_text().count(LOST) >= TRIES, within_s=120)
            ghost.release()

        leaving = Thread(target=leave)
        leaving.start()
        with own_worker(fleet, 3) as worker:
            assert client.submit("test.echo", {"text": "at last"}).result(30)["said"] == ["at last"]
            eventually(lambda: worker.metric("fleet_broker_away") == 0)
        leaving.join()
        log = page.read_text()
    assert log.count("consumer.name_taken") == 1
    assert "give each its own name, for example -n worker-2@%h" in log
    assert "CPendingDeprecationWarning" not in log
