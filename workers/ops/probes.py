"""Readiness by each server's own protocol, spoken raw over loopback: no client library, no command line tool.

A probe returns when the server answers as a ready server does and raises `NotReady` with the reason otherwise.
"""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol

HOST = "127.0.0.1"


class NotReady(Exception):
    """The server does not answer as a ready one (yet)."""


class Probe(Protocol):
    """One question to one server."""

    @property
    def protocol(self) -> str:
        """The name under which the state file stores this probe."""

    async def check(self) -> None:
        """Return when ready. Raises: NotReady."""


@asynccontextmanager
async def _connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError as error:
        raise NotReady(f"nothing listens on port {port}") from error
    try:
        yield reader, writer
    except (OSError, EOFError) as error:
        raise NotReady(f"port {port} hung up") from error
    finally:
        writer.close()


async def _ask(port: int, question: bytes, size: int) -> bytes:
    async with _connection(port) as (reader, writer):
        writer.write(question)
        return await reader.readexactly(size)


@dataclass(frozen=True, slots=True)
class PostgresProbe:
    """Ready for queries: the startup handshake of protocol 3.0 ends in ReadyForQuery."""

    protocol: ClassVar[str] = "postgresql"
    port: int
    user: str = "fleet"

    async def check(self) -> None:
        """Log in to the database `postgres` and wait for the byte Z. Raises: NotReady."""
        words = f"user\0{self.user}\0database\0postgres\0\0".encode()
        async with _connection(self.port) as (reader, writer):
            writer.write(struct.pack("!ii", len(words) + 8, 196_608) + words)
            while True:
                kind, size = struct.unpack("!ci", await reader.readexactly(5))
                body = await reader.readexactly(size - 4)
                if kind == b"E":
                    raise NotReady(body.replace(b"\0", b" ").decode(errors="replace"))
                if kind == b"Z":
                    writer.write(b"X\0\0\0\x04")
                    return


@dataclass(frozen=True, slots=True)
class AmqpProbe:
    """The AMQP 0-9-1 header is answered with the method Connection.Start."""

    protocol: ClassVar[str] = "amqp"
    port: int

    async def check(self) -> None:
        """Send the header, expect a method frame on channel 0 holding class 10, method 10. Raises: NotReady."""
        answer = await _ask(self.port, b"AMQP\x00\x00\x09\x01", 11)
        if answer[:3] != b"\x01\x00\x00" or answer[7:] != b"\x00\x0a\x00\x0a":
            raise NotReady(f"port {self.port} does not speak AMQP 0-9-1")


@dataclass(frozen=True, slots=True)
class RedisProbe:
    """PING is answered with PONG: loading from disk has ended."""

    protocol: ClassVar[str] = "redis"
    port: int

    async def check(self) -> None:
        """Raises: NotReady."""
        answer = await _ask(self.port, b"PING\r\n", 7)
        if answer != b"+PONG\r\n":
            raise NotReady(f"port {self.port} answered {answer!r}")


@dataclass(frozen=True, slots=True)
class EpmdProbe:
    """The Erlang port mapper answers NAMES_REQ with its own port."""

    protocol: ClassVar[str] = "epmd"
    port: int

    async def check(self) -> None:
        """Raises: NotReady."""
        if struct.unpack("!I", await _ask(self.port, b"\x00\x01n", 4))[0] != self.port:
            raise NotReady(f"port {self.port} is not the expected port mapper")


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """GET of a path is answered with 200."""

    protocol: ClassVar[str] = "http"
    port: int
    path: str

    async def check(self) -> None:
        """Raises: NotReady."""
        question = f"GET {self.path} HTTP/1.1\r\nHost: {HOST}:{self.port}\r\nConnection: close\r\n\r\n".encode()
        status = await _ask(self.port, question, 12)
        if status[9:] != b"200":
            raise NotReady(f"{self.path} answered {status[9:].decode(errors='replace')}")


@dataclass(frozen=True, slots=True)
class GrpcProbe:
    """The HTTP/2 preface is answered with a SETTINGS frame, as every gRPC server does."""

    protocol: ClassVar[str] = "grpc"
    port: int

    async def check(self) -> None:
        """Raises: NotReady."""
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
        answer = await _ask(self.port, preface, 9)
        if answer[3] != 4:
            raise NotReady(f"port {self.port} does not speak HTTP/2")


@dataclass(frozen=True, slots=True)
class Notified:
    """The process says READY=1 itself, through the datagram socket named in NOTIFY_SOCKET (systemd's protocol)."""

    protocol: ClassVar[str] = "notify"

    async def check(self) -> None:
        """From outside a run only the process itself is visible, so there is nothing to ask."""


async def is_ready(probe: Probe, *, timeout_s: float) -> str:
    """Ask once; return an empty string when ready, else the reason."""
    try:
        async with asyncio.timeout(timeout_s):
            await probe.check()
    except NotReady as error:
        return str(error)
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    return ""


def stored(protocol: str, *, port: int, path: str) -> Probe:
    """Make a probe again from what the state file remembers of it."""
    plain: dict[str, type[PostgresProbe | AmqpProbe | RedisProbe | EpmdProbe | GrpcProbe]] = {
        "postgresql": PostgresProbe,
        "amqp": AmqpProbe,
        "redis": RedisProbe,
        "epmd": EpmdProbe,
        "grpc": GrpcProbe,
    }
    if protocol in plain:
        return plain[protocol](port)
    return HttpProbe(port, path) if protocol == "http" else Notified()
