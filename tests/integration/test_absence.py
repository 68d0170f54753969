"""Whether a PostgreSQL server is absent for everybody, asked of a real one and of sockets that answer as servers do."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy.engine import URL, make_url

from shared.db.absence import is_absent
from tests.integration.live import Database

STARTING = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
NO_SUCH_ROLE = b'SFATAL\0VFATAL\0C28000\0Mrole "57P03" does not exist\0\0'


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[URL]:
    """A server that reads the first message, gives its answer and hangs up; None: never answers."""
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (size,) = struct.unpack("!i", await reader.readexactly(4))
        await reader.readexactly(size - 4)
        if answer is None:
            await done.wait()
        writer.write(answer or b"")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield make_url(f"postgresql+psycopg://fleet@127.0.0.1:{server.sockets[0].getsockname()[1]}/fleet")
    finally:
        done.set()
        server.close()
        await server.wait_closed()


def error(fields: bytes) -> bytes:
    return b"E" + struct.pack("!i", len(fields) + 4) + fields


async def test_a_server_that_serves_is_not_absent(database: Database) -> None:
    assert not await is_absent(make_url(database.url), within_s=30)


async def test_where_nothing_listens_it_is_absent() -> None:
    with socket.socket() as bound:  # bound and not listening: refused, and nobody else can take the port
        bound.bind(("127.0.0.1", 0))
        url = make_url(f"postgresql+psycopg://fleet@127.0.0.1:{bound.getsockname()[1]}/fleet")
        assert await is_absent(url, within_s=30)


@pytest.mark.parametrize(
    ("answer", "absent"),
    [
        (error(STARTING), True),
        (error(NO_SUCH_ROLE), False),
        (b"R" + struct.pack("!ii", 8, 0), False),
        (b"N", False),
        (b"", False),
        (None, False),
    ],
    ids=["starting up", "another error", "welcome", "half an answer", "hung up", "silent"],
)
async def test_only_its_own_word_counts(answer: bytes | None, absent: bool) -> None:
    async with answering(answer) as url:
        assert await is_absent(url, within_s=0.3 if answer is None else 30) is absent
