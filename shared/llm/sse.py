"""Server-sent events out of a byte stream: incremental, bounded, and without an object per field.

Source: WHATWG HTML, 9.2.6 "Interpreting an event stream".
"""

from dataclasses import dataclass

MAX_EVENT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    """One dispatched event; `name` is empty when the stream gave none."""

    name: str
    data: str


class EventTooLong(ValueError):
    """An event longer than `MAX_EVENT_BYTES` without an end: no stream of tokens looks like that."""


class EventReader:
    """Feed it blocks as they come off the socket; comments and unknown fields are dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, block: bytes) -> list[Event]:
        """The events that this block completes.

        Raises: EventTooLong.
        """
        if len(self._rest) + self._size + len(block) > MAX_EVENT_BYTES:
            raise EventTooLong(f"an event of more than {MAX_EVENT_BYTES} bytes")
        lines = _lines(self._rest + block)
        self._rest = lines.pop()
        return [event for line in lines if (event := self._take(line)) is not None]

    def end(self) -> list[Event]:
        """What the end of the stream completes: servers do forget the last empty line."""
        last = [event for line in (self._rest.rstrip(b"\r"), b"") if (event := self._take(line)) is not None]
        self._rest = b""
        return last

    def _take(self, line: bytes) -> Event | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(_text(value))
            self._size += len(line)
        elif field == b"event":
            self._name = _text(value)
        return None

    def _dispatch(self) -> Event | None:
        event = Event(self._name, "\n".join(self._data)) if self._data else None
        self._name, self._data, self._size = "", [], 0
        return event


def _lines(block: bytes) -> list[bytes]:
    """Lines, and as the last one what has no end yet; a lone CR at the very end may be half of a CRLF."""
    if b"\r" not in block:
        return block.split(b"\n")
    held = b"\r" if block.endswith(b"\r") else b""
    whole = block[: len(block) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    lines = whole.split(b"\n")
    lines[-1] += held
    return lines


def _text(value: bytes) -> str:
    return value.removeprefix(b" ").decode("utf-8", "replace")
