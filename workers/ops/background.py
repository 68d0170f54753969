"""A supervisor on a thread of its own, for callers without an event loop: tests, benchmarks, drills."""

import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from workers.ops.knobs import SupervisorKnobs
from workers.ops.opening import open_site
from workers.ops.replication.failover import Failover, Outcome, Say
from workers.ops.replication.failover import Wish as FailoverWish
from workers.ops.spec import Listener, ServerFailed, ServerSpec
from workers.ops.supervisor import Supervisor
from workers.ops.surroundings import Surroundings
from workers.ops.topology import Topology, Wish, build


class BackgroundSupervisor:
    """The methods of `Supervisor`, blocking. Every error of the supervisor is raised in the caller."""

    def __init__(
        self,
        around: Surroundings,
        topology: Topology,
        *,
        on_event: Listener | None = None,
        knobs: SupervisorKnobs | None = None,
    ) -> None:
        self.around = around
        self.topology = topology
        self.env = dict(topology.env)
        self._supervisor = Supervisor(around.run, privileges=around.privileges, on_event=on_event, knobs=knobs)
        self._failover = Failover(topology.group, supervisor=self._supervisor) if topology.group else None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="supervisor", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._supervisor.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._call(self._supervisor.__aexit__(kind, error, trace))
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    @property
    def db_url(self) -> str:
        """The primary, as SQLAlchemy takes it."""
        return self.env["FLEET_DB_URL"]

    @property
    def replica_url(self) -> str:
        """The first streaming replica, as SQLAlchemy takes it; empty when there is none."""
        group = self.topology.group
        return group.first_replica if group else self.topology.replica_url

    @property
    def broker_url(self) -> str:
        """The broker, as Celery takes it."""
        return self.env["FLEET_BROKER_URL"]

    @property
    def redis_url(self) -> str:
        """The database of conversations."""
        return self.env["FLEET_MEMORY_REDIS_URL"]

    def up(self) -> None:
        """Start the whole topology. Raises: ServerFailed."""
        self.up_all(self.topology.specs)

    def up_all(self, specs: Iterable[ServerSpec]) -> None:
        """Start further servers, each after what it needs. Raises: ServerFailed."""
        self._call(self._supervisor.up(specs))

    def stop_all(self) -> None:
        """Stop every server, each after those that need it."""
        self._call(self._supervisor.stop_all())

    def add(self, spec: ServerSpec) -> None:
        """Start one more server or process; return when ready. Raises: ServerFailed."""
        self._call(self._supervisor.add(spec))

    def remove(self, name: str) -> None:
        """Stop a server and forget it."""
        self._call(self._supervisor.remove(name))

    def start(self, name: str) -> None:
        """Start a stopped, failed or held server; return when ready. Raises: ServerFailed."""
        self._call(self._supervisor.start(name))

    def stop(self, name: str) -> None:
        """Stop a server politely; it stays stopped."""
        self._call(self._supervisor.stop(name))

    def restart(self, name: str) -> None:
        """Stop and start a server; return when ready. Raises: ServerFailed."""
        self._call(self._supervisor.restart(name))

    def kill(self, name: str, signum: int = signal.SIGKILL, *, whole: bool = True) -> None:
        """Signal a server and its helpers; after SIGKILL its death has been noticed when this returns."""
        self._call(self._supervisor.kill(name, signum, whole=whole))

    def freeze(self, name: str) -> None:
        """SIGSTOP: it keeps its port and answers nothing."""
        self.kill(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        self.kill(name, signal.SIGCONT)

    def suspend(self, name: str) -> None:
        """When it dies it stays dead, until `resume` or `start`."""
        self._call(_done(lambda: self._supervisor.suspend(name)))

    def resume(self, name: str) -> None:
        """Restart policy on again; if it died meanwhile it is started now."""
        self._call(_done(lambda: self._supervisor.resume(name)))

    def wait_ready(self, name: str) -> None:
        """Return when ready. Raises: ServerFailed."""
        self._call(self._supervisor.wait_ready(name))

    def failover_db(self, wish: FailoverWish | None = None, *, say: Say | None = None) -> Outcome:
        """Promote a replica of PostgreSQL; `db_url`, `replica_url` and `env` follow. Raises: FailoverRefused ..."""
        if self._failover is None:
            raise ServerFailed("This topology has no PostgreSQL.")
        outcome: Outcome = self._call(self._failover.run(wish or FailoverWish(), say=say))
        self.env |= self._failover.group.addresses()
        return outcome

    def status(self, name: str) -> str:
        """ready, held, failed, stopped ..."""
        return self._supervisor.server(name).status

    def server_reason(self, name: str) -> str:
        """Why it is in that state."""
        return self._supervisor.server(name).reason

    def pid(self, name: str) -> int:
        """The pid of a running server. Raises: ServerFailed."""
        return self._supervisor.pid(name)

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        under_way = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return under_way.result()
        except BaseException:  # Ctrl-C in the caller's thread: what was being started must not go on behind its back
            under_way.cancel()
            raise


@contextmanager
def running(
    wish: Wish,
    *,
    folder: Path,
    inherited: Mapping[str, str],
    project: Path | None = None,
    pinned_ports: Mapping[str, int] | None = None,
    knobs: SupervisorKnobs | None = None,
    on_event: Listener | None = None,
) -> Iterator[BackgroundSupervisor]:
    """Start what is wished for in `folder`, give its control, and stop all of it at the end.

    Args: see `opening.open_site`.
    Raises: Misconfigured, ServerFailed.
    """
    around = open_site(folder, inherited=inherited, pinned_ports=pinned_ports, project=project, knobs=knobs)
    try:
        with BackgroundSupervisor(around, build(wish, around=around), on_event=on_event, knobs=knobs) as servers:
            servers.up()
            yield servers
    finally:
        around.run.close()


async def _done(act: Any) -> None:
    act()
