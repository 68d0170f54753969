"""The clock of a stream: which limit ends it, and when."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.llm.knobs import LLMKnobs
from shared.llm.timeouts import Limit, Pace, TotalLimit, total_limit

KNOBS = LLMKnobs(
    first_token_timeout_s=15, idle_timeout_s=20, min_tokens_per_s=2, throughput_window_s=10, total_timeout_s=60
)


MINUTE = TotalLimit(60, "total")


def pace(knobs: LLMKnobs = KNOBS, total: TotalLimit = MINUTE) -> Pace:
    return Pace(knobs, started_s=100.0, total=total)


@pytest.mark.parametrize(
    ("wanted_s", "left_s", "limit"),
    [
        (None, None, TotalLimit(60, "total")),
        (5.0, None, TotalLimit(5, "total")),
        (90.0, None, TotalLimit(90, "total")),
        (None, 90.0, TotalLimit(60, "total")),
        (None, 7.0, TotalLimit(7, "deadline")),
        (5.0, 7.0, TotalLimit(5, "total")),
        (5.0, 0.0, TotalLimit(0, "deadline")),
    ],
)
def test_the_total_is_the_requests_wish_within_the_deadline(
    wanted_s: float | None, left_s: float | None, limit: TotalLimit
) -> None:
    assert total_limit(KNOBS, wanted_s=wanted_s, left_s=left_s) == limit


def test_a_stream_that_never_begins_ends_at_the_first_token_limit() -> None:
    assert pace().limit() == Limit(115.0, "first_token", 15)


def test_a_token_starts_the_idle_limit_anew_and_the_total_stands_above_it() -> None:
    stream = pace()
    stream.heard(110.0, tokens=1)
    assert stream.limit() == Limit(130.0, "idle", 20)
    stream.heard(150.0, tokens=100)
    assert stream.limit() == Limit(160.0, "total", 60)


def test_a_deadline_is_named_as_what_it_is() -> None:
    assert pace(total=TotalLimit(4, "deadline")).limit() == Limit(104.0, "deadline", 4)


def test_a_trickle_is_given_up_after_one_window() -> None:
    stream = pace()
    broken = [stream.heard(101.0 + number * 1.25, tokens=1) for number in range(12)]
    assert [one for one in broken if one] == [Limit(111.0, "throughput", 10)]
    assert broken[8] is not None


def test_a_burst_does_not_excuse_a_later_trickle() -> None:
    stream = pace()
    stream.heard(100.0, tokens=1)
    assert stream.heard(110.0, tokens=5000) is None
    assert stream.heard(115.0, tokens=1) is None
    broken = stream.heard(120.0, tokens=1)
    assert broken is not None and broken.phase == "throughput"


def test_a_floor_of_zero_is_none() -> None:
    stream = pace(replace(KNOBS, min_tokens_per_s=0))
    assert all(stream.heard(100.0 + number * 19, tokens=1) is None for number in range(50))


def test_the_callers_own_time_is_not_the_endpoints() -> None:
    stream = pace()
    stream.heard(101.0, tokens=1)
    stream.held(15.0)
    assert stream.limit() == Limit(136.0, "idle", 20)
    stream.heard(117.0, tokens=3)
    broken = stream.heard(125.0, tokens=1)
    assert broken is None, "9 seconds of waiting, not 24"


@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.integers(1, 50), st.floats(0, 30)), max_size=30),
    st.floats(1, 100),
)
def test_no_stream_outlives_its_total_however_it_behaves(steps: list[tuple[float, int, float]], total_s: float) -> None:
    stream, now = pace(total=TotalLimit(total_s, "total")), 100.0
    for wait_s, tokens, held_s in steps:
        assert stream.limit().at_s <= 100.0 + total_s
        now += wait_s
        stream.heard(now, tokens=tokens)
        now += held_s
        stream.held(held_s)


@given(st.lists(st.tuples(st.floats(0.05, 4), st.integers(1, 9)), min_size=1, max_size=60))
def test_whoever_keeps_the_floor_in_every_window_is_never_given_up(steps: list[tuple[float, int]]) -> None:
    stream, now = pace(), 100.0
    for wait_s, more in steps:
        now += wait_s
        assert stream.heard(now, tokens=int(wait_s * KNOBS.min_tokens_per_s) + more) is None
