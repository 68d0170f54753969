"""Every way in which SQLAlchemy can reach a server: inside one unit of work all of them reach one node."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import BigInteger, ForeignKey, Sequence, delete, func, insert, literal, select, text, update
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from shared.db.database import Database
from shared.db.sessions import ReadSession
from shared.errors import ReadOnlyUnit
from tests.integration.live import eventually
from tests.integration.nodes import ask
from tests.integration.trio import FIRST, PRIMARY, SECOND, admitted, door_to, node_name, trio
from workers.ops.background import BackgroundSupervisor

__all__ = ["trio"]
Probe = Callable[[AsyncSession], Awaitable[Any]]
NODE = "SELECT current_setting('port')"


class Row(DeclarativeBase):
    """The probes' tables."""


class Parent(Row):
    """One row that is there, and those that probes add."""

    __tablename__ = "parents"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(default="new")
    children: Mapped[list["Child"]] = relationship(lazy="select")


class Child(Row):
    """A row of a parent's."""

    __tablename__ = "children"
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    parent_id: Mapped[int] = mapped_column(ForeignKey("parents.id"))


READS: dict[str, Probe] = {}
WRITES: dict[str, Probe] = {}


def reads(probe: Probe) -> Probe:
    READS[probe.__name__] = probe
    return probe


def writes(probe: Probe) -> Probe:
    WRITES[probe.__name__] = probe
    return probe


@reads
async def select_a_row(session: AsyncSession) -> Any:
    return (await session.scalars(select(Parent.name).where(Parent.id == 1))).one()


@reads
async def get_a_row(session: AsyncSession) -> Any:
    return await session.get_one(Parent, 1)


@reads
async def load_lazily(session: AsyncSession) -> Any:
    parent = await session.get_one(Parent, 1)
    return await session.run_sync(lambda _: [child.id for child in parent.children])


@reads
async def refresh(session: AsyncSession) -> Any:
    await session.refresh(await session.get_one(Parent, 1))


@reads
async def load_what_expired(session: AsyncSession) -> Any:
    parent = await session.get_one(Parent, 1)
    session.expire(parent)
    return await session.run_sync(lambda _: parent.name)


@reads
async def stream(session: AsyncSession) -> Any:
    return [name async for name in await session.stream_scalars(select(Parent.name))]


@reads
async def text_select(session: AsyncSession) -> Any:
    return await session.scalar(text("SELECT name FROM parents WHERE name <> 'insert into; FOR UPDATE'"))


@reads
async def session_connection(session: AsyncSession) -> Any:
    return await (await session.connection()).scalar(select(Parent.name))


@writes
async def flush(session: AsyncSession) -> Any:
    session.add(Parent(id=2))
    await session.flush()


@writes
async def bulk_save_objects(session: AsyncSession) -> Any:
    await session.run_sync(lambda sync: sync.bulk_save_objects([Parent(id=2)]))


@writes
async def bulk_insert_mappings(session: AsyncSession) -> Any:
    await session.run_sync(lambda sync: sync.bulk_insert_mappings(Parent.__mapper__, [{"id": 2, "name": "x"}]))


@writes
async def execute_insert(session: AsyncSession) -> Any:
    await session.execute(insert(Parent).values(id=2))


@writes
async def insert_returning(session: AsyncSession) -> Any:
    return (await session.scalars(insert(Parent).values(id=2).returning(Parent))).one()


@writes
async def bulk_insert(session: AsyncSession) -> Any:
    await session.execute(insert(Parent), [{"id": 2}, {"id": 3}])


@writes
async def execute_update(session: AsyncSession) -> Any:
    await session.execute(update(Parent).values(name="x"))


@writes
async def bulk_update_by_key(session: AsyncSession) -> Any:
    await session.execute(update(Parent), [{"id": 1, "name": "x"}])


@writes
async def execute_delete(session: AsyncSession) -> Any:
    await session.execute(delete(Child))


@writes
async def delete_an_object(session: AsyncSession) -> Any:
    await session.delete(await session.get_one(Child, 1))
    await session.flush()


@writes
async def change_an_object(session: AsyncSession) -> Any:
    (await session.get_one(Parent, 1)).name = "x"
    await session.flush()


@writes
async def merge(session: AsyncSession) -> Any:
    await session.merge(Parent(id=1, name="x"))
    await session.flush()


@writes
async def cte_insert(session: AsyncSession) -> Any:
    made = insert(Parent).values(id=2).returning(Parent.id).cte("made")
    return (await session.scalars(select(made.c.id))).one()


@writes
async def text_update(session: AsyncSession) -> Any:
    await session.execute(text("UPDATE parents SET name = 'x'"))


@writes
async def text_for_update(session: AsyncSession) -> Any:
    await session.execute(text("SELECT * FROM parents FOR UPDATE"))


@writes
async def select_for_update(session: AsyncSession) -> Any:
    return (await session.scalars(select(Parent).with_for_update())).all()


@writes
async def get_for_share(session: AsyncSession) -> Any:
    return await session.get(Parent, 1, with_for_update={"read": True})


@writes
async def hidden_in_a_function(session: AsyncSession) -> Any:
    await session.execute(text("SELECT rename_all()"))


@writes
async def nextval(session: AsyncSession) -> Any:
    return await session.scalar(select(func.nextval("numbers")))


@writes
async def sequence(session: AsyncSession) -> Any:
    return await session.scalar(Sequence("numbers"))


@writes
async def connection_insert(session: AsyncSession) -> Any:
    await (await session.connection()).execute(insert(Parent).values(id=2))


@writes
async def advisory_lock(session: AsyncSession) -> Any:
    await session.execute(select(func.pg_advisory_xact_lock(literal(7, BigInteger))))


@writes
async def autoflush_then_select(session: AsyncSession) -> Any:
    session.add(Parent(id=2))
    await session.flush()
    assert (await session.scalars(select(Parent.id).where(Parent.id == 2))).one() == 2


@writes
async def autoflush_by_a_select(session: AsyncSession) -> Any:
    session.add(Parent(id=2))
    found = (await session.scalars(select(Parent.id).where(Parent.id == 2))).all()
    assert found == ([] if isinstance(session, ReadSession) else [2])  # there its end tells of the mistake


@reads
async def two_phases_by_the_api(session: AsyncSession) -> Any:
    connection = await session.connection()
    with pytest.raises(InvalidRequestError, match="already"):
        await connection.run_sync(lambda sync: sync.begin_twophase())


@writes
async def flush_then_refresh(session: AsyncSession) -> Any:
    session.add(parent := Parent(id=2))
    await session.flush()
    await session.refresh(parent)


@writes
async def update_then_select(session: AsyncSession) -> Any:
    await session.execute(text("UPDATE parents SET name = 'mine' WHERE id = 1"))
    assert await session.scalar(text("SELECT name FROM parents WHERE id = 1")) == "mine"


@writes
async def read_then_flush(session: AsyncSession) -> Any:
    before = (await session.scalars(select(Parent.id))).all()
    session.add(Parent(id=2))
    await session.flush()
    assert len((await session.scalars(select(Parent.id))).all()) == len(before) + 1


SCHEMA = """
    CREATE TABLE IF NOT EXISTS parents (id bigint PRIMARY KEY, name text NOT NULL DEFAULT 'new');
    CREATE TABLE IF NOT EXISTS children (id bigint PRIMARY KEY, parent_id bigint NOT NULL REFERENCES parents);
    CREATE SEQUENCE IF NOT EXISTS numbers;
    CREATE OR REPLACE FUNCTION rename_all() RETURNS void LANGUAGE sql AS 'UPDATE parents SET name = ''x''';
    INSERT INTO parents VALUES (1, 'one') ON CONFLICT DO NOTHING;
    INSERT INTO children VALUES (1, 1) ON CONFLICT DO NOTHING"""


@pytest.fixture(scope="module")
def schema(trio: BackgroundSupervisor) -> BackgroundSupervisor:
    for statement in SCHEMA.split(";\n"):
        ask(trio, PRIMARY, statement)
    for replica in (FIRST, SECOND):
        eventually(partial(_has_all, trio, replica))
    return trio


def _has_all(servers: BackgroundSupervisor, replica: str) -> bool:
    is_there = ask(servers, replica, "SELECT to_regclass('children') IS NOT NULL") == [(True,)]
    return is_there and ask(servers, replica, "SELECT id FROM children") == [(1,)]


@pytest_asyncio.fixture
async def database(schema: BackgroundSupervisor) -> AsyncIterator[Database]:
    async with door_to(schema) as database:
        await admitted(database)
        yield database


@pytest.mark.parametrize("name", [*READS, *WRITES])
async def test_in_a_writing_unit_everything_happens_on_the_primary(
    database: Database, schema: BackgroundSupervisor, name: str
) -> None:
    with suppress(UndoneError):
        async with database.unit() as session:
            await (READS | WRITES)[name](session)
            assert await session.scalar(text(NODE)) == node_name(schema, PRIMARY).split(":")[1]
            raise UndoneError


@pytest.mark.parametrize("name", [*READS])
async def test_in_a_reading_unit_everything_comes_from_one_replica(
    database: Database, schema: BackgroundSupervisor, name: str
) -> None:
    replicas = {node_name(schema, one).split(":")[1] for one in (FIRST, SECOND)}
    async with database.unit(mode="ro", consistency="eventual") as session:
        node = await session.scalar(text(NODE))
        await READS[name](session)
        assert await session.scalar(text(NODE)) == node
        assert node in replicas


@pytest.mark.parametrize("consistency", ["eventual", "primary"])
@pytest.mark.parametrize("name", [*WRITES])
async def test_a_write_in_a_reading_unit_is_a_named_mistake_that_reaches_no_server(
    database: Database, name: str, consistency: Any
) -> None:
    with pytest.raises(ReadOnlyUnit) as caught:
        async with database.unit(mode="ro", consistency=consistency) as session:
            await WRITES[name](session)
    by_the_server = isinstance(caught.value.__cause__, DBAPIError)
    assert by_the_server == (name == "hidden_in_a_function")


async def test_what_was_committed_is_whole_afterwards_while_no_replica_has_it(
    database: Database, schema: BackgroundSupervisor
) -> None:
    for replica in (FIRST, SECOND):
        ask(schema, replica, "SELECT pg_wal_replay_pause()")
    try:
        async with database.unit() as session:
            session.add(parent := Parent(id=50))
            await session.flush()
            await session.refresh(parent)
            session.expire(parent, ["name"])
            assert await session.run_sync(lambda _: parent.name) == "new"
        assert parent.name == "new"  # asked of nobody
        async with database.unit(mode="ro", consistency="causal") as read:
            again = await read.merge(parent, load=False)
            read.expire(again)
            assert await read.run_sync(lambda _: (again.name, again.children)) == ("new", [])
    finally:
        for replica in (FIRST, SECOND):
            ask(schema, replica, "SELECT pg_wal_replay_resume()")


@pytest.mark.parametrize(
    ("mode", "kind", "told"),
    [("rw", DBAPIError, "prepared transactions are disabled"), ("ro", ReadOnlyUnit, "cannot do 'PREPARE TRANSACTION'")],
)
async def test_two_phases_are_the_servers_to_refuse_in_a_writing_unit_and_never_reach_it_from_a_reading_one(
    database: Database, mode: Any, kind: type[Exception], told: str
) -> None:
    async def prepare() -> None:
        async with database.unit(mode=mode) as session:
            await session.execute(text("PREPARE TRANSACTION 'probe'"))

    with pytest.raises(kind, match=told):
        await prepare()


def test_there_are_all_of_them() -> None:
    assert len(READS) + len(WRITES) >= 32


class UndoneError(Exception):
    """Nothing of a probe is kept."""
