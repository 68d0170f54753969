"""Migrations find the node that takes writes, and say in one sentence why they cannot run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tests.integration.live import Database
from tests.integration.terminal import WITHOUT_FLEET
from workers.ops.surroundings import ROOT


def migrate(**env: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-m", "alembic", "-c", str(ROOT / "migrations" / "alembic.ini"), "upgrade", "head"],
        cwd=ROOT, env={**WITHOUT_FLEET, "PYTHONPATH": str(ROOT), **env}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stdout + done.stderr
    return done


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
