"""Dead letters: tasks that failed and were not put aside, and messages that no worker could read."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Row, text

from shared.contracts import DEFAULT_TENANT, TASK_PREFIX, TaskMessage, parse
from shared.db.database import Database
from shared.errors import BadInput, BadMessage, UnknownTask, WrongState
from shared.ledger.order import checked_id

PAID = """
    SELECT coalesce(sum(CAST(s.usage ->> 'input_tokens' AS bigint)), 0) AS input_tokens,
           coalesce(sum(CAST(s.usage ->> 'output_tokens' AS bigint)), 0) AS output_tokens,
           coalesce(sum(CAST(s.usage ->> 'cost' AS float8)), 0) AS cost,
           count(*) FILTER (WHERE s.usage IS NOT NULL) AS calls, count(*) AS steps
    FROM steps s WHERE s.task_id = t.id AND s.state IN ('done', 'failed')"""
TASKS = f"""
    SELECT CAST(t.id AS text) AS id, t.agent, t.tenant, t.finished_at AS at, t.attempt, t.error, paid.*
    FROM tasks t CROSS JOIN LATERAL ({PAID}) paid
    WHERE t.state = 'failed' AND t.discarded_at IS NULL
      AND (CAST(:agent AS text) IS NULL OR t.agent = :agent) AND (CAST(:tenant AS text) IS NULL OR t.tenant = :tenant)
      AND (CAST(:error AS text) IS NULL OR t.error ->> 'code' = :error
           OR strpos(lower(t.error ->> 'message'), lower(:error)) > 0)
      AND (CAST(:since AS timestamptz) IS NULL OR t.finished_at >= :since)
      AND (CAST(:until AS timestamptz) IS NULL OR t.finished_at < :until)
    ORDER BY t.finished_at DESC LIMIT :limit"""
MESSAGES = f"""
    SELECT id, received_at, reason, headers, body FROM dead_letters
    WHERE (CAST(:agent AS text) IS NULL OR headers ->> 'task' = concat('{TASK_PREFIX}', CAST(:agent AS text)))
      AND (CAST(:tenant AS text) IS NULL
           OR CASE WHEN json_typeof(headers -> 'fleet') = 'object'
              THEN coalesce(headers -> 'fleet' ->> 'tenant', '{DEFAULT_TENANT}') END = :tenant)
      AND (CAST(:since AS timestamptz) IS NULL OR received_at >= :since)
      AND (CAST(:until AS timestamptz) IS NULL OR received_at < :until)
      AND (CAST(:error AS text) IS NULL OR :error = 'bad_message' OR strpos(lower(reason), lower(:error)) > 0)
    ORDER BY received_at DESC LIMIT :limit"""
SHOWN_CHARACTERS = 4_000


@dataclass(frozen=True, slots=True)
class Paid:
    """What the steps of a task have cost; `cost` in the currency of the price list, 0 where there is none."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    calls: int = 0
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter. Its id is the task's, or `message-<number>` of one that could not be read."""

    id: str
    kind: Literal["task", "message"]
    agent: str | None
    tenant: str | None
    at: datetime
    attempt: int
    error: dict[str, Any]
    paid: Paid = field(default_factory=Paid)
    headers: dict[str, Any] | None = None
    body: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which dead letters: all that is given must fit. `error` is a code, or a part of the message."""

    agent: str | None = None
    tenant: str | None = None
    error: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it lets everything through."""
        return self == Filter()


async def letters(database: Database, wanted: Filter, *, limit: int) -> list[Letter]:
    """The newest dead letters, tasks and messages together."""
    values = {
        "agent": wanted.agent, "tenant": wanted.tenant, "error": wanted.error, "since": wanted.since,
        "until": wanted.until, "limit": limit,
    }  # fmt: skip
    async with database.unit(mode="ro") as unit:
        found = [_of_task(row) for row in await unit.execute(text(TASKS), values)]
        unread = [_of_message(row) for row in await unit.execute(text(MESSAGES), values)]
    return sorted(found + unread, key=lambda one: one.at, reverse=True)[:limit]


async def message_letter(database: Database, letter_id: str) -> Letter:
    """A message that could not be read, whole.

    Raises: BadInput when there is none.
    """
    query = text("SELECT id, received_at, reason, headers, body FROM dead_letters WHERE id = :id")
    async with database.unit(mode="ro") as unit:
        row = (await unit.execute(query, {"id": message_number(letter_id)})).one_or_none()
    if row is None:
        raise BadInput(f"there is no dead letter {letter_id!r}: see `fleet dead list`", id=letter_id)
    return _of_message(row)


async def task_letter(database: Database, task_id: UUID) -> Letter:
    """A failed task among the dead letters, with what it has cost.

    Raises: UnknownTask; WrongState when it has not failed, or was discarded.
    """
    query = text(
        "SELECT CAST(t.id AS text) AS id, t.agent, t.tenant, t.finished_at AS at, t.attempt, t.error, t.state, "
        f"t.discarded_at, paid.* FROM tasks t CROSS JOIN LATERAL ({PAID}) paid WHERE t.id = :id"
    )
    async with database.unit(mode="ro") as unit:
        row = (await unit.execute(query, {"id": task_id})).one_or_none()
    if row is None:
        raise UnknownTask(f"the ledger has no task {task_id}: check the id")
    if row.state != "failed" or row.discarded_at is not None:
        state = "discarded" if row.state == "failed" else row.state
        raise WrongState(f"task {task_id} is {state}, no dead letter: see `fleet dead list`", state=state)
    return _of_task(row)


async def discard(database: Database, letter_id: str) -> None:
    """Take a dead letter off the list: a task stays in the ledger as failed, a message is deleted.

    Raises: BadInput; UnknownTask; WrongState when the task has not failed, or was discarded before.
    """
    if is_message(letter_id):
        await message_letter(database, letter_id)
        async with database.unit() as unit:
            await unit.execute(text("DELETE FROM dead_letters WHERE id = :id"), {"id": message_number(letter_id)})
        return
    letter = await task_letter(database, checked_id(letter_id))
    statement = "UPDATE tasks SET discarded_at = now() WHERE id = :id AND state = 'failed' AND discarded_at IS NULL"
    async with database.unit() as unit:
        await unit.execute(text(statement), {"id": UUID(letter.id)})


def reread(letter: Letter) -> TaskMessage:
    """The task of a message that could not be read when it came.

    Raises: BadMessage with the reason when it still cannot be.
    """
    try:
        return parse(letter.headers, letter.body or "")
    except BadMessage as error:
        raise BadMessage(f"{letter.id} still cannot be read: {error.message}", id=letter.id) from None


def is_message(letter_id: str) -> bool:
    """Whether this names a message rather than a task."""
    return letter_id.startswith("message-")


def message_number(letter_id: str) -> int:
    """The row of a message.

    Raises: BadInput.
    """
    number = letter_id.removeprefix("message-")
    if not number.isascii() or not number.isdigit() or len(number) > 18:
        raise BadInput(f"{letter_id!r} names no dead letter: copy its id from `fleet dead list`")
    return int(number)


def _of_task(row: Row[Any]) -> Letter:
    paid = Paid(int(row.input_tokens), int(row.output_tokens), float(row.cost), row.calls, row.steps)
    error = row.error or {"code": "unknown", "message": "no reason recorded"}
    return Letter(row.id, "task", row.agent, row.tenant, row.at, row.attempt, error, paid)


def _of_message(row: Row[Any]) -> Letter:
    headers: Mapping[str, Any] = row.headers if isinstance(row.headers, dict) else {}
    task, fleet = headers.get("task"), headers.get("fleet")
    agent = task.removeprefix(TASK_PREFIX) if isinstance(task, str) and task.startswith(TASK_PREFIX) else None
    tenant = fleet.get("tenant", DEFAULT_TENANT) if isinstance(fleet, dict) else None
    return Letter(
        f"message-{row.id}", "message", agent, tenant if isinstance(tenant, str) else None, row.received_at, 0,
        {"code": "bad_message", "message": row.reason}, Paid(), dict(headers), row.body,
    )  # fmt: skip


def shown_body(letter: Letter) -> str:
    """Its body as people read it: indented where it is JSON, cut where it is long."""
    body = letter.body or ""
    with suppress(ValueError, RecursionError):
        body = json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    return body if len(body) <= SHOWN_CHARACTERS else f"{body[:SHOWN_CHARACTERS]}… ({len(body)} characters in all)"


def total_paid(found: Sequence[Letter]) -> Paid:
    """What several have cost together."""
    paid = [one.paid for one in found]
    return Paid(
        sum(p.input_tokens for p in paid), sum(p.output_tokens for p in paid), sum(p.cost for p in paid),
        sum(p.calls for p in paid), sum(p.steps for p in paid),
    )  # fmt: skip
