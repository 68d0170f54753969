"""The word to the supervisor: one datagram, or no trouble at all."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.telemetry.notify import notify


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "n"))
        ear.setblocking(False)
        yield ear


def test_a_process_says_that_it_is_ready(supervisor: socket.socket) -> None:
    assert notify(supervisor.getsockname())
    assert notify(supervisor.getsockname(), "STOPPING=1")
    assert [supervisor.recv(64), supervisor.recv(64)] == [b"READY=1", b"STOPPING=1"]


def test_an_at_sign_means_an_abstract_name() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind("")
        ear.setblocking(False)
        assert notify("@" + ear.getsockname()[1:].decode())
        assert ear.recv(64) == b"READY=1"


@pytest.mark.parametrize("path", [None, ""])
def test_a_process_that_nobody_listens_to_says_nothing(path: str | None) -> None:
    assert not notify(path)


def test_a_supervisor_that_is_gone_is_no_reason_to_fail(tmp_path: Path) -> None:
    assert not notify(str(tmp_path / "gone"))
