"""The life of one server: prepared, started, probed until ready, watched, started again by policy, stopped."""

import asyncio
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from workers.ops.census import remove_stale_lock
from workers.ops.child import Child, spawn
from workers.ops.knobs import SupervisorKnobs
from workers.ops.privileges import Privileges
from workers.ops.probes import Notified, NotReady, is_ready
from workers.ops.readiness import Mailboxes
from workers.ops.restart import Exits, decide
from workers.ops.run_dir import RunDir
from workers.ops.spec import Event, Listener, Preparation, ServerFailed, ServerSpec, Status

SETTLED = ("ready", "finished", "held", "stopped", "failed")
SWEEPS, SWEEP_S = 250, 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What all servers of a run share."""

    run: RunDir
    privileges: Privileges
    knobs: SupervisorKnobs
    mailboxes: Mailboxes
    cover: Callable[[Child, Path], None]
    """Hands a new process to the guard."""

    announce: Listener


class Server:
    """One server; `start`, `stop`, `kill`, `suspend` and `resume` may come from any task of the loop."""

    def __init__(self, spec: ServerSpec, *, site: Site) -> None:
        self.spec = spec
        self.status: Status = "waiting"
        self.reason = ""
        self.child: Child | None = None
        self._site = site
        self._log = site.run.log(spec.name)
        self._life: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()
        self._down = asyncio.Event()
        self._resumed = asyncio.Event()
        self._resumed.set()
        self._exits: deque[float] = deque(maxlen=64)

    async def start(self) -> None:
        """Start it, or join a start under way, and return when it is ready. Raises: ServerFailed."""
        if self._life is None or self._life.done():
            self._exits.clear()
            self._settled.clear()
            self._life = asyncio.create_task(self._live(), name=f"server {self.spec.name}")
            self._life.add_done_callback(self._on_life_end)
        await self.wait_ready()

    async def wait_ready(self) -> None:
        """Return when it is ready (a one-shot command: when it has succeeded). Raises: ServerFailed."""
        await self._settled.wait()
        if self.status == "failed":
            raise ServerFailed(self.reason, server=self.spec.name)
        if self.status not in ("ready", "finished"):
            raise ServerFailed(f"Server {self.spec.name} is {self.status}: {self.reason}.", server=self.spec.name)

    async def stop(self, *, patience_s: float | None = None) -> None:
        """Ask it to end, insist after `patience_s` (0: at once; None: its own), and leave none of its processes."""
        patience_s = self.spec.stop_timeout_s if patience_s is None else patience_s
        if self._life is not None:
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
            self._life = None
        child = self.child
        if child is not None and not child.exited.is_set() and patience_s > 0:
            child.send(self.spec.stop_signal, whole=False)
            child.send(signal.SIGCONT, whole=True)
            try:
                await asyncio.wait_for(child.exited.wait(), patience_s)
            except TimeoutError:
                self._say(self.status, f"it ignored {self.spec.stop_signal.name}; killing it")
        await self._sweep()
        self._site.mailboxes.close(self.spec.name)
        self._say("stopped", "stopped on request")

    async def kill(self, signum: int, *, whole: bool = True) -> None:
        """Signal it and (unless told otherwise) all its helpers; after SIGKILL, return once its death is noticed."""
        child = self.child
        if child is None or child.exited.is_set():
            raise ServerFailed(f"Server {self.spec.name} is not running.", server=self.spec.name)
        child.send(signum, whole=whole)
        if signum == signal.SIGKILL:
            await child.exited.wait()
            await self._down.wait()

    def suspend(self) -> None:
        """Do not start it again when it dies."""
        self._resumed.clear()

    def resume(self) -> None:
        """Start it again when it dies, at once if it died meanwhile."""
        if self.status == "held":
            self._settled.clear()
        self._resumed.set()

    async def _live(self) -> None:
        try:
            for preparation in self.spec.preparations:
                await self._prepare(preparation)
            await self._bring_up()
        except ServerFailed as failure:
            await self._sweep()
            self._say("failed", failure.message)
            return
        while self.spec.probe is not None and await self._again():
            try:
                await self._bring_up()
            except ServerFailed as failure:
                self._say("starting", failure.message)
                await self._sweep()

    async def _again(self) -> bool:
        """Wait for its death; return whether to start it again, after the wait that the policy asks for."""
        ending = "could not be started"
        if self.child is not None:
            await self.child.exited.wait()
            ending = self.child.ending
            await self._sweep()
        self._exits.append(time.monotonic())
        while True:
            seen = Exits(times=self._exits, now=time.monotonic(), suspended=not self._resumed.is_set())
            decision = decide(self.spec.restart, seen)
            reason = f"it {ending}; {decision.reason}"
            if decision.action == "give_up":
                self._say("failed", f"Server {self.spec.name} failed: {reason}; its log is {self._log}.")
                return False
            if decision.action == "hold":
                self._say("held", reason)
                await self._resumed.wait()
                continue
            self._say("backing_off", reason)
            await asyncio.sleep(decision.wait_s)
            if self._resumed.is_set():
                return True

    async def _prepare(self, preparation: Preparation) -> None:
        marker = preparation.makes.with_name(preparation.makes.name + ".done")
        if marker.exists():
            return
        shutil.rmtree(preparation.makes, ignore_errors=True)
        await self._run(preparation.argv, within_s=self.spec.start_timeout_s, env=preparation.env)
        marker.touch()

    async def _run(self, argv: tuple[str, ...], *, within_s: float, env: Mapping[str, str] | None = None) -> None:
        self._say("preparing", f"running {Path(argv[0]).name}")
        offset = self._log_size()
        child = self._spawn(argv, env=self.spec.env if env is None else env)
        try:
            async with asyncio.timeout(within_s):
                await child.exited.wait()
        except TimeoutError:
            await self._sweep()
            raise self._failure(f"was not prepared within {within_s:g} s", offset=offset) from None
        if not child.succeeded:
            raise self._failure(f"could not be prepared: {argv[0]} {child.ending}", offset=offset)

    async def _bring_up(self) -> None:
        self._say("starting", "")
        offset = self._log_size()
        if self.spec.before_start is not None:
            try:
                await self.spec.before_start(self._run)
            except NotReady as error:
                raise self._failure(f"could not be prepared: {error}", offset=offset) from error
            if self.status != "starting":
                self._say("starting", "")
            offset = self._log_size()
        env = dict(self.spec.env)
        if isinstance(self.spec.probe, Notified):
            env["NOTIFY_SOCKET"] = str(self._site.mailboxes.open(self.spec.name))
        if self.spec.lock_file is not None:
            remove_stale_lock(self.spec.lock_file)
        child = self._spawn(self.spec.argv, env=env)
        waiting_for = "it did not end"
        try:
            async with asyncio.timeout(self.spec.start_timeout_s):
                while waiting_for := await self._missing(child, offset=offset):
                    await asyncio.sleep(self._site.knobs.probe_interval_s)
                if self.spec.on_ready is not None:
                    waiting_for = "its first commands did not end"
                    await self.spec.on_ready()
        except NotReady as error:
            raise self._failure(f"could not be set up: {error}", offset=offset) from error
        except TimeoutError:
            message = f"was not ready within {self.spec.start_timeout_s:g} s ({waiting_for})"
            raise self._failure(message, offset=offset) from None
        self._say("ready" if self.spec.probe is not None else "finished", "")

    async def _missing(self, child: Child, *, offset: int) -> str:
        """What is still missing for readiness; empty when ready. Raises: ServerFailed when it has died."""
        if self.spec.probe is None:
            await child.exited.wait()
        if child.exited.is_set():
            if self.spec.probe is None and child.succeeded:
                return ""
            raise self._failure(f"{child.ending} before it was ready", offset=offset)
        if isinstance(self.spec.probe, Notified):
            try:
                self._site.mailboxes.check(self.spec.name)
            except NotReady as error:
                return str(error)
            return ""
        return await is_ready(self.spec.probe, timeout_s=self._site.knobs.probe_timeout_s) if self.spec.probe else ""

    def _spawn(self, argv: tuple[str, ...], *, env: Mapping[str, str]) -> Child:
        privileges = self._site.privileges
        prefix = privileges.prefix if self.spec.drop_privileges else privileges.watched
        self.child = None
        try:
            self.child = spawn((*prefix, *argv), env=env, cwd=self.spec.cwd or self._site.run.base, log=self._log)
        except OSError as error:
            raise ServerFailed(f"Server {self.spec.name} could not be started: {error}.") from error
        self._site.cover(self.child, self._log)
        return self.child

    async def _sweep(self) -> None:
        """Kill whatever the server left: its helpers outlive it and would hold its port or shared memory."""
        if self.child is None:
            return
        for _ in range(SWEEPS):
            if not self.child.crowd():
                break
            self.child.send(signal.SIGKILL, whole=True)
            await asyncio.sleep(SWEEP_S)
        await self.child.exited.wait()

    def _on_life_end(self, life: asyncio.Task[None]) -> None:
        """A defect of ours must not leave others waiting for this server for ever."""
        if not life.cancelled() and (error := life.exception()) is not None:
            self._say("failed", f"Server {self.spec.name} could not be supervised: {error!r}.")

    def _say(self, status: Status, reason: str) -> None:
        self.status, self.reason = status, reason
        if status in SETTLED:
            self._settled.set()
        else:
            self._settled.clear()
        if status == "ready":
            self._down.clear()
        else:
            self._down.set()
        self._site.announce(Event(server=self.spec.name, status=status, reason=reason))

    def _log_size(self) -> int:
        return self._log.stat().st_size if self._log.exists() else 0

    def _failure(self, what: str, *, offset: int) -> ServerFailed:
        with self._log.open("rb") as file:
            file.seek(offset)
            lines = file.read().decode(errors="replace").splitlines()[-self._site.knobs.log_lines :]
        end = "; it ends with:\n" + "\n".join(f"  {line}" for line in lines) if lines else "; it is empty."
        message = f"Server {self.spec.name} {what}; its log is {self._log}{end}"
        return ServerFailed(message, server=self.spec.name, log=str(self._log))
