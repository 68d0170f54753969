"""What is always true of the ledger, whatever died: each promise a class whose `check` finds the rows that break it.

Some promises hold after a moment only (a dead worker is noticed, an end wakes a parent): they have `grace_s` to do so.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from shared.contracts import is_tick
from shared.db.database import Database
from shared.ledger.families import HAS_LEFT

ACTIVE = "('queued', 'running', 'waiting', 'parked')"
SHOWN = 20
"""Violations of one promise that are told; more of the same say nothing new."""
LOOK_S = 300
"""Seconds one check may take: the ledger may be large, and nobody waits for this."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One row that breaks a promise. `what` is a sentence; `task_id` is None where no task is to blame."""

    task_id: str | None
    what: str


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a promise may take to come true again.

    Attributes:
        dead_after_s: Age of a heartbeat at which its worker counts as dead.
        grace_s: Seconds for the keeper to act, a change of the leading keeper included.
    """

    dead_after_s: float = 15.0
    grace_s: float = 15.0


class Invariant(ABC):
    """One promise. `name` is for machines, `promise` for people."""

    name: ClassVar[str]
    promise: ClassVar[str]

    @abstractmethod
    async def check(self, unit: AsyncSession, patience: Patience) -> list[Violation]:
        """The rows that break it, SHOWN at the most."""


class _Found(Invariant):
    """A promise that one query checks: it yields `task_id` and the sentence `what`."""

    query: ClassVar[str]

    async def check(self, unit: AsyncSession, patience: Patience) -> list[Violation]:
        """The rows that the query finds."""
        values = {"dead_after_s": patience.dead_after_s, "grace_s": patience.grace_s}
        used = {name: value for name, value in values.items() if f":{name}" in self.query}
        rows = await unit.execute(text(f"{self.query} LIMIT {SHOWN}"), used)
        return [Violation(None if row.task_id is None else str(row.task_id), row.what) for row in rows]


class FinishedTasksAreComplete(_Found):
    """An end has a time and an outcome, and holds no worker."""

    name = "finished_tasks_are_complete"
    promise = "finished tasks have an outcome and a time, and no worker"
    query = """
        SELECT id AS task_id, concat(state, CASE
            WHEN worker_id IS NOT NULL THEN ', and a worker still holds it'
            WHEN finished_at IS NULL THEN ' without finished_at'
            WHEN state = 'succeeded' THEN ' with an error'
            ELSE ' without an error' END) AS what
        FROM tasks WHERE state IN ('succeeded', 'failed', 'cancelled')
          AND (worker_id IS NOT NULL OR finished_at IS NULL OR (state = 'succeeded') = (error IS NOT NULL))"""


class UnfinishedTasksHaveNoEnd(_Found):
    """Nothing is both under way and over."""

    name = "unfinished_tasks_have_no_end"
    promise = "unfinished tasks have no time of an end; only running ones have a worker"
    query = f"""
        SELECT id AS task_id, concat(state, CASE WHEN finished_at IS NOT NULL THEN ', and yet finished_at is set'
            ELSE ', and yet a worker holds it' END) AS what
        FROM tasks WHERE state IN {ACTIVE}
          AND (finished_at IS NOT NULL OR (state <> 'running' AND worker_id IS NOT NULL))"""


class RunningTasksHaveALiveWorker(_Found):
    """A dead worker's runs are given away in time."""

    name = "running_tasks_have_a_live_worker"
    promise = "running tasks have a worker whose heart beats"
    query = """
        SELECT t.id AS task_id, CASE WHEN w.id IS NULL THEN 'running on a worker that the ledger does not know'
            WHEN w.state IN ('alive', 'draining') THEN concat('running on ', w.name, ', whose last heartbeat is ',
                round(extract(epoch FROM now() - w.heartbeat_at)), ' s old')
            ELSE concat('running on ', w.name, ', which is ', w.state) END AS what
        FROM tasks t LEFT JOIN workers w ON w.id = t.worker_id
        WHERE t.state = 'running' AND (w.id IS NULL OR w.state NOT IN ('alive', 'draining')
            OR w.heartbeat_at < now() - make_interval(secs => :dead_after_s + :grace_s))"""


class AttemptsAreWithinBounds(_Found):
    """A task that kills its workers ends."""

    name = "attempts_are_within_bounds"
    promise = "no task has had more attempts than it may have"
    query = """
        SELECT id AS task_id, concat('attempt ', attempt, ' of ', max_attempts) AS what
        FROM tasks WHERE attempt NOT BETWEEN 0 AND max_attempts"""


class CompletedStepsAreNotRepeated(_Found):
    """What was paid for once is not paid for again."""

    name = "completed_steps_are_not_repeated"
    promise = "no completed step was executed again"
    query = """
        SELECT task_id, concat('step ', name, '#', ordinal, ' was completed, and yet executed again ', repeats, 'x')
            AS what
        FROM steps WHERE repeats > 0"""


class EndedStepsHaveAResult(_Found):
    """A replay finds what it needs. A result may be null; then it was null."""

    name = "ended_steps_have_a_result"
    promise = "done steps have a result, failed ones a reason, both a time"
    query = """
        SELECT s.task_id, concat('step ', s.name, '#', s.ordinal, ' is ', s.state, CASE
            WHEN s.finished_at IS NULL THEN ' without finished_at'
            WHEN s.in_blob THEN ', and its large result is missing' ELSE ' without a reason' END) AS what
        FROM steps s
        WHERE s.state IN ('done', 'failed') AND (s.finished_at IS NULL OR (s.state = 'failed' AND s.result IS NULL)
            OR (s.in_blob AND NOT EXISTS (SELECT FROM blobs b WHERE b.task_id = s.task_id AND b.name = s.name
                                          AND b.ordinal = s.ordinal)))"""


class StepsAreNotAheadOfTheirTask(_Found):
    """No fenced worker has written."""

    name = "steps_are_not_ahead_of_their_task"
    promise = "no step was written under an epoch that its task has not had"
    query = """
        SELECT s.task_id, concat('step ', s.name, '#', s.ordinal, ' has epoch ', s.epoch, ', its task ', t.epoch)
            AS what
        FROM steps s JOIN tasks t ON t.id = s.task_id WHERE s.epoch > t.epoch"""


class StepsHaveATask(_Found):
    """Nothing is left of tasks that are gone."""

    name = "steps_have_a_task"
    promise = "no step, large result or signal is without its task"
    query = """
        SELECT task_id, concat('a ', kind, ' of a task that is not there') AS what
        FROM (SELECT task_id, 'step' AS kind FROM steps UNION ALL SELECT task_id, 'large result' FROM blobs
              UNION ALL SELECT task_id, 'signal' FROM signals) one
        WHERE NOT EXISTS (SELECT FROM tasks t WHERE t.id = one.task_id)"""


class WaitingTasksCanWake(_Found):
    """Every wait has an end that somebody brings about."""

    name = "waiting_tasks_can_wake"
    promise = "waiting tasks have a time, a signal or children to wake them, and are woken"
    query = f"""
        SELECT t.id AS task_id, CASE
            WHEN t.wake_at < now() - make_interval(secs => :grace_s)
                THEN concat('should have gone on ', round(extract(epoch FROM now() - t.wake_at)), ' s ago')
            WHEN t.cancel_requested_at IS NOT NULL THEN 'still waiting, though it was cancelled'
            WHEN t.waiting_for -> 'ids' IS NOT NULL THEN 'waits for children that have all ended'
            ELSE 'waits for nothing that could come' END AS what
        FROM tasks t
        WHERE t.state = 'waiting' AND (
            t.wake_at < now() - make_interval(secs => :grace_s) OR t.cancel_requested_at IS NOT NULL
            OR (t.wake_at IS NULL AND coalesce(json_array_length(t.waiting_for -> 'signals'), 0) = 0
                AND coalesce(json_array_length(t.waiting_for -> 'ids'), 0) = 0)
            OR (t.waiting_for -> 'ids' IS NOT NULL AND EXISTS (
                SELECT FROM json_array_elements(
                    coalesce(t.waiting_for -> 'groups', json_build_array(t.waiting_for -> 'ids'))) g
                WHERE NOT EXISTS (
                    SELECT FROM json_array_elements_text(g) i LEFT JOIN tasks c ON c.id = i::uuid
                    WHERE c.state IN {ACTIVE} OR c.finished_at > now() - make_interval(secs => :grace_s)))))"""


class QueuedTasksWillBeDispatched(_Found):
    """Every queued task has its place in line."""

    name = "queued_tasks_will_be_dispatched"
    promise = "queued tasks have a place in line, or a time at which they are published again"
    query = """
        SELECT id AS task_id, CASE WHEN dispatch_at IS NULL THEN 'queued without a place in line'
            ELSE 'still queued, though it was cancelled' END AS what
        FROM tasks WHERE state = 'queued' AND (dispatch_at IS NULL OR cancel_requested_at IS NOT NULL)"""


class ParkedTasksSayWhy(_Found):
    """An operator who finds one knows what to do."""

    name = "parked_tasks_say_why"
    promise = "parked tasks have a reason"
    query = (
        "SELECT id AS task_id, 'parked without a reason' AS what FROM tasks WHERE state = 'parked' AND error IS NULL"
    )


class CancelledTreesAreStill(_Found):
    """A cancel reaches everybody below, and so does a failure."""

    name = "cancelled_trees_are_still"
    promise = "children of a cancelled or failed task have ended, and a cancelled run stops"
    query = f"""
        SELECT c.id AS task_id, concat(c.state, ', though its parent ', p.id, ' is ', p.state) AS what
        FROM tasks c JOIN tasks p ON p.id = c.parent_id
        WHERE c.parent_id IS NOT NULL AND c.state IN {ACTIVE} AND {HAS_LEFT}
          AND p.finished_at < now() - make_interval(secs => :grace_s)
        UNION ALL
        SELECT id, concat('running, though it was cancelled ',
                          round(extract(epoch FROM now() - cancel_requested_at)), ' s ago')
        FROM tasks WHERE state = 'running' AND cancel_requested_at < now() - make_interval(secs => :grace_s)"""


class LimitsAreRespected(_Found):
    """Nobody gets more than their share. What ran before a limit was set or lowered may exceed it."""

    name = "limits_are_respected"
    promise = "no tenant and no agent runs more tasks than its limit"
    query = """
        SELECT NULL AS task_id, concat(l.scope, ' ', l.name, ' runs ', n.running, ', its limit is ', l.max_running)
            AS what
        FROM limits l CROSS JOIN LATERAL (
            SELECT count(*) AS running FROM tasks t WHERE t.state = 'running' AND t.published_at > l.changed_at
            AND CASE WHEN l.scope = 'tenant' THEN t.tenant = l.name ELSE l.name IN (t.agent, t.root_agent) END) n
        WHERE n.running > l.max_running"""


class OneTaskATick(Invariant):
    """A schedule's task has the id that this tick alone can have, and no tick is forgotten."""

    name = "one_task_a_tick"
    promise = "schedules have one task a tick, and no tick is overdue"

    async def check(self, unit: AsyncSession, patience: Patience) -> list[Violation]:
        """Every schedule; their number is small."""
        query = """
            SELECT name, is_paused, next_at, last_at, last_task_id, extract(epoch FROM now() - next_at) AS overdue_s
            FROM schedules ORDER BY name"""
        found: list[Violation] = []
        for row in await unit.execute(text(query)):
            told = None if row.last_task_id is None else str(row.last_task_id)
            found += [Violation(told, f"schedule {row.name} {what}") for what in _faults(row, patience)]
        return found[:SHOWN]


INVARIANTS: tuple[Invariant, ...] = (
    FinishedTasksAreComplete(),
    UnfinishedTasksHaveNoEnd(),
    RunningTasksHaveALiveWorker(),
    AttemptsAreWithinBounds(),
    CompletedStepsAreNotRepeated(),
    EndedStepsHaveAResult(),
    StepsAreNotAheadOfTheirTask(),
    StepsHaveATask(),
    WaitingTasksCanWake(),
    QueuedTasksWillBeDispatched(),
    ParkedTasksSayWhy(),
    CancelledTreesAreStill(),
    LimitsAreRespected(),
    OneTaskATick(),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one promise."""

    name: str
    promise: str
    violations: tuple[Violation, ...]

    @property
    def holds(self) -> bool:
        """Whether nothing breaks it."""
        return not self.violations


async def verify(
    database: Database, patience: Patience | None = None, invariants: Sequence[Invariant] = INVARIANTS
) -> list[Verdict]:
    """Check every promise on a live ledger; each is one read-only look.

    Raises: DatabaseUnavailable.
    """
    verdicts = []
    for one in invariants:
        async with database.unit(mode="ro") as unit:
            await unit.execute(text(f"SET LOCAL statement_timeout = '{LOOK_S}s'"))
            found = await one.check(unit, patience or Patience())
        verdicts.append(Verdict(one.name, one.promise, tuple(found)))
    return verdicts


def _faults(row: Any, patience: Patience) -> list[str]:
    faults = []
    if row.last_at is not None and not (row.last_task_id and is_tick(row.last_task_id, row.name, row.last_at)):
        faults.append(f"has at {row.last_at.isoformat()} a task that is not this tick's")
    if row.last_at is not None and row.next_at <= row.last_at:
        faults.append(
            f"goes back in time: its last tick is {row.last_at.isoformat()}, its next {row.next_at.isoformat()}"
        )
    if not row.is_paused and row.overdue_s > patience.grace_s:
        faults.append(f"should have ticked {row.overdue_s:.0f} s ago")
    return faults
