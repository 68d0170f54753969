"""A producer's wish becomes a message: everything that can be refused without asking a server is refused here."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from shared.contracts import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_TENANT,
    FleetHeader,
    Priority,
    TaskMessage,
    checked_agent_name,
    keyed_task_id,
    new_task_id,
)
from shared.errors import BadInput, TooLarge
from shared.ledger.rows import refuse_nul, task_row

LONGEST_S = 366 * 86_400.0
"""Seconds; a task that may take longer has no deadline."""


def new_message(
    agent: str, given: Mapping[str, Any] | None, *, max_bytes: int, session: str | None = None,
    tenant: str = DEFAULT_TENANT, idempotency_key: str | None = None, deadline_s: float | None = None,
    max_attempts: int = DEFAULT_MAX_ATTEMPTS, priority: Priority = "normal", available_at: datetime | None = None,
    delay_s: float | None = None, is_sharded: bool = False,
) -> TaskMessage:  # fmt: skip
    """The message of a new task; see `FleetClient.submit`.

    Args:
        max_bytes: How long its input may be, as JSON.
        is_sharded: Whether there are several shards: then its key holds within its session, whose shard the task is on.

    Raises: BadInput naming the field; TooLarge.
    """
    if not isinstance(given, Mapping | None):
        raise BadInput(f"input must be an object of named inputs, not {type(given).__name__}", agent=agent)
    now = datetime.now(UTC)
    header = FleetHeader.checked(
        tenant=tenant,
        session=session,
        idempotency_key=idempotency_key,
        deadline_at=None if deadline_s is None else now + _checked_length("deadline_s", deadline_s),
        max_attempts=max_attempts,
        priority=priority,
        available_at=_available_at(available_at, delay_s, now=now),
    )
    task_id = new_task_id(tenant, session)
    if idempotency_key:
        task_id = keyed_task_id(tenant, idempotency_key, session if is_sharded else None)
    message = TaskMessage(checked_agent_name(agent), dict(given or {}), (), task_id, header)
    refuse_large(len(message.wire_body()), max_bytes, what=f"the input of agent {agent!r}")
    refuse_nul(task_row(message))
    return message


def refuse_large(size_bytes: int, max_bytes: int, *, what: str) -> None:
    """Whether a payload is within the limit.

    Raises: TooLarge with the remedy.
    """
    if size_bytes > max_bytes:
        raise TooLarge(
            f"{what} is {size_bytes} bytes long as JSON, and the limit is {max_bytes} (FLEET_LEDGER_INPUT_MAX_BYTES): "
            "store it elsewhere and pass a reference to it",
            size_bytes=size_bytes, max_bytes=max_bytes,
        )  # fmt: skip


def checked_id(task_id: UUID | str) -> UUID:
    """A task's id from whatever a caller holds.

    Raises: BadInput.
    """
    try:
        return task_id if isinstance(task_id, UUID) else UUID(task_id)
    except (ValueError, AttributeError, TypeError):
        raise BadInput(f"task id {task_id!r} is not a UUID: copy it from `fleet submit` or `fleet tasks`") from None


def _available_at(available_at: datetime | None, delay_s: float | None, *, now: datetime) -> datetime | None:
    if delay_s is None:
        if available_at is not None and available_at.tzinfo is None:
            raise BadInput("available_at has no time zone: write for example datetime(2027, 1, 1, 9, tzinfo=UTC)")
        return available_at
    if available_at is not None:
        raise BadInput("give available_at or delay_s, not both")
    return now + _checked_length("delay_s", delay_s) if delay_s else None


def _checked_length(name: str, seconds: float) -> timedelta:
    if not 0 <= seconds <= LONGEST_S:
        raise BadInput(f"{name} must be from 0 to {LONGEST_S:g} (a year), not {seconds:g}")
    return timedelta(seconds=seconds)
