"""A publish that is confirmed by the broker or fails in bounded time, many in flight at once.

One thread owns one connection. It writes every message that waits, then collects the broker's confirmations together:
one round trip serves many callers. Each caller gets a future that ends when its own message is confirmed.
"""

import queue
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import amqp
import structlog
from kombu import Connection
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared.broker.connection import connect, safe_url
from shared.broker.knobs import BrokerKnobs
from shared.broker.topology import declare, mismatch
from shared.contracts import CONTENT_TYPE, QUEUE, TaskMessage
from shared.errors import PublishUnconfirmed

log = structlog.get_logger()

WINDOW = 256
"""Messages written before their confirmations are collected: bounds memory and the loss of one connection."""

write_unconfirmed = amqp.Channel.basic_publish  # the instance's own would wait for each confirmation by itself

BROKER_ERRORS = (OSError, amqp.AMQPError, OperationalError, RedisError)


@dataclass(slots=True)
class _Parcel:
    body: bytes
    headers: Mapping[str, Any]
    task_id: str
    routing_key: str
    content_type: str
    content_encoding: str
    done: "Future[None]" = field(default_factory=Future)


class Publisher:
    """Publishes messages; safe to call from any thread. `close()` ends its thread."""

    def __init__(self, knobs: BrokerKnobs) -> None:
        self._knobs = knobs
        self._waiting: queue.SimpleQueue[_Parcel | None] = queue.SimpleQueue()
        self._down_until = 0.0
        self._down_cause = ""
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def publish(self, message: TaskMessage) -> "Future[None]":
        """Send a task to the queue of its priority; the future ends when the broker has it on disk.

        The future raises PublishUnconfirmed when the broker is down, refuses or stays silent.
        """
        return self.send(
            message.wire_headers(), message.wire_body(), task_id=str(message.id), routing_key=message.queue
        )

    def send(
        self, headers: Mapping[str, Any], body: bytes, *, task_id: str, routing_key: str = QUEUE,
        content_type: str = CONTENT_TYPE, content_encoding: str = "utf-8",
    ) -> "Future[None]":  # fmt: skip
        """Send raw headers and body to a queue by its name; `task_id` tells messages apart on this connection."""
        parcel = _Parcel(body, headers, task_id, routing_key, content_type, content_encoding)
        if time.monotonic() < self._down_until:
            parcel.done.set_exception(self._failed(self._down_cause))
            return parcel.done
        self._waiting.put(parcel)
        self._ensure_thread()
        return parcel.done

    def close(self) -> None:
        """Send what waits, then end the thread."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._waiting.put(None)
            thread.join(timeout=self._knobs.confirm_timeout_s + self._knobs.connect_timeout_s)

    def _ensure_thread(self) -> None:
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="broker-publisher", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        link: _Link | None = None
        while True:
            batch, last = self._next_batch()
            if batch:
                link = self._deliver(batch, link)
            if last:
                if link is not None:
                    link.close()
                return

    def _next_batch(self) -> tuple[list[_Parcel], bool]:
        first = self._waiting.get()
        if first is None:
            return [], True
        batch = [first]
        while len(batch) < WINDOW:
            try:
                parcel = self._waiting.get_nowait()
            except queue.Empty:
                break
            if parcel is None:
                return batch, True
            batch.append(parcel)
        return batch, False

    def _deliver(self, batch: list[_Parcel], link: "_Link | None") -> "_Link | None":
        """Send a batch; a connection that was fine before may have died idle, so it gets one fresh try."""
        for is_retry in (False, True) if link is not None else (True,):
            try:
                link = link or _Link(self._knobs)
                link.send([parcel for parcel in batch if not parcel.done.done()], self._knobs.confirm_timeout_s)
            except BROKER_ERRORS as error:
                if link is not None:
                    link.abandon()
                link = None
                if is_retry:
                    self._fail(batch, error)
            except Exception as error:  # the thread of all publishes must outlive one batch: logged, callers are told
                log.exception("broker.publisher_failed", messages=len(batch))
                if link is not None:
                    link.abandon()
                self._fail(batch, error)
                return None
            else:
                return link
        return None

    def _fail(self, batch: list[_Parcel], error: BaseException) -> None:
        self._down_cause = mismatch(error) or str(error) or type(error).__name__
        self._down_until = time.monotonic() + self._knobs.retry_after_s
        log.warning("broker.publish_failed", messages=len(batch), cause=self._down_cause)
        for parcel in batch:
            if not parcel.done.done():
                parcel.done.set_exception(self._failed(self._down_cause))

    def _failed(self, cause: str) -> PublishUnconfirmed:
        return PublishUnconfirmed(
            f"the broker at {safe_url(self._knobs.url)} did not confirm the message: {cause}",
            retry_after_s=self._knobs.retry_after_s,
        )


class _Link:
    """One open connection and channel, with the confirmations of what was written on it."""

    def __init__(self, knobs: BrokerKnobs) -> None:
        self._connection: Connection = connect(knobs)
        try:
            declare(self._connection, knobs)
            self._channel: Any = self._connection.channel()
        except BaseException:
            self.abandon()
            raise
        self._is_amqp = knobs.is_amqp
        self._tag = 0
        self._open: dict[int, _Parcel] = {}
        self._returned: set[str] = set()
        if self._is_amqp:
            self._channel.confirm_select()
            self._channel.events["basic_ack"].add(self._on_ack)
            self._channel.events["basic_nack"].add(self._on_nack)
            self._channel.events["basic_return"].add(self._on_return)

    def send(self, batch: list[_Parcel], timeout_s: float) -> None:
        """Write all, then wait for all; raises on a broken or silent connection with the unconfirmed left open."""
        self._open.clear()
        for parcel in batch:
            self._write(parcel)
        deadline = time.monotonic() + timeout_s
        while self._open:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"no confirmation within {timeout_s:g} s")
            self._connection.drain_events(timeout=left_s)

    def close(self) -> None:
        """Say goodbye."""
        self._connection.release()

    def abandon(self) -> None:
        """Drop a connection that is broken or hung, without waiting for the peer."""
        self._connection.collect(socket_timeout=0.1)

    def _write(self, parcel: _Parcel) -> None:
        message = self._channel.prepare_message(
            parcel.body,
            content_type=parcel.content_type,
            content_encoding=parcel.content_encoding,
            headers=dict(parcel.headers),
            properties={"delivery_mode": 2, "correlation_id": parcel.task_id},
        )
        if not self._is_amqp:
            self._channel.basic_publish(message, exchange="", routing_key=parcel.routing_key)
            parcel.done.set_result(None)
            return
        self._tag += 1
        self._open[self._tag] = parcel
        write_unconfirmed(self._channel, message, exchange="", routing_key=parcel.routing_key, mandatory=True)

    def _on_ack(self, tag: int, multiple: bool) -> None:
        for one in [t for t in self._open if t <= tag] if multiple else [tag]:
            parcel = self._open.pop(one, None)
            if parcel is None or parcel.done.done():
                continue
            if parcel.task_id in self._returned:  # an unroutable message is returned, and confirmed after that
                self._returned.discard(parcel.task_id)
                parcel.done.set_exception(PublishUnconfirmed(f"no queue {parcel.routing_key!r} exists on the broker"))
            else:
                parcel.done.set_result(None)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        for one in [t for t in self._open if t <= tag] if multiple else [tag]:
            parcel = self._open.pop(one, None)
            if parcel is not None and not parcel.done.done():
                parcel.done.set_exception(
                    PublishUnconfirmed("the broker refused the message (queue full or leaderless)")
                )

    def _on_return(self, _error: Any, _exchange: str, _routing_key: str, message: Any) -> None:
        self._returned.add(str(message.properties.get("correlation_id")))
