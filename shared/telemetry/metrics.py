"""The fleet's Prometheus metrics, in base units, declared once."""

from prometheus_client import Counter, Gauge, Histogram, start_http_server

TASKS_ENDED = Counter("fleet_tasks_ended_total", "Runs that ended on this worker, by how", ["agent", "state"])
RUNNING = Gauge("fleet_tasks_running", "Claimed runs in flight", ["agent"])
RUN_SECONDS = Histogram(
    "fleet_run_seconds", "From claim to end", ["agent"], buckets=(0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 1800)
)
LOOP_LAG_SECONDS = Gauge("fleet_loop_lag_seconds", "Latest lag of the worker's event loop")
FENCED = Counter("fleet_worker_fenced_total", "Times this worker was declared dead or stopped itself")


def serve_metrics(port: int) -> None:
    """Serve /metrics on loopback; 0 serves nothing."""
    if port:
        start_http_server(port, addr="127.0.0.1")
