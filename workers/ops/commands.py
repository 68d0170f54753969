"""`fleet up`, `fleet status` and `fleet down`: start a fleet on this machine, look at it, stop it."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from shared.errors import FleetError, Misconfigured
from workers.ops.census import Identity, is_alive, send
from workers.ops.door import Door
from workers.ops.inspection import inspect, supervisor_of
from workers.ops.run_dir import RunDir
from workers.ops.screen import Progress, print_fleet, print_json
from workers.ops.spec import ServerFailed
from workers.ops.supervisor import sweep_leftovers

STOP_WITHIN_S = 120.0
Folder = Annotated[Path, typer.Option("--dir", help="Folder of data, logs and state.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
ProfileName = Annotated[
    str, typer.Option("--profile", help="embedded: servers out of wheels; full: Debian's PostgreSQL, RabbitMQ, Redis.")
]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Celery workers to start.")]
Replicas = Annotated[int, typer.Option("--replicas", min=0, max=7, help="Streaming replicas of PostgreSQL.")]
Sync = Annotated[bool, typer.Option("--sync", help="A commit waits until a replica has it on disk.")]
ServersOnly = Annotated[bool, typer.Option("--servers-only", help="No migration, keeper, workers, Flower.")]
Pins = Annotated[list[str] | None, typer.Option("--port", help="Pin a port: NAME=PORT, for example flower=5555.")]


def up(
    context: typer.Context,
    profile: ProfileName = "embedded",
    workers: Workers = 1,
    replicas: Replicas = 1,
    sync: Sync = False,
    folder: Folder = Path(".fleet"),
    port: Pins = None,
    servers_only: ServersOnly = False,
    as_json: AsJson = False,
) -> None:
    """Start a fleet in the background and return when all of it is ready."""
    run = RunDir(folder)
    running = supervisor_of(run)
    if running is not None:
        print(
            f"A fleet already runs in {run.base} (supervisor {running.pid}); stop it with `fleet down`.",
            file=sys.stderr,
        )
    else:
        door: Door = context.obj
        door.check_all()  # refuse before anything starts
        pinned_ports(port or [])
        options = ["--dir", str(run.base), "--profile", profile, "--workers", str(workers)]
        options += ["--replicas", str(replicas), *(["--sync"] if sync else [])]
        options += [part for pin in port or [] for part in ("--port", pin)]
        options += ["--servers-only"] if servers_only else []
        _start(options, progress=Progress(quiet=as_json))
    _show(run, as_json=as_json)


def status(folder: Folder = Path(".fleet"), as_json: AsJson = False) -> None:
    """Ask every server how it is; exit code 1 unless the fleet runs and all of it is well."""
    run = RunDir(folder)
    seen = _show(run, as_json=as_json)
    if not seen.healthy:
        raise typer.Exit(1)


def down(folder: Folder = Path(".fleet"), as_json: AsJson = False) -> None:
    """Stop the fleet, each server after those that need it."""
    run = RunDir(folder)
    before = run.read_state().get("servers", [])
    supervisor = supervisor_of(run)
    running = [row["name"] for row in before if row.get("pid") is not None]
    forced = False
    if supervisor is not None:
        forced = not _end(supervisor)
    swept = sweep_leftovers(run)
    report = {"folder": str(run.base), "was_running": supervisor is not None, "forced": forced, "swept": swept}
    report["stopped"] = running if supervisor is not None else []
    if as_json:
        print_json(report)
        return
    for sentence in _sentences(report):
        print(sentence)


def pinned_ports(pins: list[str]) -> dict[str, int]:
    """Read NAME=PORT options. Raises: Misconfigured."""
    ports = {}
    for pin in pins:
        name, _, number = pin.partition("=")
        if not name or not number.isdigit() or not 0 < int(number) < 65_536:
            raise Misconfigured(f"--port {pin} is not NAME=PORT; write for example --port flower=5555.")
        ports[name] = int(number)
    return ports


def _show(run: RunDir, *, as_json: bool) -> Any:
    seen = asyncio.run(inspect(run))
    if as_json:
        print_json(seen.as_dict())
    elif not seen.running:
        print(f"No fleet runs in {run.base}; start one with `fleet up`.")
    else:
        print_fleet(seen)
    return seen


def _start(options: list[str], *, progress: Progress) -> None:
    command = [sys.executable, "-m", "workers.ops.main", "supervise", *options]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cancelled start cleans up like Ctrl-C
    daemon = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True, text=True, cwd=Path.cwd()
    )
    try:
        with progress.shown():
            _follow(daemon, progress=progress)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        daemon.terminate()
        _drain(daemon)
        print("Interrupted: everything that had been started is stopped.", file=sys.stderr)
        raise typer.Exit(130) from None


def _follow(daemon: subprocess.Popen[str], *, progress: Progress) -> None:
    """Read the daemon's facts until it is ready. Raises: FleetError as the daemon reported it."""
    for line in _lines(daemon.stdout):
        fact = json.loads(line)
        if "server" in fact:
            progress.update(server=fact["server"], status=fact["status"], reason=fact["reason"])
        elif fact.get("phase") == "ready":
            return
        elif "error" in fact:
            _drain(daemon)
            raise _error(fact["error"])
    code = daemon.wait()
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    raise ServerFailed(f"The supervisor {how} before the fleet was ready.")


def _lines(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise ServerFailed("The supervisor's output cannot be read.")
    return stream


def _drain(daemon: subprocess.Popen[str]) -> None:
    """Wait for the daemon's end, reading on so that it never blocks on a full pipe."""
    for _ in _lines(daemon.stdout):
        pass
    daemon.wait()


def _error(stored: Mapping[str, Any]) -> FleetError:
    kind = Misconfigured if stored["code"] == Misconfigured.code else ServerFailed
    return kind(stored["message"], **stored.get("context", {}))


def _end(supervisor: Identity) -> bool:
    """Ask the supervisor to stop everything; kill it (its guard kills the rest) when it takes too long."""
    try:
        send(supervisor, signal.SIGTERM)
    except PermissionError as error:
        raise Misconfigured("This fleet was started by another user; stop it as that user.") from error
    end = time.monotonic() + STOP_WITHIN_S
    while is_alive(supervisor):
        if time.monotonic() > end:
            send(supervisor, signal.SIGKILL)
            return False
        time.sleep(0.05)
    return True


def _sentences(report: Mapping[str, Any]) -> list[str]:
    if not report["was_running"] and not report["swept"]:
        return [f"No fleet runs in {report['folder']}."]
    sentences = []
    if report["was_running"]:
        how = "Stopped" if not report["forced"] else f"Killed, after {STOP_WITHIN_S:g} s without an end,"
        sentences.append(f"{how} {', '.join(reversed(report['stopped'])) or 'a supervisor without servers'}.")
    if report["swept"]:
        sentences.append(f"Killed what an earlier supervisor had left: {', '.join(report['swept'])}.")
    return sentences
