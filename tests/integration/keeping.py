"""A keeper for tests: its chores one by one in the test's own loop, or whole processes to kill and to freeze."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import dict_row

from shared.broker.knobs import BrokerKnobs
from shared.broker.publisher import Publisher
from shared.contracts import TaskMessage
from shared.db.database import Database as Door
from shared.db.knobs import DbKnobs
from shared.errors import PublishUnconfirmed
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.terms import Term, candidacy
from tests.integration.live import Database
from workers.keeper.broker_chores import BrokerChores
from workers.keeper.knobs import KeeperKnobs
from workers.keeper.ledger_chores import LedgerChores
from workers.keeper.outbox import Outbox
from workers.ops.surroundings import ROOT

PATIENT_S = 20
"""What a broker that answers is given to do so, on a busy machine too."""
NOBODY = "amqp://nobody@127.0.0.1:1//"
"""A broker that refuses every connection."""


@dataclass
class FakePublisher:
    """A broker that confirms at once, or not at all."""

    sent: list[TaskMessage] = field(default_factory=list)
    is_down: bool = False

    def publish(self, message: TaskMessage) -> "Future[None]":
        """Keep the message."""
        done: Future[None] = Future()
        if self.is_down:
            done.set_exception(PublishUnconfirmed("down"))
        else:
            self.sent.append(message)
            done.set_result(None)
        return done


@dataclass
class Keeping:
    """A leading keeper's chores, its door to the ledger and what it has published."""

    door: Door
    term: Term
    ledger: LedgerChores
    broker: BrokerChores
    outbox: Outbox
    publisher: "FakePublisher | Publisher"

    async def sent(self) -> list[UUID]:
        """Ids of the messages published since the last look."""
        await self.outbox.flush()
        assert isinstance(self.publisher, FakePublisher)
        ids = [message.id for message in self.publisher.sent]
        self.publisher.sent.clear()
        return ids

    def break_broker(self, is_down: bool = True) -> None:
        """Let it confirm nothing any more, or again."""
        assert isinstance(self.publisher, FakePublisher)
        self.publisher.is_down = is_down


@asynccontextmanager
async def keeping(
    database: Database, *, ledger: LedgerKnobs | None = None, broker_url: str = "", **knobs: Any
) -> AsyncIterator[Keeping]:  # fmt: skip
    """Lead in this database until the block ends.

    Args:
        broker_url: Of a real broker; without one, messages go to a fake.
    """
    door = Door(DbKnobs(url=database.url), application_name=f"keeper-{uuid4().hex[:8]}")
    asked = KeeperKnobs(**knobs)
    try:
        async with candidacy(door, role="keeper", holder=f"keeper-{uuid4().hex[:8]}") as candidate:
            epoch = await candidate.stand()
            assert epoch is not None
            term = Term(door, role="keeper", epoch=epoch)
            broker_knobs = BrokerKnobs(
                url=broker_url or NOBODY,
                connect_timeout_s=PATIENT_S, confirm_timeout_s=PATIENT_S, socket_timeout_s=PATIENT_S,
            )  # fmt: skip
            publisher = Publisher(broker_knobs) if broker_url else FakePublisher()
            outbox = Outbox(cast(Publisher, publisher), term)
            chores = LedgerChores(
                term, outbox, ledger=ledger or LedgerKnobs(), knobs=asked, answers_since=-1000.0
            )  # fmt: skip
            broker = BrokerChores(term, outbox, broker=broker_knobs, knobs=asked)
            yield Keeping(door, term, chores, broker, outbox, publisher)
            await outbox.flush()
            if isinstance(publisher, Publisher):
                await asyncio.to_thread(publisher.close)
    finally:
        await door.close()


@contextmanager
def keeper_process(env: Mapping[str, str], *, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A keeper of its own; killed at the end, frozen or not."""
    with log.open("ab") as page:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers.keeper.main"],
            cwd=ROOT,
            env={**os.environ, "FLEET_LOG_LEVEL": "DEBUG", **env},
            stdout=page,
            stderr=page,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait()


def add(database: Database, **columns: Any) -> UUID:
    """Put one task into the ledger as it is told; a value of type `Sql` is an expression."""
    (task_id,) = add_many(database, 1, **columns)
    return task_id


class Sql(str):
    """An SQL expression."""


def ago(seconds: float) -> Sql:
    """A moment in the past of the database's clock."""
    return Sql(f"now() - make_interval(secs => {seconds})")


def add_many(database: Database, count: int, **columns: Any) -> list[UUID]:
    """Put equal tasks into the ledger, each with an id of its own."""
    row: dict[str, Any] = {"tenant": "t", "agent": "test.echo", "input": {"args": [], "kwargs": {}}, **columns}
    row = {"id": Sql("gen_random_uuid()"), "dispatch_at": Sql("now()"), **row}
    names = ", ".join(row)
    values = ", ".join(value if isinstance(value, Sql) else f"%({name})s" for name, value in row.items())
    plain = {name: json.dumps(value) if isinstance(value, dict | list) else value for name, value in row.items()}
    statement = f"INSERT INTO tasks ({names}) SELECT {values} FROM generate_series(1, {count}) RETURNING id"
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        return [found[0] for found in connection.execute(cast(Any, statement), plain).fetchall()]


def add_worker(database: Database, *, slots: int = 10, beat_ago_s: float = 0.0, state: str = "alive") -> UUID:
    """Put a worker into the ledger."""
    statement = """INSERT INTO workers (id, name, host, pid, slots, state, heartbeat_at)
        VALUES (gen_random_uuid(), 'w', 'h', 1, %s, %s, now() - make_interval(secs => %s)) RETURNING id"""
    return cast(UUID, ask(database, statement, slots, state, beat_ago_s)[0]["id"])


def ask(database: Database, statement: str, *values: Any) -> list[dict[str, Any]]:
    """Run one statement; its rows, if it has any."""
    with psycopg.connect(database.dsn, autocommit=True, row_factory=dict_row) as connection:
        cursor = connection.execute(cast(Any, statement), values)
        return cursor.fetchall() if cursor.description else []


def task(database: Database, task_id: UUID) -> dict[str, Any]:
    """One task's row."""
    return ask(database, "SELECT * FROM tasks WHERE id = %s", task_id)[0]


def states(database: Database, ids: Sequence[UUID]) -> list[str]:
    """The states of these tasks, in their order."""
    found = {row["id"]: row["state"] for row in ask(database, "SELECT id, state FROM tasks")}
    return [found[one] for one in ids]
