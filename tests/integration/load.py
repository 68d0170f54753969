"""A stream of submits beside a fault: how long each took, when each task began, and whether any began twice."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
from celery import Celery

from shared.broker.app import make_app
from shared.broker.knobs import BrokerKnobs
from shared.client import FleetClient
from shared.contracts import QUEUES, Priority
from tests.integration.live import eventually
from workers.ops.background import BackgroundSupervisor


@dataclass(frozen=True, slots=True)
class Sent:
    """One submit."""

    id: UUID
    at: float
    took_s: float


@dataclass(slots=True)
class Stream:
    """Submits `diary.start` tasks at a steady pace on a thread of its own until `with` ends."""

    client: FleetClient
    diary: Path
    every_s: float = 0.1
    tenant: str = "default"
    sent: list[Sent] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "Stream":
        self._thread = threading.Thread(target=self._submit, name="stream", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        assert self._thread is not None
        self._thread.join(timeout=30)

    def _submit(self) -> None:
        number = 0
        while not self._ended.wait(self.every_s):
            at = time.time()
            try:
                inputs = {"diary": str(self.diary), "number": number}
                task = self.client.submit("diary.start", inputs, tenant=self.tenant)
            except Exception as error:  # any failed submit is the test's finding
                self.errors.append(error)
                continue
            self.sent.append(Sent(task.id, at, time.time() - at))
            number += 1

    def since(self, at: float) -> list[Sent]:
        """What was submitted from then on."""
        return [one for one in list(self.sent) if one.at >= at]


def start_steps(client: FleetClient, diaries: Path, *, runs: int, count: int, step_s: float) -> dict[UUID, Path]:
    """Submit runs of `test.steps` that each write a diary of their steps; return once every one of them has begun."""
    begun = {}
    for number in range(runs):
        diary = diaries / str(number)
        begun[client.submit("test.steps", {"count": count, "step_s": step_s, "diary": str(diary)}).id] = diary
    eventually(lambda: all(diary.exists() for diary in begun.values()))
    return begun


def started_at(servers: BackgroundSupervisor, ids: list[UUID]) -> dict[UUID, float]:
    """When each of these tasks was first claimed, in seconds since the epoch; those that were not are left out."""
    query = "SELECT id, extract(epoch FROM started_at)::float8 FROM tasks WHERE id = ANY(%s) AND started_at IS NOT NULL"
    with psycopg.connect(servers.db_url.replace("+psycopg", "")) as connection:
        return dict(connection.execute(query, (ids,)).fetchall())


def epochs(servers: BackgroundSupervisor, ids: list[UUID]) -> Counter[tuple[str, int]]:
    """How many of these tasks are in which state after how many claims."""
    with psycopg.connect(servers.db_url.replace("+psycopg", "")) as connection:
        rows = connection.execute("SELECT state, epoch FROM tasks WHERE id = ANY(%s)", (ids,)).fetchall()
    return Counter((state, epoch) for state, epoch in rows)


def celery_of(servers: BackgroundSupervisor) -> Celery:
    """A plain Celery client: its tasks are on the queue alone until a worker has claimed them."""
    return make_app("plain", BrokerKnobs(url=servers.broker_url))


def send_plain(
    app: Celery, agent: str, *, priority: Priority = "normal", tenant: str | None = None, **inputs: object
) -> UUID:
    """Send a task as any Celery client would; the ledger does not know of it."""
    task_id = uuid4()
    headers = {"fleet": {"tenant": tenant}} if tenant else None
    app.send_task(f"agents.{agent}", kwargs=inputs, task_id=str(task_id), queue=QUEUES[priority], headers=headers)
    return task_id
