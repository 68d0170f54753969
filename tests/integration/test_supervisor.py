"""The supervisor with real servers: all answer, the dead come back, drills hold them dead, the replica streams."""

import json
import os
import signal
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import psycopg
import redis
from kombu.connection import Connection
from pymilvus import MilvusClient

from tests.integration.live import Database, eventually
from workers.ops.background import BackgroundSupervisor
from workers.ops.spec import ServerFailed

READ_SEARCH = 1 << 2


def plain(url: str) -> str:
    return url.replace("+psycopg", "")


def connection_to(broker_url: str) -> Any:
    return Connection(broker_url)


def pid_or_none(servers: BackgroundSupervisor, name: str) -> int | None:
    try:
        return servers.pid(name)
    except ServerFailed:
        return None


def streams(primary: psycopg.Connection[Any]) -> bool:
    """Whether the replica is connected and has caught up; after a stall it connects anew."""
    return primary.execute("SELECT state FROM pg_stat_replication").fetchall() == [("streaming",)]


def answers(cache: redis.Redis) -> bool:
    try:
        return bool(cache.ping())
    except redis.ConnectionError:
        return False


def test_all_servers_start_and_answer(servers: BackgroundSupervisor) -> None:
    for url in (servers.db_url, servers.replica_url):
        with psycopg.connect(plain(url)) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == ("fleet",)
    with connection_to(servers.broker_url) as broker:
        assert broker.connection.server_properties["product"] == "RabbitMQ"
    with redis.Redis.from_url(servers.redis_url) as cache:
        assert cache.ping()


def test_commits_are_durable_and_the_replica_streams_them(servers: BackgroundSupervisor, database: Database) -> None:
    with psycopg.connect(database.dsn, autocommit=True) as primary:
        assert primary.execute("SHOW fsync").fetchone() == ("on",)
        eventually(lambda: streams(primary))
        primary.execute("CREATE TABLE note (text text)")
        primary.execute("INSERT INTO note VALUES ('seen')")

    def arrived() -> bool:
        try:
            with psycopg.connect(plain(database.replica_url)) as replica:
                return replica.execute("SELECT text FROM note").fetchone() == ("seen",)
        except (psycopg.errors.UndefinedTable, psycopg.OperationalError):  # table, database: not there yet
            return False

    assert eventually(arrived)


def test_no_server_runs_as_root_and_none_holds_more_than_the_right_to_read(servers: BackgroundSupervisor) -> None:
    for spec in servers.topology.specs:
        status = Path(f"/proc/{servers.pid(spec.name)}/status").read_text(encoding="utf-8")
        facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert "0" not in facts["Uid"].split(), f"{spec.name} runs as root"
        if os.geteuid() == 0:
            assert int(facts["CapEff"], 16) in (0, READ_SEARCH), f"{spec.name} kept {facts['CapEff']}"
            assert int(facts["CapBnd"], 16) in (0, READ_SEARCH)


def test_killed_redis_comes_back_with_its_data(servers: BackgroundSupervisor) -> None:
    key = f"test:{uuid.uuid4()}"
    with redis.Redis.from_url(servers.redis_url) as cache:
        cache.set(key, "kept")
        before = servers.pid("redis")
        eventually(lambda: cache.info("persistence")["aof_buffer_length"] == 0)  # while it syncs, it writes later
        servers.kill("redis")
        servers.wait_ready("redis")
        assert servers.pid("redis") != before
        assert cache.get(key) == b"kept"


def test_killed_postgres_comes_back_on_its_port_and_the_replica_follows(servers: BackgroundSupervisor) -> None:
    servers.kill("postgres")
    servers.wait_ready("postgres")

    with psycopg.connect(plain(servers.db_url), autocommit=True) as primary:
        eventually(lambda: streams(primary))


def test_killed_rabbitmq_comes_back_with_its_durable_queue(servers: BackgroundSupervisor) -> None:
    name = f"test-{uuid.uuid4()}"
    with connection_to(servers.broker_url) as broker:
        broker.default_channel.queue_declare(name, durable=True, auto_delete=False)
    servers.kill("rabbitmq")
    servers.wait_ready("rabbitmq")
    with connection_to(servers.broker_url) as broker:
        broker.default_channel.queue_declare(name, passive=True)
        broker.default_channel.queue_delete(name)


def test_server_killed_under_a_suspended_policy_stays_dead_until_resumed(servers: BackgroundSupervisor) -> None:
    servers.suspend("redis")
    servers.kill("redis")
    eventually(lambda: servers.status("redis") == "held")
    with redis.Redis.from_url(servers.redis_url) as cache:
        assert not answers(cache)
        servers.resume("redis")
        servers.wait_ready("redis")
        assert answers(cache)


def test_stopped_server_stays_stopped_until_started(servers: BackgroundSupervisor) -> None:
    servers.stop("redis")
    assert servers.status("redis") == "stopped"
    servers.start("redis")
    with redis.Redis.from_url(servers.redis_url) as cache:
        assert answers(cache)


def test_frozen_server_holds_its_port_and_answers_nothing_until_thawed(servers: BackgroundSupervisor) -> None:
    servers.freeze("redis")
    try:
        with redis.Redis.from_url(servers.redis_url, socket_timeout=0.3, retry=None) as cache:
            try:
                silent = not cache.ping()
            except redis.TimeoutError:
                silent = True
        assert silent
        assert servers.status("redis") == "ready"
    finally:
        servers.thaw("redis")
    with redis.Redis.from_url(servers.redis_url) as cache:
        assert answers(cache)


def test_terminated_server_is_restarted_like_a_killed_one(servers: BackgroundSupervisor) -> None:
    before = servers.pid("redis")
    servers.kill("redis", signal.SIGTERM, whole=False)
    eventually(lambda: pid_or_none(servers, "redis") not in (before, None))
    servers.wait_ready("redis")


def test_vector_server_answers_milvus_clients(vectors: str) -> None:
    client = MilvusClient(uri=vectors)
    client.create_collection("test_supervisor", dimension=4)
    client.insert("test_supervisor", [{"id": 1, "vector": [1.0, 0.0, 0.0, 0.0]}])
    hits = client.search("test_supervisor", data=[[1.0, 0.0, 0.0, 0.0]], limit=1)
    client.drop_collection("test_supervisor")
    client.close()
    assert hits[0][0]["id"] == 1


def test_local_model_answers_as_an_openai_endpoint(model: str) -> None:
    body = {"model": "smollm2-135m", "max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]}
    request = urllib.request.Request(
        f"{model}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        completion = json.load(answer)
    assert completion["choices"][0]["message"]["content"]
    assert completion["usage"]["completion_tokens"] > 0


def test_each_test_gets_an_empty_database_of_its_own(database: Database, servers: BackgroundSupervisor) -> None:
    with psycopg.connect(database.dsn) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == (database.name,)


def test_servers_listen_on_loopback_only(servers: BackgroundSupervisor) -> None:
    ports = set(servers.around.ports.given.values())
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    rows = [row for table in ("tcp", "tcp6") for row in Path("/proc/net", table).read_text("utf-8").splitlines()[1:]]
    listening = [row.split()[1].split(":") for row in rows if row.split()[3] == "0A"]
    assert not [address for address, port in listening if int(port, 16) in ports and address not in loopback]
