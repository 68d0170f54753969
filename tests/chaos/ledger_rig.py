"""The real ledger under the model: workers with their own connections, and runs whose agents go on by single moves."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import UUID, uuid5

from psycopg.rows import namedtuple_row

from shared.contracts import FleetHeader, TaskMessage
from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.errors import Fenced
from shared.ledger.group_commit import GroupCommit, Written
from shared.ledger.invariants import Patience, verify
from shared.ledger.journal import Journal, Look
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.roster import enlist, offer
from shared.ledger.rows import task_row
from shared.ledger.runs import Claim, Runs
from shared.ledger.suspension import Suspended, Suspension
from tests.chaos.ledger_model import Place, Task

KNOBS = LedgerKnobs(suspend_after_s=0.0, fair_window=3)
AGENT = "model"
LONG_S = 3600.0
Standing = Literal["free", "calling", "suspended", "broken", "over"]
Seen = Literal["called", "returned", "fenced", "suspended", "broken"]

TASKS = """
    SELECT id, state, epoch, attempt, worker_id, wakes, cancel_requested_at IS NOT NULL AS is_asked,
           published_at IS NOT NULL AS is_published, wake_at IS NOT NULL AS has_time
    FROM tasks"""
STEPS = "SELECT task_id, name, ordinal, state, epoch, executions, in_doubt, repeats FROM steps"
FORGET = """
    WITH a AS (DELETE FROM tasks), b AS (DELETE FROM steps), c AS (DELETE FROM blobs), d AS (DELETE FROM signals)
    DELETE FROM workers"""


class Rig:
    """One database and one loop for all histories."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self.database = Database(DbKnobs(url=url))
        self.producer = GroupCommit(self.database, KNOBS, worker=None, when_down="raise")
        self._connection = self.run(self.database.direct())
        self._connection.row_factory = namedtuple_row
        self.run(offer(self.database, {AGENT: {"type": "object"}}))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Until it is done; what other runs have begun goes on meanwhile."""
        return self._runner.run(work)

    def clear(self) -> None:
        """A ledger without tasks."""
        self.execute(FORGET)

    def execute(self, statement: str, **values: Any) -> None:
        """One change."""
        self.run(self._ask(statement, values))

    def rows(self, query: str, **values: Any) -> list[Any]:
        """What a query finds."""
        return list(self.run(self._ask(query, values)))

    async def _ask(self, statement: str, values: dict[str, Any]) -> list[Any]:
        cursor = await self._connection.execute(statement, values)
        return await cursor.fetchall() if cursor.description else []

    def broken_promises(self) -> list[str]:
        """What `fleet verify` would say; time plays no part here."""
        verdicts = self.run(verify(self.database, Patience(dead_after_s=1e6, grace_s=1e6)))
        return [f"{one.promise}: {each.what}" for one in verdicts for each in one.violations]

    def close(self) -> None:
        """Close every connection."""
        self.run(self._connection.close())
        self.run(self.producer.close())
        self.run(self.database.close())
        self._runner.close()


class LossyCommit(GroupCommit):
    """Loses the answer to its next batch when told to: the batch is on disk, and is sent again."""

    loses_next = False

    def _answer(self, batch: Any, answer: Any) -> None:
        if self.loses_next and all(write.kind != "wake" for write in batch):  # one wake more is none too many
            self.loses_next = False
            raise OSError("the answer was lost")
        super()._answer(batch, answer)


class LiveWorker:
    """One worker's hold on the ledger."""

    def __init__(self, rig: Rig, worker_id: UUID) -> None:
        self.id = worker_id
        self.commit = LossyCommit(rig.database, KNOBS, worker=worker_id, when_down="wait")
        self.runs = Runs(rig.database, self.commit, KNOBS)
        rig.run(enlist(rig.database, worker=worker_id, name=f"w{worker_id.int}", host="rig", pid=1, slots=9))

    def asks(self, slots: int) -> Any:
        """What it polls for."""
        return {"worker": self.id, "agents": ["other", AGENT], "priority": "normal", "slots": slots}


@dataclass(eq=False)
class LiveRun:
    """An agent that stands somewhere in its program."""

    worker: LiveWorker
    claim: Claim
    task: Task
    journal: Journal
    calls: Counter[tuple[UUID, Place]]
    """Calls to the outside world, of all runs."""
    number: int = 0
    """The program's next op."""
    standing: Standing = "free"
    seen_wakes: int = 0
    _gate: "asyncio.Future[None] | None" = None
    _work: "asyncio.Task[Any] | None" = None
    _began: asyncio.Event = field(default_factory=asyncio.Event)

    async def begin(self) -> Seen:
        """Do the next op as far as it goes by itself."""
        op, ordinal = self.task.place(self.number)
        self._gate = asyncio.get_running_loop().create_future()
        self._began.clear()
        work: Coroutine[Any, Any, Any] = {
            "call": lambda: self._step(self._call),
            "spawn": lambda: self._step(self._spawn),
            "sleep": lambda: self._wait("sleep", LONG_S, _nothing, Suspension(kind="sleep")),
            "signal": lambda: self._wait("signal", LONG_S, self._look(ordinal), Suspension(kind="s", signals=("go",))),
            "children": lambda: self._wait("children", None, self._look_down, self._for_children()),
        }[op]()
        self._work = asyncio.create_task(work)
        began = asyncio.create_task(self._began.wait())
        await asyncio.wait({self._work, began}, return_when=asyncio.FIRST_COMPLETED)
        began.cancel()
        with suppress(asyncio.CancelledError):
            await began
        return "called" if not self._work.done() else self._outcome()

    async def end(self, *, well: bool) -> Seen:
        """The call that is under way ends."""
        assert self._gate is not None and self._work is not None
        if well:
            self._gate.set_result(None)
        else:
            self._gate.set_exception(RuntimeError("the call failed"))
        await asyncio.wait({self._work})
        return self._outcome()

    async def put_down(self) -> str | None:
        """Suspend it; None: it is not this run's any more."""
        return await self.suspend(self.put_down_as)

    @property
    def put_down_as(self) -> Suspension:
        """How a suspended run is put down."""
        assert self.journal.suspension is not None
        return self.journal.suspension

    async def suspend(self, suspension: Suspension) -> str | None:
        """Give the slot back; None: it is not this run's any more."""
        try:
            return await self.worker.runs.suspend(self.claim, suspension)
        except Fenced:
            return None

    async def drop(self) -> None:
        """The worker is gone: nothing is written any more."""
        self.journal.books_cuts = lambda: False
        if self._work is not None and not self._work.done():
            self._work.cancel()
            with suppress(asyncio.CancelledError, Suspended, Fenced):
                await self._work

    @property
    def children(self) -> list[UUID]:
        """The ids of what the program has spawned so far."""
        spawns = [n for n in range(self.number) if self.task.program[n] == "spawn"]
        return [child_id(self.task, n) for n in spawns]

    def _outcome(self) -> Seen:
        assert self._work is not None
        error = self._work.exception()
        if error is None:
            return "returned"
        if isinstance(error, Suspended):
            return "suspended"
        if isinstance(error, Fenced):
            return "fenced"
        if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
            return "broken"
        raise error

    async def _step(self, call: Any) -> Any:
        op, _ = self.task.place(self.number)
        return await self.journal.step(op, kind="step", request=[op], call=call)

    async def _wait(self, name: Any, wait_s: float | None, look: Any, suspension: Suspension) -> Any:
        return await self.journal.wait(
            name, kind=name, request=[name], wait_s=wait_s, look=look, suspension=suspension, expired=lambda: None
        )

    async def _call(self) -> str:
        self.calls[self.task.id, self.task.place(self.number)] += 1
        self._began.set()
        assert self._gate is not None
        await self._gate
        return "answer"

    async def _spawn(self) -> None:
        child = child_message(self.task, self.number)
        await self.worker.runs.accept_child(child, parent_epoch=self.claim.epoch, is_published=False)

    def _look(self, number: int) -> Any:
        async def look() -> Look:
            found = await self.worker.runs.look_for_signal(self.task.id, name="go", number=number)
            self.seen_wakes = found.wakes
            return found

        return look

    async def _look_down(self) -> Look:
        found = await self.worker.runs.look_for_children(self.task.id, tuple(self.children))
        self.seen_wakes = found.wakes
        return found

    def _for_children(self) -> Suspension:
        return Suspension(kind="children", children=(tuple(str(one) for one in self.children),))


def message_for(task: Task, *, later: Any = None) -> TaskMessage:
    """The message that stands for a task."""
    fleet = FleetHeader(
        tenant=task.tenant, max_attempts=task.max_attempts, parent_id=task.parent, available_at=later
    )  # fmt: skip
    return TaskMessage(AGENT, {}, id=task.id, fleet=fleet)


async def accept(commit: GroupCommit, message: TaskMessage, *, published: bool) -> Written | None:
    """Add a task as a producer does."""
    row = task_row(message) | {"redispatch_s": KNOBS.redispatch_s, "published": published}
    return await commit.write("accept", ("accept", message.id, None, 0), row)


def child_id(parent: Task, number: int) -> UUID:
    """The id of the child that the parent's op `number` spawns."""
    return uuid5(parent.id, str(number))


def child_message(parent: Task, number: int) -> TaskMessage:
    """The message of that child."""
    return message_for(child_of(parent, number))


def child_of(parent: Task, number: int) -> Task:
    """The child as the model has it: one call."""
    return Task(child_id(parent, number), parent.tenant, ("call",), parent=parent.id)


async def _nothing() -> Look:
    return Look(is_over=False)


def places_of(rows: Iterable[Any]) -> dict[tuple[UUID, Place], tuple[Any, ...]]:
    """Steps by task and place."""
    return {
        (row.task_id, (row.name, row.ordinal)): (row.state, row.epoch, row.executions, row.in_doubt, row.repeats)
        for row in rows
    }
