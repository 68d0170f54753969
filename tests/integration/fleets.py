"""A whole fleet for a module of tests: a keeper and workers that know the test agents, on real servers.

`fleet_of` starts servers of its own, for tests that break them; `fleet_on` stands on servers that others use too. Both
end with a look at every invariant of the ledger.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kombu import Connection
from redis import Redis

from shared.broker.knobs import BrokerKnobs
from shared.client import FleetClient
from shared.contracts import DEAD_QUEUE, QUEUES
from shared.db.knobs import DbKnobs
from shared.ledger.knobs import LedgerKnobs
from shared.memory.knobs import MemoryKnobs
from shared.settings import Settings, load
from tests.integration.live import Database
from tests.integration.soundness import assert_sound
from workers.ops.background import BackgroundSupervisor, running
from workers.ops.opening import open_site
from workers.ops.recipes import processes, vectors
from workers.ops.surroundings import ROOT
from workers.ops.topology import Topology, Wish

QUICK = {"FLEET_LEDGER_HEARTBEAT_S": "0.5", "FLEET_LEDGER_DEAD_AFTER_S": "2", "FLEET_KEEPER_ROUND_S": "0.3"}
"""Takeover in seconds instead of a quarter of a minute, for tests that wait for one."""
STEADY = {**QUICK, "FLEET_LEDGER_DEAD_AFTER_S": "15"}
"""The same haste where no worker dies: however busy the machine is, none looks dead."""
WAITING = {
    "FLEET_LEDGER_SUSPEND_AFTER_S": "0.4",
    "FLEET_LEDGER_POLL_S": "0.2",
    "FLEET_LEDGER_HEARTBEAT_S": "1",
    "FLEET_LEDGER_DEAD_AFTER_S": "5",
}
"""Waits of seconds instead of many; patience enough that a busy machine does not look like a dead worker."""
UNHURRIED = {"FLEET_VECTORS_TIMEOUT_S": "10", "FLEET_MEMORY_TIMEOUT_S": "10"}
"""However busy the machine is, no answer comes without its notes, or leaves the cache of its session behind."""
LATER_S = 60.0
HANDED_BACK_ONLY = {"FLEET_LEDGER_LOST_AFTER_S": str(2 * LATER_S), "FLEET_LEDGER_REDISPATCH_S": str(2 * LATER_S)}
"""Nobody finds in less than `LATER_S` what was handed back without a message: what goes on sooner had one."""
PATIENCE_S = 120
"""What a patient producer gives a server that hangs: longer than any test on a busy machine lasts without it."""
FLEETS_REDIS = 2
"""Redis' database of the fleets that share servers: they follow one another."""


StartFleet = Callable[..., AbstractContextManager[BackgroundSupervisor]]
"""What the fixture `start_fleet` gives: the number of workers, then what `fleet_on` takes by name."""


@contextmanager
def fleet_of(
    workers: int, *, folder: Path, more: Mapping[str, str] | None = None, **wish: Any
) -> Iterator[BackgroundSupervisor]:
    """Start the full profile without model and vectors."""
    env = _inherited(more)
    asked = replace(Wish(profile="full", workers=workers, vectors=False, model=False, flower=False), **wish)
    with running(asked, folder=folder, inherited=env, project=ROOT) as started:
        yield started
        assert_sound(started.db_url)


@contextmanager
def fleet_on(
    servers: BackgroundSupervisor, database: Database, workers: int, *, folder: Path,
    more: Mapping[str, str] | None = None, with_vectors: bool = False, with_flower: bool = False,
) -> Iterator[BackgroundSupervisor]:  # fmt: skip
    """Start a keeper and workers on servers that run: a database of its own, the broker's queues and Redis emptied."""
    redis_url = f"{servers.redis_url.rpartition('/')[0]}/{FLEETS_REDIS}"
    env = {**servers.env, "FLEET_DB_URL": database.url, "FLEET_MEMORY_REDIS_URL": redis_url}
    with Redis.from_url(redis_url) as redis, Connection(servers.broker_url) as broker:
        redis.flushdb()
        for queue in (*QUEUES.values(), DEAD_QUEUE):
            broker.default_channel.queue_delete(queue)
    around = open_site(folder, inherited=_inherited(more), project=ROOT)
    try:
        specs = [vectors.server(around)] if with_vectors else []
        if with_vectors:
            env["FLEET_VECTORS_URI"] = specs[0].url
        needs = tuple(spec.name for spec in specs)
        specs.append(processes.keeper(around, env=env, needs=needs))
        specs += [processes.worker(around, number, env=env, needs=needs) for number in range(1, workers + 1)]
        if with_flower:
            specs.append(processes.flower(around, env=env, needs=needs))
        topology = Topology(profile="full", specs=tuple(specs), env=env, replica_url=database.replica_url)
        with BackgroundSupervisor(around, topology) as fleet:
            fleet.up()
            yield fleet
            assert_sound(fleet.db_url)
    finally:
        around.run.close()


def client_of(
    servers: BackgroundSupervisor, *, db_url: str | None = None, broker_url: str | None = None,
    ledger: LedgerKnobs | None = None, is_patient: bool = False,
) -> FleetClient:  # fmt: skip
    """A producer of this fleet, in the test's own process.

    Args:
        is_patient: Its connections wait for `PATIENCE_S`: a submit that waited for one of them would show it.
    """
    settings: Settings = load()
    db, broker = DbKnobs(url=db_url or servers.db_url), BrokerKnobs(url=broker_url or servers.broker_url)
    if is_patient:
        db = replace(db, connect_timeout_s=PATIENCE_S, answer_timeout_s=PATIENCE_S, statement_timeout_s=PATIENCE_S)
        broker = replace(
            broker, connect_timeout_s=PATIENCE_S, confirm_timeout_s=PATIENCE_S, socket_timeout_s=PATIENCE_S
        )
    return FleetClient(
        replace(
            settings,
            db=db,
            broker=broker,
            ledger=ledger or LedgerKnobs(),
            memory=MemoryKnobs(redis_url=servers.redis_url),
        )
    )


def _inherited(more: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, "FLEET_AGENTS": "tests.integration.agents", "FLEET_LOG_LEVEL": "INFO", **(more or {})}
