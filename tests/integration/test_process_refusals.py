"""Workers and keepers that cannot work as they are set up: one line with the remedy, and an exit code for scripts."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from kombu import Connection

from shared.broker.knobs import BrokerKnobs
from shared.broker.publisher import Publisher
from shared.contracts import QUEUE, TaskMessage
from tests.integration.live import Database, eventually
from tests.integration.terminal import WITHOUT_FLEET
from workers.ops.background import BackgroundSupervisor
from workers.ops.surroundings import ROOT

WORKER = ("celery", "-A", "workers.agents.main", "worker", "-n", "refused@%h")
KEEPER = ("workers.keeper.main",)
BOTH = pytest.mark.parametrize("process", [WORKER, KEEPER], ids=["worker", "keeper"])


@pytest.fixture
def env(servers: BackgroundSupervisor, database: Database) -> dict[str, str]:
    return {**servers.env, "FLEET_DB_URL": database.url}


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refused(process: tuple[str, ...], env: Mapping[str, str]) -> str:
    """The last line that a process has to say about why it does not start."""
    done = subprocess.run(
        [sys.executable, "-m", *process], env={**WITHOUT_FLEET, **env}, cwd=ROOT, timeout=120, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert done.returncode not in (0, -signal.SIGKILL), said
    (told,) = [line for line in said.splitlines() if line.startswith("fleet ") or "refused_to_start" in line]
    return told


@BOTH
def test_a_wrong_variable_is_named(process: tuple[str, ...]) -> None:
    told = refused(process, {"FLEET_BROKER_QUEUE_TYPE": "classic"})
    assert "FLEET_BROKER_QUEUE_TYPE" in told


@BOTH
def test_a_metrics_port_that_somebody_has_is_named_with_its_variable(
    process: tuple[str, ...], env: dict[str, str], taken: int
) -> None:
    room = "WORKER" if process is WORKER else "KEEPER"
    told = refused(process, {**env, f"FLEET_{room}_METRICS_PORT": str(taken)})
    assert f"FLEET_{room}_METRICS_PORT: port {taken} cannot be served (Address already in use)" in told
    assert "choose a free one, or 0 for no metrics" in told


def test_a_queue_that_exists_with_other_arguments_is_named_with_the_remedy(env: dict[str, str]) -> None:
    with Connection(env["FLEET_BROKER_URL"]) as broker:
        broker.default_channel.queue_delete(QUEUE)
        broker.default_channel.queue_declare(QUEUE, durable=True, auto_delete=False)
    try:
        told = refused(WORKER, env)
        patient = BrokerKnobs(url=env["FLEET_BROKER_URL"], connect_timeout_s=30, socket_timeout_s=30)
        sent = Publisher(patient).publish(TaskMessage("a")).exception(90)
    finally:
        with Connection(env["FLEET_BROKER_URL"]) as broker:
            broker.default_channel.queue_delete(QUEUE)
    for sentence in (told, str(sent)):
        assert f"queue '{QUEUE}' exists on the broker with another x-" in sentence
        assert f"rabbitmqctl delete_queue {QUEUE}" in sentence


def test_a_worker_that_waits_for_the_database_at_its_start_leaves_on_sigterm(
    env: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    nobody = {**env, "FLEET_DB_URL": "postgresql+psycopg://fleet@127.0.0.1:1/fleet"}
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", *WORKER], env={**WITHOUT_FLEET, **nobody}, cwd=ROOT, stdout=output, stderr=output
        )
    try:
        eventually(lambda: "resilience.waiting" in log.read_text(), within_s=60)
        os.kill(worker.pid, signal.SIGTERM)
        assert worker.wait(30) == 0
    finally:
        worker.kill()
        worker.wait()
    assert "Traceback" not in log.read_text()
