"""The hot path's SQL: parts of one statement, so that a batch of many runs' writes is one round trip and one commit.

Each part reads its rows from one JSON parameter and returns the keys that it wrote; a key that does not come back was
fenced off (or, for a claim, is somebody else's). All parts are idempotent: after a lost connection the batch is sent
again, marked as such (`again`). Data-modifying parts see one snapshot, so two writes to one row never share a batch.
"""

from typing import Literal

Kind = Literal["accept", "claim", "intent", "blob", "result", "finish", "suspend", "wake"]
KINDS: tuple[Kind, ...] = ("accept", "claim", "intent", "blob", "result", "finish", "suspend", "wake")

FENCE = (
    "fence AS MATERIALIZED (SELECT id FROM workers WHERE id = %(worker)s AND state IN ('alive', 'draining') FOR SHARE)"
)
TASK_COLUMNS = (
    "id, tenant, agent, session_id, idempotency_key, input, max_attempts, deadline_at, priority, parent_id, root_agent"
)
TASK_TYPES = """id uuid, tenant text, agent text, session_id text, idempotency_key text, input json,
             max_attempts smallint, deadline_at timestamptz, priority text, parent_id uuid, root_agent text,
             available_at timestamptz"""
X_COLUMNS = ", ".join(f"x.{name.strip()}" for name in TASK_COLUMNS.split(","))
CAPPED = """EXISTS (SELECT FROM limits l WHERE (l.scope = 'tenant' AND l.name = x.tenant)
                OR (l.scope = 'agent' AND l.name IN (x.agent, x.root_agent)))"""
"""Whether a limit holds for the task: then only the keeper, who counts, lets it be claimed."""
ONCE = "OFFSET 0"
"""Ends a subselect whose answers are used more than once: else each use asks the tables anew."""
LATER = "coalesce(x.available_at > now(), false)"
SAME = "(s.epoch = excluded.epoch AND s.state = excluded.state)"
"""The very intent that is on disk: its answer was lost, and it is sent again. A run begins no step twice: before it
tries one anew, it writes how the last try ended."""
NO_CHILD_RUNS = """EXISTS (
        SELECT FROM json_array_elements(coalesce(t.waiting_for -> 'groups', json_build_array(t.waiting_for -> 'ids'))) g
        WHERE NOT EXISTS (
            SELECT FROM json_array_elements_text(g) i
            WHERE (SELECT c.state FROM tasks c WHERE c.id = CAST(i AS uuid))
                IN ('queued', 'running', 'waiting', 'parked')))"""
"""Whether all children have ended for whom one branch of a waiting task `t` waits. By their ids alone: a fork waits for
children whose parent is the original. Each child by its key: as a join it is planned as a look at every task."""

ACCEPTED = (
    f"json_to_recordset(%(accept)s::json) AS x({TASK_TYPES}, published bool, redispatch_s float8, parent_epoch int)"
)
ACCEPT = f"""
        INSERT INTO tasks ({TASK_COLUMNS}, state, wake_at, waiting_for, published_at, dispatch_at)
        SELECT {X_COLUMNS}, CASE WHEN x.is_later THEN 'waiting' ELSE 'queued' END,
               CASE WHEN x.is_later THEN x.available_at END,
               CASE WHEN x.is_later THEN '{{"kind": "start"}}'::json END,
               CASE WHEN x.is_free AND NOT x.is_later THEN now() END,
               now() + make_interval(secs => CASE WHEN x.is_free THEN x.redispatch_s ELSE 0 END)
        FROM (SELECT x.*, {LATER} AS is_later, x.published AND NOT {CAPPED} AS is_free FROM %s {ONCE}) AS x
        ON CONFLICT DO NOTHING
        RETURNING id, NULL::text AS name, 0 AS ordinal, epoch, attempt, state"""
ACCEPT_CHILDREN = f"""
        SELECT x.*, NULL::text AS name, 0 AS ordinal, 0 AS epoch, 0 AS attempt, 'queued' AS state
        FROM fence, {ACCEPTED}
        JOIN tasks t ON t.id = x.parent_id AND t.epoch = x.parent_epoch AND t.state = 'running'
    ), new_children AS ({ACCEPT.replace("%s", "done_accept AS x")}"""
"""A worker accepts children of its own runs alone; one that was there before counts as accepted."""

PARTS: dict[Kind, str] = {
    "accept": ACCEPT.replace("%s", ACCEPTED),
    "claim": f"""
        INSERT INTO tasks AS t ({TASK_COLUMNS}, state, wake_at, waiting_for, published_at, dispatch_at, epoch, attempt,
                                worker_id, started_at)
        SELECT {X_COLUMNS}, x.state, x.wake_at, x.waiting_for, CASE WHEN x.state = 'running' THEN now() END, now(),
               (x.state = 'running')::int, (x.state = 'running')::int,
               CASE WHEN x.state = 'running' THEN x.worker END, CASE WHEN x.state = 'running' THEN now() END
        FROM (SELECT x.*, fence.id AS worker, CASE WHEN {LATER} THEN x.available_at END AS wake_at,
                     CASE WHEN {LATER} THEN '{{"kind": "start"}}'::json END AS waiting_for,
                     CASE WHEN {LATER} THEN 'waiting' WHEN {CAPPED} THEN 'queued' ELSE 'running' END AS state
              FROM fence, json_to_recordset(%(claim)s::json) AS x({TASK_TYPES}) {ONCE}) AS x
        ON CONFLICT (id) DO UPDATE
        SET state = 'running', worker_id = %(worker)s, started_at = coalesce(t.started_at, now()),
            epoch = t.epoch + (t.state = 'queued')::int, attempt = t.attempt + (t.state = 'queued')::int,
            wake_at = NULL, waiting_for = NULL
        WHERE (t.state = 'queued' AND (t.published_at IS NOT NULL OR excluded.state = 'running'))
           OR (t.state = 'running' AND t.worker_id = %(worker)s)
        RETURNING id, NULL::text AS name, 0 AS ordinal, epoch, attempt, state""",
    "intent": f"""
        INSERT INTO steps AS s (task_id, name, ordinal, kind, fingerprint, epoch, state, until)
        SELECT x.task_id, x.name, x.ordinal, x.kind, x.fingerprint, x.epoch,
               CASE WHEN coalesce(x.waits, false) THEN 'waiting' ELSE 'intent' END,
               now() + make_interval(secs => x.wait_s)
        FROM fence, json_to_recordset(%(intent)s::json) AS x(task_id uuid, name text, ordinal int, kind text,
             fingerprint text, epoch int, waits bool, wait_s float8)
        JOIN tasks t ON t.id = x.task_id AND t.epoch = x.epoch AND t.state = 'running'
        ON CONFLICT (task_id, name, ordinal) DO UPDATE
        SET executions = s.executions + (excluded.state = 'intent' AND NOT {SAME})::int,
            in_doubt = s.in_doubt + (s.state = 'intent' AND s.epoch <> excluded.epoch)::int,
            repeats = s.repeats + (s.state = 'done' AND s.epoch <> excluded.epoch
                                   AND s.fingerprint = excluded.fingerprint)::int,
            epoch = excluded.epoch, state = excluded.state, fingerprint = excluded.fingerprint,
            until = CASE WHEN {SAME} THEN s.until ELSE excluded.until END,
            started_at = CASE WHEN {SAME} THEN s.started_at ELSE now() END, finished_at = NULL
        RETURNING task_id AS id, name, ordinal, epoch, 0 AS attempt, state""",
    "blob": """
        INSERT INTO blobs AS b (task_id, name, ordinal, data)
        SELECT x.task_id, x.name, x.ordinal, x.data
        FROM fence, json_to_recordset(%(blob)s::json) AS x(task_id uuid, name text, ordinal int, epoch int, data json)
        JOIN tasks t ON t.id = x.task_id AND t.epoch = x.epoch AND t.state = 'running'
        ON CONFLICT (task_id, name, ordinal) DO UPDATE SET data = excluded.data
        RETURNING task_id AS id, name, ordinal, 0 AS epoch, 0 AS attempt, NULL::text AS state""",
    "result": """
        UPDATE steps s
        SET state = x.state, result = x.result, in_blob = coalesce(x.in_blob, false), usage = x.usage,
            until = now() + make_interval(secs => x.wait_s), finished_at = now()
        FROM fence, json_to_recordset(%(result)s::json) AS x(task_id uuid, name text, ordinal int, epoch int,
             state text, result json, in_blob bool, usage json, wait_s float8)
        WHERE s.task_id = x.task_id AND s.name = x.name AND s.ordinal = x.ordinal AND s.epoch <= x.epoch
          AND EXISTS (SELECT FROM tasks t WHERE t.id = x.task_id AND t.epoch = x.epoch AND t.state = 'running')
        RETURNING s.task_id AS id, s.name, s.ordinal, s.epoch, 0 AS attempt, s.state""",
    "finish": """
        UPDATE tasks t
        SET state = x.state, output = x.output, error = x.error, report = x.report, worker_id = NULL,
            dispatch_at = NULL, published_at = NULL, wake_at = NULL, waiting_for = NULL, finished_at = now()
        FROM fence, json_to_recordset(%(finish)s::json) AS x(id uuid, epoch int, state text, output json, error json,
             report json)
        WHERE t.id = x.id AND t.epoch = x.epoch AND t.state IN ('running', x.state)
        RETURNING t.id, NULL::text AS name, 0 AS ordinal, t.epoch, 0 AS attempt, t.state""",
    "suspend": """
        UPDATE tasks t
        SET state = CASE WHEN t.cancel_requested_at IS NOT NULL THEN 'cancelled'
                         WHEN x.state = 'waiting' AND t.wakes > x.seen_wakes THEN 'queued' ELSE x.state END,
            error = CASE WHEN t.cancel_requested_at IS NOT NULL
                         THEN '{"code": "task_cancelled", "message": "the task was cancelled"}'::json
                         ELSE x.error END,
            finished_at = CASE WHEN t.cancel_requested_at IS NOT NULL THEN now() END,
            wake_at = now() + make_interval(secs => x.wait_s), waiting_for = x.waiting_for,
            report = coalesce(x.report, t.report),
            worker_id = NULL, epoch = t.epoch + 1, attempt = t.attempt - 1, published_at = NULL, dispatch_at = now()
        FROM fence, json_to_recordset(%(suspend)s::json) AS x(id uuid, epoch int, state text, seen_wakes int,
             wait_s float8, waiting_for json, error json, report json)
        WHERE t.id = x.id AND t.epoch = x.epoch AND t.state = 'running'
        RETURNING t.id, NULL::text AS name, 0 AS ordinal, x.epoch, 0 AS attempt, t.state""",
    "wake": f"""
        UPDATE tasks t
        SET wakes = t.wakes + 1, published_at = NULL, dispatch_at = now(),
            state = CASE WHEN t.state = 'waiting' AND t.waiting_for -> 'ids' IS NOT NULL AND {NO_CHILD_RUNS}
                    THEN 'queued' ELSE t.state END
        FROM fence, json_to_recordset(%(wake)s::json) AS x(id uuid)
        WHERE t.id = x.id AND t.state IN ('running', 'waiting')
        RETURNING t.id, NULL::text AS name, 0 AS ordinal, 0 AS epoch, 0 AS attempt, t.state""",
}


BY_KEY = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off"
"""For connections that run batches: each row is found by its key. With a fresh fleet's statistics the planner would
read the whole table instead, at every batch."""


def batch_statement(kinds: tuple[Kind, ...], *, fenced: bool, marks_place: bool = False) -> str:
    """One statement that runs these parts together.

    Args:
        kinds: Which parts, in the order of KINDS.
        fenced: Whether a worker writes; its row is then locked for the length of the statement.
        marks_place: Whether claims ask where in the log all lies that was committed before them.

    Returns: SQL that yields rows (kind, id, name, ordinal, epoch, attempt, state); first `('fence', …)` where the
        fence held. After an `accept` also `('crowd', …)` per tenant that has more than its share on the queue.
    """
    part_of = {**PARTS, "accept": ACCEPT_CHILDREN} if fenced else PARTS
    parts = ([FENCE] if fenced else []) + [f"done_{kind} AS ({part_of[kind]})" for kind in kinds]
    nothing = "NULL::text AS name, 0 AS ordinal, 0 AS epoch, 0 AS attempt"
    reads = [f"SELECT 'fence' AS kind, id, {nothing}, NULL::text AS state FROM fence"] if fenced else []
    reads += [f"SELECT '{kind}' AS kind, id, name, ordinal, epoch, attempt, state FROM done_{kind}" for kind in kinds]
    if "suspend" in kinds:
        reads.append(f"SELECT 'suspend' AS kind, id, {nothing.replace('0 AS epoch', 'epoch')}, state FROM ({DONE}) d")
    if "accept" in kinds:
        reads.append(f"SELECT 'crowd' AS kind, NULL::uuid AS id, {nothing}, x.tenant FROM ({CROWD}) x")
    if marks_place and "claim" in kinds:
        reads.append(PLACE)
    return f"WITH {', '.join(parts)} {' UNION ALL '.join(reads)}"


PLACE = """
    SELECT 'place' AS kind, NULL::uuid AS id, pg_walfile_name(pg_current_wal_lsn()) AS name, 0 AS ordinal, 0 AS epoch,
           0 AS attempt, pg_current_wal_flush_lsn()::text AS state
    FROM (SELECT count(*) FROM done_claim) AS claimed"""
"""After the claims, which may have waited for another's commit: what they saw is on disk by then, and before this."""
DONE = """
    SELECT t.id, x.epoch, CASE WHEN t.epoch = x.epoch + 1 THEN t.state ELSE 'queued' END AS state
    FROM fence, json_to_recordset(%(suspend)s::json) AS x(id uuid, epoch int) JOIN tasks t ON t.id = x.id
    WHERE %(again)s::bool AND t.epoch > x.epoch AND NOT (t.epoch = x.epoch + 1 AND t.state = 'failed')
"""
"""Runs of a batch that is sent again and that were put down the first time: a living worker's run loses its epoch by
that alone, or by its deadline. Who has gone on since was queued; so is said to one that its deadline ended and an
operator began anew, whose first answer was lost: it looks the same, and its run ends here as well."""
CROWD = """
    SELECT d.tenant FROM (SELECT DISTINCT tenant FROM json_to_recordset(%(accept)s::json) AS x(tenant text)) d
    WHERE EXISTS (SELECT FROM tasks q WHERE q.tenant = d.tenant AND q.state = 'queued' AND q.published_at IS NULL
                  AND q.priority IN ('interactive', 'normal', 'batch'))
       OR (SELECT count(*) FROM (SELECT FROM tasks q WHERE q.tenant = d.tenant AND q.state = 'queued'
                                 AND q.published_at IS NOT NULL LIMIT %(fair_window)s) s) >= %(fair_window)s
"""
"""Tenants of the batch whose next tasks shall wait in the ledger for a fair turn instead of going to the queue."""
