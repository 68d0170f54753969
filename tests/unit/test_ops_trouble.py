"""A disk that fills up, a server that is away, a word that is wrong: one sentence each, for people or for machines."""

import errno
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.errors import Misconfigured
from workers.ops import commands, daemon, main
from workers.ops.daemon import Order
from workers.ops.knobs import SupervisorKnobs
from workers.ops.run_dir import RunDir
from workers.ops.topology import Wish

NOBODY = {"FLEET_DB_URL": "postgresql+psycopg://fleet@127.0.0.1:1/fleet", "FLEET_BROKER_URL": "amqp://127.0.0.1:1//"}


def full(*_: Any, **__: Any) -> Any:
    """What the system says when it has no more room."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/postgres")


def typed(*words: str, monkeypatch: pytest.MonkeyPatch, env: Mapping[str, str] | None = None) -> Any:
    """The exit code of a command."""
    for name in [one for one in os.environ if one.startswith("FLEET_")]:
        monkeypatch.delenv(name)
    for name, value in (env or {}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["fleet", *words])
    monkeypatch.setattr(main, "setup_logs", lambda **_: None)
    with pytest.raises(SystemExit) as end:
        main.main()
    return end.value.code


def test_a_full_disk_ends_a_command_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "inspect", full)
    assert typed("status", monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err == (
        "Error: /data/postgres: No space left on device: free some space, or choose another folder with --dir.\n"
    )


def test_a_connection_that_breaks_is_not_told_as_a_trouble_with_a_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hung_up(*_: Any) -> Any:
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    monkeypatch.setattr(commands, "inspect", hung_up)
    assert typed("status", monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err == (
        "Error: A server does not answer, or has hung up (Connection reset by peer): see `fleet status`.\n"
    )


def test_a_full_disk_is_told_to_whoever_starts_a_fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(daemon, "build", full)
    monkeypatch.setattr(daemon, "_redirect_errors", lambda log: None)
    monkeypatch.setattr(daemon, "open_site", lambda folder, **_: SimpleNamespace(run=RunDir(folder)))
    knobs = SupervisorKnobs()
    order = Order(folder=tmp_path, wish=Wish(), pinned_ports={}, inherited={}, project=tmp_path, knobs=knobs)
    assert daemon.run(order) == 1
    told = json.loads(capsys.readouterr().out)["error"]
    assert told["message"].startswith("/data/postgres: No space left on device: free some space")
    assert RunDir(tmp_path).read_state()["error"] == told


def test_a_state_file_that_has_no_room_leaves_no_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path)
    run.write_state({"phase": "ready"})
    monkeypatch.setattr(json, "dump", full)
    with pytest.raises(Misconfigured, match=r"state\.json cannot be written: No space left on device"):
        run.write_state({"phase": "stopping"})
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert run.read_state() == {"phase": "ready"}


@pytest.mark.parametrize("word", ["tasks", "submit"])
def test_servers_that_do_not_answer_are_told_with_the_remedy(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (word,) if word == "tasks" else (word, "chat", "message=hi")
    assert typed(*words, monkeypatch=monkeypatch, env=NOBODY) == 1
    said = capsys.readouterr().err
    assert "check FLEET_DB_URL" in said
    assert said.endswith("or start a fleet with `fleet up`\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("tasks", "--bogus"), "No such option: --bogus"),
        (("tasks", "--limit", "x"), "Invalid value for '--limit'"),
        (("result",), "Missing argument"),
        (("nonsense",), "No such command 'nonsense'"),
    ],
)
def test_machines_are_told_of_wrong_words_as_one_object(
    words: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(*words, "--json", monkeypatch=monkeypatch) == 2
    seen = capsys.readouterr()
    assert told in json.loads(seen.err)["error"]["message"]
    assert seen.out == ""


@pytest.mark.parametrize(
    ("variable", "value"),
    [("FLEET_WORKER_CONCURRENCY", "abc"), ("FLEET_KEEPER_ROUND_S", "soon"), ("FLEET_WORKER_DRIAN_S", "1")],
)
@pytest.mark.parametrize("command", ["up", "demo"])
def test_settings_of_every_process_are_checked_before_anything_starts(
    command: str, variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert typed(command, monkeypatch=monkeypatch, env={variable: value}) == 2
    assert capsys.readouterr().err.startswith(f"Error: {variable}: ")
    assert list(tmp_path.iterdir()) == []
