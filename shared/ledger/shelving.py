"""Messages off a crowded queue into the ledger: held there for a fair turn, so that those behind them come through."""

import json
from collections.abc import Sequence

from sqlalchemy import text

from shared.contracts import TaskMessage
from shared.db.database import Database
from shared.ledger.rows import task_row
from shared.ledger.statements import TASK_COLUMNS, TASK_TYPES, X_COLUMNS

SHELVE = f"""
    INSERT INTO tasks AS t ({TASK_COLUMNS}, state, published_at, dispatch_at)
    SELECT {X_COLUMNS}, 'queued', NULL, now() FROM json_to_recordset(CAST(:tasks AS json)) AS x({TASK_TYPES})
    ON CONFLICT (id) DO UPDATE SET published_at = NULL, dispatch_at = now()
    WHERE t.state = 'queued' AND t.published_at IS NOT NULL"""


async def shelve(database: Database, messages: Sequence[TaskMessage]) -> None:
    """Hold these tasks in the ledger; their messages may be acknowledged once this returns.

    A task that the ledger has already is only held when nobody has claimed it yet; twice is once.

    Raises: DatabaseUnavailable.
    """
    rows = {message.id: task_row(message) for message in messages}
    in_order = [rows[task_id] for task_id in sorted(rows)]  # one order everywhere: no deadlocks with other writers
    async with database.unit() as unit:
        await unit.execute(text(SHELVE), {"tasks": json.dumps(in_order)})
