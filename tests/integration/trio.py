"""A primary and two streaming replicas of a test module's own, and doors to all three."""

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
from shared.db.tokens import carrying
from tests.integration.nodes import group_of, nodes_in
from workers.ops.background import BackgroundSupervisor
from workers.ops.surroundings import ROOT

PRIMARY, FIRST, SECOND = "postgres", "replica", "replica-2"
NODES = (PRIMARY, FIRST, SECOND)


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
    how: dict[str, Any] = {"look_every_s": 0.05, "answer_timeout_s": 1.0, "return_after_s": 0.2, **knobs}
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


def standing_of(database: Database, name: str) -> Standing:
    """What is thought of a node."""
    return next(one for one in router_of(database).cluster.standings if one.name == name)
