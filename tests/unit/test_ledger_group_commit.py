"""Group commit over a connection that the test scripts: whose fault is it, and who waits."""

import asyncio
import json
from typing import Any, Literal, cast
from uuid import UUID, uuid4

import psycopg
import pytest

from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.errors import BadInput, DatabaseUnavailable
from shared.ledger.group_commit import GroupCommit, Written, _Write
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.statements import BY_KEY, Kind

WORKER = UUID(int=1)


class Server:
    """One PostgreSQL: `troubles` are raised by statements in turn, `refuses` by every row with this word in it.

    A word that no id can contain: three digits of `bad` turn up in one id of a hundred.
    """

    knobs = DbKnobs()
    router = None

    def __init__(self) -> None:
        self.troubles: list[BaseException] = []
        self.refuses: tuple[str, BaseException] | None = None
        self.connections = 0
        self.statements = 0

    async def direct(self) -> "Server":
        self.connections += 1
        return self

    async def execute(
        self, statement: str, parameters: dict[str, Any] | None = None, *, prepare: bool = False
    ) -> "Server":
        if parameters is None:
            assert statement == BY_KEY
            return self
        self.statements += 1
        self.parameters = parameters
        self.take(parameters)
        return self

    def take(self, parameters: dict[str, Any]) -> None:
        if self.troubles:
            raise self.troubles.pop(0)
        rows = json.loads(parameters["suspend"])
        if self.refuses and any(self.refuses[0] in json.dumps(row) for row in rows):
            raise self.refuses[1]
        self.answer: list[tuple[Any, ...]] = [("fence", WORKER, None, 0, 0, 0, None)]
        self.answer += [("suspend", UUID(row["id"]), None, 0, row["epoch"], 0, "queued") for row in rows]

    async def fetchall(self) -> list[tuple[Any, ...]]:
        return self.answer

    async def close(self) -> None:
        return


@pytest.fixture
def server(waits: list[float]) -> Server:
    return Server()


async def write(commit: GroupCommit, note: str) -> Written | None:
    task_id = uuid4()
    return await commit.write("suspend", ("suspend", task_id, None, 0), {"id": str(task_id), "epoch": 1, "note": note})


def committing(server: Server, when_down: Any = "wait") -> GroupCommit:
    return GroupCommit(cast(Database, server), LedgerKnobs(), worker=WORKER, when_down=when_down)


@pytest.mark.parametrize(
    "fault",
    [
        psycopg.errors.ProgramLimitExceeded("index row size 6032 exceeds maximum 2704"),
        psycopg.errors.StatementTooComplex("stack depth limit exceeded"),
        psycopg.errors.UntranslatableCharacter("unsupported Unicode escape sequence"),
    ],
    ids=lambda fault: type(fault).__name__,
)
async def test_a_row_that_postgresql_refuses_fails_alone_and_nobody_waits_for_it(
    server: Server, fault: psycopg.Error
) -> None:
    server.refuses = ("unfit", fault)
    commit = committing(server)
    writes = (write(commit, "good"), write(commit, "unfit"), write(commit, "good"))
    good, bad, other = await asyncio.gather(*writes, return_exceptions=True)
    assert good == other == Written(1, 0, "queued")
    assert isinstance(bad, BadInput)
    assert bad.message == f"not storable in PostgreSQL: {fault}"
    assert server.connections == 1
    await commit.close()


@pytest.mark.parametrize(
    "outage",
    [psycopg.OperationalError("gone"), psycopg.errors.ReadOnlySqlTransaction("demoted"), OSError("no route")],
    ids=lambda outage: type(outage).__name__,
)
async def test_an_outage_is_waited_out_on_new_connections_by_a_worker_and_told_to_a_producer(
    server: Server, outage: Exception
) -> None:
    server.troubles = [outage] * 3
    commit = committing(server)
    assert await write(commit, "good") == Written(1, 0, "queued")
    assert server.connections == 4
    await commit.close()
    server.troubles = [outage]
    commit = committing(server, "raise")
    with pytest.raises(DatabaseUnavailable, match="PostgreSQL does not answer"):
        await write(commit, "good")
    await commit.close()


class Ledger(Server):
    """Answers every kind of write, and says which tenants crowd the queue."""

    crowd: tuple[str, ...] = ()

    def take(self, parameters: dict[str, Any]) -> None:
        kinds = [kind for kind in ("accept", "finish", "wake") if kind in parameters]
        self.answer = [
            (kind, UUID(row["id"]), None, 0, 0, 0, "queued") for kind in kinds for row in json.loads(parameters[kind])
        ]
        self.answer += [("crowd", None, None, 0, 0, 0, tenant) for tenant in self.crowd]


async def test_a_producer_learns_which_tenants_tasks_shall_be_held_from_now_on(server: Server) -> None:
    ledger = Ledger()
    ledger.crowd = ("acme",)
    commit = GroupCommit(cast(Database, ledger), LedgerKnobs(fair_window=7), worker=None, when_down="raise")
    task_id = uuid4()
    written = await commit.write("accept", ("accept", task_id, None, 0), {"id": str(task_id)})
    assert written == Written(0, 0, "queued", frozenset({"acme"}))
    assert ledger.parameters["fair_window"] == 7
    await commit.close()


async def test_two_writes_to_one_task_are_never_in_one_statement(server: Server) -> None:
    ledger = Ledger()
    commit = GroupCommit(cast(Database, ledger), LedgerKnobs(), worker=None, when_down="raise")
    task_id = uuid4()
    kinds: tuple[Literal["finish", "wake"], ...] = ("finish", "wake")
    await asyncio.gather(*(commit.write(kind, (kind, task_id, None, 0), {"id": str(task_id)}) for kind in kinds))
    assert ledger.statements == 2
    await commit.close()


async def test_an_intent_is_answered_only_when_its_worker_is_sure_that_the_run_is_its_own() -> None:
    """The call follows it; a result is kept however late it comes."""
    server, is_sure = Server(), asyncio.Event()
    kinds: tuple[Literal["intent", "result"], ...] = ("intent", "result")

    async def execute(statement: str, parameters: dict[str, Any] | None = None, *, prepare: bool = False) -> Server:
        rows = [(kind, row) for kind in kinds for row in json.loads((parameters or {}).get(kind) or "[]")]
        server.answer = [("fence", WORKER, None, 0, 0, 0, None)]
        server.answer += [(kind, UUID(row["task_id"]), "step", 0, 1, 0, "intent") for kind, row in rows]
        return server

    server.execute = execute  # type: ignore[method-assign]
    commit = GroupCommit(
        cast(Database, server), LedgerKnobs(), worker=WORKER, when_down="wait", sure=cast(Any, is_sure.wait)
    )
    task = uuid4()
    written = {
        kind: asyncio.create_task(commit.write(kind, (kind, task, "step", 0), {"task_id": str(task)})) for kind in kinds
    }
    assert await written["result"] is not None
    assert not written["intent"].done()
    is_sure.set()
    assert await written["intent"] is not None
    await commit.close()


async def test_wakes_of_others_rows_share_no_statement_with_writes_to_own_ones(server: Server) -> None:
    """Else {suspend Q, wake P} on one worker and {suspend P, wake Q} on another would wait for each other."""
    commit = GroupCommit(cast(Database, server), LedgerKnobs(), worker=WORKER, when_down="wait")
    loop = asyncio.get_running_loop()
    kinds: list[Kind] = ["suspend", "wake", "intent", "wake", "finish"]
    for number, kind in enumerate(kinds):
        key = (kind, UUID(int=number), None, 0)
        commit._waiting.append(_Write(kind, key, "{}", loop.create_future()))
    batches = [[one.kind for one in commit._take()] for _ in range(2)]
    assert batches == [["suspend", "intent", "finish"], ["wake", "wake"]]
    assert not commit._waiting
