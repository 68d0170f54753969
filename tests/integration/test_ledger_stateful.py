"""The ledger against a simple model: any interleaving of claims, deaths, steps, waits, signals and cancels agrees.

Every move is made on real PostgreSQL and on the model, and all rows are compared after it. What a move touches is drawn
without regard to what there is, so that the races (whose winner PostgreSQL chooses) cannot change what is drawn next.
"""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test

from shared.contracts import TaskMessage
from shared.errors import Fenced, UnknownTask, WrongState
from shared.ledger import steering
from shared.ledger.dispatch import take_off_hold
from shared.ledger.families import wake_bereft, wake_parents
from shared.ledger.poll import poll_held, poll_lost
from shared.ledger.replaying import replay
from shared.ledger.rescue import bury
from shared.ledger.roster import beat, discharge
from shared.ledger.timers import spend_deadlines, wake_due
from shared.ledger.vault import NO_VAULT
from tests.chaos.ledger_model import Task
from tests.chaos.ledger_moves import LedgerMoves, at_once, one_by_one
from tests.chaos.ledger_rig import TASKS, LiveWorker, Rig, accept, message_for
from tests.chaos.length import length
from tests.integration.live import Database

ANY = st.integers(0, 11)
"""Which of those that there are: the draw must not depend on their number."""
AGAIN_S = 30.0
DEAD_S = 1800.0
"""Who is silenced last beat an hour ago; all others count as alive, however long a history takes."""
OPS = ["call", "call", "call", "signal", "signal", "sleep", "family"]
PROGRAMS = st.lists(st.sampled_from(OPS), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**32 - 1)
STRETCH = 15
"""Moves that one rule makes: left to itself, Hypothesis draws too little of what makes a long history."""
KNOWN = [215]
"""215: a run overtaken by a new beginning is put down, and the answer to that is lost."""
WAYS = ["on"] * 14 + ["break", "release", "park", "cancel", "die"]
WEIGHTS = {
    "go on": 45, "deliver": 14, "poll": 8, "poll for lost messages": 3, "steer": 7, "trouble": 7, "look after": 6,
    "race": 6, "submit": 4,
}  # fmt: skip
STEERING = ["signal", "signal", "cancel", "replay", "resume", "submit again", "deliver once more"]
DEATHS = [
    "fall silent",
    "bury the dead",
    "bury the dead",
    "heartbeat",
    "leave",
    "spend a deadline and begin anew",
    "start workers anew",
    *["lose an answer"] * 3,
]
KEEPING = ["let time pass", "keep", "tell the parent"]
RACES = ["two claim at once", "a signal comes while a run is put down", "calls end while their worker is buried"]

SPENT = """
    UPDATE tasks SET created_at = now() - interval '2 h', deadline_at = now() - interval '1 h' WHERE id = %(id)s"""


class LedgerMachine(LedgerMoves):
    """The rules."""

    @rule(program=PROGRAMS, tenant=st.sampled_from("ab"), published=st.booleans(), tries=st.integers(1, 3), how=ANY)
    def submit(self, program: list[str], tenant: str, published: bool, tries: int, how: int) -> None:
        if len(self.tasks) >= 16:
            return
        if how == 0:  # only its message is under way, and its worker is told before the ledger
            self.tasks.append(Task(self.next_id(), tenant, ("call",), max_attempts=tries))
        else:
            self._submit(program, tenant, published=published, tries=tries, later=how == 1)

    def _submit_again(self, which: int, by: int) -> None:
        if task := self.task_of(which):
            written = self.rig.run(accept(self.rig.producer, message_for(task), published=True))
            assert (written is not None) == self.model.accept(task, published=True)

    @initialize(program=PROGRAMS, seed=SEEDS)
    def begin(self, program: list[str], seed: int) -> None:
        self.play(program, seed)

    def play(self, program: list[str], seed: int) -> None:
        """A history of many moves, the same for the same seed."""
        rng = random.Random(seed)
        self._submit(program, "a", published=True, tries=3)
        for _ in range(5):
            self._work(rng)

    @rule(seed=SEEDS)
    def work(self, seed: int) -> None:
        self._work(random.Random(seed))

    @rule(seed=SEEDS)
    def go_on_working(self, seed: int) -> None:
        """The same once more: most of what happens is work, also where Hypothesis leaves some rules out."""
        self._work(random.Random(seed))

    @rule(what=st.sampled_from(STEERING), which=ANY, by=ANY)
    def steer(self, what: str, which: int, by: int) -> None:
        self._do(what, which, by)

    @rule(what=st.sampled_from(DEATHS), which=ANY, by=ANY)
    def trouble(self, what: str, which: int, by: int) -> None:
        self._do(what, which, by)

    @rule(what=st.sampled_from(KEEPING), which=ANY, by=ANY)
    def look_after(self, what: str, which: int, by: int) -> None:
        self._do(what, which, by)

    @rule(what=st.sampled_from(RACES), which=ANY, by=ANY)
    def race(self, what: str, which: int, by: int) -> None:
        self._do(what, which, by)

    def _do(self, what: str, which: int, by: int) -> None:
        getattr(self, "_" + what.replace(" ", "_"))(which, by)

    def _deliver_once_more(self, which: int, by: int) -> None:
        if task := self.task_of(which):
            self._deliver(task, self.worker_of(by))

    def _signal(self, which: int, by: int) -> None:
        put_down = [run.task for run in self.runs if run.standing == "suspended" and self.owns(run)]
        if task := (put_down[0] if put_down and which % 2 else self.task_of(which)):
            is_known, name = task.id in self.model.tasks, "other" if by % 3 == 0 else "go"
            try:
                self.rig.run(steering.signal(self.rig.database, task.id, name, {"n": 1}, redispatch_s=AGAIN_S))
            except UnknownTask:
                assert not is_known
            except WrongState:
                assert not self.model.signal(task, name)
            else:
                assert self.model.signal(task, name)

    def _cancel(self, which: int, by: int) -> None:
        if task := self.known(which):
            try:
                self.rig.run(steering.cancel(self.rig.database, task.id, redispatch_s=AGAIN_S))
            except WrongState:
                assert not self.model.cancel(task)
            else:
                assert self.model.cancel(task)

    def _replay(self, which: int, by: int) -> None:
        if task := self.known(which):
            self._replay_from(task, by)

    def _replay_from(self, task: Task, where: int) -> None:
        places = [task.place(number) for number in range(len(task.program)) if task.place(number) in task.steps]
        forgets = places[where:]
        first = f"{forgets[0][0]}#{forgets[0][1]}" if forgets else None
        work = replay(self.rig.database, task.id, from_step=first, redispatch_s=AGAIN_S, vault=NO_VAULT)
        try:
            self.rig.run(work)
        except WrongState:
            assert not self.model.replay(task, forgets=())
        else:
            assert self.model.replay(task, forgets=forgets)
            for place in forgets:
                del self.calls[task.id, place]

    def _resume(self, which: int, by: int) -> None:
        if task := self.known(which):
            try:
                self.rig.run(steering.resume(self.rig.database, task.id, on_change=None, redispatch_s=AGAIN_S))
            except WrongState:
                assert task.state != "parked"
            else:
                assert task.state == "parked"
                task.queue(published=True)

    def _heartbeat(self, which: int, by: int) -> None:
        worker, draining = self.worker_of(by), which % 2 == 0
        mine = self.model.workers[worker.id]
        assert self.rig.run(beat(self.rig.database, worker.id, is_draining=draining)) == mine.may_write
        if mine.may_write:
            mine.state, mine.is_overdue = "draining" if draining else "alive", False
        self._poll(worker, slots=2)

    def _fall_silent(self, which: int, by: int) -> None:
        self.silence(self.worker_of(by))

    def _bury_the_dead(self, which: int, by: int) -> None:
        ids = [worker.id for worker in self.workers]
        taken = self.rig.run(bury(self.rig.database, ids, dead_after_s=DEAD_S))
        expected = {task: state for one in ids for task, state in self.model.bury(one).items()}
        assert {one.id: one.state for one in taken} == expected

    def _leave(self, which: int, by: int) -> None:
        worker = self.worker_of(by)
        assert self.rig.run(discharge(self.rig.database, worker.id)) == self.model.discharge(worker.id)

    def _start_workers_anew(self, which: int, by: int) -> None:
        for number, worker in enumerate(self.workers):
            if not self.model.workers[worker.id].may_write:
                self.gone.append(worker)
                self.workers[number] = self.new_worker()

    def _keep(self, which: int, by: int) -> None:
        due = {task.id for task in self.model.tasks.values() if task.state == "waiting" and task.wake_at == "due"}
        assert self.rig.run(self._keep_time()) == due
        for one in due:
            self.model.tasks[one].queue(published=False)
        bereft = {task.id for task in self.model.tasks.values() if self.model.is_bereft(task)}
        assert self.rig.run(self._keep_families()) == bereft
        for one in bereft:
            self.model.tasks[one].queue(published=False)
        if by % 2:
            held = sorted(set().union(*self.model.held().values()))
            assert {one.id for one in self.rig.run(self._publish(held))} == set(held)
            for one in held:
                self.model.tasks[one].is_published = True

    def _spend_a_deadline_and_begin_anew(self, which: int, by: int) -> None:
        """So a run is overtaken whose own worker lives on and does not know it yet."""
        there = [run for run in self.runs if run.standing != "over" and self.owns(run)]
        if not there:
            return
        calling = [run for run in there if run.standing == "calling"]
        run = (calling or there)[which % len(calling or there)]
        self.rig.execute(SPENT, id=run.task.id)
        ended = self.rig.run(spend_deadlines(self.rig.database, grace_s=0, limit=100))
        assert [one.id for one in ended] == [run.task.id]
        assert self.model.spend(run.task)
        self._replay_from(run.task, by)
        self._deliver(run.task, self.worker_of(by))
        if by % 2:
            self.agrees()
            self.advance(run, "on")

    def _tell_the_parent(self, which: int, by: int) -> None:
        if not (task := self.known(which)):
            return
        worker = self.worker_of(by)
        if by > 5:
            told = bool(self.rig.run(wake_parents(self.rig.database, [task.id])))
        else:
            try:
                told = self.rig.run(worker.runs.wake(task.id))
            except Fenced:
                assert not self.model.workers[worker.id].may_write
                return
        assert told == self.model.wake(task, published=False)

    def _two_claim_at_once(self, which: int, by: int) -> None:
        one, other = self.worker_of(by), self.worker_of(by + 1)
        queued = [task for task in self.model.tasks.values() if task.state == "queued"]
        may = all(self.model.workers[each.id].may_write for each in (one, other))
        if not queued or not may:
            return
        task = queued[which % len(queued)]
        message = message_for(task)
        claims = self.rig.run(at_once(one.runs.claim(message), other.runs.claim(message)))
        assert sum(claim is not None for claim in claims) == 1, "exactly one has it"
        winner, claim = next((w, c) for w, c in zip((one, other), claims, strict=True) if c is not None)
        self.claimed(winner, task, claim)

    def _a_signal_comes_while_a_run_is_put_down(self, which: int, by: int) -> None:
        if (run := self.brought_to_wait(which)) is None:
            return
        task, work = run.task, steering.signal(self.rig.database, run.task.id, "go", 1, redispatch_s=AGAIN_S)
        self.rig.run(at_once(run.put_down(), work) if by % 2 else one_by_one(work, run.put_down()))
        self.goes_to_wait(run)
        run.standing = "over"
        self.model.signal(task, "go")
        [row] = self.rig.rows(f"{TASKS} WHERE id = %(id)s", id=task.id)
        if "go" in run.put_down_as.signals:
            assert row.state == "queued", "the signal is not lost, whichever was first"
        if row.state == "queued":
            task.queue(published=row.is_published)

    def _calls_end_while_their_worker_is_buried(self, which: int, by: int) -> None:
        worker = self.worker_of(by)
        calling = [run for run in self.runs if run.worker is worker and run.standing == "calling" and self.owns(run)]
        if not calling or not self.model.workers[worker.id].may_write:
            return
        self.silence(worker)
        worker.commit.loses_next = False
        ends = [run.end(well=True) for run in calling]
        taken, *seen = self.rig.run(at_once(bury(self.rig.database, [worker.id], dead_after_s=DEAD_S), *ends))
        for run, what in zip(calling, seen, strict=True):
            assert what in ("returned", "fenced")
            if what == "returned":
                run.task.steps[run.task.place(run.number)].state = "done"
            run.standing = "over"
        assert {one.id: one.state for one in taken} == self.model.bury(worker.id)

    def _submit(self, program: list[str], tenant: str, *, published: bool, tries: int, later: bool = False) -> None:
        ops = tuple(op for one in program for op in (("spawn", "children") if one == "family" else (one,)))
        task = Task(self.next_id(), tenant, ops, max_attempts=tries)
        self.tasks.append(task)
        message = message_for(task, later=datetime.now(UTC) + timedelta(hours=1) if later else None)
        is_crowded = self.is_crowded(tenant)
        written = self.rig.run(accept(self.rig.producer, message, published=published))
        assert self.model.accept(task, published=published, later=later)
        assert (tenant in written.crowded) == is_crowded

    def _work(self, rng: random.Random) -> None:
        self._start_workers_anew(0, 0)
        for _ in range(STRETCH):
            if sum(task.state in ("queued", "running") for task in self.model.tasks.values()) < 3:
                self.submit(rng.choices(OPS, k=3), "a", published=True, tries=3, how=2)
            [what] = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
            self._make(what, rng)
            self.agrees()
            self.every_call_is_accounted_for()

    def _make(self, what: str, rng: random.Random) -> None:
        which, by = rng.randrange(12), rng.randrange(12)
        if what == "go on":
            self.move(which, rng.choice(WAYS))
        elif what == "deliver":
            if queued := [task for task in self.tasks if task.state == "queued"]:
                self._deliver(queued[which % len(queued)], self.worker_of(by))
        elif what == "poll":
            self._poll(self.worker_of(by), slots=1 + which % 5)
        elif what == "poll for lost messages":
            self._poll_for_lost_messages(self.worker_of(by), slots=1 + which % 5)
        elif what == "submit":
            self.submit(rng.choices(OPS, k=rng.randint(1, 4)), rng.choice("ab"), which % 2 == 0, 1 + which % 3, by)
        else:
            kinds = {"steer": STEERING, "trouble": DEATHS, "look after": KEEPING, "race": RACES}
            self._do(rng.choice(kinds[what]), which, by)

    def _deliver(self, task: Task, worker: LiveWorker) -> None:
        may_write = self.model.workers[worker.id].may_write
        try:
            claim = self.rig.run(worker.runs.claim(message_for(task)))
        except Fenced:
            assert not may_write
        else:
            assert may_write
            self.claimed(worker, task, claim)

    def _poll(self, worker: LiveWorker, *, slots: int) -> None:
        held = set().union(*self.model.held().values())
        expected = self.model.polled(slots) if self.model.workers[worker.id].state == "alive" else 0
        polled = self.rig.run(poll_held(self.rig.database, **worker.asks(slots)))
        assert len(polled) == expected
        assert {one.claim.task_id for one in polled} <= held
        self.polled(worker, polled)

    def _poll_for_lost_messages(self, worker: LiveWorker, *, slots: int) -> None:
        there = self.model.published()
        expected = min(slots, len(there)) if self.model.workers[worker.id].state == "alive" else 0
        work = poll_lost(self.rig.database, **worker.asks(slots), lost_after_s=0)
        polled = self.rig.run(work)
        assert len(polled) == expected
        assert {one.claim.task_id for one in polled} <= there
        self.polled(worker, polled)

    async def _keep_time(self) -> set[UUID]:
        async with self.rig.database.unit() as unit:
            return {one.id for one in await wake_due(unit, limit=100)}

    async def _keep_families(self) -> set[UUID]:
        async with self.rig.database.unit() as unit:
            return {one.id for one in await wake_bereft(unit, limit=100)}

    async def _publish(self, ids: list[UUID]) -> list[TaskMessage]:
        async with self.rig.database.unit() as unit:
            return await take_off_hold(unit, ids, again_after_s=AGAIN_S)


@pytest.fixture
def rig(database: Database) -> Iterator[Rig]:
    opened = Rig(database.url)
    yield opened
    opened.close()


@pytest.mark.parametrize("seed", KNOWN)
def test_histories_that_once_came_out_otherwise_agree_with_the_model(rig: Rig, seed: int) -> None:
    machine = type("Machine", (LedgerMachine,), {"rig": rig})()
    machine.play(["call"], seed)
    machine.teardown()


def test_any_interleaving_of_what_workers_keepers_and_people_do_agrees_with_the_model(rig: Rig) -> None:
    asked = length()
    machine = type("Machine", (LedgerMachine,), {"rig": rig})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=asked.examples,
            stateful_step_count=asked.moves,
            deadline=None,
            database=None,
            phases=[Phase.generate, *([Phase.shrink] if asked.shrinks else [])],
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
