"""Two shards at work: a keeper and a worker each, a producer that knows both, and a bucket that moves under them."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest
from redis import Redis
from sqlalchemy import insert

from shared.broker.knobs import BrokerKnobs
from shared.client import FleetClient
from shared.contracts import FleetHeader, TaskMessage, bucket_in, bucket_of, with_bucket
from shared.db.knobs import DbKnobs
from shared.db.shards_file import parse_shards
from shared.db.tables import messages
from shared.errors import TaskFailed
from shared.ledger.moving import Done, move_bucket
from shared.ledger.schedules import create_schedule, delete_schedule, list_schedules
from shared.memory.context import session_key
from shared.memory.knobs import MemoryKnobs
from shared.settings import load
from tests.integration.fleets import WAITING
from tests.integration.live import eventually
from tests.integration.soundness import broken_promises
from tests.integration.terminal import fleet, fleet_json
from workers.ops.background import BackgroundSupervisor
from workers.ops.opening import open_site
from workers.ops.recipes import processes
from workers.ops.surroundings import ROOT
from workers.ops.topology import Topology

MAIN, SECOND = "main", "second"
REDIS = {MAIN: 11, SECOND: 12, "memory": 13}
"""Their brokers', and the session cache that both share."""


@dataclass(frozen=True, slots=True)
class Twins:
    """Both shards on the session's servers, each a database and a broker of its own."""

    client: FleetClient
    dsn: dict[str, str]
    env: dict[str, str]

    def ids_on(self, shard: str, table: str = "tasks", column: str = "id") -> set[UUID]:
        with psycopg.connect(self.dsn[shard]) as connection:
            return {row[0] for row in connection.execute(f"SELECT {column} FROM {table}")}

    def move(self, bucket: int, to: str) -> Done | None:
        return self.client.operate_on_shards(
            lambda shards, forget: move_bucket(shards, bucket, to=to, within_s=60, forget=forget)
        )


@pytest.fixture(scope="module")
def twins(servers: BackgroundSupervisor, template: str, run_folder: Callable[[], Path]) -> Iterator[Twins]:
    folder, server = run_folder(), servers.db_url.rpartition("/")[0]
    names = {shard: f"shard_{uuid4().hex[:12]}" for shard in (MAIN, SECOND)}
    dsn = {shard: f"{server}/{name}".replace("+psycopg", "") for shard, name in names.items()}
    file = folder.parent / "shards.yaml"
    port, redis = server.rpartition(":")[2], servers.redis_url.rpartition("/")[0]
    file.write_text(
        "shards:\n"
        + "".join(
            f"  {shard}: {{primary: {{host: 127.0.0.1, port: {port}}}, database: {name},"
            f' broker: {{vhost: "{REDIS[shard]}"}}}}\n'
            for shard, name in names.items()
        )
    )
    knobs, broker = DbKnobs(url=servers.db_url, shards=str(file)), f"{redis}/{REDIS[MAIN]}"
    env = {
        **servers.env, **WAITING, "FLEET_PROFILE": "embedded", "FLEET_BROKER_URL": broker,
        "FLEET_DB_SHARDS": str(file), "FLEET_MEMORY_REDIS_URL": f"{redis}/{REDIS['memory']}",
    }  # fmt: skip
    around = open_site(folder, inherited={**os.environ, "FLEET_AGENTS": "tests.integration.agents"}, project=ROOT)
    with psycopg.connect(f"{server}/postgres".replace("+psycopg", ""), autocommit=True) as admin, ExitStack() as stack:
        stack.callback(around.run.close)
        for name in names.values():
            admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
            stack.callback(admin.execute, f"DROP DATABASE {name} WITH (FORCE)")
        specs = []
        for number, shard in enumerate((MAIN, SECOND), start=1):
            own = {**env, "FLEET_DB_SHARD": shard}
            specs.append(replace(processes.keeper(around, env=own, needs=()), name=f"keeper-{shard}"))
            specs.append(processes.worker(around, number, env=own, needs=()))
        topology = Topology(profile="embedded", specs=tuple(specs), env=env, replica_url=servers.replica_url)
        stack.enter_context(BackgroundSupervisor(around, topology)).up()
        settings = replace(
            load(), db=knobs, broker=BrokerKnobs(url=broker),
            memory=MemoryKnobs(redis_url=env["FLEET_MEMORY_REDIS_URL"]),
            shards=parse_shards(file.read_text(), source="shards", knobs=knobs, broker_url=broker),
        )  # fmt: skip
        client = FleetClient(settings)
        stack.callback(client.close)
        yield Twins(client, dsn, env)
        for name in names.values():
            assert broken_promises(f"{server}/{name}") == []


def test_both_shards_work_and_children_stay_with_their_parent(twins: Twins) -> None:
    sessions = [f"both-{number}" for number in range(6)]
    for session in sessions[::2]:
        twins.move(bucket_of("default", session), SECOND)
    parents = {
        one: twins.client.submit("test.family", {"count": 2, "diary": os.devnull}, session=one).id for one in sessions
    }
    for session, parent in parents.items():
        assert twins.client.result(parent, timeout_s=60) is not None
        view = twins.client.status(parent)
        assert {bucket_in(child.id) for child in view.children} == {bucket_of("default", session)}
        assert {child.state for child in view.children} == {"succeeded"}
        shard = SECOND if session in sessions[::2] else MAIN
        assert {parent, *(child.id for child in view.children)} <= twins.ids_on(shard)


def test_a_bucket_moves_under_running_tasks_and_every_task_ends_once(twins: Twins) -> None:
    session = "mover"
    stop, tasks = threading.Event(), list[UUID]()

    def submit() -> None:
        while not stop.is_set():
            tasks.append(twins.client.submit("test.echo", {"text": str(len(tasks))}, session=session).id)
            stop.wait(0.005)

    waiting = twins.client.submit("test.approval", {"diary": os.devnull}, session=session)
    producer = threading.Thread(target=submit)
    producer.start()
    try:
        for to in (SECOND, MAIN, SECOND):
            assert twins.move(bucket_of("default", session), to) is not None
    finally:
        stop.set()
        producer.join()
    twins.client.signal(waiting.id, "approval", {"by": "ann"})
    assert twins.client.result(waiting.id, timeout_s=60)
    said = [twins.client.result(task, timeout_s=60)["said"] for task in tasks]
    assert said == [[str(number)] for number in range(len(tasks))]
    assert len(tasks) > 3
    views = [twins.client.status(task) for task in tasks]
    assert [one.id for one in views if one.repeated_steps or one.in_doubt_steps or len(one.steps) != 1] == []
    mine = {*tasks, waiting.id}
    eventually(lambda: not strays(twins))  # a message that stayed behind may be read late, and is taken home once more
    assert twins.ids_on(MAIN) & mine == set() and mine <= twins.ids_on(SECOND)


def strays(twins: Twins) -> set[UUID]:
    return twins.ids_on(MAIN, "shard_strays", "task_id") | twins.ids_on(SECOND, "shard_strays", "task_id")


def test_a_task_away_from_its_session_ends_before_it_asks_a_model(twins: Twins) -> None:
    session = "stranded"
    twins.move(bucket_of("default", session), SECOND)
    elsewhere = with_bucket(uuid4(), bucket_of("default", f"{session}-other"))
    message = TaskMessage("chat", {"message": "hi"}, (), elsewhere, FleetHeader(session=session))
    with pytest.raises(TaskFailed, match="session 'stranded' is on another shard than its task"):
        twins.client.submit_message(message).result(timeout_s=60)
    view = twins.client.status(elsewhere)
    assert view.error is not None and view.error["code"] == "shard_moved"
    assert [step.name for step in view.steps] == ["recall"]


def test_a_schedules_task_goes_to_the_shard_of_its_session(twins: Twins) -> None:
    session = "ticking"
    twins.move(bucket_of("default", session), SECOND)
    agent, cron = "test.echo", "* * * * * *"
    twins.client.operate(
        lambda database: create_schedule(
            database, name="tick", agent=agent, cron=cron, session=session, input={"text": "x"}
        )
    )
    task = eventually(lambda: twins.client.operate(list_schedules)[0].last_task_id)
    twins.client.operate(lambda database: delete_schedule(database, "tick"))
    assert twins.client.result(task, timeout_s=60)["said"] == ["x"]
    assert bucket_in(task) == bucket_of("default", session) and task in twins.ids_on(SECOND)


def test_an_operator_sees_the_shards_moves_a_session_and_its_cache_is_forgotten(twins: Twins) -> None:
    bucket = bucket_of("default", "told")
    row = {"session_id": "told", "tenant": "default", "role": "user", "content": "hi", "ordinal": 0}
    with twins.client.unit(shard_key="told") as unit:
        unit.execute(insert(messages).values(**row))
    with Redis.from_url(twins.env["FLEET_MEMORY_REDIS_URL"]) as cache:
        cache.set(session_key("default", "told"), "with the numbers of the first shard")
        cache.set(session_key("default", "other"), "stays")
        done = fleet("db", "move-bucket", str(bucket), "--to", SECOND, env=twins.env)
        assert done.stdout == f"Bucket {bucket} has moved from main to second: 1 messages.\n", done.stderr
        assert cache.get(session_key("default", "told")) is None
        assert cache.get(session_key("default", "other")) == b"stays"
    assert fleet("db", "move-bucket", str(bucket), "--to", SECOND, env=twins.env).stdout.endswith(
        "on second already.\n"
    )
    eventually(lambda: not strays(twins))
    main, second = fleet_json("db", "shards", env=twins.env)
    assert (main["shard"], second["shard"]) == (MAIN, SECOND)
    assert main["buckets"] + second["buckets"] == 1024 and second["buckets"] >= 1
    assert main["moving"] == second["moving"] == [] and main["strays"] == second["strays"] == 0
    refused = fleet("db", "move-bucket", str(bucket), "--to", "third", env=twins.env)
    assert refused.returncode and "no shard 'third' in the file of FLEET_DB_SHARDS" in refused.stderr
