"""A provider that only counts: every call that reaches it is written down with its time, whoever made it.

It is what the world outside knows; the ledger's account is compared with it. It answers `POST /<task>/<step>` after
`delay_s`, over HTTP/1.1 on a thread of its own, and never fails.
"""

import asyncio
import threading
import time
from collections import defaultdict
from types import TracebackType
from typing import Self


class CallCounter:
    """Use as a context manager. `calls` maps (task, step) to the wall-clock times of its calls."""

    def __init__(self, *, delay_s: float) -> None:
        self.calls: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self.url = ""
        self._delay_s = delay_s
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="call-counter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1000), self._loop
        ).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def total(self) -> int:
        """All calls so far."""
        return sum(len(times) for times in self.calls.values())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            _, task, step = head.split(b" ", 2)[1].decode().split("/")
            self.calls[task, step].append(time.time())
            await asyncio.sleep(self._delay_s)
            answer = step.encode()
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # whoever called is dead
        finally:
            writer.close()

    async def _close(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for one in others:
            one.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def call(url: str, task: str, step: str) -> str:
    """One call to the counter, on a connection of its own.

    Raises: OSError.
    """
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(f"POST /{task}/{step} HTTP/1.1\r\nhost: {host}\r\ncontent-length: 0\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        return (await reader.readexactly(length)).decode()
    finally:
        writer.close()
