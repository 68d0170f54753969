"""A running fleet seen from outside: who supervises it, and what each server answers right now."""

import asyncio
from dataclasses import asdict, dataclass
from typing import Any

from workers.ops.census import Identity, is_alive
from workers.ops.knobs import SupervisorKnobs
from workers.ops.probes import is_ready, stored
from workers.ops.run_dir import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One server as it is now."""

    name: str
    kind: str
    status: str
    """What the supervisor last wrote."""

    healthy: bool
    """Whether it lives and answers now (a one-shot command: whether it succeeded)."""

    detail: str
    url: str
    pid: int | None
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The whole fleet as it is now."""

    folder: str
    running: bool
    phase: str
    profile: str
    supervisor_pid: int | None
    env: dict[str, str]
    replica_url: str
    servers: tuple[Sight, ...]

    @property
    def healthy(self) -> bool:
        """Whether it runs and every server is well."""
        return self.running and self.phase == "ready" and all(server.healthy for server in self.servers)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {**asdict(self), "healthy": self.healthy}


def supervisor_of(run: RunDir) -> Identity | None:
    """The living supervisor of this folder, if any."""
    stored_identity = run.read_state().get("supervisor")
    if not stored_identity:
        return None
    identity = Identity(pid=stored_identity["pid"], started_ticks=stored_identity["started_ticks"])
    return identity if is_alive(identity) else None


async def inspect(run: RunDir) -> Inspection:
    """Read the state file and ask every server, all at once."""
    state, supervisor = run.read_state(), supervisor_of(run)
    servers = await asyncio.gather(*(_look(row) for row in state.get("servers", [])))
    return Inspection(
        folder=str(run.base),
        running=supervisor is not None,
        phase=state.get("phase", "none"),
        profile=state.get("profile", ""),
        supervisor_pid=supervisor.pid if supervisor else None,
        env=state.get("env", {}),
        replica_url=state.get("replica_url", ""),
        servers=tuple(servers),
    )


async def _look(row: dict[str, Any]) -> Sight:
    healthy, detail = await _judge(row)
    return Sight(
        name=row["name"], kind=row["kind"], status=row["status"], healthy=healthy, detail=detail, url=row["url"],
        pid=row["pid"], log=row["log"],
    )  # fmt: skip


async def _judge(row: dict[str, Any]) -> tuple[bool, str]:
    if row["probe"] is None:
        return row["status"] == "finished", row["reason"]
    if row["pid"] is None:
        return False, row["reason"] or "it does not run"
    if not is_alive(Identity(pid=row["pid"], started_ticks=row["started_ticks"])):
        return False, "its process is gone"
    probe = stored(row["probe"]["protocol"], port=row["probe"]["port"], path=row["probe"]["path"])
    missing = await is_ready(probe, timeout_s=SupervisorKnobs().probe_timeout_s)
    return not missing and row["status"] == "ready", missing or row["reason"]
