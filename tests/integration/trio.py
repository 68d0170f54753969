"""A primary and two streaming replicas of a test module's own, and doors to all three."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shared.db.database import Database
from shared.db.facts import Standing
from shared.db.knobs import DbKnobs
from shared.db.router import Router
from shared.db.tokens import CausalToken, carrying
from tests.integration.nodes import group_of, nodes_in
from workers.ops.background import BackgroundSupervisor
from workers.ops.surroundings import ROOT

PRIMARY, FIRST, SECOND = "postgres", "replica", "replica-2"
NODES = (PRIMARY, FIRST, SECOND)
PATIENT_S = 5.0
"""For an answer, where no node hangs: on a busy machine one that is well may take its time."""


@pytest.fixture(scope="module")
def trio(run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    """The three servers."""
    with nodes_in(run_folder(), replicas=2) as servers:
        yield servers


def url_of(servers: BackgroundSupervisor, node: str) -> str:
    """A node's address, as SQLAlchemy takes it."""
    return f"postgresql+psycopg://fleet@127.0.0.1:{group_of(servers).node(node).port}/fleet"


def migrate(url: str) -> None:
    """Give a database the fleet's tables."""
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "-c", str(ROOT / "migrations" / "alembic.ini"), "upgrade", "head"],
        env={**os.environ, "FLEET_DB_URL": url, "PYTHONPATH": str(ROOT)}, cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def node_name(servers: BackgroundSupervisor, node: str) -> str:
    """A node, as the router names it."""
    return f"127.0.0.1:{group_of(servers).node(node).port}"


@asynccontextmanager
async def door_to(servers: BackgroundSupervisor, **knobs: Any) -> AsyncIterator[Database]:
    """A database with three nodes, looked at often; and a trail of its own."""
    how: dict[str, Any] = {"look_every_s": 0.05, "answer_timeout_s": PATIENT_S, "return_after_s": 0.2, **knobs}
    nodes = [url_of(servers, name) for name in NODES]
    database = Database(DbKnobs(url=nodes[0], replicas=",".join(nodes[1:]), **how), application_name="trio")
    with carrying(None):
        try:
            yield database
        finally:
            await database.close()


def router_of(database: Database) -> Router:
    """The router of a door to several nodes."""
    assert database.router is not None
    return database.router


async def admitted(database: Database, *, reached: CausalToken | None = None) -> None:
    """Wait until every replica may be read from, and is known to have reached that token.

    At the first look one may be behind the primary: then nobody knows by how much, and the primary serves its reads.
    """
    router = router_of(database)
    await router.ready()
    async with asyncio.timeout(30):
        while not all(
            one.is_admitted and one.facts is not None and (reached is None or one.facts.lsn >= reached.lsn)
            for one in router.cluster.standings
            if not router.view.leads(one.name)
        ):
            await asyncio.sleep(0.01)


def standing_of(database: Database, name: str) -> Standing:
    """What is thought of a node."""
    return next(one for one in router_of(database).cluster.standings if one.name == name)
