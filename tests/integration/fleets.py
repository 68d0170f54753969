"""A whole fleet for a module of tests: real servers, a keeper and workers that know the test agents."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared.broker.knobs import BrokerKnobs
from shared.client import FleetClient
from shared.db.knobs import DbKnobs
from shared.ledger.knobs import LedgerKnobs
from shared.memory.knobs import MemoryKnobs
from shared.settings import Settings, load
from workers.ops.background import BackgroundSupervisor, running
from workers.ops.surroundings import ROOT
from workers.ops.topology import Wish

QUICK = {"FLEET_LEDGER_HEARTBEAT_S": "0.5", "FLEET_LEDGER_DEAD_AFTER_S": "2", "FLEET_KEEPER_ROUND_S": "0.3"}
"""Takeover in seconds instead of a quarter of a minute, for tests that wait for one."""


@contextmanager
def fleet_of(
    workers: int, *, folder: Path, more: Mapping[str, str] | None = None, **wish: Any
) -> Iterator[BackgroundSupervisor]:
    """Start the full profile without model and vectors."""
    env = {**os.environ, "FLEET_AGENTS": "tests.integration.agents", "FLEET_LOG_LEVEL": "INFO", **(more or {})}
    asked = replace(Wish(profile="full", workers=workers, vectors=False, model=False, flower=False), **wish)
    with running(asked, folder=folder, inherited=env, project=ROOT) as started:
        yield started


def client_of(
    servers: BackgroundSupervisor, *, db_url: str | None = None, broker_url: str | None = None,
    ledger: LedgerKnobs | None = None,
) -> FleetClient:  # fmt: skip
    """A producer of this fleet, in the test's own process."""
    settings: Settings = load()
    return FleetClient(
        replace(
            settings,
            db=DbKnobs(url=db_url or servers.db_url),
            broker=BrokerKnobs(url=broker_url or servers.broker_url),
            ledger=ledger or LedgerKnobs(),
            memory=MemoryKnobs(redis_url=servers.redis_url),
        )
    )
