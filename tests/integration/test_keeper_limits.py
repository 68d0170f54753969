"""`max_running` of tenants and agents: exact however many workers there are, children counted with their parent."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from shared.contracts import FleetHeader, TaskMessage
from shared.db.database import Database as Door
from shared.ledger.caps import set_limit, unset_limit
from shared.ledger.group_commit import GroupCommit
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.poll import poll_held, poll_lost
from shared.ledger.roster import enlist, offer
from shared.ledger.rows import task_row
from shared.ledger.runs import Claim, Runs
from tests.integration.keeping import Keeping, add, add_many, ago, ask, keeping, states, task
from tests.integration.live import Database


@dataclass
class Hand:
    """A worker that claims by message and by polling."""

    id: UUID
    runs: Runs
    commit: GroupCommit

    def asks(self, slots: int) -> Any:
        """What it polls for."""
        agents = ["test.echo", "test.parent", "test.child", "test.full", "test.one"]
        return {"worker": self.id, "agents": agents, "priority": "normal", "slots": slots}


@asynccontextmanager
async def hand(keeper: Keeping) -> AsyncIterator[Hand]:
    """Enlist a worker."""
    me, knobs = uuid4(), LedgerKnobs()
    await enlist(keeper.door, worker=me, name="w", host="h", pid=1, slots=100)
    commit = GroupCommit(keeper.door, knobs, worker=me, when_down="wait")
    yield Hand(me, Runs(keeper.door, commit, knobs), commit)
    await commit.close()


async def accept(door: Door, *messages: TaskMessage) -> None:
    """Submit as a producer does."""
    commit = GroupCommit(door, LedgerKnobs(), worker=None, when_down="raise")
    rows = [task_row(one) | {"redispatch_s": 30, "published": True} for one in messages]
    await asyncio.gather(
        *(commit.write("accept", ("accept", one.id, None, 0), row) for one, row in zip(messages, rows, strict=True))
    )
    await commit.close()


def running(database: Database) -> int:
    """How many tasks run now."""
    return int(ask(database, "SELECT count(*) AS n FROM tasks WHERE state = 'running'")[0]["n"])


async def test_what_a_limit_holds_runs_only_as_the_keeper_releases_it(database: Database) -> None:
    async with keeping(database) as keeper, hand(keeper) as worker:
        await set_limit(keeper.door, "tenant", "small", 2)
        messages = [TaskMessage("test.echo", fleet=FleetHeader(tenant="small")) for _ in range(5)]
        await accept(keeper.door, *messages)
        assert [await worker.runs.claim(one) for one in messages] == [None] * 5
        assert await poll_held(keeper.door, **worker.asks(9)) == []
        assert await keeper.ledger.release() == 0.2
        first = await keeper.sent()
        assert len(first) == 2
        assert await keeper.ledger.release() == 0.2
        assert await keeper.sent() == [], "what is released counts as if it ran"
        claims = [claim for one in messages if (claim := await worker.runs.claim(one))]
        assert sorted(claim.task_id for claim in claims) == sorted(first)
        await worker.runs.succeed(claims[0], None, {})
        await keeper.ledger.release()
        assert len(await keeper.sent()) == 1


async def test_a_limit_is_never_exceeded_by_several_workers_and_everything_runs(database: Database) -> None:
    """Three workers race for messages, polls and lost ones, while the keeper releases."""
    most = 0
    async with keeping(database) as keeper, hand(keeper) as one, hand(keeper) as two, hand(keeper) as three:
        await set_limit(keeper.door, "agent", "test.echo", 4)
        ids = add_many(database, 60, agent="test.echo")
        queue: asyncio.Queue[UUID] = asyncio.Queue()

        async def work(me: Hand) -> None:
            while True:
                claims: list[Claim | None] = []
                try:
                    claims.append(await me.runs.claim(TaskMessage("test.echo", id=queue.get_nowait())))
                except asyncio.QueueEmpty:
                    lost = await poll_lost(keeper.door, **me.asks(2), lost_after_s=0)
                    held = await poll_held(keeper.door, **me.asks(2))
                    claims += [polled.claim for polled in (*lost, *held)]
                for claim in filter(None, claims):
                    await asyncio.sleep(0.005)
                    await me.runs.succeed(claim, None, {})

        workers = [asyncio.create_task(work(me)) for me in (one, two, three)]
        async with asyncio.timeout(120):
            while set(states(database, ids)) != {"succeeded"}:
                await keeper.ledger.release()
                for task_id in await keeper.sent():
                    queue.put_nowait(task_id)
                    queue.put_nowait(task_id)  # each message twice
                most = max(most, running(database))
        for each in workers:
            each.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        assert await keeper.ledger.release() is None, "nothing waits any more"
    assert 1 < most <= 4


async def test_children_count_with_the_agent_at_the_root_of_their_tree(database: Database) -> None:
    async with keeping(database) as keeper:
        await set_limit(keeper.door, "agent", "test.parent", 2)
        add(database, agent="test.parent", state="running")
        children = add_many(database, 3, agent="test.child", root_agent="test.parent")
        free = add(database, agent="test.child")
        await keeper.ledger.release()
        assert len(await keeper.sent()) == 1
    assert Counter(states(database, children)) == {"queued": 3}
    assert task(database, free)["published_at"] is None, "no limit covers it: workers poll it"


async def test_tenants_take_turns_under_an_agents_limit_and_urgent_tasks_go_first(database: Database) -> None:
    async with keeping(database) as keeper:
        await set_limit(keeper.door, "agent", "test.echo", 4)
        crowd = add_many(database, 20, tenant="crowd", dispatch_at=ago(60))
        single = add(database, tenant="single")
        batch = add(database, tenant="lazy", priority="batch", dispatch_at=ago(90))
        urgent = add(database, tenant="lazy", priority="interactive")
        await keeper.ledger.release()
        sent = await keeper.sent()
    assert urgent in sent
    assert single in sent
    assert batch not in sent
    assert len(set(sent) & set(crowd)) == 2


async def test_a_full_limit_does_not_stand_in_the_way_of_tasks_under_another_one(database: Database) -> None:
    async with keeping(database, batch=10) as keeper:
        await set_limit(keeper.door, "tenant", "t", 50)
        await set_limit(keeper.door, "agent", "test.full", 0)
        add_many(database, 30, agent="test.full", dispatch_at=ago(60))
        behind = add(database, agent="test.echo")
        await keeper.ledger.release()
        assert await keeper.sent() == [behind]


async def test_released_tasks_are_left_to_polling_workers_while_the_broker_is_away(database: Database) -> None:
    async with keeping(database) as keeper, hand(keeper) as worker:
        await set_limit(keeper.door, "tenant", "t", 1)
        held = add_many(database, 2)
        keeper.break_broker()
        await keeper.ledger.release()
        await keeper.sent()
        polled = await poll_lost(keeper.door, **worker.asks(5), lost_after_s=0)
        assert len(polled) == 1
        assert polled[0].claim.task_id in held
        await keeper.ledger.release()
        assert await poll_lost(keeper.door, **worker.asks(5), lost_after_s=0) == []


async def test_a_lower_limit_calls_back_what_was_released_and_not_begun(database: Database) -> None:
    async with keeping(database) as keeper:
        ask(database, "INSERT INTO limits VALUES ('tenant', 't', 2)")
        released = add_many(database, 5, published_at=ago(1))
        await keeper.ledger.release()
        await keeper.sent()
        await keeper.ledger.release()
    kept = ask(database, "SELECT count(*) AS n FROM tasks WHERE published_at IS NOT NULL")
    assert (len(released), kept[0]["n"]) == (5, 2)


async def test_what_an_agent_declares_is_its_limit_until_an_operator_says_otherwise(database: Database) -> None:
    async with keeping(database) as keeper:
        on_the_queue = add(database, agent="test.one", published_at=ago(3))
        await offer(keeper.door, {"test.one": {}, "test.two": {}}, max_running={"test.one": 1})
        assert ask(database, "SELECT scope, name, max_running FROM limits") == [
            {"scope": "agent", "name": "test.one", "max_running": 1}
        ]
        assert task(database, on_the_queue)["published_at"] is None
        await set_limit(keeper.door, "agent", "test.one", 7)
        await offer(keeper.door, {"test.one": {}}, max_running={"test.one": 1})
        assert ask(database, "SELECT max_running FROM limits") == [{"max_running": 7}]
        await unset_limit(keeper.door, "agent", "test.one")
        assert await keeper.ledger.release() is None
