"""No process outlives its supervisor: not after SIGKILL, not when servers are frozen, not when the guard died first."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.live import eventually
from workers.ops.census import Identity, identify, is_alive, members, send
from workers.ops.run_dir import RunDir
from workers.ops.supervisor import sweep_leftovers
from workers.ops.surroundings import ROOT

SUPERVISOR = """
import os, sys, signal
from pathlib import Path
from workers.ops.background import running
from workers.ops.topology import servers_only
with running(servers_only(), folder=Path(sys.argv[1]), inherited=dict(os.environ)):
    print("ready", flush=True)
    signal.pause()
"""


@dataclass(frozen=True, slots=True)
class Run:
    """A supervisor in a process of its own."""

    supervisor: "subprocess.Popen[str]"
    folder: Path

    def processes(self) -> dict[str, list[Identity]]:
        """Every process of every server, helpers included, and the guard."""
        rows = RunDir(self.folder).read_state()["servers"]
        leaders = {row["name"]: Identity(pid=row["pid"], started_ticks=row["started_ticks"]) for row in rows}
        found = {row["name"]: members(leaders[row["name"]], log=row["log"]) for row in rows}
        guard = identify(RunDir(self.folder).read_state()["guard_pid"])
        assert guard
        return {**found, "guard": [guard]}


@pytest.fixture
def run(run_folder: Callable[[], Path]) -> Iterator[Run]:
    folder = run_folder()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert supervisor.stdout
    assert supervisor.stdout.readline() == "ready\n"
    started = Run(supervisor=supervisor, folder=folder)
    crowd = started.processes()
    yield started
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    for identity in (one for group in crowd.values() for one in group):  # what a failed test left
        send(identity, signal.SIGKILL)
    sweep_leftovers(RunDir(folder))


def die_with(run: Run, crowd: dict[str, list[Identity]]) -> None:
    run.supervisor.kill()
    run.supervisor.wait()
    eventually(lambda: not [one for group in crowd.values() for one in group if is_alive(one)])
    for row in RunDir(run.folder).read_state()["servers"]:  # nor anything born meanwhile
        leader = Identity(pid=row["pid"], started_ticks=row["started_ticks"])
        assert members(leader, log=row["log"]) == []


def test_supervisor_killed_by_sigkill_leaves_no_process(run: Run) -> None:
    crowd = run.processes()
    assert set(crowd) == {"postgres", "replica", "redis", "epmd", "rabbitmq", "guard"}
    assert len(crowd["postgres"]) > 5, "the backends are part of it"
    assert len(crowd["rabbitmq"]) > 1, "so are the broker's ports"
    die_with(run, crowd)


def test_frozen_servers_die_with_their_supervisor_too(run: Run) -> None:
    crowd = run.processes()
    for name in ("postgres", "rabbitmq", "redis"):
        for identity in crowd[name]:
            send(identity, signal.SIGSTOP)
    die_with(run, crowd)


def test_servers_die_with_their_supervisor_when_the_guard_died_first(run: Run) -> None:
    crowd = run.processes()
    send(crowd["guard"][0], signal.SIGKILL)
    die_with(run, crowd)
