"""`growth.claim`, `growth.dispatch`: how much slower a full ledger is: 1 million finished and 100 000 waiting tasks.

Two databases on the same server, one empty, one filled with `generate_series` (each finished task with two steps),
analysed and vacuumed; sampled in turns, so that what else the machine does hits both. `claim`: a task that was just
accepted becomes a worker's own. `dispatch`: a task whose time has come is woken as the keeper does, with all its looks
for lost, overdue, bereft and orphaned tasks, and polled as a worker does. Ratios of medians.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from uuid import UUID, uuid4

import psycopg

from shared.contracts import FleetHeader, TaskMessage
from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.ledger.dispatch import lost, overdue_held
from shared.ledger.families import cancel_orphans, wake_bereft
from shared.ledger.group_commit import GroupCommit
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.poll import poll_held
from shared.ledger.roster import beat, enlist
from shared.ledger.rows import task_row
from shared.ledger.runs import Runs
from shared.ledger.timers import wake_due
from tests.bench.figures import Figure
from tests.bench.site import BenchFailed, Site, say
from workers.ops.surroundings import ROOT

FINISHED = 1_000_000
WAITING = 100_000
ROUNDS = 20
SAMPLES = 25
WARM_UP = 2
AT_ONCE = 50_000
FILL_TASKS = """
    INSERT INTO tasks (id, tenant, agent, input, state, epoch, attempt, output, error, wake_at, waiting_for, created_at,
                       started_at, finished_at)
    SELECT md5(%(state)s || n)::uuid, 'tenant-' || n %% 50, 'bench-noop', '{"args": [], "kwargs": {}}',
           CASE WHEN %(state)s = 'waiting' THEN 'waiting' WHEN n %% 20 = 0 THEN 'failed' ELSE 'succeeded' END, 1, 1,
           '"done"', CASE WHEN %(state)s <> 'waiting' AND n %% 20 = 0 THEN '{"code": "x", "message": "x"}'::json END,
           CASE WHEN %(state)s = 'waiting' THEN now() + n * interval '10 s' + interval '1 day' END,
           CASE WHEN %(state)s = 'waiting' THEN '{"kind": "sleep"}'::json END,
           now() - n * interval '0.5 s', now() - n * interval '0.5 s',
           CASE WHEN %(state)s <> 'waiting' THEN now() - n * interval '0.5 s' END
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n"""
FILL_STEPS = """
    INSERT INTO steps (task_id, name, ordinal, kind, fingerprint, epoch, state, result, finished_at)
    SELECT md5(%(state)s || n)::uuid, 'call', o, 'step', md5(n::text), 1, 'done', '"an answer"', now()
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n, generate_series(0, 1) AS o"""


@dataclass
class Ledger:
    """One of the two, and what was measured on it, in ms."""

    database: Database
    worker: UUID = field(default_factory=uuid4)
    claims: list[float] = field(default_factory=list)
    dispatches: list[float] = field(default_factory=list)


def measure(site: Site) -> list[Figure]:
    """Fill, then take turns."""
    with database(site, "growth_empty") as empty_url, database(site, "growth_full") as full_url:
        began = time.monotonic()
        fill(full_url, "finished", FINISHED)
        fill(full_url, "waiting", WAITING)
        tidy(full_url)
        say(f"  filled with {FINISHED} finished and {WAITING} waiting tasks in {time.monotonic() - began:.0f} s")
        empty, full = site.run(take_turns(empty_url, full_url))
    for name in ("claims", "dispatches"):
        say(f"  {name}: p50 {median(getattr(empty, name)):.2f} ms empty, {median(getattr(full, name)):.2f} ms full")
    return [
        Figure(
            name=f"growth.{one}", what=f"{one} latency with 1.1 million tasks in the ledger, over the empty one",
            value=median(getattr(full, many)) / median(getattr(empty, many)), unit="x", goal=1.5, better="lower",
        )
        for one, many in (("claim", "claims"), ("dispatch", "dispatches"))
    ]  # fmt: skip


@contextmanager
def database(site: Site, name: str) -> Iterator[str]:
    """A migrated database of its own on the site's server; its URL."""
    with psycopg.connect(site.dsn, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
    url = f"{site.dsn.rpartition('/')[0]}/{name}".replace("postgresql://", "postgresql+psycopg://")
    command = [sys.executable, "-m", "alembic", "-c", str(ROOT / "migrations" / "alembic.ini"), "upgrade", "head"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "FLEET_DB_URL": url}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchFailed(done.stderr)
    yield url
    with psycopg.connect(site.dsn, autocommit=True) as server:
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def fill(url: str, state: str, count: int) -> None:
    """So many tasks in this state."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as ledger:
        for first in range(1, count + 1, AT_ONCE):
            part = {"state": state, "first": first, "last": min(count, first + AT_ONCE - 1)}
            ledger.execute(FILL_TASKS, part)
            if state == "finished":
                ledger.execute(FILL_STEPS, part)


def tidy(url: str) -> None:
    """As autovacuum leaves a table that nobody has touched for a while."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as ledger:
        ledger.execute("VACUUM ANALYZE tasks")
        ledger.execute("VACUUM ANALYZE steps")
        ledger.execute("CHECKPOINT")


async def take_turns(*urls: str) -> list[Ledger]:
    """Sample each in turn; the first rounds count for nothing."""
    ledgers = [Ledger(Database(DbKnobs(url=url))) for url in urls]
    for one in ledgers:
        await enlist(one.database, worker=one.worker, name="bench", host="bench", pid=os.getpid(), slots=1000)
    for number in range(WARM_UP + ROUNDS):
        for one in ledgers:
            if number == WARM_UP:
                one.claims.clear()
                one.dispatches.clear()
            await sample(one)
    for one in ledgers:
        await one.database.close()
    return ledgers


async def sample(ledger: Ledger) -> None:
    """A round of claims, then one of dispatches; what was claimed is finished again."""
    knobs = LedgerKnobs()
    await beat(ledger.database, ledger.worker, is_draining=False)
    commit = GroupCommit(ledger.database, knobs, worker=ledger.worker, when_down="raise")
    producing = GroupCommit(ledger.database, knobs, worker=None, when_down="raise")
    runs = Runs(ledger.database, commit, knobs)
    for _ in range(SAMPLES):
        message = TaskMessage("bench-noop", {}, fleet=FleetHeader(tenant="tenant-1"))
        await accept(producing, message, knobs, published=True)
        began = time.perf_counter()
        claim = await runs.claim(message)
        ledger.claims.append((time.perf_counter() - began) * 1000)
        if claim is None:
            raise BenchFailed("a fresh task could not be claimed")
        await runs.succeed(claim, None, {})
        await dispatch(ledger, producing, runs, knobs)
    await commit.close()
    await producing.close()
    await asyncio.sleep(0)


async def dispatch(ledger: Ledger, producing: GroupCommit, runs: Runs, knobs: LedgerKnobs) -> None:
    """From a keeper's look at timers and messages to a worker's claim."""
    message = TaskMessage("bench-noop", {}, fleet=FleetHeader(tenant="tenant-2"))
    await accept(producing, message, knobs, published=False)
    async with ledger.database.unit() as unit:
        connection = await unit.connection()
        await connection.exec_driver_sql(
            "UPDATE tasks SET state = 'waiting', wake_at = now() WHERE id = %(id)s", {"id": message.id}
        )
    began = time.perf_counter()
    async with ledger.database.unit() as unit:
        await wake_due(unit, limit=100)
    await lost(ledger.database, limit=100, again_after_s=30)
    await overdue_held(ledger.database, held_after_s=5, limit=100)
    async with ledger.database.unit() as unit:
        await wake_bereft(unit, limit=100)
    await cancel_orphans(ledger.database, limit=100)
    polled = await poll_held(
        ledger.database, worker=ledger.worker, agents=[message.agent], priority="normal", slots=8
    )  # fmt: skip
    ledger.dispatches.append((time.perf_counter() - began) * 1000)
    if [one.claim.task_id for one in polled] != [message.id]:
        raise BenchFailed(f"{len(polled)} tasks were polled, not the one that was due")
    await runs.succeed(polled[0].claim, None, {})


async def accept(commit: GroupCommit, message: TaskMessage, knobs: LedgerKnobs, *, published: bool) -> None:
    """As a producer does."""
    row = task_row(message) | {"redispatch_s": knobs.redispatch_s, "published": published}
    await commit.write("accept", ("accept", message.id, None, 0), row)
