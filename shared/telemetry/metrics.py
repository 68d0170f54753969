"""The fleet's Prometheus metrics, in base units, declared once."""

from collections.abc import Callable, Iterable
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import Counter, Gauge, Histogram, make_wsgi_app

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
POLLED = Counter("fleet_tasks_polled_total", "Tasks that came straight from the ledger, by why", ["priority", "cause"])
SHELVED = Counter("fleet_tasks_shelved_total", "Messages moved from a crowded queue into the ledger")
BROKER_AWAY = Gauge("fleet_broker_away", "1 while this worker has no connection to the broker")


def serve_metrics(port: int, *, is_ready: Callable[[], bool] = lambda: True) -> None:
    """Serve /metrics, /livez and /readyz (503 while not ready) on loopback; 0 serves nothing."""
    if not port:
        return
    metrics = make_wsgi_app()

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path not in ("/livez", "/readyz"):
            return metrics(environ, start)  # type: ignore[no-any-return]
        is_good = path == "/livez" or is_ready()
        start("200 OK" if is_good else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"ok\n" if is_good else b"not ready\n"]

    server = make_server("127.0.0.1", port, answer, handler_class=_Quiet)
    Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _Quiet(WSGIRequestHandler):
    """Says nothing about each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""
