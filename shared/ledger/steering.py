"""Steering a task from outside: cancel, signal, resume; and the wake of a parent whose child ended without a worker.

Each change is one transaction. What may run because of it comes back as messages, for the caller to publish: marked as
published already, so that a caller who dies before doing so has only lost a message, which workers and keeper make up
for. Several rows are always locked in the order of their ids.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.contracts import TaskMessage
from shared.db.database import Database
from shared.errors import BadInput, StepChanged, TaskCancelled, UnknownTask, WrongState
from shared.ledger.rows import message_of
from shared.ledger.statements import NO_CHILD_RUNS

ACTIVE = "('queued', 'running', 'waiting', 'parked')"
IS_CAPPED = """EXISTS (SELECT FROM limits l WHERE (l.scope = 'tenant' AND l.name = t.tenant)
                       OR (l.scope = 'agent' AND l.name IN (t.agent, t.root_agent)))"""
PUBLISHED_AT = f"CASE WHEN {IS_CAPPED} THEN NULL ELSE now() END"
DISPATCH_AT = f"now() + make_interval(secs => CASE WHEN {IS_CAPPED} THEN 0 ELSE :redispatch_s END)"
DUE = "t.state = 'queued' AND coalesce(t.published_at = now(), false) AS is_due"
"""now() is the transaction's start: only what this very transaction marked as published."""

TREE = """
    WITH RECURSIVE tree(id) AS (
        SELECT CAST(:id AS uuid)
        UNION SELECT c.id FROM tasks c JOIN tree ON c.parent_id = tree.id
    )
    SELECT t.id, t.parent_id, t.agent, t.state, t.error, t.cancel_requested_at,
           extract(epoch FROM now() - t.cancel_requested_at) AS asked_s
    FROM tasks t WHERE t.id IN (SELECT id FROM tree) ORDER BY t.id FOR NO KEY UPDATE"""
CANCEL = f"""
    UPDATE tasks t
    SET cancel_requested_at = coalesce(t.cancel_requested_at, now()),
        state = CASE WHEN t.state = 'running' THEN 'running' ELSE 'cancelled' END,
        epoch = t.epoch + (t.state <> 'running')::int,
        error = CASE WHEN t.state = 'running' THEN t.error WHEN t.id = CAST(:id AS uuid) THEN CAST(:reason AS json)
                     ELSE CAST(:follows AS json) END,
        finished_at = CASE WHEN t.state <> 'running' THEN now() END,
        dispatch_at = CASE WHEN t.state = 'running' THEN t.dispatch_at END,
        published_at = CASE WHEN t.state = 'running' THEN t.published_at END, wake_at = NULL, waiting_for = NULL
    WHERE t.id = ANY(:ids) AND t.state IN {ACTIVE}
    RETURNING t.id, t.parent_id, t.state"""


def _wake(goes_on: str, where: str) -> str:
    """One more wake; the task is queued when what it waits for has come."""
    return f"""
        UPDATE tasks t
        SET wakes = t.wakes + 1, state = CASE WHEN {goes_on} THEN 'queued' ELSE t.state END,
            published_at = CASE WHEN {goes_on} THEN {PUBLISHED_AT} ELSE t.published_at END,
            dispatch_at = CASE WHEN {goes_on} THEN {DISPATCH_AT} ELSE t.dispatch_at END,
            wake_at = CASE WHEN {goes_on} THEN NULL ELSE t.wake_at END,
            waiting_for = CASE WHEN {goes_on} THEN NULL ELSE t.waiting_for END
        WHERE {where} RETURNING t.*, {DUE}"""


ON_SIGNAL = "t.state = 'waiting' AND coalesce(jsonb_exists(CAST(t.waiting_for -> 'signals' AS jsonb), :name), false)"
SIGNAL = f"""
    WITH woken AS ({_wake(ON_SIGNAL, f"t.id = :id AND t.state IN {ACTIVE}")}),
         kept AS (INSERT INTO signals (task_id, name, payload) SELECT id, :name, CAST(:payload AS json) FROM woken)
    SELECT * FROM woken"""
ON_CHILDREN = f"t.state = 'waiting' AND t.waiting_for -> 'ids' IS NOT NULL AND {NO_CHILD_RUNS}"
WAKE = _wake(ON_CHILDREN, "t.id = ANY(:ids) AND t.state IN ('running', 'waiting')")
RESUME = f"""
    UPDATE tasks t SET state = 'queued', error = NULL, published_at = {PUBLISHED_AT}, dispatch_at = {DISPATCH_AT}
    WHERE t.id = :id RETURNING t.*, {DUE}"""
REUSE = "UPDATE steps SET fingerprint = :mark WHERE task_id = :id AND name = :name AND ordinal = :ordinal"
RERUN = """
    UPDATE steps SET state = 'failed', result = '{"error": "changed"}', in_blob = false
    WHERE task_id = :id AND name = :name AND ordinal = :ordinal"""


@dataclass(frozen=True, slots=True)
class Steered:
    """What a change did.

    Attributes:
        due: Messages to publish.
        running: Tasks that were asked to stop while a worker runs them: to be hurried.
    """

    task_id: UUID
    due: tuple[TaskMessage, ...] = ()
    running: tuple[UUID, ...] = ()


async def cancel(database: Database, task_id: UUID, *, redispatch_s: float) -> Steered:
    """Cancel a task and all its descendants: what waits ends at once, what runs is asked to stop.

    Raises: UnknownTask; WrongState when it is finished or was cancelled before, and nothing is changed.
    """
    async with database.unit() as unit:
        tree = (await unit.execute(text(TREE), {"id": task_id})).all()
        root = next((row for row in tree if row.id == task_id), None)
        if root is None:
            _refuse_unknown(task_id)
        _refuse_second_cancel(root)
        changed = await _cancel(unit, root.id, [row.id for row in tree])
    parents = {row.parent_id for row in changed if row.state == "cancelled" and row.parent_id} - {r.id for r in tree}
    due = await wake(database, parents, redispatch_s=redispatch_s) if parents else ()
    return Steered(task_id, due, tuple(row.id for row in changed if row.state == "running"))


async def signal(database: Database, task_id: UUID, name: str, payload: Any, *, redispatch_s: float) -> Steered:
    """Keep a signal for a task, before it waits for it or while it does; in the latter case it goes on.

    Args:
        payload: JSON-safe and storable.

    Raises: UnknownTask; WrongState when it is finished.
    """
    values = {"id": task_id, "name": name, "payload": json.dumps(payload), "redispatch_s": redispatch_s}
    async with database.unit() as unit:
        row = (await unit.execute(text(SIGNAL), values)).one_or_none()
        if row is None:
            state = await _state(unit, task_id)
            raise WrongState(
                f"task {task_id} has {ENDED[state]}: nobody will wait for signal {name!r} any more",
                task_id=str(task_id), state=state,
            )  # fmt: skip
    return Steered(task_id, due_of([row]))


async def wake(database: Database, task_ids: Iterable[UUID], *, redispatch_s: float) -> tuple[TaskMessage, ...]:
    """Tell parents that a child has ended; to be called once that is committed.

    Returns: Messages of those that can go on now.
    """
    async with database.unit() as unit:
        rows = (await unit.execute(text(WAKE), {"ids": sorted(task_ids), "redispatch_s": redispatch_s})).all()
    return due_of(rows)


async def resume(
    database: Database, task_id: UUID, *, on_change: Literal["reuse", "rerun"] | None, redispatch_s: float
) -> Steered:
    """Let a parked task go on.

    Args:
        on_change: Of a task that stopped at a step that asks for something else than before: whether the step's old
            result is good, or it is to be run again. None: the agent asks as before again.

    Raises: UnknownTask; WrongState when it is not parked; BadInput when no changed step stopped it.
    """
    async with database.unit() as unit:
        query = text("SELECT state, error FROM tasks WHERE id = :id FOR NO KEY UPDATE")
        row = (await unit.execute(query, {"id": task_id})).one_or_none()
        if row is None:
            _refuse_unknown(task_id)
        if row.state != "parked":
            raise WrongState(
                f"task {task_id} is {row.state}: only a parked task can be resumed", task_id=str(task_id),
                state=row.state,
            )  # fmt: skip
        if on_change is not None:
            await _settle_change(unit, task_id, row.error or {}, on_change)
        done = (await unit.execute(text(RESUME), {"id": task_id, "redispatch_s": redispatch_s})).one()
    return Steered(task_id, due_of([done]))


async def hold(database: Database, task_ids: Sequence[UUID]) -> None:
    """Publishing these failed: they are held in the ledger, where workers look for them."""
    statement = """
        UPDATE tasks SET published_at = NULL, dispatch_at = now()
        WHERE id IN (SELECT id FROM tasks WHERE id = ANY(:ids) AND state = 'queued' AND published_at IS NOT NULL
                     ORDER BY id FOR NO KEY UPDATE)"""
    async with database.unit() as unit:
        await unit.execute(text(statement), {"ids": list(task_ids)})


ENDED = {"succeeded": "succeeded", "failed": "failed", "cancelled": "been cancelled"}


def due_of(rows: Iterable[Row[Any]]) -> tuple[TaskMessage, ...]:
    """The messages to publish, of rows with `is_due`."""
    return tuple(message_of(row) for row in rows if row.is_due)


async def _cancel(unit: AsyncSession, root: UUID, ids: list[UUID]) -> Sequence[Row[Any]]:
    reason = TaskCancelled("the task was cancelled").as_dict()
    follows = TaskCancelled("the task was cancelled with its parent").as_dict()
    values = {"id": root, "ids": ids, "reason": json.dumps(reason), "follows": json.dumps(follows)}
    return (await unit.execute(text(CANCEL), values)).all()


def _refuse_second_cancel(root: Row[Any]) -> None:
    if root.state == "cancelled":
        raise WrongState(f"task {root.id} is cancelled already", task_id=str(root.id), state=root.state)
    if root.state in ENDED:
        raise WrongState(
            f"task {root.id} has {ENDED[root.state]}: there is nothing left to cancel", task_id=str(root.id),
            state=root.state,
        )  # fmt: skip
    if root.cancel_requested_at is not None:
        raise WrongState(
            f"task {root.id} was asked to stop {root.asked_s:.1f} s ago already: its worker ends it at its next look",
            task_id=str(root.id), state=root.state,
        )  # fmt: skip


async def _settle_change(
    unit: AsyncSession, task_id: UUID, error: dict[str, Any], on_change: Literal["reuse", "rerun"]
) -> None:
    if error.get("code") != StepChanged.code:
        why = error.get("message", "no reason recorded")
        raise BadInput(f"task {task_id} is not parked because a step changed: resume it without on_change ({why})")
    changed = error["context"]
    values = {"id": task_id, "name": changed["step"], "ordinal": changed["ordinal"]}
    if on_change == "reuse":
        await unit.execute(text(REUSE), {**values, "mark": changed["fingerprint"]})
    else:
        await unit.execute(text(RERUN), values)


async def _state(unit: AsyncSession, task_id: UUID) -> str:
    state: str | None = (await unit.execute(text("SELECT state FROM tasks WHERE id = :id"), {"id": task_id})).scalar()
    if state is None:
        _refuse_unknown(task_id)
    return state


def _refuse_unknown(task_id: UUID) -> NoReturn:
    raise UnknownTask(f"the ledger has no task {task_id}: check the id, or wait until a worker has claimed it")
