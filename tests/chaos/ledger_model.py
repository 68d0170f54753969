"""The ledger as a simple model in memory: what each of its statements must do to tasks, steps and workers.

It knows no clock, no connection and no message, only the rules; the ledger is compared with it after every move.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

ACTIVE = frozenset({"queued", "running", "waiting", "parked"})
Place = tuple[str, int]
When = Literal["never", "later", "due"]


@dataclass(slots=True)
class Step:
    """One step of a task."""

    state: str
    epoch: int
    executions: int = 1
    in_doubt: int = 0
    until: When = "never"


@dataclass(slots=True)
class Task:
    """One task. `program` is what its agent does; `places` are the steps of that."""

    id: UUID
    tenant: str
    program: tuple[str, ...]
    max_attempts: int = 3
    parent: UUID | None = None
    state: str = "queued"
    epoch: int = 0
    attempt: int = 0
    worker: UUID | None = None
    is_published: bool = False
    is_asked_to_stop: bool = False
    wakes: int = 0
    wake_at: When = "never"
    awaited_signals: frozenset[str] = frozenset()
    awaited_children: frozenset[UUID] = frozenset()
    signals: Counter[str] = field(default_factory=Counter)
    steps: dict[Place, Step] = field(default_factory=dict)

    def place(self, number: int) -> Place:
        """The step that the program's op `number` makes."""
        op = self.program[number]
        return op, self.program[:number].count(op)

    def queue(self, *, published: bool) -> None:
        """It may be claimed."""
        self.state, self.worker, self.is_published = "queued", None, published
        self.wake_at, self.awaited_signals, self.awaited_children = "never", frozenset(), frozenset()

    def end(self, state: str) -> None:
        """Nothing more happens to it."""
        self.state, self.worker = state, None


@dataclass(slots=True)
class Worker:
    """One worker process."""

    id: UUID
    state: str = "alive"
    is_overdue: bool = False

    @property
    def may_write(self) -> bool:
        """Whether the fence lets it."""
        return self.state in ("alive", "draining")


class LedgerModel:
    """Tasks and workers, by id."""

    def __init__(self) -> None:
        self.tasks: dict[UUID, Task] = {}
        self.workers: dict[UUID, Worker] = {}

    def accept(self, task: Task, *, published: bool, later: bool = False) -> bool:
        """Whether it was new."""
        if task.id in self.tasks:
            return False
        self.tasks[task.id] = task
        task.is_published = published and not later
        if later:
            task.state, task.wake_at = "waiting", "later"
        return True

    def claim(self, task: Task, worker: UUID) -> tuple[int, int] | None:
        """Epoch and attempt of the claim, None when the task is not to be had."""
        self.accept(task, published=True)
        mine = self.tasks[task.id]
        if mine.state == "queued":
            mine.queue(published=True)
            mine.state, mine.worker = "running", worker
            mine.epoch += 1
            mine.attempt += 1
        elif mine.state != "running" or mine.worker != worker:
            return None
        return mine.epoch, mine.attempt

    def held(self) -> dict[str, set[UUID]]:
        """Who may be polled, by tenant."""
        found: dict[str, set[UUID]] = {}
        for task in self.tasks.values():
            if task.state == "queued" and not task.is_published:
                found.setdefault(task.tenant, set()).add(task.id)
        return found

    def polled(self, slots: int) -> int:
        """How many held tasks a poll gets: every tenant its part of the slots."""
        held = self.held()
        share = max(1, slots // max(1, len(held)))
        return min(slots, sum(min(len(tasks), share) for tasks in held.values()))

    def published(self) -> set[UUID]:
        """Tasks that a message stands for."""
        return {task.id for task in self.tasks.values() if task.state == "queued" and task.is_published}

    def owns(self, worker: UUID, task_id: UUID, epoch: int) -> bool:
        """Whether a run's writes count."""
        task = self.tasks[task_id]
        return self.workers[worker].may_write and task.state == "running" and task.epoch == epoch

    def intent(self, task: Task, place: Place, *, until: When = "never", waits: bool = False) -> None:
        """A step begins."""
        state = "waiting" if waits else "intent"
        old = task.steps.get(place)
        if old is None:
            task.steps[place] = Step(state, task.epoch, until=until)
            return
        old.in_doubt += old.state == "intent" and old.epoch != task.epoch
        old.executions += not waits
        old.state, old.epoch, old.until = state, task.epoch, until

    def suspend(
        self, task: Task, state: str, *, seen_wakes: int, until: When = "never",
        signals: Iterable[str] = (), children: Iterable[UUID] = (),
    ) -> str:  # fmt: skip
        """A run gives its slot back."""
        task.epoch += 1
        task.attempt -= 1
        if task.is_asked_to_stop:
            task.end("cancelled")
        elif state == "waiting" and task.wakes <= seen_wakes:
            task.state, task.worker, task.wake_at = "waiting", None, until
            task.awaited_signals, task.awaited_children = frozenset(signals), frozenset(children)
        elif state == "parked":
            task.end("parked")
        else:
            task.queue(published=False)
        return task.state

    def signal(self, task: Task, name: str) -> bool:
        """Whether the task can still have one."""
        if task.state not in ACTIVE:
            return False
        task.wakes += 1
        task.signals[name] += 1
        if task.state == "waiting" and name in task.awaited_signals:
            task.queue(published=True)
        return True

    def wake(self, task: Task, *, published: bool) -> bool:
        """A child has ended; whether the task goes on."""
        if task.state not in ("running", "waiting"):
            return False
        task.wakes += 1
        goes_on = self.is_bereft(task)
        if goes_on:
            task.queue(published=published)
        return goes_on

    def is_bereft(self, task: Task) -> bool:
        """Whether it waits for children that have all ended."""
        return (
            task.state == "waiting"
            and bool(task.awaited_children)
            and not any(self.tasks[one].state in ACTIVE for one in task.awaited_children)
        )

    def cancel(self, root: Task) -> bool:
        """Whether there was anything to cancel."""
        if root.state not in ACTIVE or root.is_asked_to_stop:
            return False
        tree = list(self.tree(root))
        for task in tree:
            if task.state not in ACTIVE:
                continue
            task.is_asked_to_stop = True
            if task.state != "running":
                task.epoch += 1
                task.end("cancelled")
        if root.state == "cancelled" and root.parent is not None:
            self.wake(self.tasks[root.parent], published=True)
        return True

    def tree(self, root: Task) -> Iterator[Task]:
        """A task and all below it."""
        yield root
        for child in [task for task in self.tasks.values() if task.parent == root.id]:
            yield from self.tree(child)

    def bury(self, worker: UUID) -> dict[UUID, str]:
        """What becomes of a dead worker's runs."""
        gone = self.workers[worker]
        if not gone.may_write or not gone.is_overdue:
            return {}
        gone.state = "dead"
        return {task.id: self._taken(task) for task in self._runs_of(worker)}

    def _taken(self, task: Task) -> str:
        task.epoch += 1
        if task.is_asked_to_stop:
            task.end("cancelled")
        elif task.attempt < task.max_attempts:
            task.queue(published=False)
        else:
            task.end("failed")
        return task.state

    def spend(self, task: Task) -> bool:
        """Its deadline has passed; whether that ends it."""
        if task.state not in ACTIVE:
            return False
        task.epoch += 1
        task.end("cancelled" if task.state == "running" and task.is_asked_to_stop else "failed")
        return True

    def discharge(self, worker: UUID) -> int:
        """How many runs a worker that leaves hands back."""
        mine = self._runs_of(worker)
        if self.workers[worker].state != "dead":
            self.workers[worker].state = "stopped"
        for task in mine:
            task.epoch += 1
            task.attempt -= 1
            if task.is_asked_to_stop:
                task.end("cancelled")
            else:
                task.queue(published=False)
        return len(mine)

    def replay(self, root: Task, *, forgets: Iterable[Place]) -> bool:
        """Whether it could be tried again; cancelled tasks below come along."""
        if root.state not in ("failed", "cancelled"):
            return False
        for place in list(forgets):
            del root.steps[place]
        for task in [root, *self._cancelled_below(root)]:
            task.queue(published=True)
            task.epoch += 1
            task.attempt = 0
            task.is_asked_to_stop = False
        return True

    def _cancelled_below(self, root: Task) -> list[Task]:
        below = [task for task in self.tasks.values() if task.parent == root.id and task.state == "cancelled"]
        return below + [deeper for task in below for deeper in self._cancelled_below(task)]

    def _runs_of(self, worker: UUID) -> list[Task]:
        return [task for task in self.tasks.values() if task.state == "running" and task.worker == worker]
