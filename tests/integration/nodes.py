"""A group of PostgreSQL nodes of a test's own, and a ledger of acknowledged writes that lives outside of it."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg

from workers.ops.background import BackgroundSupervisor
from workers.ops.opening import open_site
from workers.ops.replication.group import Group
from workers.ops.replication.knobs import FailoverKnobs
from workers.ops.surroundings import ROOT
from workers.ops.topology import build, servers_only

AWAY = (psycopg.OperationalError, psycopg.errors.ReadOnlySqlTransaction)
PATIENT = FailoverKnobs(polite_s=30.0, catch_up_s=30.0)
"""A node that is well does what it is asked for, however long that takes on a busy machine."""
LISTED: dict[str, Any] = {"connect_timeout": 2, "application_name": "test"}


@contextmanager
def nodes_in(folder: Path, *, replicas: int = 2, synchronous: bool = False) -> Iterator[BackgroundSupervisor]:
    """Start PostgreSQL alone: a primary and its replicas."""
    around = open_site(folder, inherited=dict(os.environ), project=ROOT)
    try:
        wish = replace(servers_only(), replicas=replicas, synchronous=synchronous)
        topology = build(wish, around=around)
        assert topology.group
        names = {node.name for node in topology.group.nodes}
        specs = tuple(spec for spec in topology.specs if spec.name in names)
        alone = replace(topology, specs=specs, group=replace(topology.group, knobs=PATIENT))
        with BackgroundSupervisor(around, alone) as servers:
            servers.up()
            yield servers
    finally:
        around.run.close()


def group_of(servers: BackgroundSupervisor) -> Group:
    """The nodes, and who leads."""
    assert servers.topology.group
    return servers.topology.group


def ask(servers: BackgroundSupervisor, node: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """One statement on one node; its rows."""
    port = group_of(servers).node(node).port
    with psycopg.connect(dsn(port), autocommit=True, **LISTED) as connection:
        cursor = connection.execute(statement, values)
        return cursor.fetchall() if cursor.description else []


def dsn(*ports: int) -> str:
    """Any of these nodes, as psycopg takes it."""
    return f"host={','.join(['127.0.0.1'] * len(ports))} port={','.join(map(str, ports))} user=fleet dbname=fleet"


@dataclass(slots=True)
class Writers:
    """Threads that insert numbers into `kept` and note each one whose COMMIT was acknowledged."""

    ports: tuple[int, ...]
    offset: int = 0
    """So that no number is written twice."""

    acknowledged: dict[bool, list[int]] = field(default_factory=lambda: {True: [], False: []})
    """True: a standby had it on disk by then; False: the primary alone."""

    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _last: float = 0.0
    _gap_s: float = 0.0

    def total(self) -> int:
        """How many were acknowledged so far with a standby's word."""
        return len(self.acknowledged[True])

    def longest_gap_s(self) -> float:
        """The longest time without such an acknowledgement since this was asked last."""
        found, self._gap_s = self._gap_s, 0.0
        return found

    def _write(self, lane: int, synchronous: bool) -> None:
        """Until told to stop: connect to whoever takes writes, and write until that breaks."""
        number = 0
        lane += self.offset
        while not self._stop.is_set():
            with suppress(*AWAY), self._connection() as connection:
                if not synchronous:
                    connection.execute("SET synchronous_commit = local")
                while not self._stop.is_set():
                    number += 1
                    connection.execute("INSERT INTO kept VALUES (%s)", [lane * 1_000_000 + number])
                    self._note(lane * 1_000_000 + number, synchronous=synchronous)
                    time.sleep(0.001)
            time.sleep(0.01)

    def _note(self, value: int, *, synchronous: bool) -> None:
        self.acknowledged[synchronous].append(value)
        if synchronous:
            now = time.monotonic()
            self._gap_s = max(self._gap_s, now - self._last) if self._last else 0.0
            self._last = now

    def _connection(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(dsn(*self.ports), autocommit=True, target_session_attrs="read-write", **LISTED)

    def __enter__(self) -> "Writers":
        lanes = ((1, True), (2, True), (3, False), (4, False))
        self._threads += [threading.Thread(target=self._write, args=lane, daemon=True) for lane in lanes]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=30)
            assert not thread.is_alive(), "a writer hangs"


@contextmanager
def watching(look: Callable[[], list[Any]], *, every_s: float = 0.005) -> Iterator[list[Any]]:
    """Look again and again from another thread; whatever was found is in the list."""
    found: list[Any] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            with suppress(psycopg.Error):
                found.extend(look())
            time.sleep(every_s)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join(timeout=30)
