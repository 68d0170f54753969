"""Polling over a ledger in memory: no slot is lost, no wake-up either, and nothing is claimed after the end."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from shared.contracts import Priority, TaskMessage
from shared.errors import DatabaseUnavailable
from shared.ledger.poll import Polled
from shared.ledger.runs import Claim
from tests.fakes.hand_loop import at_once
from workers.agents.poller import Poller

POLL_S = 1.0
LOST_AFTER_S = 5.0


class LoopClock:
    """The loop's own time."""

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.monotonic(), UTC)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


class FakeSlots:
    """Slots that are granted as far as they are free, and counted."""

    limit = 10
    has_messages = False

    def __init__(self) -> None:
        self.free = self.limit
        self.asked: dict[Priority, int] = {}
        self.started: list[str] = []

    def ask(self, priority: Priority, slots: int) -> None:
        self.asked[priority] = slots

    async def granted(self) -> Mapping[Priority, int]:
        taken: Counter[Priority] = Counter()
        while not +taken:
            await asyncio.sleep(0.01)
            taken.update({one: min(slots, self.free // len(self.asked)) for one, slots in self.asked.items()})
        self.asked = {}
        self.free -= taken.total()
        return +taken

    def give_back(self, slots: int) -> None:
        self.free += slots

    def adopt(self, work: Callable[[], Coroutine[Any, Any, Any]], *, name: str) -> None:
        self.started.append(name)


@dataclass
class FakePolls:
    """Answers in turn; afterwards there is nothing. An answer that can be called is."""

    held_answers: deque[Any] = field(default_factory=deque)
    lost_tasks: list[Polled] = field(default_factory=list)
    overlooked_answers: deque[list[Polled]] = field(default_factory=deque)
    looks: list[tuple[Priority, int, float]] = field(default_factory=list)
    lost_looks: list[float] = field(default_factory=list)

    async def held(self, priority: Priority, slots: int) -> Sequence[Polled]:
        self.looks.append((priority, slots, asyncio.get_running_loop().time()))
        answer = self.held_answers.popleft() if self.held_answers else []
        if isinstance(answer, Exception):
            raise answer
        found: list[Polled] = answer() or [] if callable(answer) else answer
        return found

    async def lost(self, priority: Priority, slots: int, *, lost_after_s: float) -> Sequence[Polled]:
        self.lost_looks.append(lost_after_s)
        found, self.lost_tasks = self.lost_tasks[:slots], self.lost_tasks[slots:]
        return found

    async def overlooked(self) -> Sequence[Polled]:
        return self.overlooked_answers.popleft() if self.overlooked_answers else []


class World:
    """A poller and what it stands between."""

    def __init__(self, *priorities: Priority) -> None:
        self.slots, self.ledger = FakeSlots(), FakePolls()
        self.poller = Poller(
            slots=self.slots, ledger=self.ledger, start=self.start, priorities=priorities or ("normal",), poll_s=POLL_S,
            lost_after_s=LOST_AFTER_S, batch=8, clock=LoopClock(),
        )  # fmt: skip

    async def start(self, polled: Polled) -> None: ...

    async def runs_for(self, seconds: float) -> None:
        """Let it poll for so long."""
        running = asyncio.create_task(self.poller.run())
        await asyncio.sleep(seconds)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def task(number: int) -> Polled:
    return Polled(Claim(UUID(int=number), 1, 1), TaskMessage("a", id=UUID(int=number)))


def names(*numbers: int) -> list[str]:
    return [str(UUID(int=number)) for number in numbers]


def test_a_poll_that_fails_gives_the_slots_of_every_priority_back() -> None:
    world = World("interactive", "normal", "batch")
    world.ledger.held_answers.append(DatabaseUnavailable("away"))

    async def main() -> None:
        with pytest.raises(DatabaseUnavailable):
            await world.poller.turn()

    at_once(main())
    assert len(world.ledger.looks) == 1
    assert world.slots.free == FakeSlots.limit


def test_what_is_held_while_the_ledger_answers_is_looked_for_at_once() -> None:
    world = World()
    world.ledger.held_answers.extend([world.poller.hurry, [task(1)]])
    at_once(world.runs_for(POLL_S / 2))
    assert world.slots.started == names(1)


def test_an_idle_poller_rests_between_two_looks() -> None:
    world = World()
    at_once(world.runs_for(POLL_S * 10))
    assert 8 <= len(world.ledger.looks) <= 14
    assert world.slots.free == FakeSlots.limit


def test_a_hurry_ends_the_rest() -> None:
    world = World()

    async def main() -> None:
        running = asyncio.create_task(world.runs_for(POLL_S))
        await asyncio.sleep(POLL_S / 4)
        world.poller.hurry()
        await running

    at_once(main())
    first, second = [at for _, _, at in world.ledger.looks][:2]
    assert first < second <= POLL_S / 4 + 0.05


def test_after_a_find_the_next_look_is_at_once_and_takes_a_batch() -> None:
    world = World()
    world.ledger.held_answers.append([task(1), task(2)])
    at_once(world.runs_for(POLL_S / 2))
    assert world.slots.started == names(1, 2)
    assert [slots for _, slots, _ in world.ledger.looks] == [8, 8]
    assert world.slots.free == FakeSlots.limit - 2


def test_a_stopped_poller_claims_nothing_with_slots_that_come_late() -> None:
    world = World("interactive", "normal")

    def stop() -> None:
        world.poller.stop()

    world.ledger.held_answers.append(stop)
    world.ledger.lost_tasks = [task(1)]
    at_once(asyncio.wait_for(world.poller.run(), POLL_S))
    assert len(world.ledger.looks) == 1, "neither another priority"
    assert world.ledger.lost_looks == [], "nor what is lost"
    assert world.slots.free == FakeSlots.limit


def test_a_poller_that_is_stopped_while_it_waits_for_slots_gives_them_back() -> None:
    world = World()
    world.slots.free = 0

    async def main() -> None:
        running = asyncio.create_task(world.poller.run())
        await asyncio.sleep(POLL_S / 2)
        world.poller.stop()
        world.slots.free = 3
        await running

    at_once(main())
    assert world.ledger.looks == []
    assert world.slots.free == 3


@pytest.mark.parametrize(("is_away", "has_messages", "after"), [
    (False, False, [LOST_AFTER_S]), (True, True, [0.0]), (False, True, []),
])  # fmt: skip
def test_lost_tasks_are_taken_where_no_message_waits_and_at_once_without_a_broker(
    is_away: bool, has_messages: bool, after: list[float]
) -> None:
    world = World()
    world.poller.is_broker_away, world.slots.has_messages = is_away, has_messages
    world.ledger.lost_tasks = [task(7)]
    at_once(world.poller.turn())
    assert world.ledger.lost_looks == after
    assert world.slots.started == (names(7) if after else [])


def test_what_a_poll_claimed_whose_answer_was_lost_is_run_once_it_is_found_twice() -> None:
    """Found once, it may be a claim whose answer is on its way."""
    world = World()
    world.ledger.held_answers.append(DatabaseUnavailable("the answer was lost"))
    world.ledger.overlooked_answers.extend([[task(1), task(2)], [task(2), task(3)], [task(3)]])
    at_once(world.runs_for(POLL_S * 5))
    assert world.slots.started == names(2, 3)
    assert world.slots.free == FakeSlots.limit - 2, "a borrowed slot each"
    assert not world.ledger.overlooked_answers


def test_any_other_failure_is_survived_too() -> None:
    world = World()
    world.ledger.held_answers.extend([RuntimeError("unthought of"), [task(1)]])
    at_once(world.runs_for(POLL_S * 3))
    assert world.slots.started == names(1)
