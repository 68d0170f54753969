"""Messages off the queue into the ledger, where their tasks are held for others.

Those of a crowd, so that the ones behind them come through; those that came to a worker without their agent.
"""

import json
from collections.abc import Sequence

from sqlalchemy import text

from shared.contracts import TaskMessage
from shared.db.database import Database
from shared.ledger.rows import task_row
from shared.ledger.statements import CAPPED, TASK_COLUMNS, TASK_TYPES, X_COLUMNS

SHELVE = f"""
    INSERT INTO tasks AS t ({TASK_COLUMNS}, state, published_at, dispatch_at)
    SELECT {X_COLUMNS}, 'queued', NULL, now() FROM json_to_recordset(CAST(:tasks AS json)) AS x({TASK_TYPES})
    ON CONFLICT (id) DO UPDATE SET published_at = NULL, dispatch_at = now()
    WHERE t.state = 'queued' AND t.published_at IS NOT NULL"""
FOR_OTHERS = f"""
    WITH x AS MATERIALIZED (SELECT * FROM json_to_recordset(CAST(:tasks AS json)) AS x({TASK_TYPES})),
    held AS (
        INSERT INTO tasks AS t ({TASK_COLUMNS}, state, published_at, dispatch_at)
        SELECT {X_COLUMNS}, 'queued', NULL, now() FROM x
        WHERE EXISTS (SELECT FROM agents a WHERE a.name = x.agent) OR EXISTS (SELECT FROM tasks o WHERE o.id = x.id)
        ON CONFLICT (id) DO UPDATE SET published_at = NULL, dispatch_at = now()
        WHERE t.state = 'queued' AND t.published_at IS NOT NULL AND NOT {CAPPED.replace("x.", "excluded.")}
    )
    SELECT EXISTS (SELECT FROM agents a WHERE a.name = x.agent) OR EXISTS (SELECT FROM tasks o WHERE o.id = x.id) FROM x
"""
"""A task that its producer commits meanwhile is waited for and held as well. What a limit holds stays released: an idle
worker with the agent takes it when its message does not come."""


async def shelve(database: Database, messages: Sequence[TaskMessage]) -> None:
    """Hold these tasks in the ledger; their messages may be acknowledged once this returns.

    A task that the ledger has already is only held when nobody has claimed it yet; twice is once.

    Raises: DatabaseUnavailable.
    """
    rows = {message.id: task_row(message) for message in messages}
    in_order = [rows[task_id] for task_id in sorted(rows)]  # one order everywhere: no deadlocks with other writers
    async with database.unit() as unit:
        await unit.execute(text(SHELVE), {"tasks": json.dumps(in_order)})


async def shelve_for_others(database: Database, message: TaskMessage) -> bool:
    """Hold a task for workers that have its agent; its message may be acknowledged once this returned True.

    Returns: False when no worker has ever offered the agent and the ledger does not know the task: a mistake in its
        name, most likely.
    Raises: DatabaseUnavailable.
    """
    async with database.unit() as unit:
        return bool((await unit.execute(text(FOR_OTHERS), {"tasks": json.dumps([task_row(message)])})).scalar())
