"""What the journal has of a task's earlier claims, and how a request is known again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import ARRAY, Uuid, and_, cast, func, select

from shared.db.database import Database
from shared.db.tables import blobs, steps
from shared.errors import BadInput
from shared.ledger.vault import NO_VAULT, Vault, blob_role, step_role

RecordState = Literal["done", "failed", "waiting", "doubt", "again"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """One step of an earlier claim.

    Attributes:
        state: `done` with its result; `failed` with the FleetError that it ended with; `waiting` for its time, a signal
            or children; `doubt`: it began and nobody saw it end; `again`: it failed in a way that is tried anew.
        left_s: Seconds until its wait is over at the latest, when it was loaded; None: no limit.
        executions: How often it began so far.
        in_doubt: How many of those nobody saw end, the last one apart.
    """

    fingerprint: str
    result: Any = None
    failure: Mapping[str, Any] | None = None
    state: RecordState = "done"
    left_s: float | None = None
    executions: int = 1
    in_doubt: int = 0


def fingerprint(name: str, ordinal: int, request: Any) -> str:
    """What a step asked for: a hash of its name, its ordinal and the canonical JSON of its request.

    Raises: BadInput when the request is not JSON.
    """
    try:
        canonical = json.dumps([name, ordinal, request], sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"the request of step {name!r} is not JSON: {error}", step=name) from None
    return hashlib.blake2b(canonical.encode(errors="surrogatepass"), digest_size=16).hexdigest()


async def load_recorded(
    database: Database, task_ids: Sequence[UUID], *, vault: Vault = NO_VAULT
) -> list[dict[tuple[str, int], Recorded]]:
    """The steps so far of each of these tasks, by (name, ordinal).

    Raises: SealKeyUnknown; SealBroken.
    """
    joined = steps.outerjoin(
        blobs,
        and_(
            steps.c.in_blob,
            blobs.c.task_id == steps.c.task_id,
            blobs.c.name == steps.c.name,
            blobs.c.ordinal == steps.c.ordinal,
        ),
    )
    left_s = func.extract("epoch", steps.c.until - func.now()).label("left_s")
    query = (
        select(
            steps.c.task_id, steps.c.name, steps.c.ordinal, steps.c.fingerprint, steps.c.state, steps.c.executions,
            steps.c.in_doubt, left_s, func.coalesce(blobs.c.data, steps.c.result).label("result"),
            blobs.c.data.is_not(None).label("is_blob"),
        )
        .select_from(joined)
        .where(steps.c.task_id == func.any(cast(list(task_ids), ARRAY(Uuid))))
    )  # fmt: skip
    async with database.unit() as unit:  # never a replica: what it has not heard of yet would be done again
        rows = (await unit.execute(query)).all()
    found: dict[UUID, dict[tuple[str, int], Recorded]] = {task_id: {} for task_id in task_ids}
    for row in rows:
        role = (blob_role if row.is_blob else step_role)(row.name, row.ordinal)
        found[row.task_id][row.name, row.ordinal] = recorded_of(
            row.fingerprint,
            row.state,
            vault.open(row.result, task_id=row.task_id, role=role),
            left_s=None if row.left_s is None else float(row.left_s),
            executions=row.executions,
            in_doubt=row.in_doubt,
        )
    return [found[task_id] for task_id in task_ids]


def recorded_of(
    mark: str, state: str, result: Any, *, left_s: float | None = None, executions: int = 1, in_doubt: int = 0
) -> Recorded:
    """What a stored step means for the next claim.

    A FleetError is an outcome too: an agent that caught it (no vector store: answer without notes) went on accordingly,
    and its later steps are only the same again if it sees the same again. Other failures are tried anew.
    """
    if state == "done":
        return Recorded(mark, result, executions=executions, in_doubt=in_doubt)
    if state == "failed" and isinstance(result["error"], dict):
        return Recorded(mark, None, result["error"], "failed", executions=executions, in_doubt=in_doubt)
    outcome: RecordState = {"failed": "again", "waiting": "waiting"}.get(state, "doubt")  # type: ignore[assignment]
    return Recorded(mark, None, None, outcome, left_s, executions, in_doubt)
