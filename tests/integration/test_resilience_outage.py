"""Redis dies, hangs and returns in the middle: calls go on, the breakers still work, and the fleet agrees again."""

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import redis
from structlog.testing import capture_logs

from shared.errors import BreakerOpen, Throttled
from shared.resilience.fail_open import open_blocking_store, open_gate_store
from shared.resilience.fleet_breaker import FleetBreaker
from shared.resilience.gate import Gate
from shared.resilience.knobs import BreakerKnobs, KeyRules, StoreKnobs
from shared.resilience.redis_store import StoreAway
from shared.resilience.spending import Budget
from tests.integration.gate_fleet import OwnRedis, running, within

BREAKER = {"open_s": 0.5, "open_max_s": 1.0, "jitter": 0.1, "probe_lease_s": 2.0}
RULES = KeyRules(breaker=BreakerKnobs(open_s=0.3, jitter=0.0))


def test_twelve_processes_go_on_without_redis_and_agree_again_when_it_is_back(
    own_redis: OwnRedis, tmp_path: Path
) -> None:
    config = {"redis_url": own_redis.url, "what": "probing", "breaker": BREAKER, "call_s": 0.1, "slots": 1}
    with running(tmp_path, config) as fleet:
        fleet.start(12)
        fleet.begin()
        within(60.0, lambda: fleet.callers() == 12, "all workers call")
        own_redis.kill()
        within(5.0, lambda: len(fleet.calls(mode="alone")) > 100, "calls go on")
        within(5.0, lambda: fleet.callers(mode="alone") == 12, "in every process, alone")
        fleet.set("down")
        time.sleep(3.0)
        alone = fleet.calls(state="down", mode="alone")
        each = Counter(one["pid"] for one in alone if not one["is_probe"])
        assert max(each.values()) <= 6, "each process's own breaker opens after five failures"
        assert max(Counter(one["pid"] for one in alone if one["is_probe"]).values()) <= 3 * 5
        fleet.set("up")
        own_redis.start()
        within(5.0, lambda: {one["mode"] for one in fleet.calls()[-12:]} == {"shared"}, "Redis is used again")
        fleet.set("down")
        within(10.0, lambda: len(fleet.rounds(state="down", mode="shared")) >= 3, "rounds of probes")
        rounds = sorted(fleet.rounds(state="down", mode="shared").items())[:-1]
        assert {probes for _, probes in rounds} == {3}, rounds
        fleet.set("up")
        within(5.0, lambda: fleet.calls()[-1]["is_probe"] is False, "healed")
        log = fleet.stop()
    assert 12 <= log.count("resilience.store_away") <= 24, "one line a process and minute, not one a call"
    assert log.count("Traceback") == 0, log


def test_twelve_processes_overspend_no_budget_though_redis_dies_in_the_middle(
    own_redis: OwnRedis, tmp_path: Path
) -> None:
    limit, each, in_flight = 90_000, 150, 12 * 2
    own_redis.kill()
    own_redis.more = ("--appendonly", "yes")
    own_redis.start()
    config = {
        "redis_url": own_redis.url, "what": "spending", "call_s": 0.2, "slots": 2,
        "budgets": [{"level": "run", "name": "r", "tokens": limit}], "store": {"alone_share": 1 / 12, "rest_s": 0.5},
    }  # fmt: skip
    with running(tmp_path, config) as fleet:
        fleet.start(12)
        fleet.begin()
        within(60.0, lambda: each * len(fleet.calls()) > limit / 3, "a third is spent")
        own_redis.kill()
        within(30.0, lambda: fleet.callers(mode="alone") == 12, "every process spends alone")
        within(30.0, lambda: time.monotonic() - fleet.calls()[-1]["at"] > 1.5, "every share is spent: nobody calls")
        own_redis.start()
        for process in fleet.processes:
            process.wait(60.0)
        spent = each * len(fleet.calls())
    assert 0.95 * limit < spent <= limit + in_flight * (each + 50), "what was heard last is a call old"
    with redis.Redis.from_url(own_redis.url) as client:
        (purse,) = client.scan_iter("*:purse:*")
        charged = int(client.hget(purse, "t"))
    assert spent <= charged <= spent + in_flight * each, "debts are paid; what was lost unanswered stays charged"


async def test_a_redis_that_hangs_delays_one_call_and_then_nobody(own_redis: OwnRedis) -> None:
    store = open_gate_store(StoreKnobs(redis_url=own_redis.url, timeout_s=0.25, rest_s=1.0))
    gate = Gate(store, lambda _: RULES)
    await (await gate.admit("k")).settle("ok")
    own_redis.signal(signal.SIGSTOP)
    waits = []
    for _ in range(20):
        began = time.monotonic()
        permit = await gate.admit("k")
        assert permit.mode == "alone"
        await permit.settle("ok")
        waits.append(time.monotonic() - began)
    assert sum(wait > 0.1 for wait in waits) == 1 and max(waits) < 0.6, waits
    own_redis.signal(signal.SIGCONT)
    async with asyncio.timeout(20):
        while (permit := await gate.admit("k")).mode != "shared":
            await permit.settle("ok")
            await asyncio.sleep(0.05)
    await permit.settle("ok")
    await gate.aclose()


async def test_a_call_admitted_by_redis_and_ended_without_it_teaches_this_process(own_redis: OwnRedis) -> None:
    gate = Gate(open_gate_store(StoreKnobs(redis_url=own_redis.url)), lambda _: RULES)
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
    gate = Gate(open_gate_store(StoreKnobs(redis_url=own_redis.url)), lambda _: RULES)
    await (await gate.admit("k", tokens_in=700, budgets=(run,))).settle("ok")
    own_redis.kill()
    permit = await gate.admit("k", tokens_in=50, budgets=(run,))
    assert permit.mode == "alone" and permit.budget_left[0].tokens == 250
    with pytest.raises(Throttled, match="this process's share"):
        await gate.admit("k", tokens_in=50, budgets=(run,))
    await permit.cancel()
    await gate.aclose()


async def test_a_cancelled_question_keeps_no_place(own_redis: OwnRedis) -> None:
    gate = Gate(open_gate_store(StoreKnobs(redis_url=own_redis.url, timeout_s=2.0)), lambda _: RULES)
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
    await asyncio.sleep(0.2)
    assert (await gate.stats("k")).in_flight == 0
    await gate.aclose()


def test_a_breaker_of_threads_goes_on_without_redis(own_redis: OwnRedis) -> None:
    breaker = FleetBreaker("k", store=open_blocking_store(StoreKnobs(redis_url=own_redis.url)))
    assert breaker.call(lambda: "here") == "here"
    assert breaker.get_stats()["shared"] is True
    own_redis.kill()
    assert breaker.call(lambda: "alone") == "alone"
    assert breaker.get_stats()["shared"] is False


def test_two_breakers_of_threads_share_what_they_know(own_redis: OwnRedis) -> None:
    knobs = StoreKnobs(redis_url=own_redis.url, timeout_s=2.0)
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
