"""Celery's word for cancelling: what does not run yet is cancelled, what runs goes on."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select

from shared.contracts import TaskMessage
from shared.db.database import Database
from shared.db.tables import tasks
from shared.errors import WrongState
from shared.ledger.steering import cancel


@dataclass(frozen=True, slots=True)
class Revoked:
    """What a revoke did.

    Attributes:
        due: Messages to publish: parents that waited for what was cancelled.
        unknown: Tasks that the ledger does not have (yet).
    """

    due: tuple[TaskMessage, ...]
    unknown: tuple[UUID, ...]


async def revoke(database: Database, task_ids: Sequence[UUID], *, redispatch_s: float) -> Revoked:
    """Cancel those of the tasks that no worker runs, with their children; again, or by several at once, is once.

    Raises: DatabaseUnavailable.
    """
    async with database.unit() as unit:
        rows = (await unit.execute(select(tasks.c.id, tasks.c.state).where(tasks.c.id.in_(task_ids)))).all()
    states = {row.id: row.state for row in rows}
    due: list[TaskMessage] = []
    for task_id in sorted(one for one, state in states.items() if state in ("queued", "waiting", "parked")):
        try:
            due += (await cancel(database, task_id, redispatch_s=redispatch_s)).due
        except WrongState:  # it ended meanwhile, or another worker heard the same and was quicker
            continue
    return Revoked(tuple(due), tuple(one for one in task_ids if one not in states))


async def is_untouched(database: Database, task_id: UUID) -> bool:
    """Whether a task is as it was accepted: neither claimed, nor cancelled, nor replayed since.

    Raises: DatabaseUnavailable.
    """
    async with database.unit() as unit:
        return (await unit.execute(select(tasks.c.epoch).where(tasks.c.id == task_id))).scalar() == 0
