"""A worker whose every move a test makes: real ledger, no process, no broker in between."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text

from shared.contracts import FleetHeader, TaskMessage
from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.errors import FleetError
from shared.ledger.group_commit import GroupCommit
from shared.ledger.journal import Journal
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.roster import enlist
from shared.ledger.rows import message_of
from shared.ledger.runs import Claim, Runs
from shared.ledger.suspension import Suspension

USAGE = {"input_tokens": 10, "output_tokens": 1, "cost": 0.25}


class ByHand:
    """One worker on one database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.id = uuid4()
        self.commit = GroupCommit(database, LedgerKnobs(), worker=self.id, when_down="wait")
        self.runs = Runs(database, self.commit, LedgerKnobs())

    async def claim(self, task_id: UUID) -> Claim:
        """Take a task that the ledger knows, as its message would have it taken."""
        claim = await self.try_claim(task_id)
        assert claim is not None
        return claim

    async def try_claim(self, task_id: UUID) -> Claim | None:
        """Take a task if it can be taken."""
        async with self.database.unit(mode="ro") as unit:
            row = (await unit.execute(text("SELECT * FROM tasks WHERE id = :id"), {"id": task_id})).one()
        return await self.runs.claim(message_of(row))

    async def journal(self, claim: Claim) -> Journal:
        """Its journal."""
        return await self.runs.journal(claim)

    async def steps(self, claim: Claim, *names: str, fails: FleetError | None = None) -> list[str]:
        """Run steps of these names; returns those that were executed rather than found done. The last one may fail."""
        journal = await self.runs.journal(claim)
        done: list[str] = []
        for name in names:

            def call(name: str = name) -> Callable[[], Awaitable[Any]]:
                async def work() -> Any:
                    done.append(name)
                    if fails is not None and name == names[-1]:
                        raise fails
                    return {"said": name}

                return work

            await journal.step(name, kind="llm", request=[name], call=call(), usage_of=lambda _result: USAGE)
        return done

    async def spawn(self, parent: UUID, agent: str = "a", *, epoch: int | None = None) -> UUID:
        """Give a running task a child; at the epoch that it has, unless another one is given."""
        child = TaskMessage(agent, fleet=FleetHeader(parent_id=parent, root_agent="a"))
        at = (await self.row(parent)).epoch if epoch is None else epoch
        await self.runs.accept_child(child, parent_epoch=at, is_published=True)
        return child.id

    async def wait(self, claim: Claim, **how: Any) -> str:
        """Put a run down."""
        return await self.runs.suspend(claim, Suspension(**{"seen_wakes": 0, **how}))

    async def all(self, query: str, **values: Any) -> list[Any]:
        """Rows of a query."""
        async with self.database.unit() as unit:
            return list((await unit.execute(text(query), values)).all())

    async def row(self, task_id: UUID) -> Any:
        """A task as it stands in the ledger."""
        return (await self.all("SELECT * FROM tasks WHERE id = :id", id=task_id))[0]

    async def do(self, statement: str, **values: Any) -> None:
        """Change rows behind everybody's back."""
        async with self.database.unit() as unit:
            await unit.execute(text(statement), values)


@asynccontextmanager
async def by_hand(db_url: str) -> AsyncIterator[ByHand]:
    """Enlist a worker; it leaves without a word."""
    database = Database(DbKnobs(url=db_url))
    worker = ByHand(database)
    try:
        await enlist(database, worker=worker.id, name="by-hand", host="here", pid=1, slots=10)
        yield worker
    finally:
        await worker.commit.close()
        await database.close()
