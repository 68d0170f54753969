"""What the keeper's decisions promise, whatever the state of the fleet."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from shared.errors import BadInput
from shared.ledger.dispatch import Fresh, Slots
from shared.ledger.limits import Held, Limit, Occupied
from shared.ledger.rescue import Pulse
from shared.ledger.schedules import next_tick
from shared.ledger.terms import Look
from workers.keeper.decisions import dispatch, judge, prompt, relieve
from workers.keeper.releasing import choose, covers, rooms_of
from workers.keeper.succession import Watch

counts = st.integers(0, 10**6)
small = st.integers(0, 5)
names = st.sampled_from("abc")
roots = st.none() | names
limits = st.lists(
    st.builds(Limit, st.sampled_from(["tenant", "agent"]), names, small),
    max_size=6,
    unique_by=lambda one: (one.scope, one.name),
)
occupied = st.lists(st.builds(Occupied, names, names, roots, small), max_size=5)
held = st.lists(
    st.builds(Held, st.uuids(), names, names, roots, st.sampled_from(["interactive", "normal", "batch"])),
    max_size=30,
    unique_by=lambda one: one.id,
)
zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
moments = st.datetimes(datetime(2026, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
field = st.sampled_from(
    ["*", "*/7", "0", "5", "1-4", "2,3", "10-20/3", "L", "MON", "x", "99", "", "1/0", "#", "2#3", "5L"]
)
crons = st.lists(field, min_size=4, max_size=7).map(" ".join)


@given(due=counts, queued=counts, ready=counts, batch=st.integers(1, 500))
def test_no_round_publishes_more_than_is_due_or_missing_or_its_batch(
    due: int, queued: int, ready: int, batch: int
) -> None:
    limit = dispatch(due=due, queued=queued, ready=ready, batch=batch).limit
    assert 0 <= limit <= min(due, batch)
    assert limit <= max(0, queued - ready)
    if due and queued > ready:
        assert limit >= 1, "what is missing is published sooner or later"


@given(
    waiting=counts, slots=st.builds(Slots, small, counts, counts), ready=st.none() | counts, batch=st.integers(1, 500)
)
def test_held_tasks_never_flood_the_queue(waiting: int, slots: Slots, ready: int | None, batch: int) -> None:
    decision = relieve(held=waiting, slots=slots, ready=ready, batch=batch)
    assert 0 <= decision.limit <= min(waiting, batch)
    assert decision.reason
    if decision.limit and slots.workers:
        assert decision.limit <= slots.slots - slots.running


@given(tenants=st.lists(names, max_size=40), standing=st.dictionaries(names, small), window=st.integers(1, 9))
def test_no_tenant_gets_more_than_its_share_of_the_queue_and_none_waits_for_another(
    tenants: list[str], standing: dict[str, int], window: int
) -> None:
    fresh = [Fresh(UUID(int=number), tenant) for number, tenant in enumerate(tenants)]
    chosen = Counter(tenants[one.int] for one in prompt(fresh, standing=standing, fair_window=window))
    for tenant, wanted in Counter(tenants).items():
        assert chosen[tenant] == max(0, min(wanted, window - standing.get(tenant, 0)))


@given(limits=limits, occupied=occupied, held=held)
def test_a_release_never_exceeds_a_limit_and_leaves_no_room_unused(
    limits: list[Limit], occupied: list[Occupied], held: list[Held]
) -> None:
    rooms = rooms_of(limits, occupied)
    released = choose(held, rooms)
    chosen = [one for one in held if one.id in released.ids]
    assert len(set(released.ids)) == len(released.ids)
    for limit in limits:
        before = sum(one.tasks for one in occupied if covers(limit, one))
        after = before + sum(covers(limit, one) for one in chosen)
        assert after <= max(before, limit.max_running)
    left = {limit: room - sum(covers(limit, one) for one in chosen) for limit, room in rooms.items()}
    for one in held:
        if one not in chosen:
            assert any(left[limit] <= 0 for limit in limits if covers(limit, one)), "there was room for it"


@given(held=held, room=st.integers(1, 9))
def test_tenants_take_turns_under_one_limit(held: list[Held], room: int) -> None:
    """Of equally urgent tasks, none of a tenant goes twice more than another's that still waits."""
    same = [Held(one.id, one.tenant, "a", None, "normal") for one in held]
    chosen = set(choose(same, {Limit("agent", "a", room): room}).ids)
    went = Counter(one.tenant for one in same if one.id in chosen)
    waiting = {one.tenant for one in same if one.id not in chosen}
    for tenant in waiting:
        assert max(went.values(), default=0) - went[tenant] <= 1


@given(ages=st.lists(st.floats(-1e6, 1e6), max_size=9), dead_after_s=st.floats(1, 100), watched_s=st.floats(0, 1e6))
def test_nobody_is_buried_who_beat_in_time_or_could_not_beat(
    ages: list[float], dead_after_s: float, watched_s: float
) -> None:
    pulses = [Pulse(UUID(int=number), "w", age) for number, age in enumerate(ages)]
    decisions = judge(pulses, dead_after_s=dead_after_s, watched_s=watched_s)
    assert len(decisions) == len(pulses)
    for decision, age in zip(decisions, ages, strict=True):
        if decision.action == "bury":
            assert age > dead_after_s
            assert watched_s >= dead_after_s / 3
        assert decision.reason


@given(signs=st.lists(st.tuples(st.floats(0.1, 3), st.booleans()), max_size=40))
def test_a_leader_is_deposed_exactly_when_it_was_silent_for_too_long(signs: list[tuple[float, bool]]) -> None:
    watch, now_s, since, count = Watch(stale_after_s=6), 0.0, 0.0, 0
    for gap_s, shows_itself in [(0.0, True), *signs]:
        now_s += gap_s
        if shows_itself:
            since, count = now_s, count + 1
        look = Look(1, 1, datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=count), "k")
        assert (watch.see(look, now_s=now_s).action == "depose") == (now_s - since >= 6)


@given(cron=crons | st.text(max_size=20), zone=zones, after=moments)
def test_any_text_is_a_cron_with_a_later_tick_or_refused_by_name(cron: str, zone: str, after: datetime) -> None:
    at, refused = None, None
    try:
        at = next_tick(cron, zone, after=after)
    except BadInput as error:
        refused = error.context["field"]
    assert refused == ("cron" if at is None else None)
    assert at is None or (at > after and at.tzinfo is UTC and at.microsecond == 0)


@given(minute=st.integers(0, 59), hour=st.integers(0, 23), zone=zones, after=moments)
def test_a_daily_schedule_ticks_once_a_day_whatever_clocks_do(
    minute: int, hour: int, zone: str, after: datetime
) -> None:
    cron = f"{minute} {hour} * * *"
    at = next_tick(cron, zone, after=after)
    days = []
    for _ in range(9):
        days.append(at.astimezone(ZoneInfo(zone)).date())
        at = next_tick(cron, zone, after=at)
    assert days == [days[0] + timedelta(days=number) for number in range(9)]
