"""Prometheus metrics of the keeper, in base units, declared once. Those of the ledger are the leader's to tell."""

from prometheus_client import Counter, Gauge, Histogram

LEADING = Gauge("fleet_keeper_leading", "1 while this keeper leads; over all keepers the sum is 1")
EPOCH = Gauge("fleet_keeper_epoch", "The latest term of this keeper; grows with every leader")
DECISIONS = Counter("fleet_keeper_decisions_total", "Decisions that led to something, by kind", ["decision"])
TASKS = Counter(
    "fleet_keeper_tasks_total",
    "Tasks that it acted on: rescued, redispatched, relieved, dead_lettered, woken, ticked, retired and so on",
    ["action"],
)
IN_DOUBT = Counter(
    "fleet_keeper_steps_in_doubt_total", "Calls in flight when their worker died: they may have been paid for"
)
CHORE_SECONDS = Histogram(
    "fleet_keeper_chore_seconds", "One round of one chore", ["chore"], buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 60)
)
CHORE_FAILURES = Counter("fleet_keeper_chore_failures_total", "Rounds that ended with an error", ["chore"])
BACKLOG = Gauge("fleet_backlog_tasks", "Tasks in the ledger that are not running, by what they wait for", ["state"])


def resign() -> None:
    """No longer the leader: another keeper tells what the ledger holds."""
    LEADING.set(0)
    BACKLOG.clear()
