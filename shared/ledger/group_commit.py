"""Group commit: the writes of many runs share one transaction, and every caller waits until it is on disk.

By default no timer: the batch is what arrived while the last one was being committed, so an idle ledger answers at once
and a busy one writes large batches.
"""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal
from uuid import UUID

import psycopg
import structlog

from shared.db import carriage
from shared.db.database import Database
from shared.db.tokens import CausalToken
from shared.errors import BadInput, DatabaseUnavailable, Fenced, FleetError
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.statements import BY_KEY, KINDS, Kind, batch_statement

log = structlog.get_logger()

Key = tuple[str, UUID, str | None, int]
ROWS_FAULT = (psycopg.errors.ProgramLimitExceeded, psycopg.errors.StatementTooComplex)
"""Psycopg counts them as operational, but no waiting helps: the row is too large or too deep."""
OUTAGE = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.ReadOnlySqlTransaction,  # the server was demoted: another one is the primary now
    OSError,
    TimeoutError,
)
TASK_KINDS = frozenset({"accept", "claim", "finish", "suspend", "wake"})
"""Writes to the task's own row."""
_encode = json.JSONEncoder(allow_nan=False).encode
statement_of = lru_cache(maxsize=128)(batch_statement)


@dataclass(frozen=True, slots=True)
class Written:
    """What the ledger says about one write.

    Attributes:
        state: The task's or the step's state from now on.
        crowded: Tenants of the batch whose next tasks shall be held in the ledger (after an `accept`).
        token: Where in the log all lies that was committed before (after a `claim`, where there are several nodes).
    """

    epoch: int
    attempt: int
    state: str
    crowded: frozenset[str] = frozenset()
    token: CausalToken | None = None


@dataclass(slots=True)
class _Write:
    kind: Kind
    key: Key
    row: str
    done: "asyncio.Future[Written | None]"


class GroupCommit:
    """Collects writes and commits them together over one connection.

    Args:
        worker: Whose row fences the writes; None for a producer, which only accepts tasks.
        when_down: `wait` keeps writes until the database is back (a worker); `raise` fails them (a producer).
        sure: Returns while the worker's runs are certainly its own; awaited after each intent: a call follows it.
    """

    def __init__(
        self, database: Database, knobs: LedgerKnobs, *, worker: UUID | None, when_down: Literal["wait", "raise"],
        sure: Callable[[], Awaitable[None]] | None = None,
    ) -> None:  # fmt: skip
        self._database = database
        self._batch_max = knobs.batch_max
        self._window_s = knobs.window_s
        self._fair_window = knobs.fair_window
        self._worker = worker
        self._when_down = when_down
        self._sure = sure
        self._waiting: deque[_Write] = deque()
        self._arrived = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None
        self._connection: psycopg.AsyncConnection[tuple[Any, ...]] | None = None
        self._is_abandoned = False
        self.batches = 0
        self.writes = 0

    async def write(self, kind: Kind, key: Key, row: dict[str, Any]) -> Written | None:
        """Write one row durably.

        Returns: What was written; None when the row was not this caller's to write (a lost claim, a stale epoch).
        Raises: Fenced when this worker was declared dead; DatabaseUnavailable when it is down and `when_down` is
            `raise`; BadInput when the row is not JSON or PostgreSQL cannot store it.
        """
        if self._is_abandoned:
            raise Fenced("this worker gave up its place in the ledger")
        future: asyncio.Future[Written | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Write(kind, key, _as_json(row), future))
        self._arrived.set()
        if self._loop_task is None:
            self._loop_task = asyncio.create_task(self._run(), name="group-commit")
        written = await future
        if kind == "intent" and self._sure is not None:
            await self._sure()
        return written

    async def close(self) -> None:
        """Commit what waits, then close the connection."""
        while self._waiting and self._loop_task is not None and not self._loop_task.done():
            await asyncio.sleep(0.01)
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        await self._disconnect()

    async def abandon(self) -> None:
        """Write nothing more: whoever waits, or comes later, is fenced."""
        self._is_abandoned = True
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        self._fail(list(self._waiting), Fenced("this worker gave up its place in the ledger"))
        self._waiting.clear()
        await self._disconnect()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if self._window_s:
                await asyncio.sleep(self._window_s)
            batch = self._take()
            if not self._waiting:
                self._arrived.clear()
            try:
                await self._commit_patiently(batch)
            except asyncio.CancelledError:
                self._fail(batch, Fenced("the ledger's writer was stopped"))
                raise
            except Exception as error:  # the writer of all runs must outlive one batch: logged, its callers are told
                log.exception("ledger.batch_failed", writes=len(batch))
                self._fail(batch, FleetError(f"the ledger's writer failed: {error!r}"))

    def _take(self) -> list[_Write]:
        """The next batch: no two writes to one row, because they would see the same snapshot.

        Wakes, of others' rows, go by themselves: with rows of its own runs locked beside them, two workers that wake
        each other's would wait for one another.
        """
        batch: list[_Write] = []
        keys: set[object] = set()
        later: list[_Write] = []
        while self._waiting and len(batch) < self._batch_max:
            write = self._waiting.popleft()
            if write.done.done():  # its caller was cancelled before the write was sent
                continue
            row_key = write.key[1] if write.kind in TASK_KINDS else write.key
            if row_key in keys or (batch and (write.kind == "wake") is not (batch[0].kind == "wake")):
                later.append(write)
            else:
                keys.add(row_key)
                batch.append(write)
        self._waiting.extendleft(reversed(later))
        return batch

    async def _commit_patiently(self, batch: list[_Write]) -> None:
        """Commit, through any number of lost connections when told to wait."""
        wait_s, again = 0.05, False
        while batch:
            try:
                await self._commit(batch, again=again)
                return
            except ROWS_FAULT as error:
                await self._isolate(batch, error)
                return
            except OUTAGE as error:
                await self._disconnect()
                cause = (str(error) or type(error).__name__).splitlines()[0]
                if self._when_down == "raise":
                    self._fail(batch, DatabaseUnavailable(f"PostgreSQL does not answer: {cause}"))
                    return
                log.warning("ledger.commit_delayed", writes=len(batch), wait_s=wait_s, cause=cause)
                await asyncio.sleep(wait_s)
                wait_s, again = min(1.0, wait_s * 2), True
            except psycopg.Error as error:
                await self._isolate(batch, error)
                return

    async def _isolate(self, batch: list[_Write], error: psycopg.Error) -> None:
        """One row that PostgreSQL refuses must not fail its neighbours: send each alone, blame only the culprit."""
        if len(batch) == 1:
            cause = (str(error) or type(error).__name__).splitlines()[0]
            self._fail(batch, BadInput(f"not storable in PostgreSQL: {cause}"))
            return
        for write in batch:
            await self._commit_patiently([write])

    async def _commit(self, batch: list[_Write], *, again: bool) -> None:
        """Once; `again`: perhaps for the second time, when the answer to the first was lost."""
        if self._connection is None:
            self._connection = await self._database.direct()
            await self._connection.execute(BY_KEY)
        rows: dict[Kind, list[str]] = {}
        for write in sorted(batch, key=lambda one: one.key[1]):  # one order in every batch: no deadlocks between them
            rows.setdefault(write.kind, []).append(write.row)
        kinds = tuple(kind for kind in KINDS if kind in rows)
        parameters: dict[str, Any] = {kind: f"[{','.join(rows[kind])}]" for kind in kinds}
        parameters["worker"] = self._worker
        parameters["fair_window"] = self._fair_window
        parameters["again"] = again
        async with asyncio.timeout(self._database.knobs.statement_timeout_s + 5):
            cursor = await self._connection.execute(
                statement_of(kinds, fenced=self._worker is not None, marks_place=self._database.router is not None),
                parameters, prepare=True,
            )  # fmt: skip
            answer = await cursor.fetchall()
        self.batches += 1
        self.writes += len(batch)
        self._answer(batch, answer)

    def _answer(self, batch: list[_Write], answer: list[tuple[Any, ...]]) -> None:
        crowded = frozenset(row[6] for row in answer if row[0] == "crowd")
        token = next((self._token(row[6], row[2]) for row in answer if row[0] == "place"), None)
        written: dict[Key, Written] = {
            (row[0], row[1], row[2], row[3]): Written(row[4], row[5], row[6], crowded, token)
            for row in answer
            if row[0] not in ("crowd", "place")
        }
        is_fenced = self._worker is not None and ("fence", self._worker, None, 0) not in written
        for write in batch:
            if write.done.done():
                continue
            if is_fenced:
                write.done.set_exception(Fenced("this worker was declared dead; its runs belong to others now"))
            else:
                write.done.set_result(written.get(write.key))

    def _token(self, position: str, wal_file: str) -> CausalToken | None:
        router = self._database.router
        return None if router is None else carriage.minted(position, wal_file, system_id=router.cluster.system_id)

    def _fail(self, batch: list[_Write], error: FleetError) -> None:
        for write in batch:
            if not write.done.done():
                write.done.set_exception(error)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _as_json(row: dict[str, Any]) -> str:
    try:
        return _encode(row)
    except (TypeError, ValueError) as error:
        raise BadInput(f"not JSON ({error}): use plain data (None, bool, numbers, text, lists, dicts)") from None
