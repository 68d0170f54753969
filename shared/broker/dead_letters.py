"""Messages that no worker can read: moved to the dead-letter queue, and read from there for the record."""

import base64
import math
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from kombu import Connection

from shared.broker.publisher import Publisher
from shared.broker.topology import dead_queue
from shared.contracts import DEAD_QUEUE

REASON_HEADER = "x-fleet-reason"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message from the dead-letter queue."""

    reason: str
    headers: dict[str, Any]
    body: str


def dead_letter(publisher: Publisher, message: Any, reason: str) -> "Future[None]":
    """Put a copy of a received message on the dead-letter queue, with its reason.

    Returns: Ends when the copy is confirmed: only then may the original be acknowledged. A crash in between leaves two
    copies, never none.
    """
    body = message.body
    return publisher.send(
        {**_plain(message.headers or {}), REASON_HEADER: _storable(reason)},
        body.encode(errors="surrogatepass") if isinstance(body, str) else bytes(body),
        task_id=str(uuid4()),
        routing_key=DEAD_QUEUE,
        content_type=message.content_type or "application/octet-stream",
        content_encoding=message.content_encoding or "binary",
    )


def drain_dead_letters(connection: Connection, keep: Callable[[DeadLetter], None], *, limit: int) -> int:
    """Hand up to `limit` dead letters to `keep`, taking each off the queue once it returns.

    Returns: How many were kept.
    """
    with connection.channel() as channel:
        queue = dead_queue().bind(channel)
        queue.declare()
        for kept in range(limit):
            message = queue.get()
            if message is None:
                return kept
            keep(_read(message))
            message.ack()
    return limit


def _read(message: Any) -> DeadLetter:
    headers = _plain(message.headers or {})
    reason = headers.pop(REASON_HEADER, None) or _broker_reason(headers)
    raw = message.body.encode(errors="surrogatepass") if isinstance(message.body, str) else bytes(message.body)
    try:
        body = raw.decode()
    except UnicodeDecodeError:
        body = base64.b64encode(raw).decode()
    return DeadLetter(_storable(str(reason)), headers, _storable(body))


def _storable(text: str) -> str:
    """As PostgreSQL's text can hold it: a reason quotes the message, and one that cannot be kept blocks all others."""
    return text.encode(errors="replace").decode().replace("\x00", "\ufffd")


def _broker_reason(headers: dict[str, Any]) -> str:
    """RabbitMQ's own account of why it moved the message."""
    deaths = headers.get("x-death") or [{}]
    why = {"delivery_limit": "delivered too often without a claim", "rejected": "rejected by a worker"}
    cause = str(deaths[0].get("reason", "unknown"))
    return why.get(cause, f"dead-lettered by the broker: {cause}")


def _plain(value: Any) -> Any:
    """Headers as PostgreSQL can hold and read them: AMQP also knows timestamps, bytes, NUL, and NaN."""
    if isinstance(value, dict):
        return {_storable(str(key)): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bool | int | None) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return _storable(str(value))
