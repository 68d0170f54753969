"""`inflight5s.*`: one worker process with 1000 slots and tasks that wait 5 s: how full it stays, and what one costs.

`ceiling`: 4000 tasks whose one journaled step awaits `asyncio.sleep(5)` lie in the queue before the warm, idle worker
may consume it, so that neither the producer's speed nor its CPU is measured; ideal is four full waves, 20 s. Measured
is the ledger's first `started_at` to its last `finished_at`: filling 1000 slots, refilling them and all journal writes
included.

`rss` and `rss_http`: the worker's resident memory with 1000 tasks in flight over the same process idle after one such
task, by 1000: for the sleep, and for a model call through the worker's own chat port to a slow endpoint (a process of
its own, HTTP/1.1 without TLS). Memory of tasks that are reserved or ending at that moment is in it.
"""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.bench.figures import Figure
from tests.bench.gauges import Peak, rss_kb
from tests.bench.site import BenchFailed, Site, Worker, fresh_tenant, say
from workers.ops.surroundings import ROOT

SLOTS = 1000
WAVES = 4
STEP_S = 5.0
CALL_S = 15.0
"""Long enough that the last of 1000 calls begins before the first one ends."""
WITHIN_S = 120.0


def measure(site: Site) -> list[Figure]:
    """Memory first, then the four waves, each on a fresh worker."""
    with site.worker("rss-worker", slots=SLOTS) as worker:
        sleeping_kb = rss_each_kb(site, worker, "bench-sleep", seconds=STEP_S)
    with (
        slow_endpoint(CALL_S) as url,
        site.worker("http-worker", slots=SLOTS, env={"FLEET_LLM_BASE_URL": url}) as worker,
    ):
        calling_kb = rss_each_kb(site, worker, "bench-call")
    seconds = waves_s(site)
    return [
        Figure(
            name="inflight5s.ceiling", what="4000 tasks of 5 s on 1000 slots, of the ideal 20 s", unit="%", goal=97.0,
            value=100 * WAVES * STEP_S / seconds, better="higher",
        ),
        Figure(
            name="inflight5s.rss", what="memory per task in flight, over the idle worker", value=sleeping_kb,
            unit="kB", goal=40.0, better="lower",
        ),
        Figure(
            name="inflight5s.rss_http", what="memory per model call in flight, over the idle worker",
            value=calling_kb, unit="kB", goal=40.0, better="lower",
        ),
    ]  # fmt: skip


def rss_each_kb(site: Site, worker: Worker, agent: str, **inputs: Any) -> float:
    """kB per task of a worker full of them."""
    run(site, agent, 1, **inputs)
    idle_kb = rss_kb(worker.pid)
    with Peak(lambda: rss_kb(worker.pid)) as peak:
        run(site, agent, SLOTS, **inputs)
    say(f"  {agent}: {idle_kb / 1000:.0f} MB idle, {peak.value / 1000:.0f} MB with {SLOTS} in flight")
    return (peak.value - idle_kb) / SLOTS


def run(site: Site, agent: str, count: int, **inputs: Any) -> None:
    """Submit and wait."""
    tenant = fresh_tenant(agent)
    site.run(site.submit_many(agent, count, tenant=tenant, **inputs))
    site.ended(tenant, count, within_s=WITHIN_S)


def waves_s(site: Site) -> float:
    """Seconds from the first start to the last finish."""
    tenant, count = fresh_tenant("waves"), SLOTS * WAVES
    with site.worker("waves-worker", slots=SLOTS):
        run(site, "bench-sleep", 1, seconds=0.0)
        with site.holding_back():
            site.run(site.submit_many("bench-sleep", count, tenant=tenant, seconds=STEP_S))
            time.sleep(1.0)
        ended = site.ended(tenant, count, within_s=WITHIN_S)
    seconds = ended.last_finish - ended.first_start
    say(f"  {count} tasks of {STEP_S:g} s on {SLOTS} slots: {seconds:.2f} s")
    return seconds


@contextmanager
def slow_endpoint(delay_s: float) -> Iterator[str]:
    """An OpenAI-compatible endpoint in a process of its own; its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = (sys.executable, "-m", "tests.fakes.chat_server", "--port", str(port), "--delay-s", str(delay_s))
    with subprocess.Popen(argv, cwd=ROOT) as process:
        try:
            wait_listening(port)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.kill()


def wait_listening(port: int, *, within_s: float = 20.0) -> None:
    """Return once something listens. Raises: BenchFailed."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise BenchFailed(f"nothing listens on port {port} after {within_s:g} s")
