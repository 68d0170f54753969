"""A task of a producer's own transaction exists if, and only if, that transaction commits."""

from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from shared.client import FleetClient
from shared.errors import BadInput, UnknownTask
from tests.integration.fleets import STEADY, StartFleet
from workers.ops.background import BackgroundSupervisor


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    with start_fleet(1, more=STEADY) as started:
        yield started


@pytest.fixture
def engine(fleet: BackgroundSupervisor) -> Iterator[Engine]:
    engine = create_engine(fleet.db_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY)"))
    yield engine
    engine.dispose()


@pytest.fixture
async def async_engine(fleet: BackgroundSupervisor) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(fleet.db_url)
    yield engine
    await engine.dispose()


def test_a_sync_session_commits_its_rows_and_its_task_together(client: FleetClient, engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        session.execute(text("INSERT INTO orders VALUES ('a')"))
        task = client.submit("test.echo", {"text": "a"}, tx=session)
        assert task.accepted_by == "transaction"
        with pytest.raises(UnknownTask):
            client.status(task.id)
    assert task.result(30)["said"] == ["a"]


def test_a_rolled_back_session_leaves_no_task(client: FleetClient, engine: Engine) -> None:
    with Session(engine) as session:
        task = client.submit("test.echo", {"text": "b"}, tx=session)
        session.rollback()
        session.execute(text("SELECT 1"))
        session.commit()  # the hook of the first submit fires here, and must find nothing
    sentinel = client.submit("test.echo", {"text": "sentinel"})
    assert sentinel.result(30)
    with pytest.raises(UnknownTask):
        client.status(task.id)


def test_a_savepoint_that_commits_inside_a_rolled_back_transaction_leaves_no_task(
    client: FleetClient, engine: Engine
) -> None:
    with Session(engine) as session:
        with session.begin_nested():
            task = client.submit("test.echo", {"text": "c"}, tx=session)
        session.rollback()
    assert client.submit("test.echo", {"text": "sentinel"}).result(30)
    with pytest.raises(UnknownTask):
        client.status(task.id)


def test_a_scoped_session_and_a_connection_work_alike(client: FleetClient, engine: Engine) -> None:
    registry = scoped_session(sessionmaker(engine))
    first = client.submit("test.echo", {"text": "d"}, tx=registry)
    registry.commit()
    registry.remove()
    with engine.begin() as connection:
        second = client.submit("test.echo", {"text": "e"}, tx=connection)
    assert [first.result(30)["said"], second.result(30)["said"]] == [["d"], ["e"]]


async def test_an_async_session_and_an_async_connection_work_alike(
    client: FleetClient, async_engine: AsyncEngine
) -> None:
    async with AsyncSession(async_engine) as session, session.begin():
        first = await client.asubmit("test.echo", {"text": "f"}, tx=session)
    async with async_engine.begin() as connection:
        second = await client.asubmit("test.echo", {"text": "g"}, tx=connection)
    assert (await first.aresult(30))["said"] == ["f"]
    assert (await second.aresult(30))["said"] == ["g"]
    await client.aclose()


async def test_the_wrong_kind_of_transaction_is_refused_with_the_remedy(
    client: FleetClient, engine: Engine, async_engine: AsyncEngine
) -> None:
    async with AsyncSession(async_engine) as session:
        with pytest.raises(BadInput, match=r"await asubmit\(\)"):
            client.submit("test.echo", {"text": "h"}, tx=session)  # type: ignore[arg-type]
    with Session(engine) as sync_session, pytest.raises(BadInput, match=r"call submit\(\)"):
        await client.asubmit("test.echo", {"text": "h"}, tx=sync_session)  # type: ignore[arg-type]
    not_started: AsyncConnection = async_engine.connect()
    with pytest.raises(Exception, match=r"not started|not been started"):
        await client.asubmit("test.echo", {"text": "h"}, tx=not_started)
    await client.aclose()


def test_the_same_key_in_a_second_transaction_is_the_same_task(client: FleetClient, engine: Engine) -> None:
    ids = set()
    for _ in range(2):
        with Session(engine) as session, session.begin():
            ids.add(client.submit("test.echo", {"text": "k"}, tx=session, idempotency_key="order-1").id)
    (task_id,) = ids
    assert client.result(task_id, 30)["said"] == ["k"]
    assert client.status(task_id).epoch == 1
