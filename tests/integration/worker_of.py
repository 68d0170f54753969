"""One more worker in a test's fleet, with options, settings and a metrics port of its own."""

import http.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from workers.ops.background import BackgroundSupervisor
from workers.ops.ports import free_port
from workers.ops.recipes import processes


@dataclass(frozen=True, slots=True)
class OwnWorker:
    """A worker of the test."""

    name: str
    port: int

    def ask(self, path: str) -> tuple[int, str]:
        """GET from its metrics port; (0, "") when it does not answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    def metric(self, name: str, label: str = "") -> float:
        """The sum of a metric over all lines that carry the label; 0 when it is not told."""
        lines = [line for line in self.ask("/metrics")[1].splitlines() if line.startswith((f"{name} ", f"{name}{{"))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if label in line)


@contextmanager
def own_worker(fleet: BackgroundSupervisor, number: int, *options: str, **env: str) -> Iterator[OwnWorker]:
    """Start it; stopped and forgotten at the end."""
    port = free_port(taken=set())
    needs = fleet.topology.needs_of_processes()
    more = {**fleet.env, "FLEET_WORKER_METRICS_PORT": str(port), **env}
    spec = processes.worker(fleet.around, number, env=more, needs=needs)
    fleet.add(replace(spec, argv=(*spec.argv, *options)))
    try:
        yield OwnWorker(spec.name, port)
    finally:
        fleet.remove(spec.name)
