"""What dead workers leave behind: their runs go back to the line, and what no worker could read is recorded."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, insert, select, text

from shared.db.database import Database
from shared.db.tables import dead_letters, workers
from shared.ledger.statements import CAPPED
from shared.ledger.terms import Units

FENCE = text("""
    UPDATE workers SET state = 'dead'
    WHERE id = ANY(:workers) AND state IN ('alive', 'draining')
      AND now() - heartbeat_at > make_interval(secs => :dead_after_s)
    RETURNING id""")
TAKE = text("""
    WITH theirs AS (
        SELECT id, worker_id,
               CASE WHEN cancel_requested_at IS NOT NULL THEN 'cancelled'
                    WHEN attempt < max_attempts THEN 'queued' ELSE 'failed' END AS next_state
        FROM tasks WHERE worker_id = ANY(:dead) AND state = 'running' ORDER BY id FOR UPDATE
    )
    UPDATE tasks t
    SET state = theirs.next_state, epoch = t.epoch + 1, worker_id = NULL, published_at = NULL,
        dispatch_at = CASE WHEN theirs.next_state = 'queued' THEN now() END,
        finished_at = CASE WHEN theirs.next_state <> 'queued' THEN now() END,
        error = CASE theirs.next_state
            WHEN 'cancelled' THEN json_build_object('code', 'task_cancelled', 'message', 'the task was cancelled')
            WHEN 'failed' THEN json_build_object('code', 'attempts_exhausted', 'message',
                concat('the worker died in attempt ', t.attempt, ' of ', t.max_attempts))
            END
    FROM theirs WHERE t.id = theirs.id
    RETURNING t.id, t.tenant, t.parent_id, t.state, theirs.worker_id AS worker,
              (SELECT count(*) FROM steps s WHERE s.task_id = t.id AND s.state = 'intent') AS in_doubt""")
HOLD_BACK = text(f"""
    UPDATE tasks SET published_at = NULL, dispatch_at = now()
    WHERE id IN (SELECT id FROM tasks x WHERE id = ANY(:ids) AND state = 'queued' AND NOT {CAPPED}
                 ORDER BY id FOR NO KEY UPDATE)""")


@dataclass(frozen=True, slots=True)
class Pulse:
    """A worker as the keeper sees it."""

    id: UUID
    name: str
    heartbeat_age_s: float


@dataclass(frozen=True, slots=True)
class Taken:
    """A run that was taken from a dead worker.

    Attributes:
        state: What became of it.
        in_doubt: Its calls that were in flight: nobody saw them end.
    """

    id: UUID
    tenant: str
    parent_id: UUID | None
    state: str
    worker: UUID
    in_doubt: int


async def pulses(database: Database) -> list[Pulse]:
    """Every worker that should be alive, by the database's clock."""
    age = func.extract("epoch", func.now() - workers.c.heartbeat_at)
    query = select(workers.c.id, workers.c.name, age.label("age_s")).where(workers.c.state.in_(["alive", "draining"]))
    async with database.unit(mode="ro") as unit:
        return [Pulse(row.id, row.name, float(row.age_s)) for row in await unit.execute(query)]


async def bury(units: Units, dead: Sequence[UUID], *, dead_after_s: float) -> list[Taken]:
    """Declare workers dead and take all their runs.

    First their rows: no write of theirs can be in flight after that, because each holds its worker's row while it
    commits. Then, in one statement that sees those writes, their runs: with attempts left they are held for whoever
    has a slot; those that were to be cancelled are; the others fail.

    Returns: The runs; none of a worker whose heartbeat came back in time.
    """
    async with units.unit() as unit:
        fenced = await unit.execute(FENCE, {"workers": list(dead), "dead_after_s": dead_after_s})
        gone = [row.id for row in fenced]
        rows = (await unit.execute(TAKE, {"dead": gone})).all() if gone else []
    return [Taken(row.id, row.tenant, row.parent_id, row.state, row.worker, row.in_doubt) for row in rows]


async def put_back(units: Units, task_ids: Sequence[UUID]) -> None:
    """Publishing these failed: they are held in the ledger, where workers find them.

    Those under a limit stay released: nobody may poll them while they are held, and an idle worker takes a released
    one whose message does not come.
    """
    if task_ids:
        async with units.unit() as unit:
            await unit.execute(HOLD_BACK, {"ids": list(task_ids)})


async def record_dead_letter(units: Units, *, reason: str, headers: dict[str, object], body: str) -> None:
    """Keep a message that no worker could read."""
    async with units.unit() as unit:
        await unit.execute(insert(dead_letters).values(reason=reason, headers=headers, body=body))
