"""Whether a PostgreSQL server is certainly not serving, by its host's or its own word, or merely silent.

Silence may be a cut line, behind which others go on with that server. A refusal is an answer: nobody is served there.
"""

import asyncio
import struct

from sqlalchemy.engine import URL

PROTOCOL_3 = 196_608
CANNOT_CONNECT_NOW = b"C57P03"
"""The field of an error that says: starting, recovering or shutting down."""
LONGEST_ERROR = 65_536


async def is_absent(url: URL, *, within_s: float) -> bool:
    """Ask once, with the first message of the protocol and no driver.

    Returns: True when nothing listens there, or the server says that it serves nobody now; False for any other answer
        and for none within `within_s` seconds.
    """
    try:
        async with asyncio.timeout(within_s):
            return await _says_no(url)
    except ConnectionRefusedError:
        return True
    except (OSError, EOFError, TimeoutError):
        return False


async def _says_no(url: URL) -> bool:
    host, port = url.host or "127.0.0.1", url.port or 5432
    if host.startswith("/"):
        reader, writer = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
    else:
        reader, writer = await asyncio.open_connection(host, port)
    try:
        words = f"user\0{url.username or ''}\0database\0{url.database or ''}\0\0".encode()
        writer.write(struct.pack("!ii", len(words) + 8, PROTOCOL_3) + words)
        kind, size = struct.unpack("!ci", await reader.readexactly(5))
        if kind != b"E":
            return False
        fields = await reader.readexactly(min(size - 4, LONGEST_ERROR))
        return CANNOT_CONNECT_NOW in fields.split(b"\0")
    finally:
        writer.close()
