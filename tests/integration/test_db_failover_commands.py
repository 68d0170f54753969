"""`fleet up --replicas`, `fleet failover db` and what follows, as an operator meets them."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from shared.errors import Misconfigured
from tests.integration.nodes import nodes_in
from tests.integration.terminal import fleet, fleet_json, refusal
from workers.ops.run_dir import RunDir

UP = ("up", "--servers-only", "--profile", "embedded", "--replicas", "1")
GIVEN = {"FLEET_VECTORS_URI": "http://127.0.0.1:1", "FLEET_LLM_BASE_URL": "http://127.0.0.1:1/v1"}


@pytest.fixture(scope="module")
def here(run_folder: Callable[[], Path]) -> Iterator[Path]:
    """A folder with a primary and a replica."""
    folder = run_folder().parent
    up = fleet(*UP, here=folder, env=GIVEN)
    assert up.returncode == 0, up.stderr
    yield folder
    assert fleet("down", here=folder).returncode == 0


def kinds(seen: Any) -> dict[str, str]:
    return {server["name"]: server["kind"].removeprefix("PostgreSQL ") for server in seen["servers"]}


def rows(url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        return connection.execute("SELECT text FROM note ORDER BY 1").fetchall()


def test_an_operator_moves_the_primary_and_back_and_finds_it_where_it_was_left(here: Path) -> None:
    there = ("--dir", str(here / ".fleet"))
    before = fleet_json("status", *there)
    with psycopg.connect(before["env"]["FLEET_DB_URL"].replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE TABLE note (text text)")
        connection.execute("INSERT INTO note VALUES ('kept')")
    told = fleet("failover", "db", *there)
    assert told.returncode == 0, told.stderr
    assert "replica leads in place of postgres; writes again after" in told.stdout
    assert [line.partition(":")[0] for line in told.stderr.splitlines()] == ["detect", "fence", "promote", "rejoin"]
    after = fleet_json("status", *there)
    assert after["healthy"]
    assert kinds(after) | {"redis": ""} == {"postgres": "replica", "replica": "primary", "redis": ""}
    assert after["env"]["FLEET_DB_URL"] == before["env"]["FLEET_DB_REPLICAS"] == before["replica_url"]
    assert after["env"]["FLEET_DB_REPLICAS"] == before["env"]["FLEET_DB_URL"] == after["replica_url"]
    assert rows(after["env"]["FLEET_DB_URL"]) == [("kept",)]

    assert fleet("down", here=here).returncode == 0
    assert fleet(*UP, here=here, env=GIVEN).returncode == 0
    again = fleet_json("status", *there)
    assert again["env"] == after["env"]
    assert kinds(again)["replica"] == "primary"
    moved = fleet_json("failover", "db", "--to", "postgres", *there)
    assert (moved["old"], moved["new"], moved["term"], moved["timeline"]) == ("replica", "postgres", 3, 3)
    assert moved["followers"]["replica"].startswith("streams, by ")
    assert rows(before["env"]["FLEET_DB_URL"]) == [("kept",)]


def test_nodes_are_seen_as_the_fleet_sees_them_and_a_route_is_explained(here: Path) -> None:
    there = ("--dir", str(here / ".fleet"))
    env = fleet_json("status", *there)["env"]
    seen = {one["url"]: one for one in fleet_json("db", "status", env=env)}
    assert {one["role"] for one in seen.values()} == {"primary", "replica"}
    assert seen[env["FLEET_DB_URL"]]["role"] == "primary"
    shown = fleet("db", "status", here=here)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert [line.split()[0] for line in shown.stdout.splitlines()[1:]] == ["postgres", "replica"]
    written = fleet_json("db", "route", "--mode", "rw", env=env)
    assert written["node"] == seen[env["FLEET_DB_URL"]]["name"]
    told = fleet("db", "route", "--explain", "--consistency", "bounded", "--max-staleness-s", "5", env=env)
    assert told.returncode == 0
    replica = next(name["name"] for name in seen.values() if name["role"] == "replica")
    assert told.stdout.splitlines()[0] == f"{replica}: within 5 s of the primary"
    assert [line.partition(": ")[0].strip() for line in told.stdout.splitlines()[1:]] == [
        one["name"] for one in seen.values()
    ]
    refused = refusal(fleet("db", "route", "--consistency", "bounded", env=env), code=2)
    assert "--max-staleness-s SECONDS and --consistency bounded belong together" in refused


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("failover", "db", "--to", "moon"), 2, "There is no PostgreSQL node named moon; known: postgres, replica."),
        (("failover", "db", "--to", "postgres"), 1, "postgres is the primary already."),
    ],
)
def test_what_cannot_be_done_is_one_sentence(here: Path, words: tuple[str, ...], code: int, sentence: str) -> None:
    assert sentence in refusal(fleet(*words, "--dir", str(here / ".fleet")), code=code)


def test_machines_get_a_refusal_as_one_object(here: Path) -> None:
    words = ("failover", "db", "--to", "postgres")
    error = json.loads(refusal(fleet(*words, "--json", "--dir", str(here / ".fleet")), code=1))["error"]
    assert (error["code"], error["context"]) == ("already_primary", {"node": "postgres"})


def test_only_the_owner_of_a_fleet_may_give_it_orders(here: Path) -> None:
    door = RunDir(here / ".fleet").base / "control"
    assert (door.stat().st_uid, door.stat().st_mode & 0o777) == (os.geteuid(), 0o600)


def test_without_a_fleet_here_the_way_to_one_is_named(tmp_path: Path) -> None:
    assert "start one with `fleet up`" in refusal(fleet("failover", "db", "--dir", str(tmp_path)), code=2)
    env = {"FLEET_DB_URL": "postgresql+psycopg://fleet@127.0.0.1:1/fleet"}
    assert "not ours to promote" in refusal(fleet("failover", "db", "--dir", str(tmp_path), env=env), code=2)


def test_a_synchronous_standby_needs_a_replica(run_folder: Callable[[], Path]) -> None:
    with pytest.raises(Misconfigured, match="--sync needs a replica to wait for"):
        nodes_in(run_folder(), replicas=0, synchronous=True).__enter__()
