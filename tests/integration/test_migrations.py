"""Migrations find the node that takes writes, and say in one sentence why they cannot run."""

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from tests.integration.live import Database, eventually
from tests.integration.terminal import WITHOUT_FLEET
from workers.ops.surroundings import ROOT


def alembic(*order: str, **env: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "alembic", "-c", str(ROOT / "migrations" / "alembic.ini"), *order],
        cwd=ROOT, env={**WITHOUT_FLEET, "PYTHONPATH": str(ROOT), **env}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: "subprocess.Popen[str]") -> "subprocess.CompletedProcess[str]":
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in out + err
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def migrate(**env: str) -> "subprocess.CompletedProcess[str]":
    return ended(alembic("upgrade", "head", **env))


def back_to(revision: str, database: Database) -> None:
    done = ended(alembic("downgrade", revision, FLEET_DB_URL=database.url))
    assert done.returncode == 0, done.stderr


def version(database: Database) -> str:
    with psycopg.connect(database.dsn) as look:
        return str(look.execute("SELECT version_num FROM alembic_version").fetchone()[0])  # type: ignore[index]


def test_the_primary_is_found_where_the_first_address_is_a_replica(database: Database) -> None:
    done = migrate(FLEET_DB_URL=database.replica_url, FLEET_DB_REPLICAS=database.url)
    assert done.returncode == 0, done.stderr


def test_the_primary_is_found_among_the_nodes_of_the_file(database: Database, tmp_path: Path) -> None:
    replica, primary = make_url(database.replica_url), make_url(database.url)
    nodes = tmp_path / "db.yaml"
    nodes.write_text(
        f"primary: {{host: {replica.host}, port: {replica.port}}}\n"
        f"replicas: [{{host: {primary.host}, port: {primary.port}}}]\n"
    )
    done = migrate(FLEET_DB_URL=database.url, FLEET_DB_CONFIG=str(nodes))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"FLEET_DB_POOL_SIZE": "many"}, "FLEET_DB_POOL_SIZE: input should be a valid integer"),
        ({"FLEET_DB_CONFIG": os.devnull}, f"{os.devnull}, line 1: expected a mapping"),
        (
            {"FLEET_DB_URL": "postgresql+psycopg://fleet@127.0.0.1:1/fleet"},
            'takes writes: connection failed: connection to server at "127.0.0.1", port 1 failed: Connection refused',
        ),
    ],
)
def test_what_cannot_work_is_told_in_one_sentence(env: dict[str, str], told: str) -> None:
    done = migrate(**env)
    assert done.returncode == 1
    assert done.stderr.startswith("fleet migrate: ")
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_replica_alone_takes_no_migration(database: Database) -> None:
    done = migrate(FLEET_DB_URL=database.replica_url)
    assert done.returncode == 1
    assert "takes writes" in done.stderr


def test_a_table_in_use_is_told_in_one_sentence_and_what_was_migrated_before_stays(database: Database) -> None:
    back_to("0004_pre", database)
    with psycopg.connect(database.dsn) as user:
        user.execute("SELECT count(*) FROM limits")
        done = migrate(FLEET_DB_URL=database.url)
        assert (done.returncode, version(database)) == (1, "0005_pre")
        assert done.stderr.startswith("fleet migrate: a table was in use for 2 s, 3 times")
        assert done.stderr.count("\n") == 1
    assert migrate(FLEET_DB_URL=database.url).returncode == 0
    assert version(database) == "0007_pre"


def test_indexes_are_built_beside_those_who_write_however_long_it_takes_and_one_after_another(
    database: Database,
) -> None:
    back_to("0006_pre", database)
    env = {"FLEET_DB_URL": database.url, "FLEET_DB_STATEMENT_TIMEOUT_S": "1"}
    waits = "SELECT pid FROM pg_stat_activity WHERE query LIKE %s AND query_start < clock_timestamp() - interval '3 s'"
    with psycopg.connect(database.dsn) as old, psycopg.connect(database.dsn) as writer:
        old.execute("LOCK TABLE tasks IN ROW EXCLUSIVE MODE")  # as every writer does
        first = alembic("upgrade", "head", **env)
        with psycopg.connect(database.dsn, autocommit=True) as look:
            eventually(lambda: look.execute(waits, ["CREATE INDEX CONCURRENTLY%"]).fetchone(), within_s=120)
        second = alembic("upgrade", "head", **env)
        assert second.stderr is not None
        assert "another migration is under way" in second.stderr.readline()
        writer.execute("SET LOCAL lock_timeout = '1s'")
        writer.execute("LOCK TABLE tasks IN ROW EXCLUSIVE MODE")
    assert [ended(one).returncode for one in (first, second)] == [0, 0]
    with psycopg.connect(database.dsn) as look:
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid IN (%s::regclass, %s::regclass)"
        assert look.execute(valid, ["tasks_awaiting_idx", "tasks_kin_idx"]).fetchall() == [(True,), (True,)]
