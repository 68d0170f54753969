"""A worker that stood still for a term makes no call before it knows that its runs are still its own."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import pytest

from shared.db.database import Database
from shared.errors import DatabaseUnavailable
from shared.ledger.knobs import LedgerKnobs
from workers.agents.lease import Lease

KNOBS = LedgerKnobs(heartbeat_s=5.0, dead_after_s=15.0)


class HandClock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds


class Ledger:
    """What the ledger answers to heartbeats, and whether its server refuses connections."""

    def __init__(self) -> None:
        self.answer: bool | Exception = True
        self.refuses = False
        self.is_back: Callable[[], None] | None = None
        self.beats = 0

    async def is_absent(self, *, within_s: float) -> bool:
        if self.is_back is not None:
            self.refuses = False
            self.is_back()
        return self.refuses

    async def beat(self, _: Any, worker: UUID, *, is_draining: bool) -> bool:
        self.beats += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def done(self, *_: Any, **__: Any) -> int:
        return 0


class World:
    """A lease, its clock and its ledger."""

    def __init__(self) -> None:
        self.clock, self.ledger = HandClock(), Ledger()
        self.fences: list[str] = []
        self.lease = Lease(
            database=cast(Database, self.ledger), ledger=KNOBS, clock=self.clock, has_runs=lambda: True,
            fence=self._fence, enlisted=lambda _: None,
        )  # fmt: skip

    async def _fence(self, cause: str) -> None:
        self.fences.append(cause)

    async def settle(self, until: Callable[[], bool]) -> None:
        """Let the loop turn until that is so."""
        async with asyncio.timeout(5):
            while not until():
                await asyncio.sleep(0)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    for name, fake in {"beat": made.ledger.beat, "enlist": made.ledger.done, "discharge": made.ledger.done}.items():
        monkeypatch.setattr(f"workers.agents.lease.{name}", fake)
    monkeypatch.setattr("workers.agents.lease.AGAIN_S", 0.0)
    return made


async def stood_still(world: World) -> "tuple[asyncio.Task[None], asyncio.Task[None]]":
    """A run that is about to make a call, in a worker that was stopped for longer than a term."""
    await world.lease.take(name="worker", slots=1)
    await asyncio.wait_for(world.lease.sure(), 1)  # at once
    world.clock.seconds += KNOBS.dead_after_s
    call = asyncio.create_task(world.lease.sure())
    await asyncio.sleep(0)
    assert not call.done()
    return call, asyncio.create_task(world.lease.keep())


async def test_it_goes_on_when_the_ledger_says_that_it_is_alive(world: World) -> None:
    call, keeping = await stood_still(world)
    await world.settle(call.done)
    assert world.ledger.beats == 1
    assert world.fences == []
    keeping.cancel()


async def test_it_never_makes_the_call_when_it_was_declared_dead(world: World) -> None:
    world.ledger.answer = False
    call, keeping = await stood_still(world)
    await world.settle(lambda: bool(world.fences))
    assert world.fences == ["declared dead by the keeper"]
    assert not call.done()
    call.cancel()
    keeping.cancel()


async def test_it_fences_itself_when_the_ledger_is_silent(world: World) -> None:
    world.ledger.answer = DatabaseUnavailable("no answer")
    call, keeping = await stood_still(world)
    await world.settle(lambda: bool(world.fences))
    assert world.fences == ["no heartbeat written for 15 s"]
    assert not call.done()
    call.cancel()
    keeping.cancel()


async def test_it_waits_while_the_ledger_refuses_connections_and_goes_on_when_it_is_back(world: World) -> None:
    world.ledger.answer, world.ledger.refuses = DatabaseUnavailable("connection refused"), True
    call, keeping = await stood_still(world)
    await world.settle(lambda: world.ledger.beats > 3)
    assert not call.done()
    world.ledger.answer = True
    await world.settle(call.done)
    assert world.fences == []
    keeping.cancel()


async def test_it_asks_once_more_when_the_ledger_came_back_right_after_a_heartbeat_that_it_refused(
    world: World,
) -> None:
    world.ledger.answer, world.ledger.refuses = DatabaseUnavailable("connection refused"), True
    call, keeping = await stood_still(world)
    await world.settle(lambda: world.ledger.beats > 3)
    world.ledger.is_back = lambda: setattr(world.ledger, "answer", True)
    await world.settle(lambda: call.done() or bool(world.fences))
    assert world.fences == []
    keeping.cancel()


async def test_it_fences_itself_when_the_ledger_came_back_and_is_silent(world: World) -> None:
    world.ledger.answer, world.ledger.refuses = DatabaseUnavailable("connection refused"), True
    call, keeping = await stood_still(world)
    await world.settle(lambda: world.ledger.beats > 3)
    asked, world.ledger.refuses = world.ledger.beats, False
    await world.settle(lambda: bool(world.fences))
    assert world.ledger.beats <= asked + 2
    assert not call.done()
    call.cancel()
    keeping.cancel()
