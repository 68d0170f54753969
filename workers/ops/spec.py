"""What a server is, before it runs: a frozen description that recipes write and the supervisor carries out."""

import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from shared.errors import FleetError
from workers.ops.knobs import RestartPolicy
from workers.ops.probes import Probe

Status = Literal["waiting", "preparing", "starting", "ready", "finished", "backing_off", "held", "stopped", "failed"]


class ServerFailed(FleetError):
    """A server did not become ready, or died too often; the message names its log and shows its end."""

    code = "server_failed"


class RunTool(Protocol):
    """Runs a command as the server's user, its output in the server's log."""

    async def __call__(self, argv: tuple[str, ...], *, within_s: float) -> None:
        """Return when it has succeeded. Raises: ServerFailed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """A command that makes a server's data folder, once; an interrupted one is done again from an empty folder."""

    argv: tuple[str, ...]
    makes: Path
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """One server or process of the fleet."""

    name: str
    kind: str
    """What it is, for people: postgresql, rabbitmq, redis, worker..."""

    argv: tuple[str, ...]
    probe: Probe | None
    """How it shows that it is ready; None: a one-shot command, done when it exits with 0."""

    env: Mapping[str, str] = field(default_factory=dict)
    """Its whole environment: nothing else is inherited."""

    cwd: Path | None = None
    """Working folder; None: the run's folder."""

    needs: tuple[str, ...] = ()
    """Servers that must be ready before its first start, and that are stopped after it."""

    preparations: tuple[Preparation, ...] = ()
    before_start: Callable[[RunTool], Awaitable[None]] | None = None
    """Called before every start, the ones after a death included; must be idempotent. May raise NotReady."""

    on_ready: Callable[[], Awaitable[None]] | None = None
    """Called after every start, before others see it as ready; must be idempotent."""

    lock_file: Path | None = None
    """A file whose first line is the pid of its last life; that of a dead process is removed before a start."""

    restart: RestartPolicy = field(default_factory=RestartPolicy)
    drop_privileges: bool = True
    stop_signal: signal.Signals = signal.SIGTERM
    start_timeout_s: float = 30.0
    stop_timeout_s: float = 10.0
    url: str = ""
    """Where clients find it, without secrets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened to a server."""

    server: str
    status: Status
    reason: str


Listener = Callable[[Event], None]


def start_order(specs: Mapping[str, ServerSpec], *, known: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Order servers so that each follows what it needs.

    Args:
        known: Servers that already exist and may be needed.
    Raises: ServerFailed for an unknown or circular need.
    """
    ordered: dict[str, None] = {}
    path: list[str] = []

    def visit(name: str) -> None:
        if name in ordered or name in known:
            return
        if name in path:
            raise ServerFailed(f"Servers need each other in a circle: {' -> '.join([*path, name])}.")
        if name not in specs:
            raise ServerFailed(f"Server {path[-1]} needs {name}, which is not part of this run.")
        path.append(name)
        for need in specs[name].needs:
            visit(need)
        path.pop()
        ordered[name] = None

    for name in specs:
        visit(name)
    return tuple(ordered)
