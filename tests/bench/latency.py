"""`latency.p50`, `latency.p99`: from just before a submit to the first line of the agent's body, on an idle fleet.

Durable: the row and the claim are on disk before the body begins. One task at a time, each after the one before it has
ended and a pause of random length, so that no sample starts in step with a timer. The peer: `tests.bench.peer`, from
just before `send_task` to the first line of the body, in turns with ours. One clock: both ends are on this machine.
"""

import asyncio
import random
import time

from tests.bench import peer
from tests.bench.figures import Figure, percentile
from tests.bench.site import Site, fresh_tenant, say

TURNS = 4
SAMPLES = 100
WARM_UP = 20
PAUSE_S = (0.005, 0.03)
GOALS_MS = {50: 6.0, 99: 12.0}


def measure(site: Site) -> list[Figure]:
    """Take turns."""
    producer = peer.Producer(site.broker_url)
    ours: list[float] = []
    theirs: list[float] = []
    with site.worker("latency-worker"), site.peer_worker():
        site.run(sample_ours(site, WARM_UP))
        sample_theirs(producer, WARM_UP)
        for _ in range(TURNS):
            ours += site.run(sample_ours(site, SAMPLES))
            theirs += sample_theirs(producer, SAMPLES)
            say(f"  fleet p50 {percentile(ours, 50):.1f} ms, {peer.NAME} p50 {percentile(theirs, 50):.1f} ms so far")
    producer.close()
    return [
        Figure(
            name=f"latency.p{percent}", what=f"submit → start, idle, p{percent}", value=percentile(ours, percent),
            unit="ms", goal=goal_ms, better="lower", peer=peer.NAME, peer_value=percentile(theirs, percent),
        )
        for percent, goal_ms in GOALS_MS.items()
    ]  # fmt: skip


async def sample_ours(site: Site, count: int) -> list[float]:
    """Milliseconds of `count` submits."""
    tenant = fresh_tenant("latency")
    samples = []
    for _ in range(count):
        await asyncio.sleep(random.uniform(*PAUSE_S))
        began = time.time_ns()
        task = await site.client.asubmit("bench-stamp", tenant=tenant)
        samples.append((await task.aresult() - began) / 1e6)
    return samples


def sample_theirs(producer: peer.Producer, count: int) -> list[float]:
    """Milliseconds of `count` sends."""
    samples = []
    for _ in range(count):
        time.sleep(random.uniform(*PAUSE_S))
        began = time.time_ns()
        producer.send("peer.stamp", producer.ear.port)
        samples.append((producer.ear.hear(within_s=30) - began) / 1e6)
    return samples
