"""Several keepers, real processes: one leads; killed or frozen, the other takes over, and the first changes nothing."""

import asyncio
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import text

from shared.db.database import Database as Door
from shared.db.knobs import DbKnobs
from shared.errors import DatabaseUnavailable, Fenced
from shared.ledger.rescue import bury
from shared.ledger.terms import Candidate, Term, candidacy
from tests.integration.keeping import add, add_worker, ago, ask, keeper_process, task
from tests.integration.live import Database, eventually
from workers.ops.background import BackgroundSupervisor

PROCESSES = 3
TAKEOVER_S = 60.0
"""It only ends a broken test: how long each took is printed."""


@dataclass
class Keepers:
    """Keeper processes on one ledger; `leader` is the one that leads now."""

    database: Database
    processes: list["subprocess.Popen[bytes]"]

    def term(self) -> dict[str, Any]:
        """The term of office, or nothing before the first one."""
        return next(iter(ask(self.database, "SELECT * FROM terms WHERE role = 'keeper'")), {})

    def leader(self) -> "subprocess.Popen[bytes]":
        """The process whose connection holds the lock."""
        holder = self.term()["holder"]
        ports = {
            row["client_port"]
            for row in ask(
                self.database, "SELECT client_port FROM pg_stat_activity WHERE application_name = %s", holder
            )
        }
        return next(one for one in self.processes if one.poll() is None and ports & _ports(one.pid))

    def after(self, epoch: int) -> float:
        """Seconds until a later term begins."""
        began = time.monotonic()
        eventually(lambda: self.term()["epoch"] > epoch, within_s=TAKEOVER_S)
        return time.monotonic() - began


@pytest.fixture
def keepers(servers: BackgroundSupervisor, database: Database, run_folder: Callable[[], Path]) -> Iterator[Keepers]:
    """All up, one leading."""
    folder = run_folder()
    folder.mkdir()
    env = {**servers.env, "FLEET_DB_URL": database.url}
    with ExitStack() as open_:
        started = [
            open_.enter_context(keeper_process(env, log=folder / f"keeper-{number}")) for number in range(PROCESSES)
        ]
        found = Keepers(database, started)
        eventually(found.term, within_s=TAKEOVER_S)
        eventually(lambda: _standing(database) == PROCESSES, within_s=TAKEOVER_S)
        yield found
        logs = "".join(page.read_text() for page in folder.glob("keeper-*"))
    assert "keeper.chore_failed" not in logs, logs


def _standing(database: Database) -> int:
    query = "SELECT count(DISTINCT application_name) AS n FROM pg_stat_activity WHERE datname = current_database()"
    return int(
        ask(
            database,
            f"{query} AND application_name LIKE 'fleet-keeper-%%'",
        )[0]["n"]
    )


def _ports(pid: int) -> set[int]:
    """Local TCP ports of a process."""
    inodes = {
        link.readlink().name.partition(":")[2].strip("[]")
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if link.is_symlink() and "socket:" in str(link.readlink())
    }
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].partition(":")[2], 16) for row in rows if row[9] in inodes}


def wakes(database: Database) -> float:
    """Seconds until a wait that is over goes on: somebody leads and does rounds."""
    due = add(database, state="waiting", wake_at=ago(0), waiting_for={"kind": "sleep"})
    began = time.monotonic()
    eventually(lambda: task(database, due)["state"] == "queued", within_s=TAKEOVER_S)
    return time.monotonic() - began


def test_the_lead_passes_on_from_a_frozen_a_killed_and_a_stopped_leader(keepers: Keepers) -> None:
    wakes(keepers.database)
    frozen, before = keepers.leader(), keepers.term()["epoch"]
    frozen.send_signal(signal.SIGSTOP)
    print(f"\ntakeover after SIGSTOP: {keepers.after(before):.2f} s, first wake {wakes(keepers.database):.2f} s later")
    second = keepers.term()["epoch"]
    frozen.send_signal(signal.SIGCONT)
    eventually(lambda: _standing(keepers.database) == PROCESSES)
    assert keepers.term()["epoch"] == second, "the old leader has changed nothing, and stands in line"
    assert keepers.leader() is not frozen

    killed = keepers.leader()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    print(f"takeover after kill -9: {keepers.after(second):.2f} s, first wake {wakes(keepers.database):.2f} s later")

    stopped, third = keepers.leader(), keepers.term()["epoch"]
    stopped.send_signal(signal.SIGTERM)
    print(f"takeover after SIGTERM: {keepers.after(third):.2f} s, first wake {wakes(keepers.database):.2f} s later")
    assert stopped.wait(60) == 0
    assert keepers.leader() not in (killed, stopped)


async def test_every_write_of_a_deposed_leader_is_refused(database: Database) -> None:
    worker = add_worker(database, beat_ago_s=60)
    run = add(database, state="running", worker_id=worker)
    async with candidate(database) as (door, old), candidate(database) as (_, new):
        first = await old.stand()
        assert first is not None
        term = Term(door, role="keeper", epoch=first)
        assert await new.stand() is None, "one leads"
        assert await depose(new) == first + 1
        with pytest.raises(Fenced, match=f"term {first} of the keeper is over"):
            await bury(term, [worker], dead_after_s=15)
        with pytest.raises(psycopg.OperationalError):
            await old.renew(first)
        assert len(await bury(Term(door, role="keeper", epoch=first + 1), [worker], dead_after_s=15)) == 1
    assert task(database, run)["state"] == "queued"


async def test_a_leader_frozen_within_a_unit_of_work_is_cut_off_and_what_it_did_is_undone(database: Database) -> None:
    """Its connection, not its process, holds the row that the successor needs."""
    kept = add(database)
    async with candidate(database) as (door, old), candidate(database) as (_, new):
        epoch = await old.stand()
        assert epoch is not None

        async def write_and_freeze() -> None:
            async with Term(door, role="keeper", epoch=epoch).unit() as unit:
                await unit.execute(text("UPDATE tasks SET state = 'cancelled'"))
                assert await depose(new) == epoch + 1

        with pytest.raises(DatabaseUnavailable):
            await write_and_freeze()
    assert task(database, kept)["state"] == "queued"


@asynccontextmanager
async def candidate(database: Database) -> AsyncIterator[tuple[Door, Candidate]]:
    """A process that stands for leader, with its door to the ledger."""
    holder = f"keeper-{uuid4().hex[:8]}"
    door = Door(DbKnobs(url=database.url), application_name=holder)
    async with candidacy(door, role="keeper", holder=holder) as found:
        yield door, found
    await door.close()


async def depose(successor: Candidate) -> int | None:
    """Take over from a leader that does not let go; the new epoch."""
    look = await successor.look()
    assert look.lock_pid is not None
    await successor.depose(look.lock_pid)
    async with asyncio.timeout(60):
        while (epoch := await successor.stand()) is None:
            await asyncio.sleep(0.01)
    return epoch
