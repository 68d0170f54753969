"""Units of work for threads without a loop, on a primary and two replicas: the same rules as for those with one."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import insert, select, text

from shared.broker.knobs import BrokerKnobs
from shared.client import FleetClient
from shared.db import tokens
from shared.db.decide import Consistency
from shared.db.knobs import DbKnobs
from shared.db.sessions import SyncReadSession, SyncWriteSession
from shared.db.tables import messages
from shared.db.tokens import carrying
from shared.errors import CommitUnknown, DatabaseUnavailable, PoolExhausted, ReadOnlyUnit
from shared.settings import load
from tests.integration.live import eventually
from tests.integration.nodes import ask
from tests.integration.trio import FIRST, NODES, PATIENT_S, PRIMARY, SECOND, admitted, migrate, trio, url_of
from workers.ops.background import BackgroundSupervisor

__all__ = ["trio"]
PID = text("SELECT pg_backend_pid()")
NO_BROKER = BrokerKnobs(url="amqp://guest@127.0.0.1:1//")


@pytest.fixture(scope="module")
def table(trio: BackgroundSupervisor) -> BackgroundSupervisor:
    migrate(url_of(trio, PRIMARY))
    for statement in (
        "CREATE TABLE kept (id int PRIMARY KEY, value int NOT NULL)",
        "CREATE TABLE slow (id int)",
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(20); END $$",
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION slow()",
    ):
        ask(trio, PRIMARY, statement)
    return trio


@contextmanager
def client_to(servers: BackgroundSupervisor, *, nodes: tuple[str, ...] = NODES, **knobs: Any) -> Iterator[FleetClient]:
    how: dict[str, Any] = {"look_every_s": 0.05, "answer_timeout_s": PATIENT_S, "return_after_s": 0.2, **knobs}
    first, *others = [url_of(servers, name) for name in nodes]
    db = DbKnobs(url=first, replicas=",".join(others), **how)
    client = FleetClient(replace(load(), db=db, broker=NO_BROKER))
    with carrying(None):
        try:
            yield client
        finally:
            client.close()


@pytest.fixture
def client(table: BackgroundSupervisor) -> Iterator[FleetClient]:
    with client_to(table) as client:
        yield client


@contextmanager
def paused(servers: BackgroundSupervisor) -> Iterator[None]:
    for replica in (FIRST, SECOND):
        ask(servers, replica, "SELECT pg_wal_replay_pause()")
    try:
        yield
    finally:
        for replica in (FIRST, SECOND):
            ask(servers, replica, "SELECT pg_wal_replay_resume()")


def test_a_write_is_seen_by_the_next_causal_read_wherever_it_goes(client: FleetClient) -> None:
    with client.unit() as unit:
        unit.execute(text("INSERT INTO kept VALUES (1, 0)"))
    went = set()
    for value in range(1, 1000):
        with client.unit() as unit:
            unit.execute(text("UPDATE kept SET value = :value WHERE id = 1"), {"value": value})
        with client.unit(mode="ro", consistency="causal") as read:
            assert read.scalar(text("SELECT value FROM kept WHERE id = 1")) == value
            went.add(read.scalar(text("SELECT pg_is_in_recovery()")))
        if value >= 60 and True in went:
            break
    assert True in went


def test_a_unit_that_has_asked_nothing_yet_may_be_of_any_kind(client: FleetClient) -> None:
    for _ in range(2):
        with client.unit() as unit:
            unit.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            assert unit.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        with client.unit(mode="ro") as read:
            assert read.scalar(text("SHOW transaction_read_only")) == "on"
        with client.unit() as unit:
            assert unit.scalar(text("SHOW transaction_isolation")) == "read committed"
            assert unit.scalar(text("SHOW transaction_read_only")) == "off"


def test_while_replay_is_paused_causal_reads_go_to_the_primary_and_eventual_ones_do_not(
    client: FleetClient, table: BackgroundSupervisor
) -> None:
    client.operate(admitted)
    with paused(table):
        with client.unit() as unit:
            unit.execute(text("INSERT INTO kept VALUES (2, 7)"))
        with client.unit(mode="ro", consistency="causal") as read:
            assert read.scalar(text("SELECT value FROM kept WHERE id = 2")) == 7
            assert read.scalar(text("SELECT pg_is_in_recovery()")) is False
        with client.unit(mode="ro", consistency="eventual") as read:
            assert read.scalar(text("SELECT value FROM kept WHERE id = 2")) is None


def test_the_token_of_a_commit_is_the_callers_and_binds_whoever_gets_it(
    client: FleetClient, table: BackgroundSupervisor
) -> None:
    assert tokens.current() is None
    with client.unit() as unit:
        unit.execute(text("INSERT INTO kept VALUES (3, 7)"))
        assert tokens.current() is None  # minted after COMMIT
    written = tokens.current()
    assert written is not None
    with client_to(table) as other, paused(table):
        assert tokens.current() is None
        with other.unit(mode="ro", consistency="causal", token=str(written)) as read:
            assert read.scalar(text("SELECT value FROM kept WHERE id = 3")) == 7


def test_a_task_is_submitted_in_the_unit_and_exists_if_it_commits(client: FleetClient) -> None:
    with client.unit() as unit:
        kept = client.submit("nobody", tx=unit)

    def give_up() -> None:
        with client.unit() as unit:
            client.submit("nobody", tx=unit)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        give_up()
    assert client.status(kept.id).state == "queued"
    assert [task.id for task in client.tasks(agent="nobody")] == [kept.id]


def test_units_inside_a_unit_join_it_and_none_writes_inside_a_reading_one(client: FleetClient) -> None:
    with client.unit() as outer, client.unit() as inner, client.unit(mode="ro", consistency="causal") as reading:
        assert inner is outer
        assert reading is outer  # type: ignore[comparison-overlap]
    with client.unit(mode="ro"), pytest.raises(ReadOnlyUnit, match="open the outer as 'rw'"):
        client.unit()


def test_a_unit_inside_one_that_sees_less_is_refused_with_both_named(client: FleetClient) -> None:
    with client.unit(mode="ro", consistency="eventual"):
        for stricter in ("primary", "causal"):
            told = f"consistency='{stricter}'.* inside one with consistency='eventual'"
            with pytest.raises(ReadOnlyUnit, match=told), client.unit(mode="ro", consistency=stricter):
                pass
        with client.unit(mode="ro", consistency="eventual"):
            pass


def test_a_unit_of_another_thread_is_its_own(client: FleetClient) -> None:
    found = []
    with client.unit() as unit:

        def look() -> None:
            with client.unit() as own:
                found.append(own.scalar(PID))

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert found and found != [unit.scalar(PID)]


@pytest.mark.parametrize("nodes", [NODES, (PRIMARY,)], ids=["three nodes", "one node"])
def test_a_reading_unit_writes_nothing_wherever_it_is(table: BackgroundSupervisor, nodes: tuple[str, ...]) -> None:
    row = {"session_id": "s", "tenant": "t", "role": "user", "content": "hi", "ordinal": 0}

    def in_core(read: SyncReadSession) -> None:
        read.execute(insert(messages).values(**row))

    def in_text(read: SyncReadSession) -> None:
        read.execute(text("SELECT id FROM kept FOR UPDATE"))

    def in_a_function(read: SyncReadSession) -> None:
        read.execute(text("SELECT txid_current()"))
        read.execute(text("DO $$ BEGIN INSERT INTO kept VALUES (99, 0); END $$"))

    consistencies: tuple[Consistency, ...] = ("primary", "eventual") if len(nodes) > 1 else ("primary",)
    with client_to(table, nodes=nodes) as client:
        for write in (in_core, in_text, in_a_function):
            for consistency in consistencies:
                with pytest.raises(ReadOnlyUnit), client.unit(mode="ro", consistency=consistency) as read:
                    write(read)
        with client.unit() as unit:
            assert unit.scalar(select(messages.c.id).limit(1)) is None
            assert unit.scalar(text("SELECT count(*) FROM kept WHERE id = 99")) == 0


def test_a_commit_whose_answer_is_lost_is_its_own_result(client: FleetClient, table: BackgroundSupervisor) -> None:
    def cut(pid: int) -> None:
        commits = "SELECT pid FROM pg_stat_activity WHERE pid = %s AND query LIKE 'COMMIT%%'"
        eventually(lambda: ask(table, PRIMARY, commits, pid))
        ask(table, PRIMARY, "SELECT pg_terminate_backend(%s)", pid)

    cutters = []

    def write() -> None:
        with client.unit() as unit:
            unit.execute(text("INSERT INTO slow VALUES (1)"))
            cutters.append(threading.Thread(target=cut, args=(unit.scalar(PID),)))
            cutters[0].start()

    with pytest.raises(CommitUnknown, match="look whether it is there"):
        write()
    cutters[0].join()
    with client.unit() as unit:
        assert unit.scalar(text("SELECT count(*) FROM slow")) == 0


def test_a_connection_lost_before_commit_is_no_such_thing(client: FleetClient, table: BackgroundSupervisor) -> None:
    def write() -> None:
        with client.unit() as unit:
            ask(table, PRIMARY, "SELECT pg_terminate_backend(%s)", unit.scalar(PID))
            unit.execute(text("SELECT 1"))

    with pytest.raises(DatabaseUnavailable) as caught:
        write()
    assert not isinstance(caught.value, CommitUnknown)


def test_the_callers_own_trouble_with_a_file_is_not_the_databases(client: FleetClient) -> None:
    with pytest.raises(ConnectionResetError), client.unit():
        raise ConnectionResetError("the caller's")


@pytest.mark.parametrize("mode", ["idle", "in use"])
def test_a_stopped_backend_holds_nobody_beyond_the_limit(table: BackgroundSupervisor, mode: str) -> None:
    with client_to(table, statement_timeout_s=1.0, answer_timeout_s=0.5) as client:
        with client.unit() as unit:
            pid = int(unit.scalar(PID) or 0)
        began = time.monotonic()

        def work() -> None:
            nonlocal pid
            if mode == "idle":
                os.kill(pid, signal.SIGSTOP)
            with client.unit() as unit:
                if mode == "in use":
                    pid = int(unit.scalar(PID) or 0)
                    os.kill(pid, signal.SIGSTOP)
                unit.execute(text("SELECT 1"))

        try:
            if mode == "idle":  # the ping is cut, another connection is opened
                work()
            else:
                with pytest.raises(DatabaseUnavailable, match=r"silent for 1\.5 s"):
                    work()
            assert time.monotonic() - began < 10
        finally:
            os.kill(pid, signal.SIGCONT)


def test_an_exhausted_pool_says_which_threads_hold_it(table: BackgroundSupervisor) -> None:
    with client_to(table, nodes=(PRIMARY,), pool_size=1, connect_timeout_s=2) as client:
        held, release = threading.Barrier(3), threading.Event()

        def hold() -> None:
            with client.unit() as unit:
                unit.execute(text("SELECT 1"))
                held.wait()
                release.wait()

        threads = [threading.Thread(target=hold, name=f"holder-{number}") for number in (1, 2)]
        for thread in threads:
            thread.start()
        try:
            held.wait(timeout=30)
            with pytest.raises(PoolExhausted, match=r"thread holder-[12], thread holder-[12]"), client.unit():
                pass
        finally:
            release.set()
            for thread in threads:
                thread.join()


def test_a_type_checker_tells_a_reader_from_a_writer(client: FleetClient) -> None:
    def rename(writer: SyncWriteSession) -> None:
        writer.execute(text("SELECT 1"))

    with client.unit(mode="ro") as read:
        rename(read)  # type: ignore[arg-type]
    with client.unit() as write:
        rename(write)


def test_a_closed_client_opens_anew(client: FleetClient) -> None:
    with client.unit() as unit:
        unit.execute(text("SELECT 1"))
    client.close()
    with client.unit() as unit:
        assert unit.scalar(text("SELECT 1")) == 1
