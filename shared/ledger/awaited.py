"""What a waiting run looks for: its signals and the ends of its children, each with the count of wakes in one read.

The count is what makes a wake impossible to lose: a run that is put down says how many wakes it had seen, and goes on
at once when there have been more since.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text

from shared.db.database import Database
from shared.errors import WrongState
from shared.ledger.journal import Look
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.rows import FINISHED
from shared.ledger.steering import cancel
from shared.ledger.vault import NO_VAULT, OUTPUT, Vault, signal_role

SIGNALS = text("""
    SELECT x.place, t.wakes, s.payload, s.id IS NOT NULL AS is_over
    FROM json_to_recordset(CAST(:asked AS json)) AS x(place int, task uuid, name text, number int)
    JOIN tasks t ON t.id = x.task LEFT JOIN LATERAL (
        SELECT id, payload FROM signals WHERE task_id = t.id AND name = x.name ORDER BY id OFFSET x.number LIMIT 1
    ) s ON true
    ORDER BY x.place""")
CHILDREN = text("""
    SELECT x.place, t.wakes, c.id, c.state, c.error, CASE WHEN c.state = 'succeeded' THEN c.output END AS output
    FROM json_to_recordset(CAST(:asked AS json)) AS x(place int, task uuid, ids uuid[])
    JOIN tasks t ON t.id = x.task LEFT JOIN tasks c ON c.id = ANY(x.ids)""")
ALIVE = text("""
    SELECT id FROM tasks WHERE parent_id = :task AND state IN ('queued', 'running', 'waiting', 'parked')""")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: with its output, or with its error."""

    state: str
    output: Any = None
    error: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """As a plain dict."""
        return {"state": self.state, "output": self.output, "error": self.error}


@dataclass(frozen=True, slots=True)
class SignalAsked:
    """Which signal of a name a task waits for, from 0: none is ever consumed, so a resumed run finds the same one."""

    task: UUID
    name: str
    number: int


@dataclass(frozen=True, slots=True)
class ChildrenAsked:
    """Whose ends a task waits for."""

    task: UUID
    ids: tuple[UUID, ...]


async def look_for_signals(database: Database, asked: Sequence[SignalAsked], *, vault: Vault = NO_VAULT) -> list[Look]:
    """Whether these signals have come.

    Returns: for each, with the signal's payload when it is over.
    Raises: SealKeyUnknown; SealBroken.
    """
    rows = [
        {"place": place, "task": str(one.task), "name": one.name, "number": one.number}
        for place, one in enumerate(asked)
    ]
    async with database.unit() as unit:
        found = (await unit.execute(SIGNALS, {"asked": json.dumps(rows)})).all()
    return [
        Look(row.is_over, vault.open(row.payload, task_id=one.task, role=signal_role(one.name)), row.wakes)
        for one, row in zip(asked, found, strict=True)
    ]


async def look_for_children(
    database: Database, asked: Sequence[ChildrenAsked], *, vault: Vault = NO_VAULT
) -> list[Look]:
    """Whether these children have all ended.

    Returns: for each, with how every child ended, in the order asked, when it is over.
    Raises: SealKeyUnknown; SealBroken.
    """
    rows = [
        {"place": place, "task": str(one.task), "ids": [str(child) for child in one.ids]}
        for place, one in enumerate(asked)
    ]
    wakes: dict[int, int] = {}
    ended: defaultdict[int, dict[UUID, dict[str, Any]]] = defaultdict(dict)
    async with database.unit() as unit:
        for row in (await unit.execute(CHILDREN, {"asked": json.dumps(rows)})).all():
            wakes[row.place] = row.wakes
            if row.state in FINISHED:
                output = vault.open(row.output, task_id=row.id, role=OUTPUT)
                ended[row.place][row.id] = Ended(row.state, output, row.error).to_json()
    return [_all_ended(one, ended[place], wakes[place]) for place, one in enumerate(asked)]


def _all_ended(asked: ChildrenAsked, ended: Mapping[UUID, dict[str, Any]], wakes: int) -> Look:
    if not all(one in ended for one in asked.ids):
        return Look(is_over=False, wakes=wakes)
    return Look(is_over=True, value=[ended[one] for one in asked.ids], wakes=wakes)


async def cancel_children(database: Database, task: UUID, *, knobs: LedgerKnobs) -> None:
    """Cancel the children of a task that ended without gathering them, and theirs."""
    async with database.unit() as unit:
        ids = (await unit.execute(ALIVE, {"task": task})).scalars().all()
    for one in ids:
        with suppress(WrongState):  # it ended, or was cancelled, meanwhile
            await cancel(database, one, redispatch_s=knobs.redispatch_s)
