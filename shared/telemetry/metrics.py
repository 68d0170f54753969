"""Prometheus metrics of a worker, in base units, declared once."""

from prometheus_client import Counter, Gauge, Histogram

TASKS_ENDED = Counter("fleet_tasks_ended_total", "Runs that ended on this worker, by how", ["agent", "state"])
RUNNING = Gauge("fleet_tasks_running", "Claimed runs in flight", ["agent"])
RUN_SECONDS = Histogram(
    "fleet_run_seconds", "From claim to end", ["agent"], buckets=(0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 1800)
)
LOOP_LAG_SECONDS = Gauge("fleet_loop_lag_seconds", "Latest lag of the worker's event loop")
IN_DOUBT = Counter(
    "fleet_steps_in_doubt_total",
    "Steps begun anew whose earlier end nobody saw: perhaps paid twice",
    ["agent"],
)
FENCED = Counter("fleet_worker_fenced_total", "Times this worker was declared dead or stopped itself")
CHORE_FAILURES = Counter(
    "fleet_worker_chore_failures_total", "Chores of this worker that failed and were begun anew", ["chore"]
)
POLLED = Counter("fleet_tasks_polled_total", "Tasks that came straight from the ledger, by why", ["priority", "cause"])
SHELVED = Counter("fleet_tasks_shelved_total", "Messages moved from a crowded queue into the ledger")
BROKER_AWAY = Gauge("fleet_broker_away", "1 while this worker has no connection to the broker")
