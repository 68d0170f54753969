"""An agent sees what its producer wrote, whichever way its task came and however far the replicas are behind."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import pytest_asyncio
from redis.asyncio import Redis

from shared.client import FleetClient
from shared.contracts import TaskMessage
from shared.db.carriage import onward
from shared.db.database import Database
from shared.db.knobs import DbKnobs
from shared.db.tokens import CausalToken, carrying, current, parse
from shared.ledger.own_runs import overlooked
from shared.ledger.poll import poll_held, poll_lost
from shared.ledger.roster import enlist
from shared.ledger.rows import accept_statement
from shared.llm.messages import Message
from shared.memory.cache import RedisCache, open_redis
from shared.memory.knobs import MemoryKnobs
from shared.memory.session import SessionMemory
from shared.memory.truth import PostgresTruth
from tests.integration.by_hand import ByHand, by_hand
from tests.integration.fleets import fleet_of
from tests.integration.live import eventually
from tests.integration.load import celery_of, send_plain
from tests.integration.nodes import ask, dsn, group_of
from tests.integration.trio import admitted
from workers.ops.background import BackgroundSupervisor

REPLICAS = ("replica", "replica-2")
RUNS = 24
KNOBS = MemoryKnobs(rest_s=0.1)


@pytest.fixture(scope="module")
def fleet(run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    """A worker, a primary and two replicas."""
    more = {"FLEET_AGENTS": "tests.integration.causal_agents", "FLEET_LEDGER_POLL_S": "0.3"}
    with fleet_of(1, folder=run_folder(), more=more, replicas=2) as started:
        ask(started, "postgres", "CREATE TABLE own (key text PRIMARY KEY, value text)")
        eventually(lambda: all(ask(started, one, "SELECT to_regclass('own')") != [(None,)] for one in REPLICAS))
        yield started


@contextmanager
def behind(fleet: BackgroundSupervisor) -> Iterator[None]:
    """No replica replays anything."""
    for one in REPLICAS:
        ask(fleet, one, "SELECT pg_wal_replay_pause()")
        eventually(lambda one=one: ask(fleet, one, "SELECT pg_get_wal_replay_pause_state()") == [("paused",)])  # type: ignore[misc]
    try:
        yield
    finally:
        for one in REPLICAS:
            ask(fleet, one, "SELECT pg_wal_replay_resume()")


@contextmanager
def producing(fleet: BackgroundSupervisor) -> Iterator[tuple[psycopg.Connection[Any], str, str]]:
    """A producer's own transaction that writes a row and a message; commits at the end."""
    key, session = f"k-{uuid4().hex}", f"s-{uuid4().hex}"
    with psycopg.connect(dsn(group_of(fleet).node("postgres").port)) as connection:
        connection.execute("INSERT INTO own VALUES (%s, 'written')", [key])
        connection.execute(
            "INSERT INTO messages (tenant, session_id, role, content, ordinal)"
            " VALUES ('default', %s, 'user', 'hello', 0)", [session],
        )  # fmt: skip
        yield connection, key, session


def submitted(client: FleetClient, fleet: BackgroundSupervisor, key: str, session: str) -> UUID:
    return client.submit("causal.look", {"key": key}, session=session).id


def sent(client: FleetClient, fleet: BackgroundSupervisor, key: str, session: str) -> UUID:
    app = celery_of(fleet)
    task_id = uuid4()
    headers = {"fleet": {"session": session}}
    app.send_task("agents.causal.look", kwargs={"key": key}, task_id=str(task_id), headers=headers)
    return task_id


def held(client: FleetClient, fleet: BackgroundSupervisor, key: str, session: str) -> UUID:
    """Sent anew by the keeper, or found in the ledger: what the message's header said is lost."""
    return client.submit("causal.look", {"key": key}, session=session, delay_s=0.2).id


@pytest.mark.parametrize("hand_in", [submitted, sent, held])
def test_an_agent_sees_what_its_producer_committed_however_far_the_replicas_are_behind(
    fleet: BackgroundSupervisor, client: FleetClient, hand_in: Callable[..., UUID]
) -> None:
    with behind(fleet):
        with producing(fleet) as (_, key, session):
            pass
        seen = client.result(hand_in(client, fleet, key, session))
    assert (seen["value"], seen["is_replica"], seen["heard"]) == ("written", False, ["hello"])
    assert parse(seen["begun_at"]) is not None, "its claim says what was there before it"


def test_runs_read_from_replicas_that_are_fresh_and_none_is_stale(
    fleet: BackgroundSupervisor, client: FleetClient
) -> None:
    seen: list[dict[str, Any]] = []

    def has_seen_replicas() -> bool:
        tasks = []
        for _ in range(RUNS):
            with producing(fleet) as (_, key, session):
                pass
            tasks.append(client.submit("causal.look", {"key": key}, session=session))
        seen.extend(task.result() for task in tasks)
        return bool(sum(one["is_replica"] for one in seen) > RUNS / 4)

    eventually(has_seen_replicas, within_s=60)  # on a busy machine a replica may be late for a while
    assert {(one["value"], *one["heard"]) for one in seen} == {("written", "hello")}
    print(f"\n{sum(one['is_replica'] for one in seen)} of {len(seen)} runs read from a replica")


def test_a_token_comes_with_a_submit_and_with_a_plain_message_and_the_larger_one_counts(
    fleet: BackgroundSupervisor, client: FleetClient
) -> None:
    here = own_place(fleet)
    ahead = replace(here, lsn=here.lsn + (1 << 40))  # it cannot be true: larger than any claim's
    for token in (here, "x"):
        begun = parse(client.submit("causal.look", {"key": "none"}, token=token).result()["begun_at"])
        assert begun is not None
        assert here.lsn <= begun.lsn < ahead.lsn
    with carrying(ahead):
        seen = client.submit("causal.look", {"key": "none"}).result()
        task_id = send_plain_with(celery_of(fleet), onward(str(here)))
    assert lsn_of(seen) == lsn_of(client.result(task_id)) == ahead.lsn
    assert seen["is_replica"] is False, "it is found out, and the primary asked"
    task_id = send_plain(celery_of(fleet), "causal.look", key="none")
    assert here.lsn <= lsn_of(client.result(task_id)) < ahead.lsn


def lsn_of(seen: dict[str, Any]) -> int:
    begun = parse(seen["begun_at"])
    assert begun is not None
    return begun.lsn


def send_plain_with(app: Any, token: str | None) -> UUID:
    task_id = uuid4()
    app.send_task("agents.causal.look", kwargs={"key": "none"}, task_id=str(task_id), headers={"wt": token})
    return task_id


def own_place(fleet: BackgroundSupervisor) -> CausalToken:
    [(system_id, wal_file, position)] = ask(
        fleet, "postgres",
        "SELECT system_identifier, pg_walfile_name(pg_current_wal_lsn()), pg_current_wal_flush_lsn()"
        " FROM pg_control_system()",
    )  # fmt: skip
    high, _, low = position.partition("/")
    return CausalToken(system_id & ((1 << 64) - 1), int(wal_file[:8], 16), (int(high, 16) << 32) + int(low, 16), 1)


@pytest_asyncio.fixture
async def redis(fleet: BackgroundSupervisor) -> AsyncIterator[Redis]:
    client = open_redis(MemoryKnobs(redis_url=f"{fleet.redis_url.rpartition('/')[0]}/9"))
    await client.flushdb()
    yield client
    await client.aclose()


@pytest_asyncio.fixture
async def database(fleet: BackgroundSupervisor) -> AsyncIterator[Database]:
    knobs = DbKnobs(url=fleet.env["FLEET_DB_URL"], replicas=fleet.env["FLEET_DB_REPLICAS"], look_every_s=0.05)
    door = Database(knobs, application_name="carriage")
    yield door
    await door.close()


async def test_a_fill_is_never_taken_from_a_replica_that_lacks_the_last_message(
    fleet: BackgroundSupervisor, redis: Redis, database: Database
) -> None:
    memory = SessionMemory(PostgresTruth(database), RedisCache(redis, knobs=KNOBS), knobs=KNOBS)
    with carrying(None) as before:
        await memory.append("acme", "s", [Message("user", "first")], task_id=uuid4())
    await admitted(database, reached=before.token)
    with behind(fleet):
        with carrying(None):  # another run, on another worker
            await memory.append("acme", "s", [Message("user", "second")], task_id=uuid4())
        await redis.unlink("ctx:acme:s")  # evicted, or an hour old
        for _ in range(2):
            with carrying(before.token):  # claimed before the second message
                assert [one.content for one in await memory.context("acme", "s")] == ["first", "second"]
    assert await redis.zscore("ctx:acme:s", "complete") == -1


async def test_a_fill_from_a_stale_replica_counts_for_nothing_once_the_cache_forgot_what_was_written(
    fleet: BackgroundSupervisor, redis: Redis, database: Database
) -> None:
    memory = SessionMemory(PostgresTruth(database), RedisCache(redis, knobs=KNOBS), knobs=KNOBS)
    with carrying(None) as before:
        await memory.append("acme", "u", [Message("user", "first")], task_id=uuid4())
    await admitted(database, reached=before.token)
    assert database.router is not None
    with behind(fleet):
        with carrying(None) as after:
            await memory.append("acme", "u", [Message("user", "second")], task_id=uuid4())
        await redis.flushdb()
        served = database.router.served.copy()
        with carrying(before.token):  # it is not this run's to see
            assert [one.content for one in await memory.context("acme", "u")] == ["first"]
        assert sum((database.router.served - served).values()) == 1
        with carrying(after.token):
            assert [one.content for one in await memory.context("acme", "u")] == ["first", "second"]
        with carrying(None):  # nobody knows how fresh: the primary
            assert [one.content for one in await memory.context("acme", "u")] == ["first", "second"]


async def test_without_redis_a_run_reads_from_replicas_as_fresh_as_its_claim(
    fleet: BackgroundSupervisor, database: Database
) -> None:
    nowhere = open_redis(MemoryKnobs(redis_url="redis://127.0.0.1:1/0"))
    memory = SessionMemory(PostgresTruth(database), RedisCache(nowhere, knobs=KNOBS), knobs=KNOBS)
    with carrying(None) as claim:
        await memory.append("acme", "t", [Message("user", "first")], task_id=uuid4())
    await admitted(database, reached=claim.token)
    assert database.router is not None
    primary = database.router.cluster.primary
    assert primary is not None
    for token, is_replica in ((claim.token, True), (None, False)):
        served = database.router.served.copy()
        with carrying(token):
            assert [one.content for one in await memory.context("acme", "t")] == ["first"]
        [node] = database.router.served - served
        assert (node != primary.name) == is_replica
    await nowhere.aclose()


async def test_every_way_to_a_claim_says_what_was_committed_before_it_and_one_node_says_nothing(
    fleet: BackgroundSupervisor, database: Database
) -> None:
    me = ByHand(database)
    await enlist(database, worker=me.id, name="by-hand", host="here", pid=1, slots=10)
    how: dict[str, Any] = {"worker": me.id, "agents": ["nobodys"], "priority": "normal", "slots": 5}
    held_one, lost_one, sent_one = (TaskMessage("nobodys") for _ in range(3))
    async with database.unit() as unit:
        await unit.execute(accept_statement(held_one, dispatch_after_s=60.0, is_held=True))
        await unit.execute(accept_statement(lost_one, dispatch_after_s=60.0))
    before = own_place(fleet).lsn
    with carrying(None):
        claims = [one.claim for one in await poll_held(database, **how)]
        claims += [one.claim for one in await poll_lost(database, lost_after_s=0.0, **how)]
        claims += [claim for claim in [await me.runs.claim(sent_one)] if claim is not None]
        assert current() is None, "what is claimed for others is not this task's to see"
        strays = await overlooked(database, me.id, known=[])
    assert [one.task_id for one in claims] == [held_one.id, lost_one.id, sent_one.id]
    assert {one.claim.task_id for one in strays} == {one.task_id for one in claims}
    for token in (*(one.token for one in claims), *(one.claim.token for one in strays)):
        assert token is not None
        assert before <= token.lsn <= own_place(fleet).lsn
    async with by_hand(fleet.env["FLEET_DB_URL"]) as alone:
        claim = await alone.runs.claim(TaskMessage("nobodys"))
        assert claim is not None
        assert claim.token is None
    for worker in (me, alone):
        await worker.commit.close()
