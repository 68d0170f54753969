"""A process's metrics and its health, served on a port of loopback."""

from collections.abc import Callable, Iterable
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import make_wsgi_app

from shared.errors import Misconfigured


def serve_metrics(port: int, *, variable: str, is_ready: Callable[[], bool] = lambda: True) -> None:
    """Serve /metrics, /livez and /readyz (503 while not ready) on loopback; 0 serves nothing.

    Args:
        variable: Where the port was set.

    Raises: Misconfigured when the port cannot be had.
    """
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

    try:
        server = make_server("127.0.0.1", port, answer, handler_class=_Quiet)
    except OSError as error:
        raise Misconfigured(
            f"{variable}: port {port} cannot be served ({error.strerror}): choose a free one, or 0 for no metrics",
            variable=variable,
        ) from None
    Thread(target=server.serve_forever, name="metrics", daemon=True).start()


class _Quiet(WSGIRequestHandler):
    """Says nothing about each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""
