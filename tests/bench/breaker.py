"""`breaker.memory`, `breaker.shared`: what a breaker's decisions cost.

In memory: a guarded call of nothing through `FleetBreaker.call`, both of its decisions (may it go, how did it end) and
the clock readings between them, less the bare call; the peer is pybreaker's own `call`, in turns, medians of batches.
Shared: round trips for one decision of a gate with limits and budgets, as the server counts what it reads.
"""

import os
import time
from collections.abc import Callable
from statistics import median

import pybreaker
from redis.asyncio import Redis

from shared.resilience.fail_open import open_gate_store
from shared.resilience.fleet_breaker import FleetBreaker
from shared.resilience.gate import Gate
from shared.resilience.knobs import KeyRules, Limits, StoreKnobs
from shared.resilience.spending import Budget
from tests.bench.figures import Figure
from tests.bench.site import BenchFailed, Site, fresh_tenant, say

BATCHES = 200
BATCH = 1000
ROUNDS = 5
CALLS = 200
PEER = "pybreaker"


def measure(site: Site) -> list[Figure]:
    """Both."""
    ours_us, theirs_us = in_memory()
    trips, p50_ms = site.run(shared())
    say(
        f"  in memory {ours_us:.2f} µs, {PEER} {theirs_us:.2f} µs; shared: {trips:.3f} round trips, p50 {p50_ms:.2f} ms"
    )
    return [
        Figure(
            name="breaker.memory", what="guarded call, breaker in memory", value=ours_us, unit="µs", goal=3.0,
            better="lower", peer=PEER, peer_value=theirs_us,
        ),
        Figure(
            name="breaker.shared", what="round trips for one shared decision", value=trips, unit="", goal=1.0,
            better="lower",
        ),
    ]  # fmt: skip


def in_memory() -> tuple[float, float]:
    """Microseconds of one guarded call over the bare one: ours and the library's."""
    ours, theirs = FleetBreaker("bench"), pybreaker.CircuitBreaker()
    samples: dict[str, list[float]] = {"bare": [], "ours": [], "theirs": []}
    for _ in range(BATCHES):
        samples["bare"].append(batch(lambda call: call()))
        samples["ours"].append(batch(ours.call))
        samples["theirs"].append(batch(theirs.call))
    bare = median(samples["bare"])
    return median(samples["ours"]) - bare, median(samples["theirs"]) - bare


def batch(guard: Callable[[Callable[[], None]], object]) -> float:
    """Microseconds of CPU a call: on a busy machine the clock on the wall would count the neighbours' work."""

    def nothing() -> None:
        """The guarded call."""

    began = time.thread_time()
    for _ in range(BATCH):
        guard(nothing)
    return (time.thread_time() - began) / BATCH * 1e6


async def shared() -> tuple[float, float]:
    """Round trips a decision, and milliseconds (median) of an admission with its settlement."""
    url, tenant = os.environ["FLEET_MEMORY_REDIS_URL"], fresh_tenant("breaker")
    rules = KeyRules(limits=Limits(requests_per_min=1e9, input_tokens_per_min=1e9, concurrency=1000))
    budgets = [Budget(level="run", name="r", tokens=10**9, money=1e6), Budget(level="day", name="d", tokens=10**9)]
    gate = Gate(open_gate_store(StoreKnobs(redis_url=url, timeout_s=5.0)), lambda _: rules)
    samples, trips = [], []
    async with Redis.from_url(url) as redis:
        for _ in range(1 + ROUNDS):
            before = await reads(redis)
            for _ in range(CALLS):
                began = time.perf_counter()
                permit = await gate.admit(tenant, tenant=tenant, tokens_in=10, tokens_out=10, cost=0.1, budgets=budgets)
                await permit.settle("ok", tokens_out=5)
                samples.append((time.perf_counter() - began) * 1000)
                if permit.mode != "shared":
                    raise BenchFailed("Redis did not answer: nothing shared was measured")
            trips.append((await reads(redis) - before - 1) / (2 * CALLS))  # the question itself was read once
    await gate.aclose()
    return min(trips[1:]), median(samples)


async def reads(redis: Redis) -> int:
    """Times the server has read from a client; other clients of the site can only add some: the least round counts."""
    return int((await redis.info("stats"))["total_reads_processed"])
