"""The hot path's one statement: its parts, their order, and the fence around them."""

import itertools

import pytest

from shared.ledger.statements import ACCEPT_CHILDREN, FENCE, KINDS, PARTS, Kind, batch_statement

COLUMNS = "id, name, ordinal, epoch, attempt, state"


def test_a_batch_of_every_kind_is_one_statement_with_each_part_once() -> None:
    sql = batch_statement(KINDS, fenced=True)
    assert sql.startswith(f"WITH {FENCE}, done_accept AS (")
    for kind in KINDS:
        assert sql.count(f"done_{kind} AS (") == sql.count(f"state FROM done_{kind}") == 1
        assert f"SELECT '{kind}' AS kind, {COLUMNS} FROM done_{kind}" in sql


@pytest.mark.parametrize("kinds", [pair for n in (1, 2) for pair in itertools.combinations(KINDS, n)])
def test_a_batch_asks_for_the_parameters_of_its_own_parts_alone(kinds: tuple[Kind, ...]) -> None:
    sql = batch_statement(kinds, fenced=True)
    assert {kind for kind in KINDS if f"%({kind})s" in sql} == set(kinds)
    assert ("%(fair_window)s" in sql) is ("accept" in kinds)
    assert ";" not in sql


def test_a_worker_learns_whether_its_fence_held_before_anything_else() -> None:
    sql = batch_statement(("finish",), fenced=True)
    reads = sql[sql.index(" SELECT 'fence' AS kind") :]
    assert reads.index("'fence'") < reads.index("'finish'")


def test_the_fence_locks_the_row_of_a_worker_that_is_not_dead() -> None:
    assert "state IN ('alive', 'draining') FOR SHARE" in FENCE
    assert "MATERIALIZED" in FENCE


@pytest.mark.parametrize("kind", KINDS)
def test_every_write_of_a_worker_goes_through_the_fence(kind: Kind) -> None:
    assert "FROM fence," in batch_statement((kind,), fenced=True)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("accept", "claim", "wake")])
def test_every_write_of_a_run_carries_its_epoch(kind: Kind) -> None:
    assert "t.epoch = x.epoch" in PARTS[kind]


@pytest.mark.parametrize("kind", ["accept", "claim"])
def test_whether_a_limit_holds_for_a_task_is_asked_once(kind: Kind) -> None:
    assert PARTS[kind].count("FROM limits") == 1
    assert PARTS[kind].count("OFFSET 0) AS x") == 1


def test_a_worker_accepts_children_of_its_own_runs_alone() -> None:
    assert "t.id = x.parent_id AND t.epoch = x.parent_epoch AND t.state = 'running'" in ACCEPT_CHILDREN
    assert "parent_epoch = " not in batch_statement(("accept",), fenced=False)


def test_a_producer_has_no_fence_and_needs_none() -> None:
    sql = batch_statement(("accept",), fenced=False)
    assert "fence" not in sql
    assert "%(worker)s" not in sql
    assert "ON CONFLICT DO NOTHING" in sql
