"""The local supervisor: starts servers in dependency order, keeps them running, leaves nothing behind."""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from shared.errors import Misconfigured
from workers.ops.census import Identity, identify, is_alive, members, send
from workers.ops.child import Child
from workers.ops.knobs import SupervisorKnobs
from workers.ops.privileges import Privileges
from workers.ops.probes import Probe
from workers.ops.readiness import Mailboxes
from workers.ops.run_dir import RunDir
from workers.ops.server import Server, Site
from workers.ops.spec import Event, Listener, ServerFailed, ServerSpec, start_order
from workers.ops.watchdog import Watchdog


class Supervisor:
    """Use as an asynchronous context manager on an open `RunDir`; leaving it stops every server, in reverse order.

    Args:
        facts: What else the state file tells readers (profile, environment, addresses); JSON-safe, no secrets.
        on_event: Called on the loop for every change of a server.
    """

    def __init__(
        self,
        run: RunDir,
        *,
        privileges: Privileges,
        knobs: SupervisorKnobs | None = None,
        facts: dict[str, Any] | None = None,
        on_event: Listener | None = None,
    ) -> None:
        self.run = run
        self.privileges = privileges
        self.facts = facts or {}
        self._knobs = knobs or SupervisorKnobs()
        self._on_event = on_event
        self._servers: dict[str, Server] = {}
        self._watchdog: Watchdog | None = None
        self._site: Site | None = None

    async def __aenter__(self) -> Self:
        sweep_leftovers(self.run)
        watchdog = Watchdog(log=self.run.log("guard"))
        mailboxes = Mailboxes(self.privileges)
        watchdog.cover_folder(mailboxes.folder)

        def cover(child: Child, log: Path) -> None:
            watchdog.cover(child.identity, log=log)
            self._note()  # its pid, at once

        self._watchdog = watchdog
        self._site = Site(
            run=self.run, privileges=self.privileges, knobs=self._knobs, mailboxes=mailboxes, cover=cover,
            announce=self._announce,
        )  # fmt: skip
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.stop_all()
        finally:
            if self._site is not None and self._watchdog is not None:
                self._site.mailboxes.close_all()
                self._watchdog.close()

    async def up(self, specs: Iterable[ServerSpec]) -> None:
        """Start servers, each as soon as what it needs is ready.

        Raises: ServerFailed of the first that fails; the others stay as they are until the context is left.
        """
        new = {spec.name: spec for spec in specs}
        order = start_order(new, known=frozenset(self._servers))
        for name in order:
            self._servers[name] = self._server(new[name])
        self.save()
        failed: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for name in order:
                    group.create_task(self._start_after_needs(self._servers[name]))
        except* ServerFailed as failures:
            failed = _first(failures)
        if failed is not None:  # raised out here: Python 3.11.2 wraps what is raised inside except* in a group
            raise failed

    async def add(self, spec: ServerSpec) -> None:
        """Start one more server (a further worker) and return when it is ready. Raises: ServerFailed."""
        if spec.name in self._servers:
            raise ServerFailed(f"A server named {spec.name} already exists.", server=spec.name)
        await self.up([spec])

    async def remove(self, name: str) -> None:
        """Stop a server and forget it."""
        await self.stop(name)
        del self._servers[name]
        self.save()

    async def start(self, name: str) -> None:
        """Start a stopped, failed or held server; return when ready. Raises: ServerFailed."""
        server = self.server(name)
        server.resume()
        await server.start()

    async def stop(self, name: str, *, patience_s: float | None = None) -> None:
        """Stop one server; it stays stopped until started. Without patience (0) it is killed at once."""
        await self.server(name).stop(patience_s=patience_s)

    async def restart(self, name: str) -> None:
        """Stop and start one server; return when ready. Raises: ServerFailed."""
        await self.stop(name)
        await self.start(name)

    async def kill(self, name: str, signum: int = signal.SIGKILL, *, whole: bool = True) -> None:
        """Send a signal to a server and, unless told otherwise, its helpers; the restart policy sees what follows."""
        await self.server(name).kill(signum, whole=whole)

    def suspend(self, name: str) -> None:
        """Suspend the restart policy of one server: when it dies it stays dead."""
        self.server(name).suspend()

    def resume(self, name: str) -> None:
        """Resume the restart policy; a server that died meanwhile is started now."""
        self.server(name).resume()

    async def wait_ready(self, name: str) -> None:
        """Return when the server is ready. Raises: ServerFailed when it failed, is held or stopped."""
        await self.server(name).wait_ready()

    async def stop_all(self) -> None:
        """Stop every server, each after those that need it."""
        stopped = {name: asyncio.Event() for name in self._servers}

        async def stop_one(server: Server) -> None:
            for other in self._servers.values():
                if server.spec.name in other.spec.needs:
                    await stopped[other.spec.name].wait()
            try:
                await server.stop()
            finally:
                stopped[server.spec.name].set()

        await asyncio.gather(*(stop_one(server) for server in self._servers.values()))

    def server(self, name: str) -> Server:
        """One server by name. Raises: ServerFailed when there is none."""
        if name not in self._servers:
            raise ServerFailed(f"There is no server named {name}; known: {', '.join(self._servers) or 'none'}.")
        return self._servers[name]

    def specs(self) -> dict[str, ServerSpec]:
        """What every server is."""
        return {name: server.spec for name, server in self._servers.items()}

    def describe(self, spec: ServerSpec) -> None:
        """Replace what is known of a server that exists; its next start and the order of stops go by it."""
        self.server(spec.name).spec = spec
        self._note()

    def pid(self, name: str) -> int:
        """The pid of a running server. Raises: ServerFailed when it is not running."""
        child = self.server(name).child
        if child is None or child.exited.is_set():
            raise ServerFailed(f"Server {name} is not running.", server=name)
        return child.identity.pid

    def snapshot(self) -> dict[str, Any]:
        """What the state file holds: who supervises, which servers, how to reach and to recognise them."""
        me = identify(os.getpid())
        return {
            **self.facts,
            "supervisor": {"pid": me.pid, "started_ticks": me.started_ticks} if me else None,
            "mailboxes": str(self._site.mailboxes.folder) if self._site else None,
            "guard_pid": self._watchdog.pid if self._watchdog else None,
            "saved_at": time.time(),
            "servers": [_row(server, log=self.run.log(name)) for name, server in self._servers.items()],
        }

    def _server(self, spec: ServerSpec) -> Server:
        if self._site is None:
            raise ServerFailed("The supervisor is not running; use it as `async with Supervisor(...)`.")
        return Server(spec, site=self._site)

    async def _start_after_needs(self, server: Server) -> None:
        for need in server.spec.needs:
            await self._servers[need].wait_ready()
        await server.start()

    def _announce(self, event: Event) -> None:
        self._note()
        if self._on_event is not None:
            self._on_event(event)

    def _note(self) -> None:
        with contextlib.suppress(Misconfigured):  # a disk that filled up must not stop the supervision of what runs
            self.save()

    def save(self) -> None:
        """Write the state file now. Raises: Misconfigured when it cannot be written."""
        self.run.write_state(self.snapshot())


def sweep_leftovers(run: RunDir) -> list[str]:
    """Kill servers that an earlier supervisor of this folder left behind; return their names."""
    state, names = run.read_state(), []
    if state.get("mailboxes"):
        shutil.rmtree(state["mailboxes"], ignore_errors=True)
    for row in state.get("servers", []):
        if row.get("pid") is None:
            continue
        leader = Identity(pid=row["pid"], started_ticks=row["started_ticks"])
        crowd = members(leader, log=row["log"]) + ([leader] if is_alive(leader) else [])
        for identity in crowd:
            send(identity, signal.SIGKILL)
        if crowd:
            names.append(row["name"])
    return names


def _row(server: Server, *, log: Path) -> dict[str, Any]:
    child, spec = server.child, server.spec
    running = child is not None and not child.exited.is_set()
    return {
        "name": spec.name,
        "kind": spec.kind,
        "status": server.status,
        "reason": server.reason,
        "url": spec.url,
        "log": str(log),
        "needs": list(spec.needs),
        "pid": child.identity.pid if child and running else None,
        "started_ticks": child.identity.started_ticks if child and running else None,
        "stop_signal": int(spec.stop_signal),
        "probe": _probe(spec.probe),
    }


def _probe(probe: Probe | None) -> dict[str, Any] | None:
    if probe is None:
        return None
    return {"protocol": probe.protocol, "port": getattr(probe, "port", 0), "path": getattr(probe, "path", "")}


def _first(failures: BaseExceptionGroup[ServerFailed]) -> BaseException:
    first: BaseException = failures
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
