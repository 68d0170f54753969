"""The chores that need the ledger alone: look, decide, act, one batch at a time."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from shared.contracts import TaskMessage
from shared.ledger import families, limits, parking, rescue, retention, schedules, timers
from shared.ledger.dispatch import Fresh, backlog_counts, slots_now, standing, take_off_hold
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.terms import Term
from shared.ledger.timers import Due
from shared.telemetry.keeper_metrics import BACKLOG, DECISIONS, IN_DOUBT, TASKS
from workers.keeper.decisions import judge, prompt, put_aside
from workers.keeper.knobs import KeeperKnobs
from workers.keeper.outbox import Outbox
from workers.keeper.releasing import choose, rooms_of
from workers.keeper.rounds import Chore
from workers.keeper.ticking import tick_of

log = structlog.get_logger()


class LedgerChores:
    """What a leading keeper does to the ledger in its term.

    Args:
        answers_since: Since when (monotonic seconds) the database has been seen to answer.
    """

    def __init__(
        self, term: Term, outbox: Outbox, *, ledger: LedgerKnobs, knobs: KeeperKnobs, answers_since: float
    ) -> None:
        self._term = term
        self._outbox = outbox
        self._ledger = ledger
        self._knobs = knobs
        self._answers_since = answers_since
        self._swept_to: datetime | None = None

    def chores(self) -> dict[str, Chore]:
        """All of them, by name."""
        knobs = self._knobs
        all_of_them = (
            Chore("bury", self.bury, knobs.round_s),
            Chore("deadlines", self.deadlines, knobs.round_s),
            Chore("timers", self.timers, knobs.timers_s),
            Chore("children", self.children, knobs.children_s),
            Chore("orphans", self.orphans, knobs.orphans_s),
            Chore("schedules", self.schedules, knobs.schedules_s),
            Chore("release", self.release, knobs.round_s),
            Chore("park", self.park, knobs.park_s),
            Chore("unpark", self.unpark, knobs.unpark_s),
            Chore("retention", self.retention, knobs.retention_every_s),
            Chore("backlog", self.backlog, knobs.backlog_s),
        )
        return {chore.name: chore for chore in all_of_them}

    def outage(self) -> None:
        """The database was away: every heartbeat is old now, and that is no worker's fault."""
        self._answers_since = time.monotonic()

    async def bury(self) -> None:
        """Give the runs of dead workers to living ones."""
        dead_after_s = self._ledger.dead_after_s
        found = await rescue.pulses(self._term.database)
        decisions = judge(found, dead_after_s=dead_after_s, watched_s=time.monotonic() - self._answers_since)
        dead = {one.worker: one.reason for one in decisions if one.action == "bury"}
        if not dead:
            return
        taken = await rescue.bury(self._term, list(dead), dead_after_s=dead_after_s)
        _tell_burials(dead, taken)
        await families.wake_parents(self._term, [one.parent_id for one in taken if one.state != "queued"])
        queued = [Fresh(one.id, one.tenant) for one in taken if one.state == "queued"]
        if len(queued) < len(taken):
            await self.orphans()
        if queued:
            async with self._term.unit() as unit:
                messages = await self._hand_out(unit, queued)
            self._outbox.send(messages)

    async def deadlines(self) -> float | None:
        """End tasks whose time is up."""
        if not (await self._due()).is_spent:
            return None
        ended = await timers.spend_deadlines(
            self._term, grace_s=self._knobs.deadline_grace_s, limit=self._knobs.batch
        )  # fmt: skip
        if ended:
            log.info("keeper.deadlines_spent", tasks=len(ended), by_state=dict(Counter(one.was for one in ended)))
            TASKS.labels("expired").inc(len(ended))
            await families.wake_parents(self._term, [one.parent_id for one in ended])
        return self._sooner(len(ended))

    async def timers(self) -> float | None:
        """Let waiting tasks go on whose time has come."""
        if not (await self._due()).is_due:
            return None
        async with self._term.unit() as unit:
            woken = await timers.wake_due(unit, limit=self._knobs.batch)
            messages = await self._hand_out(unit, woken)
        self._outbox.send(messages)
        if woken:
            TASKS.labels("woken").inc(len(woken))
            lag_s = max(one.lag_s for one in woken)
            log.info("keeper.timers_woken", tasks=len(woken), published=len(messages), lag_s=round(lag_s, 3))
        return self._sooner(len(woken))

    async def children(self) -> float | None:
        """Let parents go on that nobody told of their children's end."""
        async with self._term.unit() as unit:
            woken = await families.wake_bereft(unit, limit=self._knobs.batch)
            messages = await self._hand_out(unit, woken)
        self._outbox.send(messages)
        if woken:
            TASKS.labels("parent_woken").inc(len(woken))
            log.warning("keeper.parents_woken", tasks=len(woken), reason="all their children have ended")
        return self._sooner(len(woken))

    async def orphans(self) -> float | None:
        """Cancel children whose parent is cancelled, or has failed."""
        orphans = await families.cancel_orphans(self._term, limit=self._knobs.batch)
        if orphans:
            TASKS.labels("orphan_cancelled").inc(len(orphans))
            log.info("keeper.orphans_cancelled", tasks=len(orphans), reason="their parent has ended")
        return self._sooner(len(orphans))

    async def schedules(self) -> float | None:
        """Make the tasks of ticks that have come."""
        if not await schedules.is_any_due(self._term.database):
            return None
        fresh = []
        async with self._term.unit() as unit:
            now, due = await schedules.due_schedules(unit, limit=self._knobs.batch)
            for one in due:
                task = await _tick(unit, one, now=now)
                fresh += [task] if task else []
            messages = await self._hand_out(unit, fresh)
        self._outbox.send(messages)
        return self._sooner(len(due))

    async def release(self) -> float | None:
        """Let tasks under a limit run, as many as there is room for.

        Nobody else releases, and what runs or is released is counted in one look, so a limit is never exceeded.
        """
        async with self._term.database.unit(mode="ro") as look:
            if not await limits.limits_now(look):
                return None
        async with self._term.unit() as unit:
            some = await limits.limits_now(unit, locked=True)
            rooms = rooms_of(some, await limits.occupied(unit))
            for limit, room in rooms.items():
                if room < 0:
                    await limits.recall(unit, limit, count=-room)
            full = [limit for limit, room in rooms.items() if room <= 0]
            held = await limits.next_held(unit, some, full=full, limit=self._knobs.batch)
            decision = choose(held, rooms)
            messages = await limits.release(unit, decision.ids, again_after_s=self._knobs.again_after_s)
            is_more = bool(held) or await limits.holds_any(unit, some)
        self._outbox.send(messages)
        if messages:
            DECISIONS.labels("release").inc()
            TASKS.labels("released").inc(len(messages))
            log.debug("keeper.released", tasks=len(messages), reason=decision.reason)
        return self._knobs.release_s if is_more else None

    async def park(self) -> None:
        """Put tasks aside whose agent nobody offers."""
        after_s = self._knobs.park_after_s
        found = await parking.wanting(self._term.database, after_s=after_s, limit=self._knobs.batch)
        if not found:
            return
        workers = (await slots_now(self._term.database)).workers
        watched_s = time.monotonic() - self._answers_since
        for one in put_aside(found, workers=workers, watched_s=watched_s, after_s=after_s):
            if one.action == "park":
                tasks = await parking.park(self._term, one.tasks, reason=one.reason, after_s=after_s)
                DECISIONS.labels("park").inc()
                TASKS.labels("parked").inc(tasks)
                log.warning("keeper.parked", tasks=tasks, agent=one.tasks.agent, reason=one.reason)

    async def unpark(self) -> float | None:
        """Let parked tasks go on whose agent is offered again."""
        back = await parking.unpark_offered(self._term, limit=self._knobs.batch)
        if back:
            TASKS.labels("unparked").inc(len(back))
            log.info("keeper.unparked", tasks=len(back), reason="a worker offers their agent again")
        return self._sooner(len(back))

    async def retention(self) -> float | None:
        """Delete one batch of what finished long ago."""
        keep_s = self._knobs.retention_s
        if keep_s == 0:
            return None
        swept = await retention.sweep(
            self._term, keep_s=keep_s, since=self._swept_to, limit=self._knobs.retention_batch
        )  # fmt: skip
        self._swept_to = swept.next_since
        if swept.tasks:
            TASKS.labels("retired").inc(swept.tasks)
            log.info("keeper.tasks_deleted", tasks=swept.tasks, reason=f"finished more than {keep_s:g} s ago")
        if swept.next_since is not None:
            return self._knobs.retention_pause_s
        await retention.forget_workers(self._term, keep_s=keep_s)
        return None

    async def backlog(self) -> None:
        """Count what is not running, for those who watch."""
        for state, tasks in (await backlog_counts(self._term.database)).items():
            BACKLOG.labels(state).set(tasks)

    async def _due(self) -> Due:
        return await timers.any_due(self._term.database, grace_s=self._knobs.deadline_grace_s)

    async def _hand_out(self, unit: AsyncSession, fresh: Sequence[Fresh]) -> list[TaskMessage]:
        """Mark as published what may go to the queue at once; the rest stays held, and is polled."""
        if not fresh or self._outbox.is_broker_away:
            return []
        fair_window = self._ledger.fair_window
        have = await standing(unit, sorted({one.tenant for one in fresh}), fair_window=fair_window)
        chosen = prompt(fresh, standing=have, fair_window=fair_window)
        return await take_off_hold(unit, chosen, again_after_s=self._knobs.again_after_s)

    def _sooner(self, done: int) -> float | None:
        """A full batch: there may be more."""
        return 0.0 if done >= self._knobs.batch else None


def _tell_burials(dead: Mapping[UUID, str], taken: Sequence[rescue.Taken]) -> None:
    for worker, reason in dead.items():
        states = Counter(one.state for one in taken if one.worker == worker)
        in_doubt = sum(one.in_doubt for one in taken if one.worker == worker)
        IN_DOUBT.inc(in_doubt)
        DECISIONS.labels("bury").inc()
        for state, action in (("queued", "rescued"), ("failed", "dead_lettered"), ("cancelled", "cancelled")):
            TASKS.labels(action).inc(states[state])
        log.warning(
            "keeper.worker_buried", worker=str(worker), runs=states.total(), **states, in_doubt=in_doubt, reason=reason
        )


async def _tick(unit: AsyncSession, schedule: schedules.Schedule, *, now: datetime) -> Fresh | None:
    decision = tick_of(schedule, now=now)
    if decision.header is None or decision.next_at is None:
        await schedules.stop_schedule(unit, schedule.name)
        DECISIONS.labels("pause_schedule").inc()
        log.error("keeper.schedule_paused", schedule=schedule.name, reason=decision.reason)
        return None
    task_id = await schedules.tick(unit, schedule, decision.header, next_at=decision.next_at)
    if task_id is None:
        return None
    DECISIONS.labels("tick").inc()
    TASKS.labels("ticked").inc()
    log.info("keeper.schedule_ticked", schedule=schedule.name, task_id=str(task_id), reason=decision.reason)
    return Fresh(task_id, schedule.tenant)
