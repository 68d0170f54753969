"""`fleet up`, `status` and `down` as an operator meets them."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.integration.live import eventually
from workers.ops.census import Identity, is_alive, send
from workers.ops.inspection import supervisor_of
from workers.ops.run_dir import RunDir
from workers.ops.surroundings import ROOT

UP = ("up", "--servers-only", "--profile", "embedded")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("FLEET_")},
    "PYTHONPATH": str(ROOT),
    "FLEET_VECTORS_URI": "http://127.0.0.1:1",  # given by the operator: none of our own is started
    "FLEET_LLM_BASE_URL": "http://127.0.0.1:1/v1",
}


@pytest.fixture(scope="module")
def used(run_folder: Callable[[], Path]) -> Path:
    """A folder that one fleet after the other uses: only the first has to make its databases."""
    return run_folder()


@pytest.fixture
def folder(used: Path) -> Iterator[Path]:
    """The folder of one fleet, which is down after the test whatever happened."""
    yield used
    fleet(used, "down")


@pytest.fixture
def new_folder(run_folder: Callable[[], Path]) -> Iterator[Path]:
    """The same, never used before."""
    made = run_folder()
    yield made
    fleet(made, "down")


def command(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "workers.ops.main", *words, "--dir", str(folder)]


def fleet(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(folder, *words), capture_output=True, text=True, env=ENVIRONMENT, check=False)


def fleet_json(folder: Path, *words: str) -> Any:
    return json.loads(fleet(folder, *words, "--json").stdout)


def pids(folder: Path) -> list[Identity]:
    rows = RunDir(folder).read_state().get("servers", [])
    return [Identity(pid=row["pid"], started_ticks=row["started_ticks"]) for row in rows if row["pid"]]


def test_fleet_comes_up_is_seen_and_goes_down(folder: Path) -> None:
    seen = fleet_json(folder, *UP)
    assert seen["healthy"]
    assert [server["name"] for server in seen["servers"]] == ["postgres", "replica", "redis"]
    with psycopg.connect(seen["env"]["FLEET_DB_URL"].replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE TABLE kept ()")

    again = fleet(folder, *UP)
    assert again.returncode == 0
    assert "A fleet already runs in" in again.stderr

    status = fleet(folder, "status")
    assert status.returncode == 0
    assert "PostgreSQL primary" in status.stdout

    processes = pids(folder)
    down = fleet(folder, "down")
    assert down.returncode == 0
    assert down.stdout.startswith("Stopped ")
    assert len(processes) == 3
    assert not [process for process in processes if is_alive(process)]
    assert fleet(folder, "status").returncode == 1
    assert fleet(folder, "down").stdout.startswith("No fleet runs in ")

    back = fleet_json(folder, *UP)
    assert back["env"] == seen["env"], "the same ports again"
    with psycopg.connect(back["env"]["FLEET_DB_URL"].replace("+psycopg", "")) as connection:
        connection.execute("SELECT FROM kept")
    assert fleet_json(folder, "down")["forced"] is False


def test_status_tells_a_server_that_does_not_answer(folder: Path) -> None:
    fleet_json(folder, *UP)
    redis = next(row for row in RunDir(folder).read_state()["servers"] if row["name"] == "redis")
    send(Identity(pid=redis["pid"], started_ticks=redis["started_ticks"]), signal.SIGSTOP)

    def sick() -> list[tuple[str, str]]:
        seen = fleet(folder, "status", "--json")
        assert seen.returncode == 1
        return [(one["name"], one["detail"]) for one in json.loads(seen.stdout)["servers"] if not one["healthy"]]

    eventually(lambda: sick() == [("redis", "no answer within 1 s")])  # the others may be late on a busy machine
    assert fleet(folder, "down").returncode == 0


def test_supervisor_that_was_killed_is_reported_and_a_new_one_starts(folder: Path) -> None:
    fleet_json(folder, *UP)
    processes, supervisor = pids(folder), supervisor_of(RunDir(folder))
    assert supervisor
    send(supervisor, signal.SIGKILL)
    eventually(lambda: not [process for process in processes if is_alive(process)])
    assert fleet_json(folder, "status")["running"] is False
    assert fleet_json(folder, *UP)["healthy"]
    assert fleet(folder, "down").returncode == 0


def test_ctrl_c_stops_what_was_started_without_a_stack_trace(new_folder: Path) -> None:
    starting = subprocess.Popen(
        command(new_folder, *UP), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    eventually(lambda: RunDir(new_folder).read_state().get("servers"))
    starting.send_signal(signal.SIGINT)
    _, said = starting.communicate()
    assert starting.returncode == 130
    assert "Traceback" not in said
    assert said.endswith("Interrupted: everything that had been started is stopped.\n")
    assert supervisor_of(RunDir(new_folder)) is None
    assert pids(new_folder) == []


def test_supervisor_killed_in_the_middle_of_a_start_leaves_nothing_and_the_next_start_works(new_folder: Path) -> None:
    starting = subprocess.Popen(
        command(new_folder, *UP), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    processes = eventually(lambda: pids(new_folder))
    supervisor = supervisor_of(RunDir(new_folder))
    assert supervisor
    send(supervisor, signal.SIGKILL)
    _, said = starting.communicate()
    assert starting.returncode == 1
    assert said.endswith("Error: The supervisor was killed by signal 9 before the fleet was ready.\n")
    eventually(lambda: not [process for process in processes if is_alive(process)])
    assert fleet_json(new_folder, *UP)["healthy"]


def test_wrong_knob_is_refused_with_its_variable(folder: Path) -> None:
    wrong = {**ENVIRONMENT, "FLEET_OPS_FREE_BYTES": "much"}
    refused = subprocess.run(command(folder, *UP), capture_output=True, text=True, env=wrong, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("Error: FLEET_OPS_FREE_BYTES: ")
    assert refused.stderr.count("\n") == 1


def test_a_port_that_somebody_has_is_named_with_the_remedy_and_nothing_starts(new_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = fleet(new_folder, *UP, "--port", f"redis={port}")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"Error: Port {port} for redis is taken on 127.0.0.1; ")
    assert refused.stderr.count("\n") == 1
    assert pids(new_folder) == []


def test_failed_start_is_one_sentence_and_leaves_nothing_running(folder: Path) -> None:
    pinned = fleet(folder, *UP, "--port", "redis=80000")
    assert (pinned.returncode, pinned.stdout) == (2, "")
    assert pinned.stderr == "Error: --port redis=80000 is not NAME=PORT; write for example --port flower=5555.\n"
    refused = fleet(Path("/proc/fleet"), *UP, "--json")
    assert refused.returncode == 2
    assert json.loads(refused.stderr)["error"]["code"] == "misconfigured"
    if not (folder / "data").exists():
        fleet_json(folder, *UP)
        fleet(folder, "down")
    cluster = folder / "data" / "postgres" / "cluster" / "PG_VERSION"
    cluster.write_text("7\n")
    broken = fleet(folder, *UP)
    assert broken.returncode == 1
    assert "Error: Server postgres exited with code 1 before it was ready; its log is" in broken.stderr
    assert "Traceback" not in broken.stderr
    assert pids(folder) == []
