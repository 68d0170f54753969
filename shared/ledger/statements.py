"""The hot path's SQL: parts of one statement, so that a batch of many runs' writes is one round trip and one commit.

Each part reads its rows from one JSON parameter and returns the keys that it wrote; a key that does not come back was
fenced off (or, for a claim, is somebody else's). All parts are idempotent: after a lost connection the batch is sent
again. Data-modifying parts see one snapshot, so two writes to one row never share a batch.
"""

from typing import Literal

Kind = Literal["accept", "claim", "intent", "result", "finish", "release"]
KINDS: tuple[Kind, ...] = ("accept", "claim", "intent", "result", "finish", "release")

FENCE = (
    "fence AS MATERIALIZED (SELECT id FROM workers WHERE id = %(worker)s AND state IN ('alive', 'draining') FOR SHARE)"
)

PARTS: dict[Kind, str] = {
    "accept": """
        INSERT INTO tasks (id, tenant, agent, session_id, idempotency_key, input, max_attempts, deadline_at,
                           dispatch_at)
        SELECT id, tenant, agent, session_id, idempotency_key, input, max_attempts, deadline_at,
               now() + make_interval(secs => redispatch_s)
        FROM json_to_recordset(%(accept)s::json) AS x(id uuid, tenant text, agent text, session_id text,
             idempotency_key text, input json, max_attempts smallint, deadline_at timestamptz, redispatch_s float8)
        ON CONFLICT DO NOTHING
        RETURNING id, NULL::text AS name, 0 AS ordinal, epoch, attempt""",
    "claim": """
        INSERT INTO tasks AS t (id, tenant, agent, session_id, idempotency_key, input, max_attempts, deadline_at,
                                state, epoch, attempt, worker_id, started_at)
        SELECT x.id, tenant, agent, session_id, idempotency_key, input, max_attempts, deadline_at,
               'running', 1, 1, fence.id, now()
        FROM fence, json_to_recordset(%(claim)s::json) AS x(id uuid, tenant text, agent text, session_id text,
             idempotency_key text, input json, max_attempts smallint, deadline_at timestamptz)
        ON CONFLICT (id) DO UPDATE
        SET state = 'running', worker_id = excluded.worker_id, started_at = coalesce(t.started_at, now()),
            epoch = t.epoch + (t.state = 'queued')::int, attempt = t.attempt + (t.state = 'queued')::int
        WHERE t.state = 'queued' OR (t.state = 'running' AND t.worker_id = excluded.worker_id)
        RETURNING id, NULL::text AS name, 0 AS ordinal, epoch, attempt""",
    "intent": """
        INSERT INTO steps AS s (task_id, name, ordinal, kind, fingerprint, epoch)
        SELECT x.task_id, x.name, x.ordinal, x.kind, x.fingerprint, x.epoch
        FROM fence, json_to_recordset(%(intent)s::json) AS x(task_id uuid, name text, ordinal int, kind text,
             fingerprint text, epoch int)
        JOIN tasks t ON t.id = x.task_id AND t.epoch = x.epoch AND t.state = 'running'
        ON CONFLICT (task_id, name, ordinal) DO UPDATE
        SET executions = s.executions + (s.epoch <> excluded.epoch)::int,
            repeats = s.repeats + (s.epoch <> excluded.epoch AND s.state = 'done')::int, epoch = excluded.epoch,
            state = 'intent', fingerprint = excluded.fingerprint, started_at = now(), finished_at = NULL
        RETURNING task_id AS id, name, ordinal, epoch, 0 AS attempt""",
    "result": """
        UPDATE steps s
        SET state = x.state, result = x.result, usage = x.usage, finished_at = now()
        FROM fence, json_to_recordset(%(result)s::json) AS x(task_id uuid, name text, ordinal int, epoch int,
             state text, result json, usage json)
        WHERE s.task_id = x.task_id AND s.name = x.name AND s.ordinal = x.ordinal AND s.epoch = x.epoch
          AND EXISTS (SELECT FROM tasks t WHERE t.id = x.task_id AND t.epoch = x.epoch AND t.state = 'running')
        RETURNING s.task_id AS id, s.name, s.ordinal, s.epoch, 0 AS attempt""",
    "finish": """
        UPDATE tasks t
        SET state = x.state, output = x.output, error = x.error, report = x.report, worker_id = NULL,
            dispatch_at = NULL, finished_at = now()
        FROM fence, json_to_recordset(%(finish)s::json) AS x(id uuid, epoch int, state text, output json, error json,
             report json)
        WHERE t.id = x.id AND t.epoch = x.epoch AND t.state IN ('running', x.state)
        RETURNING t.id, NULL::text AS name, 0 AS ordinal, t.epoch, 0 AS attempt""",
    "release": """
        UPDATE tasks t
        SET state = 'queued', worker_id = NULL, epoch = t.epoch + 1, attempt = t.attempt - 1, dispatch_at = now()
        FROM fence, json_to_recordset(%(release)s::json) AS x(id uuid, epoch int)
        WHERE t.id = x.id AND t.epoch = x.epoch AND t.state = 'running'
        RETURNING t.id, NULL::text AS name, 0 AS ordinal, x.epoch, 0 AS attempt""",
}


def batch_statement(kinds: tuple[Kind, ...], *, fenced: bool) -> str:
    """One statement that runs these parts together.

    Args:
        kinds: Which parts, in the order of KINDS.
        fenced: Whether a worker writes; its row is then locked for the length of the statement.

    Returns: SQL that yields rows (kind, id, name, ordinal, epoch, attempt); first `('fence', …)` where the fence held.
    """
    parts = ([FENCE] if fenced else []) + [f"done_{kind} AS ({PARTS[kind]})" for kind in kinds]
    reads = ["SELECT 'fence' AS kind, id, NULL::text AS name, 0 AS ordinal, 0 AS epoch, 0 AS attempt FROM fence"]
    reads = (reads if fenced else []) + [
        f"SELECT '{kind}' AS kind, id, name, ordinal, epoch, attempt FROM done_{kind}" for kind in kinds
    ]
    return f"WITH {', '.join(parts)} {' UNION ALL '.join(reads)}"
