"""The far side of the wire: an OpenAI-compatible server on a raw socket, with every fault a provider has shown.

For tests it runs in their loop (`async with ChatServer() as server`); for measurements it runs by itself:
`python -m tests.fakes.chat_server --port 8089 --delay-s 5`.
"""

import argparse
import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Self

Fault = Callable[[asyncio.StreamWriter], Awaitable[None]]
REFUSAL = b'{"error": {"message": "you must provide a model parameter"}}'


def completion(text: str | None = "hello", **changes: Any) -> dict[str, Any]:
    """A valid completion; `changes` replace top-level keys, and a value of None removes one."""
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "served-model",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18},
    }
    return {key: value for key, value in {**body, **changes}.items() if value is not None}


def http(status: int, body: bytes, *, content_type: str = "application/json", **headers: str) -> bytes:
    """A whole response; underscores in header names become dashes."""
    lines = [f"HTTP/1.1 {status} X", f"content-type: {content_type}", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def says(body: Any, *, status: int = 200, **headers: str) -> Fault:
    """Answer with JSON."""
    return sends(http(status, json.dumps(body).encode(), **headers))


def sends(raw: bytes, *, hang_up: bool = False) -> Fault:
    """Answer with these bytes, and perhaps close the connection."""

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        if hang_up:
            writer.close()

    return act


def drips(raw: bytes, *, every_s: float) -> Fault:
    """Answer one byte at a time: alive on every read, and never done."""

    async def act(writer: asyncio.StreamWriter) -> None:
        for position in range(len(raw)):
            writer.write(raw[position : position + 1])
            await asyncio.sleep(every_s)

    return act


def stays_silent() -> Fault:
    """Take the request and never answer."""

    async def act(writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    return act


class ChatServer:
    """Answers each request with the next act of the script, and with a valid completion when there is none."""

    def __init__(self, *script: Fault, delay_s: float = 0.0) -> None:
        self.script = deque(script)
        self.requests: list[dict[str, Any]] = []
        self.asked: dict[asyncio.StreamWriter, dict[str, Any]] = {}
        """The latest request of each connection."""
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.connections = 0
        """How many clients have connected so far."""
        self.hang_ups = asyncio.Queue[int]()
        """The number of each request whose client left before it was answered."""
        self.speaks = True
        """Whether it answers a request without content as an OpenAI-compatible server does."""
        self._delay_s = delay_s
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def base_url(self) -> str:
        """Where the API is."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def open(self, port: int = 0) -> None:
        """Listen on loopback; port 0 takes a free one."""
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", port, backlog=4096)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and cut every connection."""
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self.connections += 1
        task.add_done_callback(self._connections.discard)
        try:
            while not writer.is_closing():
                await self._exchange(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start, *head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head if line)}
        request = json.loads(await reader.readexactly(int(headers["content-length"])))
        if not request and not self.script:  # a worker asks at its start what is spoken here
            writer.write(http(400, REFUSAL) if self.speaks else http(404, b"nothing here"))
            return
        self.requests.append(request)
        self.asked[writer] = request
        self.headers.append(headers)
        self.paths.append(start.split(" ")[1])
        number = len(self.requests)
        acting = asyncio.ensure_future(self._act(writer))
        leaving = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait({acting, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not acting.done():
                self.hang_ups.put_nowait(number)
                raise ConnectionResetError
        finally:
            for one in (acting, leaving):
                one.cancel()
            await asyncio.gather(acting, leaving, return_exceptions=True)

    async def _act(self, writer: asyncio.StreamWriter) -> None:
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        await (self.script.popleft() if self.script else says(completion()))(writer)
        await writer.drain()


async def serve(port: int, delay_s: float) -> None:
    """Serve until killed."""
    await ChatServer(delay_s=delay_s).open(port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, default=8089)
    options.add_argument("--delay-s", type=float, default=0.0)
    chosen = options.parse_args()
    asyncio.run(serve(chosen.port, chosen.delay_s))
