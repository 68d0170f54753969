"""Moments as people write and read them."""

from datetime import UTC, datetime, timedelta

import pytest

from shared.errors import Misconfigured
from workers.ops.moments import from_now, moment

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "apart"),
    [
        ("90s", timedelta(seconds=90)),
        ("5m", timedelta(minutes=5)),
        ("5 min", timedelta(minutes=5)),
        ("1.5h", timedelta(minutes=90)),
        ("2D", timedelta(days=2)),
        ("1w", timedelta(days=7)),
    ],
)
def test_a_length_of_time_is_ago_or_ahead(written: str, apart: timedelta) -> None:
    assert moment(written, option="--since", now=NOON, side="ago") == NOON - apart
    assert moment(written, option="--at", now=NOON, side="ahead") == NOON + apart


def test_a_time_with_a_zone_is_that_time_and_nothing_is_nothing() -> None:
    assert moment("2026-01-01T13:00+01:00", option="--at", now=NOON, side="ahead") == NOON
    assert moment(None, option="--at", now=NOON, side="ahead") is None


@pytest.mark.parametrize("written", ["yesterday", "", "5 parsecs", "2026-13-01", "999999999d", "-5m"])
def test_what_is_no_time_is_refused_with_an_example(written: str) -> None:
    with pytest.raises(Misconfigured, match=r"--since .* is not a time; write for example 2h"):
        moment(written, option="--since", now=NOON, side="ago")


def test_distances_are_told_in_their_largest_unit() -> None:
    assert from_now(NOON + timedelta(hours=3), now=NOON) == "in 3 h"
    assert from_now(NOON - timedelta(seconds=5), now=NOON) == "5 s ago"
