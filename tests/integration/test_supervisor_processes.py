"""The supervisor with small processes of our own: readiness, restarts, stubborn ones, helpers left behind."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.live import eventually
from workers.ops.background import BackgroundSupervisor
from workers.ops.census import Identity, identify, is_alive, members, send
from workers.ops.knobs import RestartPolicy
from workers.ops.opening import open_site
from workers.ops.probes import HttpProbe, Notified
from workers.ops.spec import Event, Preparation, ServerFailed, ServerSpec
from workers.ops.topology import Topology

NOTIFY = """
import os, socket, time
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
"""
SLEEP = "import time; time.sleep(600)"
NO_RESTARTS = RestartPolicy(give_up_after=1)


class Toys(BackgroundSupervisor):
    """A supervisor without servers that remembers what happened."""

    def __init__(self, folder: Path) -> None:
        self.events: list[Event] = []
        around = open_site(folder, inherited={})
        nothing = Topology(profile="full", specs=(), env={}, replica_url="")
        super().__init__(around, nothing, on_event=self.events.append)

    def statuses(self, name: str) -> list[str]:
        return [event.status for event in self.events if event.server == name]


@pytest.fixture
def toys(run_folder: Callable[[], Path]) -> Iterator[Toys]:
    supervisor = Toys(run_folder())
    with supervisor:
        yield supervisor
    supervisor.around.run.close()


def toy(code: str, *, name: str = "toy", **changes: object) -> ServerSpec:
    """A Python process that runs `code`."""
    spec = ServerSpec(
        name=name, kind="toy", argv=(sys.executable, "-I", "-c", code), probe=Notified(), env={"PATH": "/usr/bin:/bin"}
    )
    return replace(spec, **changes)  # type: ignore[arg-type]


def test_process_is_ready_once_it_says_so(toys: Toys) -> None:
    toys.add(toy(NOTIFY + SLEEP))
    assert toys.statuses("toy") == ["starting", "ready"]


def test_process_that_never_says_so_is_refused_after_its_start_timeout(toys: Toys) -> None:
    loading = ("/bin/sh", "-c", "echo still loading; exec sleep 600")
    with pytest.raises(ServerFailed, match=r"toy was not ready within 3 s \(it has not said READY=1 yet\)"):
        toys.add(toy("", argv=loading, start_timeout_s=3.0))
    assert "still loading" in toys.server_reason("toy")


def test_process_that_dies_at_start_is_reported_with_the_end_of_its_log(toys: Toys) -> None:
    with pytest.raises(ServerFailed) as caught:
        toys.add(toy("import sys; print('no such setting'); sys.exit(3)"))
    first, *log = caught.value.message.splitlines()
    assert first.startswith("Server toy exited with code 3 before it was ready; its log is /")
    assert log == ["  no such setting"]


def test_error_shows_only_what_this_start_has_logged(toys: Toys) -> None:
    for word in ("first", "second"):
        with pytest.raises(ServerFailed) as caught:
            toys.add(toy(f"print('{word}'); raise SystemExit(1)"))
        toys.remove("toy")
    assert caught.value.message.splitlines()[1:] == ["  second"]


def test_one_shot_command_is_finished_when_it_succeeds_and_not_run_again(toys: Toys) -> None:
    toys.add(toy("pass", probe=None))
    assert toys.statuses("toy") == ["starting", "finished"]


def test_one_shot_command_that_fails_stops_what_needs_it(toys: Toys) -> None:
    failing = toy("raise SystemExit(1)", name="migrate", probe=None)
    with pytest.raises(ServerFailed, match="migrate exited with code 1"):
        toys.up_all([failing, toy(NOTIFY + SLEEP, name="worker", needs=("migrate",))])
    assert "starting" not in toys.statuses("worker")


def test_command_that_does_not_exist_is_reported(toys: Toys) -> None:
    with pytest.raises(ServerFailed, match=r"toy (exited with code 127|could not be started)"):
        toys.add(toy("", argv=("/nonexistent/server",)))


def test_process_that_keeps_dying_is_given_up_and_can_be_started_by_hand(toys: Toys) -> None:
    toys.add(toy(NOTIFY + SLEEP, restart=NO_RESTARTS))
    toys.kill("toy")
    eventually(lambda: toys.status("toy") == "failed")
    assert "it exited 1 times within 60 s; giving up" in toys.server_reason("toy")
    toys.start("toy")
    assert toys.status("toy") == "ready"


def test_process_that_ignores_the_stop_signal_is_killed_after_its_stop_timeout(toys: Toys) -> None:
    stubborn = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {NOTIFY}{SLEEP}"
    toys.add(toy(stubborn, stop_timeout_s=0.3))
    process = identify(toys.pid("toy"))
    toys.stop("toy")
    assert process
    assert not is_alive(process)
    assert any("ignored SIGTERM" in event.reason for event in toys.events)


def test_frozen_process_can_be_stopped(toys: Toys) -> None:
    toys.add(toy(NOTIFY + SLEEP))
    process = identify(toys.pid("toy"))
    toys.freeze("toy")
    toys.stop("toy")
    assert process
    assert not is_alive(process)


def test_helpers_that_outlive_their_server_are_swept_even_out_of_its_session(toys: Toys, tmp_path: Path) -> None:
    helper = "import os, time; os.setsid(); print('helper', os.getpid(), flush=True); time.sleep(600)"
    toys.add(
        toy(f"import subprocess, sys; subprocess.Popen([sys.executable, '-I', '-c', {helper!r}]); {NOTIFY}{SLEEP}")
    )
    log = toys.around.run.log("toy")
    eventually(lambda: "helper" in log.read_text(encoding="utf-8"))
    process = identify(int(log.read_text(encoding="utf-8").split()[1]))
    assert process
    toys.suspend("toy")
    toys.kill("toy", whole=False)
    eventually(lambda: not is_alive(process))


def test_notes_of_a_former_life_do_not_make_a_process_ready(toys: Toys) -> None:
    toys.add(toy(NOTIFY * 2 + SLEEP))
    toys.kill("toy")
    toys.wait_ready("toy")
    assert toys.statuses("toy") == ["starting", "ready", "backing_off", "starting", "ready"]


def test_interrupted_preparation_starts_again_from_an_empty_folder(toys: Toys) -> None:
    made = toys.around.folder("toy") / "cluster"
    (made / "half").mkdir(parents=True)
    prepare = Preparation(argv=("/bin/mkdir", str(made)), makes=made)
    toys.add(toy(NOTIFY + SLEEP, preparations=(prepare,)))
    assert list(made.iterdir()) == []
    toys.restart("toy")
    assert toys.statuses("toy").count("preparing") == 1


def test_servers_stop_after_those_that_need_them(toys: Toys) -> None:
    toys.up_all([toy(NOTIFY + SLEEP, name="base"), toy(NOTIFY + SLEEP, name="top", needs=("base",))])
    toys.stop_all()
    stops = [event.server for event in toys.events if event.status == "stopped"]
    assert stops == ["top", "base"]


def test_added_process_can_be_removed_and_its_name_used_again(toys: Toys) -> None:
    toys.add(toy(NOTIFY + SLEEP))
    with pytest.raises(ServerFailed, match="already exists"):
        toys.add(toy(NOTIFY + SLEEP))
    toys.remove("toy")
    toys.add(toy(NOTIFY + SLEEP))


def test_environment_of_the_caller_does_not_leak_into_servers(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "1")
    toys.add(toy(f"import os; print(sorted(os.environ), flush=True); {NOTIFY}{SLEEP}"))
    seen = toys.around.run.log("toy").read_text(encoding="utf-8")
    assert "PGPORT" not in seen


def test_pid_that_was_reused_is_never_signalled() -> None:
    me = identify(os.getpid())
    assert me
    former = Identity(pid=me.pid, started_ticks=me.started_ticks - 1)
    assert not is_alive(former)
    assert send(former, signal.SIGKILL) is False


def test_session_of_a_stranger_who_got_the_pid_of_a_dead_server_is_left_alone(toys: Toys) -> None:
    toys.add(toy(NOTIFY + SLEEP))
    stranger = identify(toys.pid("toy"))
    assert stranger
    assert members(stranger) == [stranger]
    former = Identity(pid=stranger.pid, started_ticks=stranger.started_ticks - 1)
    assert members(former) == []


def test_probe_of_a_port_without_a_server_times_out_with_its_reason(toys: Toys) -> None:
    port = toys.around.ports.port("toy")
    with pytest.raises(ServerFailed, match=f"nothing listens on port {port}"):
        toys.add(toy(SLEEP, probe=HttpProbe(port, "/health"), start_timeout_s=2.0))
