"""The pool by itself, between a host and a Celery of fakes: slots, contexts, names, the ways in and out."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import WorkerShutdown
from celery.worker import state
from sqlalchemy.util.concurrency import await_only

from shared.contracts import Priority
from workers.agents import pool as room
from workers.agents.pool import TaskPool, current_delivery

WITHIN_S = 20
left_behind: ContextVar[str] = ContextVar("left_behind", default="nothing")


class FakeHost:
    """A worker without a ledger."""

    drain_s = 0.0
    cut_s = 0.0
    weights: dict[Priority, int] = {"normal": 1}  # noqa: RUF012

    def __init__(self) -> None:
        self.told: list[str] = []
        self.is_coming_up = False

    async def start(self, pool: TaskPool) -> None:
        while self.is_coming_up:
            await asyncio.sleep(0.01)
        self.told.append("start")

    def shut(self) -> None:
        self.told.append("shut")

    def put_down(self) -> None:
        self.told.append("put down")

    async def stop(self) -> None:
        self.told.append("stop")

    def runs_here(self, task_name: str) -> bool:
        return task_name.startswith("agents.")


class Pools:
    """Pools of a test, and the messages that it sends."""

    def __init__(self) -> None:
        self.host = FakeHost()
        self.made: list[TaskPool] = []

    def start(self, limit: int) -> TaskPool:
        pool = TaskPool(limit, app=SimpleNamespace(fleet_host=self.host))
        self.made.append(pool)
        pool.start()
        return pool

    def send(self, pool: TaskPool, target: Callable[[], Any], *, name: str = "agents.a", task_id: str = "t") -> None:
        pool.on_apply(
            lambda *_: target(), (name, task_id, {}), callback=lambda ended: None, accept_callback=lambda *_: None
        )

    def close(self) -> None:
        for pool in self.made:
            pool.loop.call_soon_threadsafe(pool.loop.stop)
            pool._thread.join()
            pool.loop.call_soon(pool.loop.stop)
            pool.loop.run_forever()  # to the second stop of a pool that was stopped before
            pool.loop.run_until_complete(end_all())
            pool.loop.close()


async def end_all() -> None:
    """What a pool has left behind."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


@pytest.fixture
def pools() -> Iterator[Pools]:
    pools = Pools()
    yield pools
    pools.close()


class Seen:
    """What runs report, and the wait for it."""

    def __init__(self, wanted: int) -> None:
        self.all: list[Any] = []
        self._wanted = wanted
        self._is_complete = threading.Event()

    def put(self, one: Any) -> None:
        self.all.append(one)
        if len(self.all) == self._wanted:
            self._is_complete.set()

    def wait(self) -> list[Any]:
        assert self._is_complete.wait(WITHIN_S), self.all
        return self.all


def test_a_run_sees_nothing_of_the_context_of_the_run_before_it(pools: Pools) -> None:
    seen = Seen(3)

    def looks_and_leaves() -> None:
        seen.put(left_behind.get())
        left_behind.set("what the run before left")
        await_only(asyncio.sleep(0))

    pool = pools.start(limit=1)
    for _ in range(3):
        pools.send(pool, looks_and_leaves)
    assert seen.wait() == ["nothing"] * 3


def test_a_run_from_the_ledger_sees_nothing_of_the_context_of_whoever_polled_it(pools: Pools) -> None:
    seen = Seen(1)

    async def looks() -> None:
        seen.put(left_behind.get())

    async def polls(pool: TaskPool) -> None:
        left_behind.set("what the poller has")
        pool.adopt(looks, name="t")

    pool = pools.start(limit=1)
    asyncio.run_coroutine_threadsafe(polls(pool), pool.loop).result(WITHIN_S)
    assert seen.wait() == ["nothing"]


def test_a_run_is_named_after_its_task(pools: Pools) -> None:
    seen = Seen(2)

    def name() -> str:
        task = asyncio.current_task()
        return task.get_name() if task else "none"

    async def adopted() -> None:
        seen.put(name())

    pool = pools.start(limit=2)
    pools.send(pool, lambda: seen.put(name()), task_id="from-a-message")
    pool.loop.call_soon_threadsafe(lambda: pool.adopt(adopted, name="from-the-ledger"))
    assert set(seen.wait()) == {"from-a-message", "from-the-ledger"}


def test_at_most_as_many_runs_as_slots_are_under_way_and_each_end_starts_the_next(pools: Pools) -> None:
    under_way, most, ended = [0], [0], Seen(50)

    def works() -> None:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        for _ in range(5):
            await_only(asyncio.sleep(0))
        under_way[0] -= 1
        ended.put(None)

    pool = pools.start(limit=7)
    for _ in range(50):
        pools.send(pool, works)
    ended.wait()
    assert (most, under_way) == ([7], [0])


def test_as_many_blocking_tasks_as_slots_run_at_once(pools: Pools) -> None:
    all_of_them, ended = threading.Barrier(20), Seen(20)
    pool = pools.start(limit=20)
    for _ in range(20):
        pools.send(pool, lambda: ended.put(all_of_them.wait(WITHIN_S)), name="somebody.elses")
    assert sorted(ended.wait()) == list(range(20))


def test_a_celery_task_that_wants_to_end_its_process_ends_by_itself(pools: Pools) -> None:
    pool, goes_on = pools.start(1), threading.Event()
    ended: list[Any] = []

    def leaves(*_: Any) -> None:
        raise SystemExit(3)

    async def other() -> None:
        goes_on.set()

    pool.on_apply(leaves, ("other.task", "t", {}), callback=ended.append, accept_callback=lambda *_: None)
    pools.send(pool, lambda: await_only(other()))
    assert goes_on.wait(WITHIN_S)
    pool.mailbox.deliver()
    failed, told, _ = ended[0]
    assert failed and "SystemExit(3)" in str(told.exception)


def test_events_are_passed_on_together_with_their_own_times_and_dropped_while_nobody_is_connected(pools: Pools) -> None:
    pool = pools.start(1)
    pool.tell("task-started", uuid="before")
    told: list[tuple[str, dict[str, Any]]] = []
    pool.tell_celery = lambda event, **facts: told.append((event, facts))
    pool.tell("task-started", uuid="a")
    pool.tell("task-succeeded", uuid="a")
    assert told == []
    pool.pass_events_on()
    assert [(event, facts["uuid"]) for event, facts in told] == [("task-started", "a"), ("task-succeeded", "a")]
    assert told[0][1]["timestamp"] <= told[1][1]["timestamp"] <= time.time()
    pool.tell("task-started", uuid="lost")
    pool.tell_celery = None
    pool.pass_events_on()
    assert len(told) == 2


def test_what_is_claimed_while_others_drain_is_acknowledged_before_they_end(pools: Pools) -> None:
    """The claim was under way when the drain began; Celery's callbacks are made on the thread that drains."""
    pools.host.drain_s = WITHIN_S
    happened: list[str] = []
    begun = Seen(2)

    def accepts(name: str, *, after: str) -> None:
        begun.put(name)
        while after not in happened and after not in pools.host.told:
            await_only(asyncio.sleep(0.001))
        current_delivery.get().accept()

    def first() -> None:
        current_delivery.get().accept()
        accepts("first", after="second is acknowledged")
        happened.append("first ended")

    pool = pools.start(limit=2)
    pools.send(pool, first)
    pool.on_apply(
        lambda *_: accepts("second", after="shut"), ("agents.a", "t", {}), callback=lambda ended: None,
        accept_callback=lambda *_: happened.append("second is acknowledged"),
    )  # fmt: skip
    begun.wait()
    pool.stop()
    assert happened == ["second is acknowledged", "first ended"]


def test_a_drain_ends_although_a_run_takes_no_cancellation_for_an_answer(
    pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "LEAVE_S", 0.1)
    begun = threading.Event()

    async def stubborn() -> None:
        begun.set()
        while "stop" not in pools.host.told:
            try:
                await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                pools.host.told.append("cancelled")

    pool = pools.start(limit=1)
    pool.loop.call_soon_threadsafe(lambda: pool.adopt(stubborn, name="t"))
    assert begun.wait(WITHIN_S)
    pool.stop()
    assert (pools.host.told[-1], pools.host.told.count("cancelled")) == ("stop", 1)


def test_a_drain_ends_although_a_run_blocks_the_loop(pools: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LEAVE_S", 0.1)
    monkeypatch.setattr(room, "STOP_S", 0.1)
    begun, may_end = threading.Event(), threading.Event()

    async def blocks() -> None:
        begun.set()
        may_end.wait(WITHIN_S)

    pool = pools.start(limit=1)
    pool._thread.join = lambda timeout=None: None  # type: ignore[method-assign]  # seconds that say nothing here
    pool.loop.call_soon_threadsafe(lambda: pool.adopt(blocks, name="t"))
    assert begun.wait(WITHIN_S)
    pool.stop()
    assert "stop" not in pools.host.told
    may_end.set()
    del pool._thread.join


def test_a_worker_that_waits_for_the_database_at_its_start_leaves_when_it_is_told_to(
    pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools.host.is_coming_up = True
    threading.Timer(0.3, lambda: monkeypatch.setattr(state, "should_stop", 0)).start()  # what Celery does on SIGTERM
    with pytest.raises(WorkerShutdown):
        pools.start(limit=1)
    assert pools.host.told == []
