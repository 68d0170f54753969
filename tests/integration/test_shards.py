"""Two clusters, one fleet: who is where, what a unit of work may touch, and what a move leaves as it was."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import insert, select, text

from shared.client import FleetClient
from shared.contracts import FleetHeader, TaskMessage, bucket_in, bucket_of, keyed_task_id, with_bucket
from shared.db import shards as shards_room
from shared.db.link import Link
from shared.db.tables import messages
from shared.errors import BadInput, CrossShard, ShardMoved, UnknownTask, WrongState
from shared.ledger import bucket_rows, moving
from shared.ledger.moving import Done, move_bucket
from shared.ledger.strays import take_home
from tests.integration.by_hand import by_hand
from tests.integration.clusters import MAIN, SECOND, Clusters, clusters_in, producer_to, shards_of
from tests.integration.live import eventually
from workers.ops.background import BackgroundSupervisor

SESSION = "s-1"
BUCKET = bucket_of("default", SESSION)


@pytest.fixture(scope="module")
def both(servers: BackgroundSupervisor, run_folder: Callable[[], Path]) -> Iterator[Clusters]:
    with clusters_in([run_folder(), run_folder()], redis_url=servers.redis_url) as clusters:
        yield clusters


@pytest.fixture
def clusters(both: Clusters) -> Iterator[Clusters]:
    yield both
    both.reset()


@pytest.fixture
def client(clusters: Clusters, monkeypatch: pytest.MonkeyPatch) -> Iterator[FleetClient]:
    """A producer whose map grows old: it reads it anew when it finds that it is wrong, however slow the test is."""
    monkeypatch.setattr(shards_room, "MAP_FOR_S", 3600.0)
    with producer_to(clusters) as client:
        yield client


async def keep_caches(_: Sequence[tuple[str, str]]) -> None:
    """No cache in this test."""


async def move(clusters: Clusters, bucket: int, to: str, *, within_s: float = 10.0) -> Done | None:
    async with shards_of(clusters) as shards:
        return await move_bucket(shards, bucket, to=to, within_s=within_s, forget=keep_caches)


def moved(clusters: Clusters, bucket: int = BUCKET, to: str = SECOND) -> Done | None:
    return asyncio.run(move(clusters, bucket, to))


def swept(clusters: Clusters) -> int:
    async def sweep() -> int:
        async with shards_of(clusters) as shards:
            return sum([await take_home(shards, shard, limit=100) for shard in (MAIN, SECOND)])

    return asyncio.run(sweep())


def say(client: FleetClient, session: str, *contents: str) -> None:
    with client.unit(shard_key=session) as unit:
        for content in contents:
            row = {"session_id": session, "tenant": "default", "role": "user", "content": content, "ordinal": 0}
            unit.execute(insert(messages).values(**row))


def said(client: FleetClient, session: str) -> list[str]:
    with client.unit(mode="ro", shard_key=session) as unit:
        query = select(messages.c.content).where(messages.c.session_id == session).order_by(messages.c.id)
        return list(unit.scalars(query))


def ids_on(clusters: Clusters, shard: str) -> set[UUID]:
    return {row[0] for row in clusters.ask(shard, "SELECT id FROM tasks")}


def states_of(clusters: Clusters, bucket: int = BUCKET) -> list[tuple[Any, ...]]:
    query = "SELECT state, epoch, shard FROM shard_buckets WHERE bucket = %s"
    return [row for shard in (MAIN, SECOND) for row in clusters.ask(shard, query, bucket)]


def test_both_languages_put_everything_into_the_same_bucket(clusters: Clusters) -> None:
    for tenant, session in (("default", "s-1"), ("会话", "ß"), ("a", ""), ("", "b\n'")):
        found = clusters.ask(MAIN, "SELECT fleet_session_bucket(%s, %s)", tenant, session)
        assert found == [(bucket_of(tenant, session),)]
    for one in (uuid4(), UUID(int=0), UUID(int=2**128 - 1), keyed_task_id("t", "k", "s")):
        assert clusters.ask(MAIN, "SELECT fleet_task_bucket(%s)", one) == [(bucket_in(one),)]


def test_before_any_move_everything_is_on_the_first_shard(client: FleetClient, clusters: Clusters) -> None:
    tasks = {client.submit("nobody", session=session).id for session in ("a", "b", "c")}
    say(client, SESSION, "hi")
    assert ids_on(clusters, MAIN) == tasks and ids_on(clusters, SECOND) == set()
    assert clusters.ask(MAIN, "SELECT count(*) FROM shard_buckets") == [(0,)]


def test_sessions_spread_and_each_is_whole_on_one_shard(client: FleetClient, clusters: Clusters) -> None:
    sessions = [f"s-{number}" for number in range(8)]
    for session in sessions[::2]:
        assert moved(clusters, bucket_of("default", session)) is not None
    tasks = {session: client.submit("nobody", session=session).id for session in sessions}
    tasks |= {f"{one}k": client.submit("nobody", session=one, idempotency_key="k").id for one in sessions}
    for session in sessions:
        with client.unit(shard_key=("default", session)) as unit:
            tasks[f"{session}tx"] = client.submit("nobody", session=session, tx=unit).id
            tasks[f"{session}free"] = client.submit("nobody", tx=unit).id
        say(client, session, "hi")
    for shard, here in ((SECOND, sessions[::2]), (MAIN, sessions[1::2])):
        wanted = {tasks[f"{session}{what}"] for session in here for what in ("", "k", "tx", "free")}
        assert ids_on(clusters, shard) == wanted
        assert {row[0] for row in clusters.ask(shard, "SELECT session_id FROM messages")} == set(here)
    assert all(client.status(one).id == one for one in tasks.values())
    assert {one.id for one in client.tasks(limit=100)} == set(tasks.values())
    assert client.cancel(tasks["s-0"]).state == "cancelled"
    assert client.submit("nobody", session="s-0", idempotency_key="k").id == tasks["s-0k"]


def test_a_unit_that_would_touch_two_shards_is_refused(client: FleetClient, clusters: Clusters) -> None:
    moved(clusters)
    other = next(f"t-{n}" for n in range(100) if bucket_of("default", f"t-{n}") != BUCKET)
    with client.unit(shard_key=SESSION) as outer:
        with client.unit(shard_key=SESSION) as inner:
            assert inner is outer
        with pytest.raises(CrossShard), client.unit(shard_key=other):
            pass
        with pytest.raises(CrossShard), client.unit():
            pass
        with pytest.raises(CrossShard, match="the task is for shard main and the transaction is on second"):
            client.submit("nobody", session=other, tx=outer)


async def test_an_async_unit_keeps_to_its_shard_as_well(clusters: Clusters) -> None:
    await move(clusters, BUCKET, SECOND)
    async with shards_of(clusters) as shards:
        database = shards.databases[MAIN]
        async with database.unit(shard_key=SESSION) as outer, database.unit(shard_key=SESSION) as inner:
            assert inner is outer
            assert await outer.scalar(text("SELECT inet_server_port()")) == shards.databases[SECOND].url.port
            with pytest.raises(CrossShard):
                database.unit()
        async with database.unit() as unit:
            assert await unit.scalar(text("SELECT inet_server_port()")) == database.url.port


def test_a_producer_with_an_old_map_finds_the_moved_session_at_the_second_try(
    client: FleetClient, clusters: Clusters
) -> None:
    say(client, SESSION, "one", "two")
    task = client.submit("nobody", session=SESSION)
    moved(clusters)
    with pytest.raises(ShardMoved):
        said(client, SESSION)  # never an empty answer
    assert said(client, SESSION) == ["one", "two"]
    moved(clusters, to=MAIN)
    with pytest.raises(ShardMoved):
        say(client, SESSION, "three")
    say(client, SESSION, "three")
    assert said(client, SESSION) == ["one", "two", "three"]
    moved(clusters)
    assert client.signal(task.id, "approval", {"by": "ann"}).id == task.id
    assert clusters.ask(SECOND, "SELECT task_id FROM signals") == [(task.id,)]
    moved(clusters, to=MAIN)
    assert client.cancel(task.id).state == "cancelled"
    assert clusters.ask(MAIN, "SELECT name, payload ->> 'by' FROM signals") == [("approval", "ann")]
    assert states_of(clusters) == [("open", 4, MAIN), ("moved", 4, MAIN)]


def test_a_message_written_without_a_key_where_its_session_is_not_any_more_is_refused(
    client: FleetClient, clusters: Clusters
) -> None:
    moved(clusters)
    row = {"session_id": SESSION, "tenant": "default", "role": "user", "content": "lost", "ordinal": 0}
    with pytest.raises(ShardMoved, match="the session s-1 is on another shard"), client.unit() as unit:
        unit.execute(insert(messages).values(**row))


def test_a_task_handed_in_where_it_is_not_any_more_is_taken_home(client: FleetClient, clusters: Clusters) -> None:
    client.submit("nobody", session=SESSION)  # the map is known now
    moved(clusters)
    late = client.submit("nobody", session=SESSION)
    assert clusters.ask(MAIN, "SELECT task_id FROM shard_strays") == [(late.id,)]
    assert swept(clusters) == 1
    assert late.id in ids_on(clusters, SECOND) and ids_on(clusters, MAIN) == set()
    assert client.status(late.id).state == "queued"
    assert swept(clusters) == 0


async def test_a_message_that_stayed_behind_resurrects_nothing(clusters: Clusters) -> None:
    known = TaskMessage("nobody", {}, (), with_bucket(uuid4(), BUCKET), FleetHeader(session=SESSION))
    unknown = TaskMessage("nobody", {}, (), with_bucket(uuid4(), BUCKET), FleetHeader(session=SESSION))
    async with by_hand(clusters.url(MAIN)) as worker, by_hand(clusters.url(SECOND)) as other:
        claim = await worker.runs.claim(known)
        assert claim is not None
        await worker.steps(claim, "one")
        await worker.runs.release(claim)
        await move(clusters, BUCKET, SECOND)
        assert await worker.runs.claim(known) is None
        assert await worker.runs.claim(unknown) is None  # accepted by the broker alone: it must not be lost
        again = await other.runs.claim(known)
        assert again is not None
        assert await other.steps(again, "one", "two") == ["two"]  # paid for on the first shard
        await other.runs.succeed(again, "done", {})
        async with shards_of(clusters) as shards:
            assert await take_home(shards, MAIN, limit=100) == 2
        assert (await other.row(known.id)).state == "succeeded"
        assert await other.runs.claim(unknown) is not None
        assert await worker.all("SELECT id FROM tasks") == []


async def test_a_running_task_is_waited_for_and_none_is_claimed_meanwhile(clusters: Clusters) -> None:
    running, queued, fresh = (
        TaskMessage("nobody", {}, (), with_bucket(uuid4(), BUCKET), FleetHeader(session=SESSION)) for _ in range(3)
    )
    async with by_hand(clusters.url(MAIN)) as worker, by_hand(clusters.url(SECOND)) as other:
        claim = await worker.runs.claim(running)
        put_back = await worker.runs.claim(queued)
        assert claim is not None and put_back is not None
        await worker.runs.release(put_back)
        moving_on = asyncio.create_task(move(clusters, BUCKET, SECOND, within_s=60))
        await until(lambda: states_of(clusters)[:1] == [("moving", 0, MAIN)])
        assert await worker.runs.claim(queued) is None
        assert await worker.runs.claim(fresh) is None
        assert await worker.steps(claim, "one") == ["one"]  # who runs goes on
        await worker.runs.succeed(claim, "done", {})
        assert await moving_on is not None
        assert {row.id: row.state for row in await other.all("SELECT id, state FROM tasks")} == {
            running.id: "succeeded",
            queued.id: "queued",
            fresh.id: "queued",
        }
        assert await other.try_claim(fresh.id) is not None
        assert await worker.all("SELECT id FROM tasks") == await worker.all("SELECT task_id FROM steps") == []


async def test_a_task_that_runs_for_too_long_stops_the_move_and_nothing_is_changed(clusters: Clusters) -> None:
    running = TaskMessage("nobody", {}, (), with_bucket(uuid4(), BUCKET), FleetHeader(session=SESSION))
    async with by_hand(clusters.url(MAIN)) as worker:
        claim = await worker.runs.claim(running)
        assert claim is not None
        with pytest.raises(WrongState, match=f"1 of its tasks still run, for example {running.id}; nothing"):
            await move(clusters, BUCKET, SECOND, within_s=0.3)
        assert states_of(clusters) == [("open", 0, MAIN), ("moved", 0, MAIN)]
        await worker.runs.release(claim)
        assert await worker.try_claim(running.id) is not None


PAST = ("_open", MAIN)
"""The source has let go: there is only one way to go on."""


async def test_a_cancel_in_the_moment_of_the_move_reaches_the_task_where_it_is_then(
    client: FleetClient, clusters: Clusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = await client.asubmit("nobody", session=SESSION)
    cancelling: list[asyncio.Task[Any]] = []
    really = bucket_rows.copy

    def is_somebody_waiting() -> bool:
        return bool(clusters.ask(MAIN, "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))

    async def copy(source: Link, target: Link, bucket: int) -> None:
        cancelling.append(asyncio.create_task(client.acancel(task.id)))
        await until(is_somebody_waiting)
        await really(source, target, bucket)

    with monkeypatch.context() as patched:
        patched.setattr(moving, "copy", copy)
        assert await move(clusters, BUCKET, SECOND) is not None
    assert (await cancelling[0]).state == "cancelled"
    assert clusters.ask(SECOND, "SELECT id, state FROM tasks") == [(task.id, "cancelled")]
    await client.aclose()


class Cut(Exception):
    """The command was killed."""


@pytest.mark.parametrize(
    ("moment", "then"),
    [(one, then) for one in ("lock", "copy", "clear", "_open") for then in (SECOND, MAIN) if (one, then) != PAST],
)
def test_a_move_that_was_cut_off_is_ended_by_the_same_command(
    client: FleetClient, clusters: Clusters, monkeypatch: pytest.MonkeyPatch, moment: str, then: str
) -> None:
    say(client, SESSION, "one", "two")
    task = client.submit("nobody", session=SESSION)

    async def cut(*_: Any, **__: Any) -> None:
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(moving, moment, cut)
        with pytest.raises(Cut):
            moved(clusters)
    assert moved(clusters, to=then) is not None
    assert [row[0] for row in states_of(clusters)] == (["moved", "open"] if then == SECOND else ["open", "moved"])
    assert ids_on(clusters, then) == {task.id}
    assert ids_on(clusters, MAIN if then == SECOND else SECOND) == set()
    client.close()  # and its map with it
    assert said(client, SESSION) == ["one", "two"]
    assert client.status(task.id).state == "queued"
    assert moved(clusters, to=then) is None


def test_a_move_that_was_cut_off_is_not_begun_towards_another_shard(
    clusters: Clusters, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cut(*_: Any, **__: Any) -> None:
        raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(moving, "_open", cut)
        with pytest.raises(Cut):
            moved(clusters)
    with pytest.raises(WrongState, match="is on its way to second: end that move first, with --to second"):
        moved(clusters, to=MAIN)
    assert moved(clusters) is not None
    assert moved(clusters, to=MAIN) is not None


def test_a_bucket_moves_back_and_forth_while_many_write_and_nothing_is_lost_or_there_twice(
    client: FleetClient, clusters: Clusters
) -> None:
    sessions = [f"s-{number}" for number in range(3)]
    buckets = sorted({bucket_of("default", session) for session in sessions})
    stop, refused = threading.Event(), [0]
    kept: dict[str, list[str]] = {session: [] for session in sessions}
    tasks: list[UUID] = []

    def write(session: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                say(client, session, f"{number}")
            except ShardMoved:
                refused[0] += 1
                number -= 1
                stop.wait(0.01)
                continue
            kept[session].append(f"{number}")
            tasks.append(client.submit("nobody", session=session).id)

    threads = [threading.Thread(target=write, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    try:
        for to in (SECOND, MAIN, SECOND):
            for bucket in buckets:
                assert moved(clusters, bucket, to) is not None
        eventually(lambda: refused[0] and all(len(contents) > 5 for contents in kept.values()))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    while swept(clusters):
        pass
    client.close()
    for session in sessions:
        assert said(client, session) == kept[session]
    assert clusters.ask(MAIN, "SELECT count(*) FROM messages") == [(0,)]
    assert ids_on(clusters, MAIN) == set() and ids_on(clusters, SECOND) == set(tasks)
    assert len(tasks) == len(set(tasks))
    assert all(client.status(task).state == "queued" for task in tasks[:: max(1, len(tasks) // 20)])


def test_a_move_to_nowhere_is_refused(clusters: Clusters) -> None:
    with pytest.raises(BadInput, match="no shard 'third'"):
        moved(clusters, to="third")
    with pytest.raises(BadInput, match="bucket must be 0 to 1023, not 1024"):
        moved(clusters, 1024)


def test_an_unknown_task_is_unknown_on_every_shard(client: FleetClient, clusters: Clusters) -> None:
    moved(clusters)
    for bucket in (BUCKET, BUCKET - 1):
        with pytest.raises(UnknownTask):
            client.status(with_bucket(uuid4(), bucket))


async def until(check: Callable[[], bool], *, within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while not await asyncio.to_thread(check):
            await asyncio.sleep(0.02)
