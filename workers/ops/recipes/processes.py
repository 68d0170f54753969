"""The fleet's own processes: the migration, the keeper, workers and Flower, started as commands, never imported."""

import sys
from collections.abc import Mapping

from workers.ops.probes import HttpProbe, Notified
from workers.ops.spec import ServerSpec
from workers.ops.surroundings import ROOT, Surroundings


def migrate(around: Surroundings, *, env: Mapping[str, str], needs: tuple[str, ...]) -> ServerSpec:
    """Bring the ledger's schema up to date, once per start."""
    return ServerSpec(
        name="migrate",
        kind="schema migration",
        argv=(sys.executable, "-m", "alembic", "-c", str(ROOT / "migrations" / "alembic.ini"), "upgrade", "head"),
        env=around.python_env(env),
        cwd=ROOT,
        probe=None,
        drop_privileges=False,  # Alembic asks access(2) for its folder, which a clone below /root answers only to root
        needs=needs,
        start_timeout_s=60.0,
    )


def keeper(around: Surroundings, *, env: Mapping[str, str], needs: tuple[str, ...]) -> ServerSpec:
    """The process that finds dead workers and lost messages."""
    return ServerSpec(
        name="keeper",
        kind="keeper",
        argv=(sys.executable, "-m", "workers.keeper.main"),
        env=around.python_env(env),
        cwd=around.project,
        probe=Notified(),
        needs=needs,
        start_timeout_s=60.0,
    )


def worker(around: Surroundings, number: int, *, env: Mapping[str, str], needs: tuple[str, ...]) -> ServerSpec:
    """One Celery worker; give further ones to `Supervisor.add`."""
    name = f"worker-{number}"
    return ServerSpec(
        name=name,
        kind="Celery worker",
        argv=(sys.executable, "-m", "celery", "-A", "workers.agents.main", "worker", "-n", f"{name}@%h"),
        env=around.python_env(env),
        cwd=around.project,
        probe=Notified(),
        needs=needs,
        start_timeout_s=60.0,
        stop_timeout_s=40.0,  # a warm stop hands running tasks back first
    )


def flower(around: Surroundings, *, env: Mapping[str, str], needs: tuple[str, ...]) -> ServerSpec:
    """Flower, read-only, on loopback."""
    port = around.ports.port("flower")
    return ServerSpec(
        name="flower",
        kind="Flower",
        argv=(
            *(sys.executable, "-m", "celery", "-A", "workers.agents.main", "flower", f"--port={port}"),
            *("--address=127.0.0.1", "--enable_events=False", "--read_only=True"),
        ),
        env=around.python_env(env),
        cwd=around.project,
        probe=HttpProbe(port, "/healthcheck"),
        needs=needs,
        start_timeout_s=60.0,
        url=f"http://127.0.0.1:{port}",
    )
