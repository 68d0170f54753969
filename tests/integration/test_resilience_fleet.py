"""Twelve processes before one endpoint that dies and returns, is slow to answer, or is dear."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.integration.gate_fleet import GateFleet, OwnRedis, running, within

BREAKER = {"open_s": 0.5, "open_max_s": 1.0, "jitter": 0.1, "probe_lease_s": 2.0}
PATIENT = {"timeout_s": 10.0}
"""A Redis that is there is not away, however busy this machine is."""
CALL_S = 0.5
"""Of a call that fails: time for two others to come and be the other probes of its round."""
Start = Callable[..., GateFleet]


@pytest.fixture
def start(own_redis: OwnRedis, tmp_path: Path) -> Iterator[Start]:
    """Start twelve workers; wait until all have called."""
    fleets = []

    def started(*, skews: tuple[str | None, ...] = (None,), **config: Any) -> GateFleet:
        context = running(tmp_path, {"redis_url": own_redis.url, **config})
        fleet = context.__enter__()
        fleets.append(context)
        for skew in skews:
            fleet.start(12 // len(skews), skew=skew)
        fleet.begin()
        within(60.0, lambda: fleet.callers() == 12, "all workers call")
        return fleet

    yield started
    for context in fleets:
        context.__exit__(None, None, None)


def dies_and_returns(fleet: GateFleet) -> None:
    """The endpoint is away for four rounds of probes."""
    fleet.set("down")
    within(60.0, lambda: len(fleet.rounds(state="down")) >= 5, "four rounds of probes have failed")
    fleet.heal()
    down, complete = fleet.calls(state="down"), fleet.whole_rounds()
    assert set(complete.values()) == {3}, complete
    assert len(complete) >= 4
    usual = [one for one in down if not one["is_probe"]]
    assert len(usual) <= 5 + 2 * 24, "what was under way when it died, and no more"
    assert {one["mode"] for one in down} == {"shared"}


def test_a_dead_endpoint_gets_exactly_three_probes_a_round_from_twelve_processes(start: Start) -> None:
    dies_and_returns(start(what="probing", breaker=BREAKER, call_s=CALL_S, store=PATIENT))


def test_workers_whose_clocks_are_hours_off_agree_because_the_server_decides(start: Start) -> None:
    fleet = start(
        what="probing", breaker=BREAKER, call_s=CALL_S, skews=("+1h", "-1h", "+0"), store=PATIENT
    )  # fmt: skip
    offsets = {one["pid"]: one["wall"] - one["at"] for one in fleet.calls()}
    assert max(offsets.values()) - min(offsets.values()) > 7000, "the clocks really differ"
    dies_and_returns(fleet)
    firsts: dict[int, float] = {}
    for one in fleet.calls(state="down", is_probe=True):
        firsts.setdefault(one["generation"], one["at"])
    begins = [firsts[generation] for generation in sorted(firsts)]
    gaps = [later - earlier for earlier, later in pairwise(begins)]
    assert min(gaps) > 0.8, f"an open time was cut short: {gaps}"
    assert max(gaps) < 60.0, f"an open time was stretched by hours: {gaps}"


def full_round(fleet: GateFleet) -> int | None:
    """A round whose probes all met the endpoint hanging; one of the first round may still have found it down."""
    return next((number for number, probes in fleet.rounds(state="hang").items() if probes == 3), None)


def test_the_key_recovers_when_the_processes_that_hold_all_probes_are_killed(start: Start) -> None:
    lease_s = 5.0
    breaker = {**BREAKER, "probe_lease_s": lease_s}
    fleet = start(what="probing", breaker=breaker, call_s=0.05, slots=1, store=PATIENT)
    fleet.set("down")
    within(60.0, lambda: bool(fleet.rounds()), "the breaker has opened")
    fleet.set("hang")
    within(60.0, lambda: full_round(fleet) is not None, "all three probes of one round hang")
    held = fleet.calls(state="hang", is_probe=True, generation=full_round(fleet))
    holders = {one["pid"] for one in held}
    assert len(holders) == 3
    for pid in holders:
        fleet.kill(pid)
    fleet.set("up")
    before = len(fleet.calls(is_probe=False))
    within(60.0, lambda: len(fleet.calls(is_probe=False)) > before + 9, "the others call again")
    healed = fleet.calls(is_probe=False)[before]
    assert healed["at"] - held[0]["at"] > lease_s / 2, "until then the leases were held"


def test_a_budget_is_never_overspent_by_more_than_the_calls_in_flight(start: Start) -> None:
    budgets = [
        {"level": "run", "name": "r", "tokens": 240_000},
        {"level": "tenant", "name": "t", "tokens": 10_000_000, "money": 100.0},
    ]
    fleet = start(what="spending", budgets=budgets, call_s=0.01, slots=4, store=PATIENT)
    for process in fleet.processes:
        process.wait(120.0)
    calls = fleet.calls()
    spent = 150 * len(calls)
    in_flight = 12 * 4
    assert 240_000 - 100 < spent <= 240_000 + in_flight * 50, f"{spent} of 240000"
    assert len({one["pid"] for one in calls}) == 12
    assert {one["mode"] for one in calls} == {"shared"}


def test_twelve_processes_that_always_fail_cannot_make_a_retry_storm(start: Start) -> None:
    budget = {"ratio": 0.1, "floor_per_s": 1.0, "cap": 10.0}
    fleet = start(what="storming", retry_budget=budget, call_s=0.02, slots=4, store=PATIENT)
    within(60.0, lambda: len(fleet.calls(attempt=1)) > 1000, "a storm")
    fleet.stop()
    calls = fleet.calls()
    seconds = calls[-1]["at"] - calls[0]["at"]
    first, retries = fleet.calls(attempt=1), [one for one in calls if one["attempt"] > 1]
    allowed = 10.0 + seconds + 0.1 * len(first)
    assert len(retries) <= allowed + 1, f"{len(retries)} retries, {allowed:.0f} allowed; unbounded: {3 * len(first)}"
    assert len(retries) >= 0.8 * allowed, "what the budget allows is used"
