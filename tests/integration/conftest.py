"""Real servers for integration tests: Debian's PostgreSQL pair, RabbitMQ and Redis, once per session, on loopback."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from shared.client import FleetClient
from shared.ledger import catalogue, intake
from shared.ledger.knobs import LedgerKnobs
from tests.integration.by_hand import ByHand, by_hand
from tests.integration.fleets import StartFleet, client_of, fleet_on
from tests.integration.gate_fleet import OwnRedis
from tests.integration.live import Database
from workers.ops.background import BackgroundSupervisor, running
from workers.ops.recipes import model as model_recipe
from workers.ops.recipes import vectors as vectors_recipe
from workers.ops.surroundings import ROOT
from workers.ops.topology import Wish, servers_only

MIGRATIONS = ROOT / "migrations" / "alembic.ini"
TEMPLATE = "fleet_template"


@pytest.fixture
def ledger_first_s() -> float | None:
    """Seconds that a submit in this process leaves PostgreSQL to accept it, before the broker alone may: what a test
    does next with the task concerns its row. None: as little as in production, for tests in which a server hangs.
    """
    return 60.0


@pytest.fixture(autouse=True)
def _ledger_first(ledger_first_s: float | None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # of its own: a test's patches end before its other fixtures do
        if ledger_first_s is not None:
            patch.setattr(intake, "LEDGER_WAIT_S", ledger_first_s)
            patch.setattr(catalogue, "READ_S", ledger_first_s)
        yield


@pytest.fixture(scope="session")
def run_folder() -> Iterator[Callable[[], Path]]:
    """Make folders that an unprivileged user can reach (pytest's own are closed to others); removed at the end."""
    made = []

    def make() -> Path:
        folder = Path(tempfile.mkdtemp(prefix="fleet-test-", dir="/tmp"))
        folder.chmod(0o711)
        made.append(folder)
        return folder / "run"

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def servers(run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    """The session's servers, shared by all tests: leave them running and as they were."""
    with start(servers_only(), folder=run_folder()) as started:
        del started.env["FLEET_DB_REPLICAS"]  # each test has a database of its own, of which that address knows nothing
        yield started


@pytest.fixture
def start_servers(run_folder: Callable[[], Path]) -> Iterator[Callable[[Wish], BackgroundSupervisor]]:
    """Start servers of the test's own (`start_servers(wish)`), to break at will; stopped after the test."""
    opened = []

    def own(wish: Wish) -> BackgroundSupervisor:
        opened.append(start(wish, folder=run_folder()))
        return opened[-1].__enter__()

    yield own
    for each in reversed(opened):
        each.__exit__(None, None, None)


@pytest.fixture
def breakable(servers: BackgroundSupervisor) -> Iterator[BackgroundSupervisor]:
    """The servers, with Redis as it was afterwards."""
    servers.suspend("redis")
    yield servers
    if servers.status("redis") == "ready":
        servers.thaw("redis")
    servers.resume("redis")
    servers.wait_ready("redis")


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    """A Redis of the test's own, without a supervisor."""
    server = OwnRedis(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def vectors(servers: BackgroundSupervisor) -> str:
    """The address of a vector server, started when the first test asks for it."""
    spec = vectors_recipe.server(servers.around)
    servers.add(spec)
    servers.env["FLEET_VECTORS_URI"] = spec.url
    return spec.url


@pytest.fixture(scope="session")
def model(servers: BackgroundSupervisor) -> str:
    """The base URL of a local language model, started when the first test asks for it."""
    spec = model_recipe.server(servers.around)
    servers.add(spec)
    servers.env |= {"FLEET_LLM_BASE_URL": spec.url, "FLEET_LLM_MODEL": model_recipe.NAME, "FLEET_LLM_API_KEY": "local"}
    return spec.url


@pytest.fixture(scope="session")
def template(servers: BackgroundSupervisor) -> str:
    """The name of a migrated database that is copied for each test."""
    _administer(servers, f"CREATE DATABASE {TEMPLATE}")
    if MIGRATIONS.exists():
        done = subprocess.run(
            [sys.executable, "-m", "alembic", "-c", str(MIGRATIONS), "upgrade", "head"],
            env={**os.environ, "FLEET_DB_URL": _with_name(servers.db_url, TEMPLATE), "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    return TEMPLATE


@pytest.fixture
def database(servers: BackgroundSupervisor, template: str) -> Iterator[Database]:
    """A fresh migrated database, dropped afterwards, open connections or not."""
    with _fresh(servers, template) as made:
        yield made


@pytest.fixture(scope="session")
def start_fleet(servers: BackgroundSupervisor, template: str, run_folder: Callable[[], Path]) -> StartFleet:
    """Start a keeper and workers on the session's servers (`with start_fleet(2, more=QUICK) as fleet`), one fleet at
    a time; see `fleet_on`.
    """

    @contextmanager
    def start_one(workers: int, **how: Any) -> Iterator[BackgroundSupervisor]:
        with (
            _fresh(servers, template) as database,
            fleet_on(servers, database, workers, folder=run_folder(), **how) as fleet,
        ):
            yield fleet

    return start_one


@pytest.fixture
def client(fleet: BackgroundSupervisor) -> Iterator[FleetClient]:
    """A producer of the module's `fleet`."""
    client = client_of(fleet)
    yield client
    client.close()


@pytest.fixture
def ledger_knobs() -> LedgerKnobs:
    """How patient `producer` is, and what it lets pass."""
    return LedgerKnobs()


@pytest.fixture
async def producer(
    servers: BackgroundSupervisor, database: Database, ledger_knobs: LedgerKnobs
) -> AsyncIterator[FleetClient]:
    """A producer on the test's own database, where nobody works but the test.

    It waits for the ledger, however busy that is: what the broker alone has accepted, nobody would ever bring there.
    """
    client = client_of(servers, db_url=database.url, ledger=ledger_knobs, is_patient=True)
    yield client
    await client.aclose()
    await asyncio.to_thread(client.close)


@pytest.fixture
async def worker(database: Database) -> AsyncIterator[ByHand]:
    """A worker on the test's own database that makes no move by itself."""
    async with by_hand(database.url) as worker:
        yield worker


@pytest.fixture
def diaries(run_folder: Callable[[], Path]) -> Path:
    """A folder in which runs of any user can write."""
    folder = run_folder()
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture
def diary(diaries: Path) -> Path:
    """A page in which runs of any user can write."""
    return diaries / "diary"


def start(wish: Wish, *, folder: Path) -> AbstractContextManager[BackgroundSupervisor]:
    """Start servers with this process's environment."""
    return running(wish, folder=folder, inherited=dict(os.environ), project=ROOT)


@contextmanager
def _fresh(servers: BackgroundSupervisor, template: str) -> Iterator[Database]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    _administer(servers, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield Database(name=name, url=_with_name(servers.db_url, name), replica_url=_with_name(servers.replica_url, name))
    _administer(servers, f"DROP DATABASE {name} WITH (FORCE)")


def _with_name(url: str, name: str) -> str:
    return f"{url.rpartition('/')[0]}/{name}"


def _administer(servers: BackgroundSupervisor, statement: str) -> None:
    with psycopg.connect(_with_name(servers.db_url, "postgres").replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(statement)
