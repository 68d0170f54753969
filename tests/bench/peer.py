"""The peer: plain Celery with safe settings on the same RabbitMQ, as its documentation advises for work not to be lost.

Late acknowledgement, reject on a lost worker, a quorum queue, publisher confirms with `mandatory` and one confirmation
awaited per message (in 32 threads where many are sent: its calls block), prefetch multiplier 1, no result backend, no
events (ours has them on), no mingle and no gossip.
The pool is `threads`, the fastest safe one measured, with 4 threads (faster than 20 where two cores are shared with the
producer and the broker). Its tasks are durable in the queue alone: no ledger, no journal, no result.
"""

import itertools
import os
import socket
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery
from celery.signals import worker_ready

from shared.telemetry.notify import notify

NAME = "celery-safe"
SENDERS = 32
"""Threads of its producer, each with a connection: the fastest of 1, 4, 16 and 32."""
WORKER = (
    *("-A", "tests.bench.peer", "worker", "--pool", "threads", "-c", "4", "-n", "peer@%h", "--loglevel", "WARNING"),
    *("--without-mingle", "--without-gossip"),
)

app = Celery(NAME)
app.conf.update(
    broker_transport_options={"confirm_publish": True, "read_timeout": 10, "write_timeout": 10},
    broker_connection_retry_on_startup=True,
    task_default_queue="bench.peer",
    task_default_queue_type="quorum",
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    task_publish_retry=False,
    worker_prefetch_multiplier=1,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
)
_seen: dict[str, Any] = {}


@app.task(name="peer.noop")  # type: ignore[untyped-decorator]
def noop(run: str, count: int, port: int) -> None:
    """Nothing; the last one of `count` tells the bench when it ended."""
    counter = _seen.setdefault(run, itertools.count(1))
    if next(counter) == count:
        tell(port, time.time_ns())


@app.task(name="peer.stamp")  # type: ignore[untyped-decorator]
def stamp(port: int) -> None:
    """Tell the time at which the body began, in ns."""
    tell(port, time.time_ns())


def tell(port: int, value: int) -> None:
    """One number to the bench."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(str(value).encode(), ("127.0.0.1", port))


class Ear:
    """Where the peer's tasks report to: a datagram socket of the bench."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

    def hear(self, *, within_s: float) -> int:
        """The next number. Raises: TimeoutError."""
        self._socket.settimeout(within_s)
        return int(self._socket.recv(100))

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()


class Producer:
    """One producer process of the peer: each call returns when its message is confirmed."""

    def __init__(self, broker_url: str) -> None:
        app.conf.broker_url = broker_url
        app.conf.broker_pool_limit = SENDERS
        self.ear = Ear()
        self._senders = ThreadPoolExecutor(SENDERS)

    def send_many(self, task: str, count: int, *args: Any) -> None:
        """Publish so many equal tasks, several at once. Raises: what Celery raises."""
        deque(self._senders.map(lambda _: self.send(task, *args), range(count)), maxlen=0)

    def send(self, task: str, *args: Any) -> None:
        """Publish one task. Raises: what Celery raises."""
        app.send_task(task, args=args, mandatory=True, confirm_timeout=5)

    def close(self) -> None:
        """Close its connections."""
        self._senders.shutdown()
        self.ear.close()
        app.close()


@worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
def ready(**_: Any) -> None:
    """Tell the supervisor."""
    notify(os.environ.get("NOTIFY_SOCKET"))
