"""Peers that keep their tasks in PostgreSQL as we do: installed beside us, never among us, on the same server."""

import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.bench.site import BenchFailed, Site, say
from workers.ops.surroundings import ROOT

CACHE = ROOT / ".fleet" / "bench-peers"
PINNED = ("dbos==3.4.0", "procrastinate==3.10.0", "psycopg[binary,pool]==3.3.9")
RIVALS = {"dbos": "dbos_noop.py", "procrastinate": "procrastinate_noop.py"}
WITHIN_S = 300.0


@dataclass(frozen=True, slots=True)
class DurablePeer:
    """One of them, with its worker running."""

    name: str
    worker_pid: int
    _command: tuple[str, ...]

    def run(self, count: int) -> float:
        """Seconds from the first submit to the end of the last task. Raises: BenchFailed."""
        done = subprocess.run(
            [*self._command, "produce", str(count)], capture_output=True, text=True, timeout=WITHIN_S, check=False
        )
        if done.returncode:
            raise BenchFailed(f"{self.name}: {done.stderr[-2000:]}")
        return float(done.stdout.split()[-1])


def installed() -> Path:
    """The interpreter of the peers' virtual environment, made when it is not there. Raises: BenchFailed."""
    mark = CACHE / "installed"
    python = CACHE / "bin" / "python"
    if not mark.exists() or mark.read_text("utf-8").split() != list(PINNED):
        say(f"  installing {', '.join(PINNED)} into {CACHE}")
        venv.create(CACHE, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINNED]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchFailed(done.stderr[-2000:])
        mark.write_text(" ".join(PINNED), "utf-8")
    return python


@contextmanager
def durable_peer(site: Site, name: str) -> Iterator[DurablePeer]:
    """One of them, alone: a worker of it that polls must not slow the next one down. Raises: BenchFailed."""
    python, script = installed(), RIVALS[name]
    database = f"peer_{name}"
    with psycopg.connect(site.dsn, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {database}")
    url = f"{site.dsn.rpartition('/')[0]}/{database}"
    if name == "dbos":  # it takes SQLAlchemy's URLs, and psycopg 3 only when told
        url = url.replace("postgresql://", "postgresql+psycopg://")
    command = (str(python), str(Path(__file__).parent / "rivals" / script), url)
    with subprocess.Popen([*command, "worker"], stdout=subprocess.PIPE, stderr=sys.stderr, text=True) as worker:
        try:
            if worker.stdout is None or worker.stdout.readline().strip() != "ready":
                raise BenchFailed(f"the worker of {name} did not start")
            yield DurablePeer(name, worker.pid, command)
        finally:
            worker.kill()
    with psycopg.connect(site.dsn, autocommit=True) as server:
        server.execute(f"DROP DATABASE {database} WITH (FORCE)")
