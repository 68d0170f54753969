"""A second try of a task, from the step where it makes sense: a replay of the task itself, or a fork beside it.

Steps that are kept are not executed, and not paid, again.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.contracts import FleetHeader, bucket_in, with_bucket
from shared.db.database import Database
from shared.errors import BadInput, UnknownTask, WrongState
from shared.ledger.rows import message_of
from shared.ledger.sealed_input import open_message, seal_message
from shared.ledger.steering import DISPATCH_AT, DUE, PUBLISHED_AT, TREE, Steered, due_of
from shared.ledger.vault import Vault, blob_role, is_sealed, signal_role, step_role

REPLAYABLE = ("failed", "cancelled")
STEPS = """
    SELECT name, ordinal, state, started_at, CASE WHEN state = 'failed' THEN result END AS failure, usage
    FROM steps WHERE task_id = :id ORDER BY started_at, name, ordinal"""
REPLAY = f"""
    UPDATE tasks t
    SET state = 'queued', epoch = t.epoch + 1, attempt = 0, worker_id = NULL, output = NULL, error = NULL,
        report = NULL, wake_at = NULL, waiting_for = NULL, started_at = NULL, finished_at = NULL,
        cancel_requested_at = NULL, discarded_at = NULL, deadline_at = now() + (t.deadline_at - t.created_at),
        published_at = {PUBLISHED_AT}, dispatch_at = {DISPATCH_AT}
    WHERE t.id = ANY(:ids) RETURNING t.*, {DUE}"""
FORGET = [
    f"DELETE FROM {table} s USING json_to_recordset(CAST(:places AS json)) AS x(name text, ordinal int) "
    "WHERE s.task_id = :id AND s.name = x.name AND s.ordinal = x.ordinal"
    for table in ("steps", "blobs")
]
FORK = f"""
    INSERT INTO tasks AS t (id, tenant, agent, session_id, input, max_attempts, deadline_at, priority, forked_from,
                            epoch, published_at, dispatch_at)
    SELECT :fork, t.tenant, t.agent, t.session_id, CAST(:input AS json), t.max_attempts,
           now() + (t.deadline_at - t.created_at), t.priority, t.id, 1, {PUBLISHED_AT}, {DISPATCH_AT}
    FROM tasks t WHERE t.id = :id RETURNING t.*, {DUE}"""
"""Epoch 1, as if it had been claimed before: a first claim would not look for steps."""
COPY_STEPS = """
    INSERT INTO steps (task_id, name, ordinal, kind, fingerprint, epoch, state, result, in_blob, started_at,
                       finished_at)
    SELECT :fork, s.name, s.ordinal, s.kind, s.fingerprint, 1, s.state, s.result, s.in_blob, s.started_at, s.finished_at
    FROM steps s JOIN json_to_recordset(CAST(:places AS json)) AS x(name text, ordinal int) USING (name, ordinal)
    WHERE s.task_id = :id"""
COPY_BLOBS = """
    INSERT INTO blobs (task_id, name, ordinal, data)
    SELECT :fork, b.name, b.ordinal, b.data
    FROM blobs b JOIN json_to_recordset(CAST(:places AS json)) AS x(name text, ordinal int) USING (name, ordinal)
    WHERE b.task_id = :id"""

HEARD = """
    SELECT s.name, s.payload, s.created_at
    FROM (SELECT *, row_number() OVER (PARTITION BY name ORDER BY id) AS place FROM signals WHERE task_id = :id) s
    WHERE s.place <= (SELECT count(*) FROM steps w
                      WHERE w.task_id = :fork AND w.kind = 'signal' AND w.name = concat('signal.', s.name))
    ORDER BY s.id"""
HEAR = """
    INSERT INTO signals (task_id, name, payload, created_at) VALUES (:fork, :name, CAST(:payload AS json), :at)"""


@dataclass(frozen=True, slots=True)
class Past:
    """A step of the first try. `failure` is what it ended with, where it failed; `usage` what it has cost."""

    name: str
    ordinal: int
    state: str
    started_at: datetime
    failure: Mapping[str, Any] | None = None
    usage: Mapping[str, Any] | None = None

    @property
    def place(self) -> tuple[str, int]:
        """What names it within its task."""
        return self.name, self.ordinal

    @property
    def label(self) -> str:
        """As people write it."""
        return f"{self.name}#{self.ordinal}" if self.ordinal else self.name


def kept(past: Sequence[Past], *, from_step: str | None, error: Mapping[str, Any] | None) -> list[Past]:
    """The steps that a second try finds done, or failed in a way that the agent has dealt with.

    Args:
        from_step: `name` or `name#ordinal`: it and what began after it (or at once with it) is left out. None: only the
            failed step that ended the task is.
        error: The task's, as recorded.

    Raises: BadInput when there is no such step.
    """
    if from_step is None:
        return [one for one in past if not _ended_with(one, error)]
    first = next((one for one in past if one.place == _place(from_step, past)), None)
    if first is None:
        names = ", ".join(one.label for one in past) or "no steps"
        raise BadInput(f"there is no step {from_step!r} to begin from; the task has {names}", step=from_step)
    return [one for one in past if one.started_at < first.started_at]


@dataclass(frozen=True, slots=True)
class Preview:
    """What a second try would find done, and what it would do, and pay, again."""

    kept: tuple[Past, ...]
    again: tuple[Past, ...]


async def preview(database: Database, task_id: UUID, *, from_step: str | None, vault: Vault) -> Preview:
    """Look before a replay or a fork; nothing is changed.

    Raises: UnknownTask; BadInput when there is no such step.
    """
    async with database.unit(mode="ro") as unit:
        row = (await unit.execute(text("SELECT error FROM tasks WHERE id = :id"), {"id": task_id})).one_or_none()
        if row is None:
            raise _unknown(task_id)
        past = await _past(unit, task_id, vault)
    keeps = [one for one in kept(past, from_step=from_step, error=row.error) if _is_outcome(one)]
    return Preview(tuple(keeps), tuple(one for one in past if one not in keeps))


async def replay(
    database: Database, task_id: UUID, *, from_step: str | None, redispatch_s: float, vault: Vault
) -> Steered:
    """Try a failed or cancelled task again under its own id; descendants that were cancelled come along.

    A deadline starts anew. Signals that it was given are given again.

    Raises: UnknownTask; WrongState when it is neither failed nor cancelled; BadInput when there is no such step.
    """
    async with database.unit() as unit:
        tree = (await unit.execute(text(TREE), {"id": task_id})).all()
        root = next((row for row in tree if row.id == task_id), None)
        if root is None:
            raise _unknown(task_id)
        if root.state not in REPLAYABLE:
            raise WrongState(
                f"task {task_id} is {root.state}: only failed and cancelled tasks can be replayed, "
                "and any task can be forked", task_id=str(task_id), state=root.state,
            )  # fmt: skip
        past = await _past(unit, task_id, vault)
        keeps = {one.place for one in kept(past, from_step=from_step, error=root.error)}
        await _forget(unit, task_id, [one for one in past if one.place not in keeps])
        ids = [task_id, *_cancelled_below(task_id, {row.id: (row.parent_id, row.state) for row in tree})]
        rows = (await unit.execute(text(REPLAY), {"ids": ids, "redispatch_s": redispatch_s})).all()
    return Steered(task_id, due_of(rows))


async def fork(
    database: Database, task_id: UUID, *, from_step: str | None, redispatch_s: float, vault: Vault
) -> Steered:
    """Start a new task that finds the steps before `from_step` done, as the original paid for them.

    It has had the signals that these steps waited for, and no others: the n-th wait for a name gets the n-th signal of
    that name in the fork as well, and what the fork waits for itself is asked of people anew. One approval approves one
    task.

    Returns: What to publish, with the new task's id.
    Raises: UnknownTask; BadInput when there is no such step.
    """
    new_id = with_bucket(uuid4(), bucket_in(task_id))
    async with database.unit() as unit:
        row = (await unit.execute(text("SELECT * FROM tasks WHERE id = :id"), {"id": task_id})).one_or_none()
        if row is None:
            raise _unknown(task_id)
        past = await _past(unit, task_id, vault)
        keeps = [one for one in kept(past, from_step=from_step, error=row.error) if _is_outcome(one)]
        message = open_message(vault, message_of(row))
        message = seal_message(vault, replace(message, id=new_id, fleet=FleetHeader()))
        values = {"id": task_id, "fork": new_id, "places": _places(keeps)}
        inputs = json.dumps({"args": list(message.args), "kwargs": dict(message.kwargs)})
        forked = (await unit.execute(text(FORK), {**values, "input": inputs, "redispatch_s": redispatch_s})).one()
        await unit.execute(text(COPY_STEPS), values)
        await unit.execute(text(COPY_BLOBS), values)
        await _copy_heard(unit, task_id, new_id, vault)
        await _seal_anew(unit, task_id, new_id, vault)
    return Steered(new_id, due_of([forked]))


async def _past(unit: AsyncSession, task_id: UUID, vault: Vault) -> list[Past]:
    rows = (await unit.execute(text(STEPS), {"id": task_id})).all()
    found = []
    for row in rows:
        role = step_role(row.name, row.ordinal)
        failure = vault.open(row.failure, task_id=task_id, role=role) if row.failure is not None else None
        found.append(Past(row.name, row.ordinal, row.state, row.started_at, failure, row.usage))
    return found


async def _forget(unit: AsyncSession, task_id: UUID, dropped: Sequence[Past]) -> None:
    if dropped:
        for statement in FORGET:
            await unit.execute(text(statement), {"id": task_id, "places": _places(dropped)})


async def _copy_heard(unit: AsyncSession, old_id: UUID, new_id: UUID, vault: Vault) -> None:
    """The signals that the copied waits have had."""
    for row in (await unit.execute(text(HEARD), {"id": old_id, "fork": new_id})).all():
        payload, role = row.payload, signal_role(row.name)
        if is_sealed(payload):
            payload = vault.seal(vault.open(payload, task_id=old_id, role=role), task_id=new_id, role=role)
        values = {"fork": new_id, "name": row.name, "payload": json.dumps(payload), "at": row.created_at}
        await unit.execute(text(HEAR), values)


async def _seal_anew(unit: AsyncSession, old_id: UUID, new_id: UUID, vault: Vault) -> None:
    """A sealed value opens for its own task only."""
    for table, column, role_of in (("steps", "result", step_role), ("blobs", "data", blob_role)):
        query = f"""SELECT name, ordinal, {column} AS value FROM {table} WHERE task_id = :id
                    AND json_typeof({column}) = 'object' AND {column} -> '$sealed' IS NOT NULL"""
        change = f"UPDATE {table} SET {column} = CAST(:value AS json) WHERE task_id = :id AND name = :name"
        for row in (await unit.execute(text(query), {"id": new_id})).all():
            if not is_sealed(row.value):
                continue
            role = role_of(row.name, row.ordinal)
            value = vault.seal(vault.open(row.value, task_id=old_id, role=role), task_id=new_id, role=role)
            await unit.execute(
                text(f"{change} AND ordinal = :ordinal"),
                {"id": new_id, "name": row.name, "ordinal": row.ordinal, "value": json.dumps(value)},
            )


def _cancelled_below(root: UUID, tree: Mapping[UUID, tuple[UUID | None, str]]) -> list[UUID]:
    """Descendants that were cancelled, as far as the chain of cancelled ones reaches."""
    chosen: set[UUID] = set()
    more = {root}
    while more:
        chosen |= more
        below = {one for one, (parent, state) in tree.items() if parent in more and state == "cancelled"}
        more = below - chosen
    return sorted(chosen - {root})


def _place(from_step: str, past: Iterable[Past]) -> tuple[str, int]:
    """`name#2`, unless a step has just this name."""
    name, mark, number = from_step.rpartition("#")
    if not mark or not number.isdigit() or any(one.name == from_step for one in past):
        return from_step, 0
    return name.rstrip(), int(number)


def _ended_with(one: Past, error: Mapping[str, Any] | None) -> bool:
    """Whether this step's failure is the one that the task ended with."""
    failure = (one.failure or {}).get("error")
    if one.state != "failed" or not isinstance(failure, dict) or error is None:
        return False
    return (failure["code"], failure["message"]) == (error["code"], error["message"])


def _is_outcome(one: Past) -> bool:
    """Whether a next claim takes it as it is; see `records.recorded_of`."""
    return one.state == "done" or (one.state == "failed" and isinstance((one.failure or {}).get("error"), dict))


def _places(past: Iterable[Past]) -> str:
    return json.dumps([{"name": one.name, "ordinal": one.ordinal} for one in past])


def _unknown(task_id: UUID) -> UnknownTask:
    return UnknownTask(f"the ledger has no task {task_id}: check the id, or wait until a worker has claimed it")
