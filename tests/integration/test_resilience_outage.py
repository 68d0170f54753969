"""Redis dies, hangs and returns in the middle: calls go on, the breakers still work, and the fleet agrees again."""

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from shared.errors import BreakerOpen, Throttled
from shared.resilience.exchange import Answer, Ask
from shared.resilience.fail_open import open_blocking_store, open_gate_store
from shared.resilience.fleet_breaker import FleetBreaker
from shared.resilience.gate import Gate
from shared.resilience.knobs import BreakerKnobs, KeyRules, StoreKnobs
from shared.resilience.redis_store import StoreAway
from shared.resilience.spending import Budget
from tests.integration.gate_fleet import GateFleet, OwnRedis, running, within

BREAKER = {"open_s": 0.5, "open_max_s": 1.0, "jitter": 0.1, "probe_lease_s": 2.0}
PATIENT = {"timeout_s": 10.0}
"""Only a Redis that is dead is away, however busy this machine is: nobody listens then, which is noticed at once."""
RULES = KeyRules(breaker=BreakerKnobs(open_s=0.3, jitter=0.0))


def test_twelve_processes_go_on_without_redis_and_agree_again_when_it_is_back(
    own_redis: OwnRedis, tmp_path: Path
) -> None:
    config = {
        "redis_url": own_redis.url, "what": "probing", "breaker": BREAKER, "call_s": 0.5, "slots": 1, "store": PATIENT,
    }  # fmt: skip
    with running(tmp_path, config) as fleet:
        fleet.start(12)
        fleet.begin()
        within(60.0, lambda: fleet.callers() == 12, "all workers call")
        own_redis.kill()
        within(60.0, lambda: len(fleet.calls(mode="alone")) > 100, "calls go on")
        within(60.0, lambda: fleet.callers(mode="alone") == 12, "in every process, alone")
        fleet.set("down")
        within(60.0, lambda: len(alone_rounds(fleet)) >= 2 * 12, "each process probes on its own")
        assert max(alone_rounds(fleet).values()) <= 3
        usual = Counter(one["pid"] for one in fleet.calls(state="down", mode="alone", is_probe=False))
        assert max(usual.values()) <= 6, "each process's own breaker opens after five failures"
        fleet.set("up")
        own_redis.start()
        within(60.0, lambda: {one["mode"] for one in fleet.calls()[-12:]} == {"shared"}, "Redis is used again")
        fleet.set("down")
        within(60.0, lambda: len(fleet.rounds(state="down", mode="shared")) >= 3, "rounds of probes")
        fleet.heal()
        rounds = fleet.whole_rounds(mode="shared")
        assert set(rounds.values()) == {3}, rounds
        log = fleet.stop()
    assert 12 <= log.count("resilience.store_away") <= 24, "one line a process and minute, not one a call"
    assert log.count("Traceback") == 0, log


def alone_rounds(fleet: GateFleet) -> Counter[tuple[int, int]]:
    """Probes of each round that a process made by itself while the endpoint was away."""
    return Counter((one["pid"], one["generation"]) for one in fleet.calls(state="down", mode="alone", is_probe=True))


def test_twelve_processes_overspend_no_budget_though_redis_dies_in_the_middle(
    own_redis: OwnRedis, tmp_path: Path
) -> None:
    limit, each, estimate, slots, processes = 90_000, 150, 100, 2, 12
    in_flight = processes * slots
    own_redis.kill()
    own_redis.more = ("--appendonly", "yes")
    own_redis.start()
    config = {
        "redis_url": own_redis.url, "what": "spending", "call_s": 0.2, "slots": slots,
        "budgets": [{"level": "run", "name": "r", "tokens": limit}],
        "store": {"alone_share": 1 / processes, "rest_s": 2.0, **PATIENT},
    }  # fmt: skip
    with running(tmp_path, config) as fleet:
        fleet.start(processes)
        fleet.begin()
        within(60.0, lambda: each * len(fleet.calls()) > limit / 3, "a third is spent")
        within(60.0, lambda: min(heard_by(fleet, processes)) >= slots, "every process has heard of it")
        own_redis.kill()
        within(60.0, lambda: fleet.callers(mode="alone") == processes, "every process spends alone")
        within(60.0, lambda: time.monotonic() - fleet.calls()[-1]["at"] > 1.5, "every share is spent: nobody calls")
        without = fleet.calls()
        own_redis.start()
        for process in fleet.processes:
            process.wait(60.0)
        spent = each * len(fleet.calls())
    assert spent > 0.95 * limit
    for pid, calls in by_process(without).items():
        lefts = sorted(one["left"][0] for one in calls if one["mode"] == "shared")
        heard = lefts[slots - 1]  # what it heard last: answers to its slots may overtake one another
        alone = each * sum(one["mode"] == "alone" for one in calls)
        assert alone <= heard / processes + slots * (each - estimate), f"{pid} spent {alone} of its share of {heard}"
    assert spent <= max(each * len(without), limit + in_flight * (each - estimate)), "all have paid before any goes on"
    with redis.Redis.from_url(own_redis.url) as client:
        (purse,) = client.scan_iter("*:purse:*")
        charged = int(client.hget(purse, "t"))
    assert spent <= charged <= spent + in_flight * each, "debts are paid; what was lost unanswered stays charged"


def heard_by(fleet: GateFleet, processes: int) -> list[int]:
    """How many answers of the fleet's each process has had."""
    found = [len(calls) for calls in by_process(fleet.calls(mode="shared")).values()]
    return found if len(found) == processes else [0]


def by_process(calls: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """Each process's calls."""
    found: dict[int, list[dict[str, Any]]] = {}
    for one in calls:
        found.setdefault(one["pid"], []).append(one)
    return found


async def test_a_redis_that_hangs_is_waited_for_by_one_call_and_then_by_nobody(
    own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_gate_store(StoreKnobs(redis_url=own_redis.url, timeout_s=2.0, rest_s=3600.0))
    gate, really_admit, asked = Gate(store, lambda _: RULES), store._shared.admit, list[Ask]()

    async def counted(ask: Ask) -> Answer:
        asked.append(ask)
        return await really_admit(ask)

    monkeypatch.setattr(store._shared, "admit", counted)
    await (await gate.admit("k")).settle("ok")
    own_redis.signal(signal.SIGSTOP)
    for _ in range(20):
        permit = await gate.admit("k")
        assert permit.mode == "alone"
        await permit.settle("ok")
    own_redis.signal(signal.SIGCONT)
    await gate.aclose()
    assert len(asked) == 1 + 1, "once while it was well, and once to find out"


async def test_a_redis_that_hung_is_asked_again_after_a_rest(own_redis: OwnRedis) -> None:
    gate = Gate(open_gate_store(StoreKnobs(redis_url=own_redis.url, timeout_s=0.25, rest_s=0.05)), lambda _: RULES)
    own_redis.signal(signal.SIGSTOP)
    permit = await gate.admit("k")
    assert permit.mode == "alone"
    await permit.settle("ok")
    own_redis.signal(signal.SIGCONT)
    async with asyncio.timeout(60):
        while (permit := await gate.admit("k")).mode != "shared":
            await permit.settle("ok")
            await asyncio.sleep(0.05)
    await permit.settle("ok")
    await gate.aclose()


async def test_a_call_admitted_by_redis_and_ended_without_it_teaches_this_process(own_redis: OwnRedis) -> None:
    gate = Gate(open_gate_store(StoreKnobs(redis_url=own_redis.url, timeout_s=10.0)), lambda _: RULES)
    permits = [await gate.admit("k") for _ in range(5)]
    own_redis.kill()
    with capture_logs() as logs:
        for permit in permits:
            await permit.settle("failure", seconds=0.1)
        with pytest.raises(BreakerOpen, match="5 failures in a row"):
            await gate.admit("k")
    assert [one["event"] for one in logs].count("resilience.store_away") == 1
    with pytest.raises(StoreAway):
        await gate.force_open("k", reason="an operator must know that nobody else heard")
    await gate.aclose()


async def test_budgets_go_on_from_what_was_last_heard_of_them(own_redis: OwnRedis) -> None:
    run = Budget(level="run", name="r", tokens=1000)
    gate = Gate(open_gate_store(StoreKnobs(redis_url=own_redis.url, timeout_s=10.0)), lambda _: RULES)
    await (await gate.admit("k", tokens_in=700, budgets=(run,))).settle("ok")
    own_redis.kill()
    permit = await gate.admit("k", tokens_in=50, budgets=(run,))
    assert permit.mode == "alone" and permit.budget_left[0].tokens == 250
    with pytest.raises(Throttled, match="this process's share"):
        await gate.admit("k", tokens_in=50, budgets=(run,))
    await permit.cancel()
    await gate.aclose()


async def test_a_cancelled_question_keeps_no_place(own_redis: OwnRedis) -> None:
    gate = Gate(open_gate_store(StoreKnobs(redis_url=own_redis.url, timeout_s=10.0)), lambda _: RULES)
    await (await gate.admit("k")).settle("ok")
    for turns in range(60):
        call = asyncio.create_task(gate.admit("k"))
        for _ in range(turns % 20):
            await asyncio.sleep(0)
        if not call.cancel():
            await call.result().cancel()
            continue
        with pytest.raises(asyncio.CancelledError):
            await call
    async with asyncio.timeout(30):  # a place that was kept would be free after 60 s
        while (await gate.stats("k")).in_flight:
            await asyncio.sleep(0.02)
    await gate.aclose()


def test_a_breaker_of_threads_goes_on_without_redis(own_redis: OwnRedis) -> None:
    breaker = FleetBreaker("k", store=open_blocking_store(StoreKnobs(redis_url=own_redis.url, timeout_s=10.0)))
    assert breaker.call(lambda: "here") == "here"
    assert breaker.get_stats()["shared"] is True
    own_redis.kill()
    assert breaker.call(lambda: "alone") == "alone"
    assert breaker.get_stats()["shared"] is False


def test_two_breakers_of_threads_share_what_they_know(own_redis: OwnRedis) -> None:
    knobs = StoreKnobs(redis_url=own_redis.url, timeout_s=10.0)
    ours, theirs = (FleetBreaker("k", store=open_blocking_store(knobs)) for _ in range(2))

    def fails() -> None:
        raise ConnectionError

    for breaker in (ours, theirs, ours, theirs, ours):
        with pytest.raises(ConnectionError):
            breaker.call(fails)
    with pytest.raises(BreakerOpen):
        theirs.call(fails)
    stats = theirs.get_stats()
    assert (stats["state"], stats["failure_count"], stats["total_calls"]) == ("open", 5, 5)
    ours.close()
    assert theirs.call(lambda: 1) == 1
