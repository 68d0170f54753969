"""The supervisor's door for commands: one JSON order a connection, answered by lines of progress and one ending.

A socket in the run's folder that only its owner may open. An order goes on to its end when its sender has gone.
"""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from shared.errors import FleetError, Misconfigured, from_dict

NAME = "control"
Tell = Callable[[Mapping[str, Any]], None]
"""Sends a line of progress."""
Carry = Callable[[Mapping[str, Any], Tell], Awaitable[Mapping[str, Any]]]
"""Carries an order out and returns its ending. Raises: FleetError."""


class SupervisorGone(FleetError):
    """The supervisor ended, or cannot be reached, before the order's end."""

    code = "supervisor_gone"


@asynccontextmanager
async def listening(folder: Path, carry: Carry) -> AsyncIterator[None]:
    """Take orders while inside; those under way are cancelled at the end."""
    orders: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        order = asyncio.create_task(_serve(reader, writer, carry))
        orders.add(order)
        order.add_done_callback(orders.discard)

    with _short(folder) as path:
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as box:
            box.bind(str(path))
            path.chmod(0o600)  # before it listens
            server = await asyncio.start_unix_server(serve, sock=box)
            try:
                yield
            finally:
                server.close()
                for order in orders:
                    order.cancel()
                await asyncio.gather(*orders, return_exceptions=True)
                path.unlink(missing_ok=True)


def ask(folder: Path, order: Mapping[str, Any], *, on_progress: Tell) -> Mapping[str, Any]:
    """Give an order to the supervisor of a folder and wait for its end.

    Raises: the FleetError that the order ended with; Misconfigured, SupervisorGone.
    """
    with _short(folder) as path, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wire:
        try:
            wire.connect(str(path))
        except PermissionError as error:
            raise Misconfigured("This fleet was started by another user; give the command as that user.") from error
        except OSError as error:
            raise SupervisorGone(f"The supervisor of {folder} takes no orders: {error.strerror}.") from error
        wire.sendall(json.dumps(order).encode() + b"\n")
        with wire.makefile("r", encoding="utf-8") as lines:
            for line in lines:
                told = json.loads(line)
                if "error" in told:
                    raise from_dict(told["error"])
                if "done" in told:
                    ending: Mapping[str, Any] = told["done"]
                    return ending
                on_progress(told)
    raise SupervisorGone(f"The supervisor of {folder} ended before it was done; see `fleet status`.")


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, carry: Carry) -> None:
    def tell(fact: Mapping[str, Any]) -> None:
        if not writer.is_closing():
            writer.write(json.dumps(fact).encode() + b"\n")

    try:
        order = json.loads(await reader.readline())
        if not isinstance(order, dict):
            raise ValueError(order)
        tell({"done": await carry(order, tell)})
    except FleetError as error:
        tell({"error": error.as_dict()})
    except ValueError:
        tell({"error": Misconfigured("The order is not a JSON object.").as_dict()})
    except OSError as error:  # a full disk, a folder that was taken away
        tell({"error": FleetError(f"The order was not carried out to its end: {error}.").as_dict()})
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextmanager
def _short(folder: Path) -> Iterator[Path]:
    """A short name of the socket: its path may not pass 108 bytes, a run's folder may."""
    try:
        handle = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise Misconfigured(f"The folder {folder} cannot be opened: {error.strerror}.") from error
    try:
        yield Path(f"/proc/self/fd/{handle}") / NAME
    finally:
        os.close(handle)
