"""The supervisor's door for commands: progress, an ending or a named error, and orders that outlive their sender."""

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from shared.errors import FleetError, Misconfigured
from tests.integration.live import eventually
from workers.ops.control import SupervisorGone, Tell, ask, listening
from workers.ops.replication.refusals import ReplicaBehind


async def echo(order: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
    """Say it twice."""
    tell({"part": "one", "says": order["word"]})
    return {"word": order["word"]}


async def test_progress_comes_before_the_ending_however_long_the_folders_name(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    told: list[Mapping[str, Any]] = []
    async with listening(folder, echo):
        done = await asyncio.to_thread(ask, folder, {"word": "hello"}, on_progress=told.append)
    assert (told, done) == ([{"part": "one", "says": "hello"}], {"word": "hello"})
    assert list(folder.iterdir()) == []


async def test_an_error_keeps_its_name_and_its_facts(tmp_path: Path) -> None:
    async def refuse(order: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
        raise ReplicaBehind("too far behind", behind_bytes=7)

    async with listening(tmp_path, refuse):
        with pytest.raises(ReplicaBehind, match="too far behind") as caught:
            await asyncio.to_thread(ask, tmp_path, {}, on_progress=print)
    assert caught.value.context == {"behind_bytes": 7}


async def test_a_full_disk_ends_an_order_with_a_sentence(tmp_path: Path) -> None:
    async def fail(order: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
        raise OSError(28, "No space left on device")

    async with listening(tmp_path, fail):
        with pytest.raises(FleetError, match=r"not carried out to its end: .*No space left"):
            await asyncio.to_thread(ask, tmp_path, {}, on_progress=print)


@pytest.mark.parametrize("line", [b"hello\n", b"[]\n", b"\xff\n", b"\n", b""])
async def test_what_is_no_order_is_refused(tmp_path: Path, line: bytes) -> None:
    def say_it() -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
            wire.connect(str(tmp_path / "control"))
            wire.sendall(line)
            wire.shutdown(socket.SHUT_WR)
            return wire.recv(4096)

    async with listening(tmp_path, echo):
        assert b"not a JSON object" in await asyncio.to_thread(say_it)


async def test_an_order_goes_on_when_its_sender_has_gone(tmp_path: Path) -> None:
    gone, ended = asyncio.Event(), []

    async def carry(order: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
        await gone.wait()
        for _ in range(5):
            tell({"part": "one", "says": "is anybody there?"})
            await asyncio.sleep(0)
        ended.append(True)
        return {}

    async with listening(tmp_path, carry):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
            wire.connect(str(tmp_path / "control"))
            wire.sendall(b"{}\n")
            await asyncio.sleep(0.05)
        gone.set()
        await asyncio.to_thread(eventually, lambda: ended)


async def test_a_supervisor_that_is_not_there_or_ends_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(SupervisorGone, match="takes no orders"):
        await asyncio.to_thread(ask, tmp_path, {}, on_progress=print)
    with pytest.raises(Misconfigured, match="cannot be opened"):
        await asyncio.to_thread(ask, tmp_path / "nowhere", {}, on_progress=print)
    begun = asyncio.Event()

    async def never(order: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
        begun.set()
        await asyncio.Event().wait()
        return {}

    async with listening(tmp_path, never):
        asking = asyncio.create_task(asyncio.to_thread(ask, tmp_path, {}, on_progress=print))
        await begun.wait()
    with pytest.raises(SupervisorGone, match="ended before it was done"):
        await asking
