"""`noop.rate`, `noop.cpu`: durable tasks a second through one producer and one worker, and what one costs the worker.

Ours: submit (ledger row on disk, publish confirmed), claim, acknowledge, one journaled step (intent and result on
disk), finish on disk; events on, as shipped. From just before the first submit to the last `finished_at` of the ledger.
Our producer has 256 submits open at once. The peer: `tests.bench.peer`, whose calls block, sends from 32 threads; from
just before the first send to the end of the last body. Both once unmeasured to warm up, then in turns, medians.

`noop.rate_dbos`, `noop.rate_procrastinate`: our rate again, beside peers that keep their tasks in PostgreSQL too: DBOS
Transact (a workflow with one step) and Procrastinate (a task; it journals no steps), on the same server, right after,
one at a time, each with one producer and one worker of its own, 256 submits and 100 tasks at once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from uuid import uuid4

from tests.bench import peer
from tests.bench.durable_peers import durable_peer
from tests.bench.figures import Figure
from tests.bench.gauges import cpu_s
from tests.bench.site import Site, Worker, fresh_tenant, say

ROUNDS = 3
TASKS = 5000
WARM_UP = 500
PEER_TASKS = 2500
WITHIN_S = 180.0
DURABLE_GOALS = {"dbos": 5, "procrastinate": 3}
DURABLE_TASKS = 1500
DURABLE_WARM_UP = 200


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one contender."""

    rate: float
    cpu_ms: float


def measure(site: Site) -> list[Figure]:
    """Run both in turns."""
    producer = peer.Producer(site.broker_url)
    with site.worker("noop-worker") as our_worker, site.peer_worker() as peer_worker:
        contenders: dict[str, tuple[Callable[[int], float], Worker, int]] = {
            "fleet": (lambda count: ours(site, count), our_worker, TASKS),
            peer.NAME: (lambda count: theirs(producer, count), peer_worker, PEER_TASKS),
        }
        for run, _, _ in contenders.values():
            run(WARM_UP)
        rounds: dict[str, list[Round]] = {name: [] for name in contenders}
        for _ in range(ROUNDS):
            for name, (run, worker, count) in contenders.items():
                before = cpu_s(worker.pid)
                seconds = run(count)
                one = Round(count / seconds, (cpu_s(worker.pid) - before) * 1000 / count)
                rounds[name].append(one)
                say(f"  {name}: {one.rate:.0f} tasks/s, {one.cpu_ms:.2f} ms of worker CPU a task")
    producer.close()
    rate = median(one.rate for one in rounds["fleet"])
    beside = [durable_figure(name, goal, rate, durable_rate(site, name)) for name, goal in DURABLE_GOALS.items()]
    return figures(rounds["fleet"], rounds[peer.NAME]) + beside


def durable_rate(site: Site, name: str) -> float:
    """The median rate of a durable peer."""
    with durable_peer(site, name) as one:
        one.run(DURABLE_WARM_UP)
        rates = [DURABLE_TASKS / one.run(DURABLE_TASKS) for _ in range(ROUNDS)]
    say(f"  {name}: {', '.join(f'{rate:.0f}' for rate in rates)} tasks/s")
    return median(rates)


def durable_figure(name: str, goal: int, rate: float, peer_rate: float) -> Figure:
    """Our rate beside a durable peer's."""
    return Figure(
        name=f"noop.rate_{name}", what=f"durable no-op tasks, beside {name}", value=rate, unit="tasks/s",
        goal=goal * peer_rate, goal_words=f"≥ {goal} × the peer", better="higher", peer=name, peer_value=peer_rate,
    )  # fmt: skip


def figures(fleet: list[Round], plain: list[Round]) -> list[Figure]:
    """Medians beside medians."""
    rate, peer_rate = (median(one.rate for one in each) for each in (fleet, plain))
    cpu_ms, peer_cpu_ms = (median(one.cpu_ms for one in each) for each in (fleet, plain))
    return [
        Figure(
            name="noop.rate", what="durable no-op tasks, one producer, one worker", value=rate, unit="tasks/s",
            goal=2 * peer_rate, goal_words="≥ 2 × the peer", better="higher", peer=peer.NAME, peer_value=peer_rate,
        ),
        Figure(
            name="noop.cpu", what="worker CPU for one durable no-op task", value=cpu_ms, unit="ms", goal=1.0,
            better="lower", peer=peer.NAME, peer_value=peer_cpu_ms,
        ),
    ]  # fmt: skip


def ours(site: Site, count: int) -> float:
    """Seconds from the first submit to the last finish."""
    tenant = fresh_tenant("noop")
    began = time.time()
    site.run(site.submit_many("bench-noop", count, tenant=tenant))
    submitted = time.time()
    ended = site.ended(tenant, count, within_s=WITHIN_S)
    say(f"    submitted in {submitted - began:.1f} s, finished in {ended.last_finish - began:.1f} s")
    return ended.last_finish - began


def theirs(producer: peer.Producer, count: int) -> float:
    """Seconds from the first send to the end of the last body."""
    run = uuid4().hex
    began = time.time()
    producer.send_many("peer.noop", count, run, count, producer.ear.port)
    submitted = time.time()
    ended = producer.ear.hear(within_s=WITHIN_S) / 1e9
    say(f"    sent in {submitted - began:.1f} s, finished in {ended - began:.1f} s")
    return ended - began
