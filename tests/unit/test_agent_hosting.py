"""A worker of fakes as it leaves: its place is given up in good order, whatever a run does that was left behind."""

import asyncio
from typing import Any, cast
from uuid import UUID, uuid4

import psycopg

from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.errors import Fenced
from shared.ledger.knobs import LedgerKnobs
from tests.fakes.fake_world import FakeWorld
from tests.fakes.hand_loop import at_once
from workers.agents.active import Active
from workers.agents.hosting import WorkerHost
from workers.agents.knobs import WorkerKnobs


class Writes:
    """A connection on which every batch takes a moment and is written."""

    def __init__(self) -> None:
        self.worker: UUID | None = None

    async def execute(self, _: Any, parameters: dict[str, Any] | None = None, **__: Any) -> "Writes":
        if parameters is not None:
            await asyncio.sleep(0.037)
            self.worker = parameters["worker"]
        return self

    async def fetchall(self) -> list[tuple[Any, ...]]:
        return [("fence", self.worker, None, 0, 0, 0, "")]

    async def close(self) -> None: ...


class Quick(Database):
    """A database that only writes."""

    async def direct(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        return cast("psycopg.AsyncConnection[tuple[Any, ...]]", Writes())


class Nobody:
    """A lease of which only the end counts."""

    def __init__(self) -> None:
        self.is_given_up = False

    async def leave(self) -> int:
        self.is_given_up = True
        return 1


def test_a_run_that_goes_on_writing_does_not_keep_its_worker_from_giving_up_its_place() -> None:
    async def writes(host: WorkerHost, name: str) -> str:
        try:
            while True:
                await host._commit.write("result", ("result", UUID(int=7), name, 0), {"name": name})
        except Fenced:
            return "fenced"

    async def main() -> tuple[bool, list[str]]:
        database = Quick(DbKnobs())
        host = WorkerHost(
            database=database, chores=Quick(DbKnobs()), ledger=LedgerKnobs(), knobs=WorkerKnobs(),
            ports=FakeWorld().ports, agents={}, publish=cast(Any, None), depth=cast(Any, None), sort=cast(Any, None),
        )  # fmt: skip
        lease = Nobody()
        host.lease = cast(Any, lease)
        host.active[uuid4()] = cast(Active, None)
        left = []
        for name in ("one", "other"):  # while the one is written the other waits, at any time
            left.append(asyncio.create_task(writes(host, name)))
            await asyncio.sleep(0.02)
        await host.stop()
        done, _ = await asyncio.wait(left, timeout=1)
        return lease.is_given_up, [one.result() for one in done]

    assert at_once(main()) == (True, ["fenced", "fenced"])
