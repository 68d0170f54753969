"""`resume.worst`: from kill -9 of a worker with 500 runs until all of them run again on another; the worst of several.

Default settings: a worker counts as dead 15 s after its last heartbeat. Two workers with a slot for every run; the runs
are in a step that waits. One is killed once it has its share, and stays dead until all is over, so that the other takes
everything. A run counts as running again when the ledger has it at a later epoch with the other worker.
"""

import time

from tests.bench.figures import Figure
from tests.bench.site import BenchFailed, Site, Worker, fresh_tenant, say

ROUNDS = 5
RUNS = 500
SLOTS = 1000
STEP_S = 90.0
WITHIN_S = 60.0
RUNNING = """
    SELECT count(*) FROM tasks t JOIN workers w ON w.id = t.worker_id
    WHERE t.tenant = %s AND t.state = 'running' AND w.pid = %s AND t.epoch = %s"""


def measure(site: Site) -> list[Figure]:
    """Kill again and again."""
    took = []
    for number in range(1, ROUNDS + 1):
        took.append(round_s(site, RUNS))
        say(f"  round {number}: all {RUNS} runs go on after {took[-1]:.1f} s")
    return [
        Figure(
            name="resume.worst", what=f"kill -9 of a worker → its {RUNS} runs go on, worst of {ROUNDS}",
            value=max(took), unit="s", goal=20.0, better="lower",
        )
    ]  # fmt: skip


def round_s(site: Site, runs: int) -> float:
    """Seconds from the kill until every run has another worker."""
    tenant = fresh_tenant("resume")
    with site.worker("victim", slots=SLOTS) as victim:
        site.run(site.submit_many("bench-sleep", runs, tenant=tenant, seconds=STEP_S))
        until_running(site, tenant, victim, epoch=1, count=runs)
        with site.worker("heir", slots=SLOTS) as heir:
            site.kill_for_good(victim)
            began = time.monotonic()
            until_running(site, tenant, heir, epoch=3, count=runs)
            took_s = time.monotonic() - began
            site.run(site.cancel_all(tenant))
    return took_s


def until_running(site: Site, tenant: str, worker: Worker, *, epoch: int, count: int) -> None:
    """Return once a worker has them all. Raises: BenchFailed."""
    end = time.monotonic() + WITHIN_S
    while (found := site.query(RUNNING, tenant, worker.pid, epoch)[0][0]) < count:
        if time.monotonic() > end:
            raise BenchFailed(f"only {found} of {count} runs of {tenant} run on {worker.name} after {WITHIN_S:g} s")
        time.sleep(0.05)
