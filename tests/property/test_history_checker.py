"""The checker of histories: it finds each kind of lie, and none in what an honest store has done."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.db.tokens import CausalToken
from tests.chaos.history import FIRST, Kind, Operation, Outcome, check


def op(
    kind: Kind, value: str, version: int | None, *, at: tuple[float, float], needs: int | None = None,
    token: int | None = None, outcome: Outcome = "ok", process: int = 1, key: int = 1, timeline: int = 1,
) -> Operation:  # fmt: skip
    """An operation; tokens by their positions."""
    given, ended = (None if lsn is None else CausalToken(7, timeline, lsn) for lsn in (needs, token))
    return Operation(process, kind, key, value, version, given, ended, *at, outcome)


A = op("write", "a", 1, at=(0, 1), token=10)
B = op("write", "b", 2, at=(2, 3), token=20)


def test_a_read_as_fresh_as_its_token_is_right_and_one_without_a_token_may_be_older() -> None:
    fresh = op("read", "b", 2, at=(4, 5), needs=20, token=25)
    older = op("read", "a", 1, at=(4, 5), needs=19, token=19)
    bare = op("read", FIRST, 0, at=(4, 5))
    assert check([A, B, fresh, older, bare], last={1: ("b", 2)}) == []


@pytest.mark.parametrize(
    ("lie", "word"),
    [
        (op("read", "a", 1, at=(4, 5), needs=20), "misses version 2, which it knew of"),
        (op("read", FIRST, 0, at=(4, 5), needs=10), "misses version 1"),
        (op("read", "c", 3, at=(4, 5)), "which nobody wrote"),
        (op("read", "a", 2, at=(4, 5)), "version 2 is both"),
        (op("write", "c", 2, at=(4, 5), token=30), "version 2 is both"),
        (op("read", "b", 2, at=(1, 1.5)), "before it was written"),
        (op("write", "c", 0, at=(4, 5), token=30), "version 0 is both first and c"),
        (op("write", "b2", 3, at=(4, 5), token=30), "ends with version 2"),
    ],
)
def test_each_lie_is_found(lie: Operation, word: str) -> None:
    found = check([A, B, lie], last={1: ("b", 2)})
    assert any(word in one for one in found), found


def test_a_read_that_goes_back_behind_another_one_is_found_even_of_a_write_of_unknown_end() -> None:
    unknown = op("write", "c", None, at=(4, 5), outcome="unknown")
    seen = op("read", "c", 3, at=(6, 7), needs=20, token=40, process=2)
    back = op("read", "b", 2, at=(8, 9), needs=40, token=45, process=3)
    assert check([A, B, unknown, seen], last={1: ("c", 3)}) == []
    assert check([A, B, unknown]) == [], "it may never have taken effect"
    [sentence] = check([A, B, unknown, seen, back])
    assert "process 3 at 8.000 s reads b at key 1 version 2 and goes back behind version 3" in sentence


def test_a_write_that_had_not_ended_need_not_be_seen_wherever_the_log_is_by_then() -> None:
    slow = op("write", "c", 3, at=(4, 9), token=30)
    assert check([A, B, slow, op("read", "b", 2, at=(6, 7), needs=30, token=30)], last={1: ("c", 3)}) == []
    assert check([A, B, slow, op("read", "b", 2, at=(9.1, 9.5), needs=30, token=30)]) != []


def test_what_was_told_to_have_failed_must_not_be_seen() -> None:
    failed = op("write", "c", None, at=(4, 5), outcome="failed")
    assert check([A, B, failed]) == []
    [sentence] = check([A, B, failed, op("read", "c", 3, at=(6, 7))])
    assert "was told that it had failed" in sentence


def test_a_write_lost_in_a_failover_is_found_by_whoever_takes_its_place() -> None:
    after = op("write", "c", 2, at=(9, 9.5), token=15, timeline=2)
    found = check([A, B, after], last={1: ("c", 2)})
    assert any("version 2 is both b and c: a write was lost" in one for one in found), found


def test_a_token_of_a_later_timeline_knows_of_all_before_it() -> None:
    assert check([A, B, op("read", "a", 1, at=(4, 5), needs=5, timeline=2)]) != []


def test_writes_are_in_the_order_of_time() -> None:
    assert any("after version 2 was there" in one for one in check([A, B, op("write", "c", 1, at=(4, 5), token=30)]))


def test_an_operation_survives_its_line() -> None:
    for one in (A, op("read", "x", None, at=(0, 1), needs=3, outcome="unknown")):
        assert Operation.from_json(one.to_json()) == one


@dataclass
class Store:
    """A primary with a log, and replicas that lag: what an honest database does, step by step."""

    log: list[tuple[int, str]] = field(default_factory=list)
    now: float = 0.0
    history: list[Operation] = field(default_factory=list)
    tokens: dict[int, int | None] = field(default_factory=dict)

    def write(self, process: int, key: int, outcome: Outcome, *, applies: bool) -> None:
        value, version = f"v{len(self.history)}", None
        if outcome == "ok" or (outcome == "unknown" and applies):
            self.log.append((key, value))
            version = self.version(key, len(self.log))
        is_ok = outcome == "ok"
        self.note("write", process, key, value, version if is_ok else None, len(self.log) if is_ok else None, outcome)

    def read(self, process: int, key: int, lag: int) -> None:
        position = max(self.tokens.get(process) or 0, len(self.log) - lag)
        said = [value for one, value in self.log[:position] if one == key]
        self.note("read", process, key, said[-1] if said else FIRST, len(said), position, "ok")

    def tell(self, process: int, other: int) -> None:
        """A process gives its token to another one, which merges it."""
        self.tokens[other] = max(self.tokens.get(other) or 0, self.tokens.get(process) or 0) or None

    def version(self, key: int, position: int) -> int:
        return sum(one == key for one, _ in self.log[:position])

    def note(self, kind: Kind, process: int, key: int, value: str, version: int | None, position: int | None,
             outcome: Outcome) -> None:  # fmt: skip
        needs, self.now = self.tokens.get(process), self.now + 1
        if position is not None:
            self.tokens[process] = max(needs or 0, position)
        token = self.tokens.get(process) if position is not None else None
        self.history.append(
            op(kind, value, version, at=(self.now, self.now + 0.5), needs=needs, token=token, outcome=outcome,
               process=process, key=key)
        )  # fmt: skip

    def last(self) -> dict[int, tuple[str, int]]:
        found = {}
        for key in {one.key for one in self.history}:
            said = [value for one, value in self.log if one == key]
            found[key] = (said[-1] if said else FIRST, len(said))
        return found


PROCESS, KEY = st.integers(1, 3), st.integers(1, 2)
MOVES = st.one_of(
    st.tuples(st.just("write"), PROCESS, KEY, st.sampled_from(["ok", "ok", "unknown", "failed"]), st.booleans()),
    st.tuples(st.just("read"), PROCESS, KEY, st.integers(0, 5)),
    st.tuples(st.just("tell"), PROCESS, PROCESS),
)


def lived(moves: list[tuple[Any, ...]]) -> Store:
    """What came of these moves."""
    store = Store()
    for move in moves:
        if move[0] == "write":
            store.write(move[1], move[2], move[3], applies=move[4])
        elif move[0] == "read":
            store.read(move[1], move[2], move[3])
        else:
            store.tell(move[1], move[2])
    return store


@given(st.lists(MOVES, max_size=40))
def test_an_honest_store_is_never_blamed(moves: list[tuple[Any, ...]]) -> None:
    store = lived(moves)
    assert check(store.history, last=store.last()) == []


@given(st.lists(MOVES, max_size=40), st.integers(1, 3))
def test_one_read_that_is_older_than_its_token_is_always_found(moves: list[tuple[Any, ...]], process: int) -> None:
    store = lived(moves)
    for _ in range(2):
        store.write(process, 1, "ok", applies=True)
    store.read(process, 1, 5)
    last = store.history[-1]
    before = [value for one, value in store.log if one == 1][:-1][-1]
    assert last.version is not None
    store.history[-1] = replace(last, value=before, version=last.version - 1)
    assert any("misses" in one for one in check(store.history, last=store.last()))
