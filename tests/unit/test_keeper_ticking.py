"""What a due schedule does next, and when cron's ticks are."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from shared.errors import BadInput
from shared.ledger.schedules import Schedule, next_tick
from workers.keeper.ticking import tick_of

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


def due(**changes: object) -> Schedule:
    values: dict[str, object] = {
        "name": "s", "agent": "a", "input": {"args": [], "kwargs": {}}, "cron": "0 * * * *", "next_at": NOON, **changes
    }  # fmt: skip
    return Schedule(**values)  # type: ignore[arg-type]


def ticks(cron: str, zone: str, start: datetime, count: int) -> list[str]:
    found: list[datetime] = []
    for _ in range(count):
        found.append(next_tick(cron, zone, after=found[-1] if found else start))
    return [at.astimezone(ZoneInfo(zone)).strftime("%d %H:%M%z") for at in found]


def test_a_tick_that_has_come_leads_to_the_next_one() -> None:
    decision = tick_of(due(), now=NOON + timedelta(seconds=0.4))
    assert decision.next_at == NOON + timedelta(hours=1)
    assert decision.reason == "tick of 2026-06-01 12:00:00 UTC, 0.4 s late"


def test_after_an_outage_one_tick_stands_for_all() -> None:
    decision = tick_of(due(), now=NOON + timedelta(hours=5, minutes=20))
    assert decision.next_at == NOON + timedelta(hours=6)


def test_a_tasks_deadline_counts_from_its_creation_also_after_an_outage() -> None:
    now = NOON + timedelta(hours=5)
    header = tick_of(due(deadline_s=60.0), now=now).header
    assert header is not None
    assert header.deadline_at == now + timedelta(seconds=60)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cron": "whenever"}, "schedule s cannot tick and is paused: cron 'whenever' is not a cron expression"),
        ({"timezone": "Moon/Base"}, "schedule s cannot tick and is paused: timezone 'Moon/Base' is not known"),
        ({"tenant": ""}, "schedule s cannot tick and is paused: tenant:"),
    ],
)
def test_a_schedule_that_cannot_tick_is_paused_with_the_reason(changes: dict[str, object], said: str) -> None:
    decision = tick_of(due(**changes), now=NOON)
    assert decision.next_at is None
    assert decision.reason.startswith(said)


def test_a_fixed_time_that_the_clock_skips_comes_when_it_has_jumped() -> None:
    start = datetime(2026, 3, 28, tzinfo=UTC)
    assert ticks("30 2 * * *", "Europe/Berlin", start, 3) == ["28 02:30+0100", "29 03:00+0200", "30 02:30+0200"]


def test_a_fixed_time_that_comes_twice_ticks_once() -> None:
    start = datetime(2026, 10, 24, tzinfo=UTC)
    assert ticks("30 2 * * *", "Europe/Berlin", start, 3) == ["24 02:30+0200", "25 02:30+0200", "26 02:30+0100"]
    in_the_second_hour = datetime(2026, 10, 25, 1, 10, tzinfo=UTC)
    assert ticks("30 2 * * *", "Europe/Berlin", in_the_second_hour, 1) == ["26 02:30+0100"]


def test_steps_go_by_elapsed_time_when_clocks_change() -> None:
    start = datetime(2026, 10, 25, 0, 15, tzinfo=UTC)
    assert ticks("*/30 * * * *", "Europe/Berlin", start, 4) == [
        "25 02:30+0200", "25 02:00+0100", "25 02:30+0100", "25 03:00+0100",
    ]  # fmt: skip


def test_six_fields_have_seconds_first() -> None:
    assert next_tick("*/20 * * * * *", "UTC", after=NOON) == NOON + timedelta(seconds=20)


def test_a_cron_too_long_to_be_meant_is_refused() -> None:
    with pytest.raises(BadInput, match="at most 200 characters"):
        next_tick("0," * 200 + "0 * * * *", "UTC", after=NOON)
