"""The YAML file of nodes, and what a read-only unit recognises as a write."""

import re
import textwrap

import pytest
from sqlalchemy.engine import make_url

from shared.db.config_file import parse_layout, read_layout
from shared.db.facts import NodeAddress
from shared.db.knobs import DbKnobs
from shared.db.pools import Pool, process_name
from shared.db.read_only import refuse_asynchronous, refuse_writes, write_in
from shared.errors import BadInput, Misconfigured, ReadOnlyUnit

KNOBS = DbKnobs(url="postgresql+psycopg://ann:secret@elsewhere:1/fleet?sslmode=require")
WHOLE = """
primary:
  host: pg-primary.internal
  port: 5432
  pool_size: 20

replicas:
  - host: pg-replica-1.internal
    port: 5432
    pool_size: 30
    weight: 1  # share of the reads
  - host: pg-replica-2.internal
    weight: 2

routing_rules:
  write: primary
  read: replicas
  read_after_write: primary
  transaction: primary
"""


def complaint(text: str) -> str:
    with pytest.raises(Misconfigured) as caught:
        parse_layout(textwrap.dedent(text), source="db.yaml", knobs=KNOBS)
    return caught.value.message


def test_the_whole_form_is_read() -> None:
    layout = parse_layout(WHOLE, source="db.yaml", knobs=KNOBS)
    assert [(one.name, one.weight, one.pool_size) for one in layout.nodes] == [
        ("pg-primary.internal:5432", 1, 20),
        ("pg-replica-1.internal:5432", 1, 30),
        ("pg-replica-2.internal:5432", 2, 5),
    ]
    assert layout.nodes[2].url == "postgresql+psycopg://ann:secret@pg-replica-2.internal:5432/fleet?sslmode=require"
    assert (layout.rules.read, layout.rules.read_after_write) == ("replicas", "primary")


def test_without_a_file_the_urls_are_the_nodes_each_once() -> None:
    url, other = "postgresql+psycopg://h:1/d", "postgresql+psycopg://h:2/d"
    layout = read_layout(DbKnobs(url=url, replicas=f" {other} , {url},"))
    assert [(one.name, one.url) for one in layout.nodes] == [("h:1", url), ("h:2", other)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- primary", "db.yaml, line 1: expected a mapping of keys"),
        ("", "db.yaml, line 1: expected a mapping of keys"),
        ("primary: {host: a\n", "db.yaml, line 2: not YAML: "),
        ("primary:\n  host: a\n  prot: 1\n", "db.yaml, line 3, primary.prot: no such key"),
        ("replicas: []\n", "db.yaml, line 1, primary: this key is missing"),
        ("primary:\n  port: 1\n", "db.yaml, line 1, primary.host: this key is missing"),
        (
            "primary:\n  host: a\n  port: 70000\n",
            "db.yaml, line 3, primary.port: input should be less than or equal to 65535 (got 70000)",
        ),
        (
            "primary:\n  host: a\nreplicas:\n  - host: b\n    weight: -1\n",
            "db.yaml, line 5, replicas[0].weight: input should be greater than or equal to 0 (got -1)",
        ),
        (
            "primary:\n  host: a\nrouting_rules:\n  write: replicas\n",
            "db.yaml, line 4, routing_rules.write: input should be 'primary' (got 'replicas')",
        ),
        ("primary:\n  host: a\nreplicas:\n  - host: a\n", "db.yaml, line 4, replicas[0]: a:5432 is listed already"),
        (
            "primary:\n  host: a\nreplicas:\n  - host: a\n    name: other\n",
            "db.yaml, line 4, replicas[0]: a:5432 is listed already",
        ),
        ("primary:\n  host: a\n  host: b\n", "db.yaml, line 2, primary.host: this key is set twice"),
        (
            "primary:\n  host: a\nreplicas:\n  - host: b\n    weight: 0\n  - host: c\n    weight: 0\n",
            "db.yaml, line 1: every replica has weight 0, and reads go to replicas: give one of them a weight",
        ),
    ],
)
def test_what_does_not_fit_is_named_with_its_line_and_key(text: str, told: str) -> None:
    assert complaint(text).startswith(told)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(Misconfigured, match=r"FLEET_DB_CONFIG: /nowhere/db\.yaml cannot be read: No such file"):
        read_layout(DbKnobs(config="/nowhere/db.yaml"))


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"replicas": "mysql://h/d"}, "replicas must each start with"),
        ({"replicas": "postgresql+psycopg://h/d", "config": "x"}, "must not both be given"),
        ({"overflow": 0}, "overflow must be positive"),
        ({"causal_wait_s": -1.0}, "causal_wait_s must not be negative"),
    ],
)
def test_knobs_that_cannot_work_are_refused(knobs: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        DbKnobs(**knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO t VALUES (1)", "insert\n into t select 1", "UPDATE t SET a = 1", "DELETE FROM t", "TRUNCATE t",
        "WITH x AS (INSERT INTO t VALUES (1) RETURNING a) SELECT a FROM x", "SELECT a FROM t FOR UPDATE",
        "SELECT a FROM t FOR NO KEY UPDATE", "SELECT a FROM t FOR KEY SHARE", "SELECT nextval('s')",
        "SELECT pg_advisory_xact_lock(1)", "SELECT pg_try_advisory_lock (1)", "CREATE TABLE t (a int)",
        "SELECT 1; DROP TABLE t", "LOCK TABLE t", "COPY t FROM STDIN", "SET TRANSACTION READ WRITE",
        "SET default_transaction_read_only = off", "MERGE INTO t USING s ON true WHEN MATCHED THEN DELETE",
        "EXPLAIN ANALYZE UPDATE t SET a = 1", "NOTIFY x", "PREPARE TRANSACTION 'x'", "ANALYZE t", "DISCARD ALL",
        "SELECT set_config('transaction_read_only', 'off', true)", "RESET default_transaction_read_only", "RESET ALL",
        "DO $$ BEGIN PERFORM pg_advisory_lock(1); END $$", 'SELECT "pg_advisory_lock"(1)', 'SELECT "nextval" (1)',
    ],
)  # fmt: skip
def test_a_write_is_recognised(statement: str) -> None:
    with pytest.raises(ReadOnlyUnit):
        refuse_writes(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 'insert into t'", "SELECT 1 -- delete from t", "SELECT /* for update */ 1",
        'SELECT "delete from t" FROM t',
        "SELECT 'it''s; DROP TABLE t'", "SELECT a AS cluster, lock FROM t", "SELECT updated_at, set_at FROM t",
        "SELECT $$ delete from t $$", "COPY t TO STDOUT", "SHOW transaction_read_only", "SELECT created FROM inserts",
        "SELECT set_config('app.tenant', 'a', true)", "RESET search_path", 'SELECT "reset" FROM t', "SELECT 1 AS do",
        "SELECT inserted_into FROM t", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "VALUES (1)",
    ],
)  # fmt: skip
def test_a_read_is_left_alone(statement: str) -> None:
    assert write_in(statement) is None


@pytest.mark.parametrize(
    "statement",
    [
        "SET LOCAL synchronous_commit = off", "set synchronous_commit TO 'off'",
        "SELECT set_config('synchronous_commit', 'off', true)",
    ],
)  # fmt: skip
def test_commits_that_are_not_on_disk_are_refused(statement: str) -> None:
    with pytest.raises(BadInput, match="synchronous_commit = off is refused"):
        refuse_asynchronous(statement)


@pytest.mark.parametrize(
    "statement", ["SET synchronous_commit = local", "SHOW synchronous_commit", "SELECT 'synchronous_commit is off'"]
)
def test_waiting_for_fewer_standbys_is_left_alone(statement: str) -> None:
    refuse_asynchronous(statement)


def test_one_node_with_two_urls_is_refused() -> None:
    knobs = DbKnobs(url="postgresql+psycopg://h:1/d", replicas="postgresql+psycopg://ann@h:1/d")
    with pytest.raises(Misconfigured, match="FLEET_DB_REPLICAS: h:1 is listed twice"):
        read_layout(knobs)


def test_behind_a_pooler_each_node_says_the_way_past_it() -> None:
    knobs = DbKnobs(url=KNOBS.url, pooler="pgbouncer")
    with pytest.raises(Misconfigured, match="behind a pooler it needs direct_port, or direct_host"):
        parse_layout(
            "primary: {host: a, port: 6432, direct_port: 5432}\nreplicas:\n\n  - host: b\n", source="f", knobs=knobs
        )
    layout = parse_layout("primary: {host: a, port: 6432, direct_host: b}\n", source="f", knobs=knobs)
    assert make_url(layout.nodes[0].direct_url).render_as_string() == (
        "postgresql+psycopg://ann:***@b:6432/fleet?sslmode=require"
    )
    url, replicas = "postgresql+psycopg://h:1/d", "postgresql+psycopg://i:1/d"
    directs = "postgresql+psycopg://h:2/d, postgresql+psycopg://i:2/d"
    layout = read_layout(DbKnobs(url=url, replicas=replicas, pooler="pgbouncer", direct_url=directs))
    assert [one.direct_url for one in layout.nodes] == directs.split(", ")


def test_a_pool_grows_by_its_share_and_waits_as_long_as_it_is_told() -> None:
    node = NodeAddress("h:1", "postgresql+psycopg://h:1/d", pool_size=20)
    pool = Pool(node, DbKnobs(pool_overflow_ratio=0.25, pool_timeout_s=1.5), application_name="x", writes=True)
    assert pool.options["max_overflow"] == 5
    assert "within 1.5 s: all 25 of this process" in pool.exhausted().message
    assert re.fullmatch(r"fleet-worker@\S+:\d+", process_name("fleet-worker"))
