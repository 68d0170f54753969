"""One move of a run, made on the ledger and on the model: what every rule of the stateful test is made of."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Sequence
from typing import Any
from uuid import UUID

from hypothesis.stateful import RuleBasedStateMachine, invariant

from shared.errors import Fenced, FleetError, TaskCancelled
from shared.ledger.poll import Polled
from shared.ledger.runs import Claim
from shared.ledger.suspension import NEVER_SEEN, Suspension
from tests.chaos.ledger_model import ACTIVE, LedgerModel, Task, Worker
from tests.chaos.ledger_rig import KNOBS, STEPS, TASKS, LiveRun, LiveWorker, Rig, Seen, child_of, places_of


class LedgerMoves(RuleBasedStateMachine):
    """Three workers at a time, a handful of tasks, and their runs: those that count, and those that know it not yet."""

    rig: Rig

    def __init__(self) -> None:
        super().__init__()
        self.rig.clear()
        self.model = LedgerModel()
        self.made = 0
        self.tasks: list[Task] = []
        self.gone: list[LiveWorker] = []
        self.runs: list[LiveRun] = []
        self.calls: Counter[tuple[UUID, Any]] = Counter()
        self.workers = [self.new_worker() for _ in range(3)]

    @invariant()
    def agrees(self) -> None:
        """All rows are as the model has them."""
        rows = {row.id: row for row in self.rig.rows(TASKS)}
        assert rows.keys() == self.model.tasks.keys()
        for task in self.model.tasks.values():
            row = rows[task.id]
            assert (row.state, row.epoch, row.attempt, row.worker_id, row.wakes, row.is_asked) == (
                task.state, task.epoch, task.attempt, task.worker, task.wakes, task.is_asked_to_stop
            )  # fmt: skip
            assert task.state != "queued" or row.is_published == task.is_published
            assert task.state != "waiting" or row.has_time == (task.wake_at != "never")
        expected = {
            (task.id, place): (step.state, step.epoch, step.executions, step.in_doubt, 0)
            for task in self.model.tasks.values()
            for place, step in task.steps.items()
        }
        assert places_of(self.rig.rows(STEPS)) == expected

    @invariant()
    def every_call_is_accounted_for(self) -> None:
        """The outside world has had as many calls as the ledger knows of, and none after a result was on disk."""
        for (task_id, place), calls in self.calls.items():
            assert self.model.tasks[task_id].steps[place].executions == calls

    def teardown(self) -> None:
        """Leave nothing open."""
        for run in self.runs:
            self.rig.run(run.drop())
        for worker in self.workers + self.gone:
            self.rig.run(worker.commit.abandon())
        assert self.rig.broken_promises() == []

    def move(self, which: int, way: str) -> None:
        """Let one of the runs do the next thing."""
        if (run := self.run_of(which)) is not None:
            self.advance(run, way)

    def advance(self, run: LiveRun, way: str) -> None:
        """Let it do the next thing."""
        if way == "die":
            self.rig.run(run.drop())
            run.standing = "over"
        elif run.standing == "calling":
            self._end_call(run, well=way != "break")
        elif run.standing == "suspended":
            expected = self.goes_to_wait(run) if self.owns(run) else self.told_too_late(run)
            assert self.rig.run(run.put_down()) == expected
            run.standing = "over"
        elif run.standing == "broken" or way == "break":
            self._end(run, "failed", run.worker.runs.fail(run.claim, FleetError("broken"), {}))
        elif way == "cancel":
            self._end(run, "cancelled", run.worker.runs.cancel(run.claim, TaskCancelled("asked"), {}))
        elif way in ("release", "park"):
            self._put_aside(run, "queued" if way == "release" else "parked")
        elif run.number == len(run.task.program):
            self._end(run, "succeeded", run.worker.runs.succeed(run.claim, "output", {}))
        else:
            self._begin(run)

    def brought_to_wait(self, which: int) -> LiveRun | None:
        """A run that has looked in vain and is about to be put down, the first of some that comes to that."""
        for run in self.runs[which:] + self.runs[:which]:
            while run.standing in ("free", "calling") and self.owns(run) and run.number < len(run.task.program):
                self.advance(run, "on")
            if run.standing == "suspended" and self.owns(run) and not run.task.is_asked_to_stop:
                return run
        return None

    def goes_to_wait(self, run: LiveRun) -> str:
        """What the model says of a run that is put down where it waits."""
        task, (op, _) = run.task, run.task.place(run.number)
        until = task.steps[task.place(run.number)].until
        seen = NEVER_SEEN if op == "sleep" else run.seen_wakes
        signals, children = (["go"] if op == "signal" else []), (run.children if op == "children" else [])
        return self.model.suspend(task, "waiting", seen_wakes=seen, until=until, signals=signals, children=children)

    def claimed(self, worker: LiveWorker, task: Task, claim: Claim | None) -> None:
        """A claim came back."""
        expected = self.model.claim(task, worker.id)
        assert expected == (None if claim is None else (claim.epoch, claim.attempt))
        is_begun = any(run.task is task and claim and run.claim.epoch == claim.epoch for run in self.runs)
        if claim is not None and not is_begun:
            journal = self.rig.run(worker.runs.journal(claim))
            self.runs.append(LiveRun(worker, claim, task, journal, self.calls))

    def polled(self, worker: LiveWorker, polled: Sequence[Polled]) -> None:
        """Claims without messages came back."""
        for one in polled:
            self.claimed(worker, self.model.tasks[one.claim.task_id], one.claim)

    def owns(self, run: LiveRun) -> bool:
        """Whether its writes count."""
        return self.model.owns(run.worker.id, run.task.id, run.claim.epoch)

    def told_too_late(self, run: LiveRun) -> str | None:
        """What a run is told that is put down and does not own its task: nothing, for it is fenced off.

        Unless the answer is lost. Sent again, it cannot be told from one that was put down the first time and that has
        gone on elsewhere since, and is told so: either way the run ends here and has changed nothing.
        """
        is_sent_again = run.worker.commit.loses_next and self.model.workers[run.worker.id].may_write
        return "queued" if is_sent_again and run.task.epoch > run.claim.epoch + 1 else None

    def silence(self, worker: LiveWorker) -> None:
        """Its last heartbeat is long ago."""
        self.rig.execute("UPDATE workers SET heartbeat_at = now() - interval '1 h' WHERE id = %(id)s", id=worker.id)
        self.model.workers[worker.id].is_overdue = True

    def new_worker(self) -> LiveWorker:
        """One more worker process."""
        worker = LiveWorker(self.rig, self.next_id())
        self.model.workers[worker.id] = Worker(worker.id)
        return worker

    def next_id(self) -> UUID:
        """Ids that are the same in every replay of a history."""
        self.made += 1
        return UUID(int=self.made)

    def is_crowded(self, tenant: str) -> bool:
        """Whether a tenant's further tasks are to be held."""
        mine = [task for task in self.model.tasks.values() if task.tenant == tenant and task.state == "queued"]
        return any(not task.is_published for task in mine) or len(mine) >= KNOBS.fair_window

    def task_of(self, which: int) -> Task | None:
        """One of the tasks, known to the ledger or not."""
        return self.tasks[which % len(self.tasks)] if self.tasks else None

    def known(self, which: int) -> Task | None:
        """One of the tasks that the ledger has."""
        found = list(self.model.tasks.values())
        return found[which % len(found)] if found else None

    def worker_of(self, which: int) -> LiveWorker:
        """One of the workers."""
        return self.workers[which % len(self.workers)]

    def run_of(self, which: int) -> LiveRun | None:
        """One of the runs that go on, those that own their task first."""
        live = sorted((run for run in self.runs if run.standing != "over"), key=self.owns, reverse=True)
        return live[which % len(live)] if live else None

    def _lose_an_answer(self, which: int, by: int) -> None:
        self.worker_of(by).commit.loses_next = True

    def _let_time_pass(self, which: int, by: int) -> None:
        task = self.known(which)
        if task is None or task.state != "waiting" or task.wake_at == "never":
            return
        past = "now() - interval '1 s' WHERE state = 'waiting' AND"
        self.rig.execute(f"UPDATE tasks SET wake_at = {past} id = %(id)s", id=task.id)
        self.rig.execute(f"UPDATE steps SET until = {past} until IS NOT NULL AND task_id = %(id)s", id=task.id)
        task.wake_at = "due"
        for step in task.steps.values():
            if step.state == "waiting" and step.until == "later":
                step.until = "due"

    def _begin(self, run: LiveRun) -> None:
        expected = self._expected(run) if self.owns(run) else None
        before = self.calls.total()
        seen: Seen = self.rig.run(run.begin())
        if expected is None:
            assert seen in ("returned", "fenced", "suspended"), "who does not own it calls nobody"
        else:
            assert seen == expected
            assert seen == "returned" or run.task.place(run.number)[0] in ("call", "sleep") or (
                run.seen_wakes == run.task.wakes
            )  # fmt: skip
        assert self.calls.total() - before == (seen == "called"), "what was done is not done again"
        if seen == "returned":
            run.number += 1
        else:
            run.standing = {"called": "calling", "fenced": "over", "suspended": "suspended"}[seen]  # type: ignore[assignment]

    def _expected(self, run: LiveRun) -> Seen:
        """What the next op of a run that owns its task comes to; the model makes it at once."""
        task, place = run.task, run.task.place(run.number)
        op, number = place
        step = task.steps.get(place)
        if step is not None and step.state == "done":
            return "returned"
        if op in ("call", "spawn"):
            self.model.intent(task, place)
            if op == "call":
                return "called"
            child = child_of(task, run.number)
            if self.model.accept(child, published=False):
                self.tasks.append(child)
        else:
            if step is None:
                self.model.intent(task, place, waits=True, until="never" if op == "children" else "later")
            has_come = {
                "sleep": False,
                "signal": task.signals["go"] > number,
                "children": not any(self.model.tasks[one].state in ACTIVE for one in run.children),
            }[op]
            if not has_come and task.steps[place].until != "due":
                return "suspended"
        task.steps[place].state = "done"
        return "returned"

    def _end_call(self, run: LiveRun, *, well: bool) -> None:
        owns, seen = self.owns(run), self.rig.run(run.end(well=well))
        assert seen == (("returned" if well else "broken") if owns else "fenced")
        if not owns:
            run.standing = "over"
            return
        run.task.steps[run.task.place(run.number)].state = "done" if well else "failed"
        run.standing = "free" if well else "broken"
        run.number += well

    def _end(self, run: LiveRun, state: str, work: Any) -> None:
        owns = self.owns(run)
        try:
            self.rig.run(work)
        except Fenced:
            assert not owns
        else:
            assert owns
            run.task.end(state)
        run.standing = "over"

    def _put_aside(self, run: LiveRun, state: Any) -> None:
        error = {"code": "put_aside", "message": "for the test"} if state == "parked" else None
        expected = self.told_too_late(run)
        if self.owns(run):
            expected = self.model.suspend(run.task, state, seen_wakes=NEVER_SEEN)
        assert self.rig.run(run.suspend(Suspension(state=state, error=error))) == expected
        run.standing = "over"


async def at_once(*works: Awaitable[Any]) -> list[Any]:
    """All of them together."""
    return list(await asyncio.gather(*works))


async def one_by_one(*works: Awaitable[Any]) -> list[Any]:
    """One after the other."""
    return [await work for work in works]
