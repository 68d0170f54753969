"""Acts for a `ChatServer` that streams: every way in which a stream of tokens has gone wrong at somebody's."""

import asyncio
import json
import socket
import struct
from collections.abc import Sequence
from typing import Any, Literal

from tests.fakes.chat_server import Fault

End = Literal["clean", "hang up", "reset", "stall"]
Json = dict[str, Any]

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"


def chunk(text: str | None = None, *, finish_reason: str | None = None, **changes: Any) -> Json:
    """One chunk of an OpenAI stream; `changes` replace top-level keys."""
    delta = {} if text is None else {"content": text}
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "c1", "object": "chat.completion.chunk", "model": "served-model", "choices": [choice], **changes}


def tool_chunk(index: int | None, **piece: Any) -> Json:
    """One chunk with a piece of a tool call: `id`, `name`, `arguments`."""
    function = {key: piece[key] for key in ("name", "arguments") if key in piece}
    call: Json = {"function": function, **({"id": piece["id"]} if "id" in piece else {})}
    if index is not None:
        call["index"] = index
    return chunk(choices=[{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}])


def usage_chunk(read: int, written: int) -> Json:
    """The last chunk of a stream that counts."""
    return chunk(choices=[], usage={"prompt_tokens": read, "completion_tokens": written})


def event(data: Json | str, *, name: str | None = None) -> bytes:
    """One event as it goes over the wire."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def told(*texts: str, counted: tuple[int, int] | None = (11, 7)) -> list[bytes]:
    """The events of a whole answer."""
    events = [event(chunk(text)) for text in texts] + [event(chunk(finish_reason="stop"))]
    return [*events, *([event(usage_chunk(*counted))] if counted else []), DONE]


def messages_told(*texts: str, stop_reason: str = "end_turn", counted: tuple[int, int] = (11, 7)) -> list[bytes]:
    """The events of a whole answer in Anthropic's dialect, with a ping between any two."""
    start = {"model": "claude-served", "usage": {"input_tokens": counted[0], "output_tokens": 1}}
    events: list[Json] = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": one}} for one in texts),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": stop_reason}, "usage": {"output_tokens": counted[1]}},
        {"type": "message_stop"},
    ]
    ping = event({"type": "ping"}, name="ping")
    return [part for one in events for part in (event(one, name=one["type"]), ping)]


def streams(
    events: Sequence[bytes],
    *,
    every_s: float = 0.0,
    first_after_s: float = 0.0,
    end: End = "clean",
    content_type: str = "text/event-stream",
) -> Fault:
    """Answer 200 with these events, one HTTP chunk each, and end in one way or another."""

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 X\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        await asyncio.sleep(first_after_s)
        for one in events:
            writer.write(f"{len(one):x}\r\n".encode() + one + b"\r\n")
            await writer.drain()
            if every_s:
                await asyncio.sleep(every_s)
        await _end(writer, end)

    return act


def repeats(one: bytes, *, every_s: float, times: int = 1_000_000) -> Fault:
    """Alive for ever, and never a token: comments of a queue, pings, empty deltas."""
    return streams(_Repeated(one, times), every_s=every_s, end="stall")


def dribbles_headers(*, every_s: float) -> Fault:
    """A response whose headers never end."""

    async def act(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 X\r\n")
        for number in range(1_000_000):
            writer.write(f"x-{number}: y\r\n".encode())
            await asyncio.sleep(every_s)

    return act


def resets() -> Fault:
    """Take the request and answer with a TCP reset."""

    async def act(writer: asyncio.StreamWriter) -> None:
        _reset(writer)

    return act


class _Repeated(Sequence[bytes]):
    def __init__(self, one: bytes, times: int) -> None:
        self._one = one
        self._times = times

    def __len__(self) -> int:
        return self._times

    def __getitem__(self, index: Any) -> Any:
        if index >= self._times:
            raise IndexError
        return self._one


async def _end(writer: asyncio.StreamWriter, end: End) -> None:
    match end:
        case "clean":
            writer.write(b"0\r\n\r\n")
        case "hang up":
            writer.close()
        case "reset":
            _reset(writer)
        case "stall":
            await asyncio.Event().wait()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Lingering for zero seconds turns the close into a reset."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
