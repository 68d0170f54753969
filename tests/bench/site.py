"""The stage of all benchmarks: real servers, workers as processes, one producer, and the ledger's own clock."""

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import psycopg
from celery import Celery

from shared.client import FleetClient
from shared.contracts import QUEUE
from tests.bench import gauges, peer
from workers.ops.background import BackgroundSupervisor, running
from workers.ops.probes import Notified
from workers.ops.recipes import processes
from workers.ops.spec import ServerSpec
from workers.ops.surroundings import ROOT
from workers.ops.topology import Wish

WISH = Wish(profile="full", vectors=True, model=False, workers=0, flower=False)
IN_FLIGHT = 256
"""Submits that one producer has open at once."""
T = TypeVar("T")


class BenchFailed(Exception):
    """A run that did not end as it must: its figures would mean nothing."""


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Worker:
    """A running worker process."""

    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A finished run of many tasks, by the ledger's clock (seconds since the epoch)."""

    first_start: float
    last_finish: float


class Site:
    """Servers and a producer; workers come and go."""

    def __init__(self, servers: BackgroundSupervisor, runner: asyncio.Runner) -> None:
        self._servers = servers
        self._runner = runner
        self.client = FleetClient()
        self.broker_url = servers.broker_url

    @contextmanager
    def worker(self, name: str, *, slots: int | None = None, env: Mapping[str, str] | None = None) -> Iterator[Worker]:
        """A stock worker with the bench's agents, as shipped but for its log level; quiet when this returns.

        Args:
            slots: `-c`; the default concurrency when not given.
        """
        more = {"FLEET_AGENTS": "tests.bench.agents", "FLEET_LOG_LEVEL": "WARNING", **(env or {})}
        spec = processes.worker(
            self._servers.around, 1, env={**self._servers.env, **more}, needs=self._needs()
        )  # fmt: skip
        own = (*spec.argv[: spec.argv.index("-n")], "-n", f"{name}@%h")  # two of one name would lock each other out
        argv = own if slots is None else (*own, "-c", str(slots))
        with self._process(replace(spec, name=name, argv=argv)) as started:
            yield started

    @contextmanager
    def peer_worker(self) -> Iterator[Worker]:
        """One plain Celery worker; see `tests.bench.peer`."""
        around = self._servers.around
        spec = ServerSpec(
            name="peer",
            kind="peer",
            argv=(sys.executable, "-m", "celery", *peer.WORKER),
            env=around.python_env({"CELERY_BROKER_URL": self.broker_url}),
            cwd=ROOT,
            probe=Notified(),
            needs=("rabbitmq",),
            start_timeout_s=60.0,
        )
        with self._process(spec) as started:
            yield started

    @contextmanager
    def holding_back(self) -> Iterator[None]:
        """Running workers take nothing from the queue: Celery's own remote control tells them to, and to go on."""
        control = Celery("bench-control", broker=self.broker_url).control
        _insist(control.cancel_consumer(QUEUE, reply=True, timeout=5))
        yield
        _insist(control.add_consumer(QUEUE, reply=True, timeout=5))

    @contextmanager
    def without_broker(self) -> Iterator[None]:
        """The broker is stopped."""
        self._servers.stop("rabbitmq")
        yield
        self._servers.start("rabbitmq")

    def kill_for_good(self, worker: Worker) -> None:
        """SIGKILL; nobody starts it again."""
        self._servers.suspend(worker.name)
        self._servers.kill(worker.name)

    def query(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """What the ledger's tables say."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(query, values).fetchall()

    async def cancel_all(self, tenant: str) -> None:
        """Cancel what a tenant still has."""
        ids = [task_id for (task_id,) in self.query(UNFINISHED, tenant)]
        for first in range(0, len(ids), 20):
            cancels = (self.client.acancel(task_id) for task_id in ids[first : first + 20])
            await asyncio.gather(*cancels, return_exceptions=True)  # some may just have ended

    @property
    def dsn(self) -> str:
        """The primary, as psycopg takes it."""
        return self._servers.db_url.replace("+psycopg", "")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the producer's loop."""
        return self._runner.run(work)

    async def submit_many(self, agent: str, count: int, *, tenant: str, **inputs: Any) -> None:
        """Submit `count` tasks from one producer, many at a time."""
        numbers = iter(range(count))

        async def submit_some() -> None:
            for _ in numbers:
                await self.client.asubmit(agent, inputs, tenant=tenant)

        await asyncio.gather(*(submit_some() for _ in range(min(count, IN_FLIGHT))))

    def ended(self, tenant: str, count: int, *, within_s: float) -> Ended:
        """Wait until all tasks of a tenant have succeeded.

        Raises: BenchFailed when one failed or they take longer than `within_s`.
        """
        end, done = time.monotonic() + within_s, 0
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while time.monotonic() < end:
                [(done, failed, first_start, last_finish)] = connection.execute(PROGRESS, (tenant,)).fetchall()
                if failed:
                    raise BenchFailed(f"{failed} tasks of {tenant} failed: see the ledger and the worker's log")
                if done == count:
                    return Ended(first_start, last_finish)
                time.sleep(0.3)
        raise BenchFailed(f"only {done} of {count} tasks of {tenant} ended within {within_s:g} s")

    def _needs(self) -> tuple[str, ...]:
        return self._servers.topology.needs_of_processes()

    @contextmanager
    def _process(self, spec: ServerSpec) -> Iterator[Worker]:
        self._servers.add(spec)
        try:
            pid = self._servers.pid(spec.name)
            gauges.wait_quiet(pid)
            yield Worker(spec.name, pid)
        finally:
            self._servers.remove(spec.name)


PROGRESS = """
    SELECT count(*) FILTER (WHERE state = 'succeeded'), count(*) FILTER (WHERE state = 'failed'),
           extract(epoch FROM min(started_at))::float8, extract(epoch FROM max(finished_at))::float8
    FROM tasks WHERE tenant = %s"""

UNFINISHED = "SELECT id FROM tasks WHERE tenant = %s AND state IN ('queued', 'running', 'waiting', 'parked')"


def _insist(replies: Sequence[Mapping[str, Any]]) -> None:
    """Every worker must have obeyed."""
    if not replies or not all("ok" in answer for reply in replies for answer in reply.values()):
        raise BenchFailed(f"a worker did not obey: {replies}")


def fresh_tenant(name: str) -> str:
    """A label for the tasks of one run."""
    return f"bench-{name}-{uuid4().hex[:8]}"


@contextmanager
def opened() -> Iterator[Site]:
    """Start all servers in a new folder, and stop and remove them at the end."""
    folder = Path(tempfile.mkdtemp(prefix="fleet-bench-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        with running(WISH, folder=folder / "run", inherited=dict(os.environ), project=ROOT) as servers:
            os.environ.update(servers.env)
            with asyncio.Runner() as runner:
                site = Site(servers, runner)
                try:
                    yield site
                finally:
                    runner.run(site.client.aclose())
                    site.client.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
