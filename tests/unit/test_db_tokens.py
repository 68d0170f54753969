"""Causal tokens: what strangers send, what is merged, and whose reads they bind."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.db import tokens
from shared.db.tokens import CausalToken, carrying, lsn_of, lsn_text, merged, parse

TOKEN = CausalToken(0xABC, 2, lsn_of("1/16B3748"), 1_795_000_000_000)
lsns = st.integers(0, (1 << 64) - 1)
some = st.builds(
    CausalToken,
    system_id=st.just(7),
    timeline=st.integers(1, 5),
    lsn=st.integers(0, 50),
    minted_ms=st.integers(0, 9),
)
any_system = st.builds(
    CausalToken, system_id=st.integers(1, 3), timeline=st.integers(1, 3), lsn=lsns, minted_ms=st.integers(0, 9)
)


def test_a_token_is_written_as_documented() -> None:
    assert str(TOKEN) == "wt1.abc.2.1016b3748.1795000000000"
    assert TOKEN.position == "1/16B3748 on timeline 2"


@given(
    st.builds(
        CausalToken, system_id=lsns, timeline=st.integers(1, (1 << 32) - 1), lsn=lsns, minted_ms=st.integers(0, 10**14)
    )
)
def test_what_is_written_is_read_back(token: CausalToken) -> None:
    assert parse(str(token)) == token


@pytest.mark.parametrize(
    "text",
    [
        None, 7, b"wt1.a.1.1.1", "", "wt1", "wt1.a.1.1", "wt2.a.1.1.1", "wt1.a.0.1.1", "wt1.a.-1.1.1", "wt1.A.1.1.1",
        "wt1.a.1.1.1\n", " wt1.a.1.1.1", "wt1.a.4294967296.1.1", "wt1.a.1.11111111111111111.1", "wt1.a.１.1.1",
        "wt1." + "a" * 10_000, "wt1.a.1.1.1.1", "wt1.a.1.1.'; DROP TABLE tasks",
    ],
)  # fmt: skip
def test_what_is_no_token_is_none_and_no_error(text: object) -> None:
    assert parse(text) is None


@given(st.text(max_size=100))
def test_no_text_is_an_error(text: str) -> None:
    parse(text)
    parse(f"wt1.{text}")


@given(lsns)
def test_positions_are_written_as_postgresql_does(lsn: int) -> None:
    assert lsn_of(lsn_text(lsn)) == lsn


@given(some, some, some)
def test_within_one_cluster_the_order_of_merging_does_not_matter(
    one: CausalToken, two: CausalToken, three: CausalToken
) -> None:
    assert merged(one, two) == merged(two, one)
    assert merged(merged(one, two), three) == merged(one, merged(two, three))
    assert merged(one, one) == one


@given(some, some)
def test_merging_never_falls_behind_either(one: CausalToken, two: CausalToken) -> None:
    both = merged(one, two)
    assert both is not None
    for each in (one, two):
        assert (both.timeline, both.lsn) >= (each.timeline, each.lsn)
        assert both.minted_ms >= each.minted_ms


@given(any_system, any_system)
def test_between_clusters_either_order_gives_the_same(one: CausalToken, two: CausalToken) -> None:
    assert merged(one, two) == merged(two, one)
    assert merged(one, None) == merged(None, one) == one


def test_without_any_work_there_is_no_token() -> None:
    with carrying(None):
        assert tokens.current() is None


async def test_a_write_in_a_child_task_is_known_to_its_parent_inside_a_trail() -> None:
    async def child() -> None:
        tokens.note(TOKEN)

    with carrying(None):
        await asyncio.create_task(child())
        assert tokens.current() == TOKEN


async def test_work_of_another_trail_is_not_bound() -> None:
    async def run() -> CausalToken | None:
        with carrying(None):
            return tokens.current()

    with carrying(TOKEN):
        assert await asyncio.create_task(run()) is None
        assert tokens.current() == TOKEN


def test_a_trail_ends_with_its_block() -> None:
    with carrying(None):
        with carrying(TOKEN) as trail:
            tokens.note(CausalToken(0xABC, 3, 1))
        assert trail.token == CausalToken(0xABC, 3, 1, TOKEN.minted_ms)
        assert tokens.current() is None
