"""How servers shed privileges: decided from facts, with a remedy whenever the answer is no."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from workers.ops.privileges import NOBODY, Facts, Privileges, decide
from workers.ops.reachable import reachable

READ, SETGID, SETUID = 1 << 2, 1 << 6, 1 << 7
ROOT = Facts(euid=0, capabilities=READ | SETGID | SETUID, target_uid=65534, unreachable="", setpriv="/usr/bin/setpriv")


def test_ordinary_user_has_nothing_to_drop() -> None:
    assert decide(replace(ROOT, euid=1000, capabilities=0, setpriv="")).action == "keep"


def test_root_drops_everything_when_all_files_can_be_read() -> None:
    assert decide(ROOT).action == "drop"


def test_root_keeps_reading_alone_when_the_clone_is_closed_to_others() -> None:
    decision = decide(replace(ROOT, unreachable="/root"))
    assert decision.action == "drop_but_read"
    assert decision.reason == "servers run as uid 65534 and may read /root"


def test_closed_clone_without_the_capability_is_refused_with_the_remedy() -> None:
    decision = decide(replace(ROOT, unreachable="/root", capabilities=SETGID | SETUID))
    assert decision.action == "refuse"
    assert "move the clone" in decision.reason


def test_root_that_cannot_change_user_is_told_to_be_an_ordinary_user() -> None:
    decision = decide(replace(ROOT, capabilities=READ))
    assert decision.action == "refuse"
    assert "run as an ordinary user" in decision.reason


def test_root_without_setpriv_is_told_what_to_install() -> None:
    assert "install util-linux" in decide(replace(ROOT, setpriv="")).reason


def test_a_folder_that_the_servers_user_cannot_reach_is_copied_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    tree = closed / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin" / "postgres").write_text("program")
    (closed / "tree.libs").mkdir()
    closed.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    servers = Privileges(uid=NOBODY + 1, gid=NOBODY + 1, prefix=(), watched=(), reason="")
    first = reachable(tree, privileges=servers, label="program-1", beside=("tree.libs",), cache=tmp_path / "cache")
    (tree / "bin" / "postgres").write_text("changed")
    again = reachable(tree, privileges=servers, label="program-1", cache=tmp_path / "cache")
    assert first == again == tmp_path / "cache" / "program-1" / "tree"
    assert (again.parent / "tree.libs").is_dir()
    assert (again / "bin" / "postgres").read_text() == "program"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert reachable(tree, privileges=servers, label="program-1", cache=tmp_path / "cache") == tree
