"""`ledger_poll.rate`: tasks a second that one worker starts while the broker is stopped, by polling the ledger.

The tasks are submitted while it is down, so that none has a message. From the first `started_at` to the last.
"""

from tests.bench.figures import Figure
from tests.bench.site import Site, fresh_tenant, say

TASKS = 5000
WARM_UP = 200
WITHIN_S = 240.0
STARTS = """
    SELECT extract(epoch FROM max(started_at) - min(started_at))::float8 FROM tasks WHERE tenant = %s"""


def measure(site: Site) -> list[Figure]:
    """Without a broker."""
    with site.worker("poll-worker"):
        run(site, WARM_UP)
        with site.without_broker():
            run(site, WARM_UP)
            rate = run(site, TASKS)
    return [
        Figure(
            name="ledger_poll.rate", what="tasks that one worker starts without a broker", value=rate, unit="tasks/s",
            goal=100.0, better="higher",
        )
    ]  # fmt: skip


def run(site: Site, count: int) -> float:
    """Tasks a second."""
    tenant = fresh_tenant("poll")
    site.run(site.submit_many("bench-noop", count, tenant=tenant))
    site.ended(tenant, count, within_s=WITHIN_S)
    [(span_s,)] = site.query(STARTS, tenant)
    say(f"  {count} tasks started within {span_s:.1f} s: {count / span_s:.0f}/s")
    return float(count / span_s)
