"""Two PostgreSQL clusters that are two shards of one fleet, and producers that know both."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg

from shared.broker.knobs import BrokerKnobs
from shared.client import FleetClient
from shared.db.knobs import DbKnobs
from shared.db.shards import Shards
from shared.db.shards_file import ShardAddress, parse_shards
from shared.db.tokens import carrying
from shared.settings import load
from tests.integration.nodes import dsn, group_of, nodes_in
from tests.integration.trio import PRIMARY, migrate, url_of
from workers.ops.background import BackgroundSupervisor

MAIN, SECOND = "main", "second"
REDIS = {MAIN: 14, SECOND: 15}
"""Their brokers', of which nobody takes."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """Both servers, by shard, and the file that says so."""

    servers: dict[str, BackgroundSupervisor]
    file: Path
    broker_url: str

    @property
    def knobs(self) -> DbKnobs:
        """Settings of a process that knows both."""
        return DbKnobs(url=self.url(MAIN), shards=str(self.file))

    @property
    def addresses(self) -> tuple[ShardAddress, ...]:
        """Both, as the file has them."""
        return parse_shards(self.file.read_text(), source="shards", knobs=self.knobs, broker_url=self.broker_url)

    def url(self, shard: str) -> str:
        """A shard's primary, as SQLAlchemy takes it."""
        return url_of(self.servers[shard], PRIMARY)

    def ask(self, shard: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """One statement on one shard."""
        with psycopg.connect(dsn(group_of(self.servers[shard]).node(PRIMARY).port), autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def reset(self) -> None:
        """As when they were new."""
        for shard in (MAIN, SECOND):
            for table, trigger in (("tasks", "shard_place"), ("tasks", "shard_claim"), ("messages", "shard_place")):
                self.ask(shard, f"ALTER TABLE {table} DISABLE TRIGGER {trigger}")
            self.ask(shard, "TRUNCATE tasks, steps, blobs, signals, messages, shard_buckets, shard_strays, workers")


@contextmanager
def clusters_in(folders: Sequence[Path], *, redis_url: str) -> Iterator[Clusters]:
    """Start them; their brokers are in a Redis that runs."""
    with ExitStack() as stack:
        servers = {
            shard: stack.enter_context(nodes_in(folder, replicas=0))
            for shard, folder in zip((MAIN, SECOND), folders, strict=True)
        }
        ports = {shard: group_of(one).node(PRIMARY).port for shard, one in servers.items()}
        file = folders[0].parent / "shards.yaml"
        file.write_text(
            "shards:\n"
            f"  main: {{primary: {{host: 127.0.0.1, port: {ports[MAIN]}}}}}\n"
            f"  second: {{primary: {{host: 127.0.0.1, port: {ports[SECOND]}}}, broker: {{vhost: '{REDIS[SECOND]}'}}}}\n"
        )
        clusters = Clusters(servers, file, f"{redis_url.rpartition('/')[0]}/{REDIS[MAIN]}")
        for shard in servers:
            migrate(clusters.url(shard))
        yield clusters


@contextmanager
def producer_to(clusters: Clusters) -> Iterator[FleetClient]:
    """A producer that knows both shards."""
    broker = BrokerKnobs(url=clusters.broker_url)
    client = FleetClient(replace(load(), db=clusters.knobs, broker=broker, shards=clusters.addresses))
    with carrying(None):
        try:
            yield client
        finally:
            client.close()


@asynccontextmanager
async def shards_of(clusters: Clusters) -> AsyncIterator[Shards]:
    """Both databases, and the map."""
    shards = Shards(clusters.addresses, clusters.knobs, application_name="test-shards")
    try:
        yield shards
    finally:
        await shards.close()
