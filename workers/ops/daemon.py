"""The detached supervisor: brings a fleet up, tells its starter how that goes, and keeps it running until a signal."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.errors import FleetError, Misconfigured
from workers.ops.control import Carry, Tell, listening
from workers.ops.knobs import SupervisorKnobs
from workers.ops.opening import open_site
from workers.ops.remedies import named
from workers.ops.replication.failover import Failover
from workers.ops.replication.failover import Wish as FailoverWish
from workers.ops.spec import Event
from workers.ops.supervisor import Supervisor
from workers.ops.surroundings import Surroundings
from workers.ops.topology import Topology, Wish, build


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the starter asked for."""

    folder: Path
    wish: Wish
    pinned_ports: Mapping[str, int]
    inherited: Mapping[str, str]
    project: Path
    knobs: SupervisorKnobs


def run(order: Order) -> int:
    """Supervise until SIGTERM or SIGINT; return the exit code.

    Standard output carries one JSON object a line to the starter: events, then `{"phase": "ready"}` or an error.
    """
    try:
        around = open_site(
            order.folder,
            inherited=order.inherited,
            pinned_ports=order.pinned_ports,
            project=order.project,
            knobs=order.knobs,
        )
    except (FleetError, OSError) as error:
        tell({"error": named(error).as_dict()})
        return 1
    try:
        _redirect_errors(around.run.log("supervisor"))
        return asyncio.run(_supervise(order, around=around))
    except (FleetError, OSError) as error:
        told = named(error).as_dict()
        with contextlib.suppress(Misconfigured):  # the state file may be what failed
            around.run.write_state({**around.run.read_state(), "phase": "failed", "error": told})
        tell({"error": told})
        return 1
    finally:
        around.run.close()


async def _supervise(order: Order, *, around: Surroundings) -> int:
    topology = build(order.wish, around=around)
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    facts = _facts(topology, around=around)
    supervisor = Supervisor(around.run, privileges=around.privileges, facts=facts, on_event=_report, knobs=order.knobs)
    async with supervisor:
        start = asyncio.create_task(supervisor.up(topology.specs))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({start, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if start.done():
            start.result()
            async with listening(around.run.base, _commands(topology, supervisor=supervisor, facts=facts)):
                facts["phase"] = "ready"
                supervisor.save()
                tell({"phase": "ready"})
                await stopping
        start.cancel()
        await asyncio.gather(start, return_exceptions=True)
        facts["phase"] = "stopping"
    facts["phase"] = "down"
    supervisor.save()
    return 0


def _commands(topology: Topology, *, supervisor: Supervisor, facts: dict[str, Any]) -> Carry:
    failover = Failover(topology.group, supervisor=supervisor) if topology.group else None

    async def carry(order: Mapping[str, Any], tell: Tell) -> Mapping[str, Any]:
        if order.get("do") != "failover_db" or failover is None:
            raise Misconfigured(f"This supervisor does not know the order {order.get('do')!r}.")
        wish = FailoverWish(to=order.get("to"), force=bool(order.get("force")), rejoin=bool(order.get("rejoin", True)))
        try:
            outcome = await failover.run(wish, say=lambda part, sentence: tell({"part": part, "says": sentence}))
        finally:
            facts["env"] |= failover.group.addresses()
            facts["replica_url"] = failover.group.first_replica
            supervisor.save()
        return asdict(outcome)

    return carry


def _facts(topology: Topology, *, around: Surroundings) -> dict[str, Any]:
    return {
        "phase": "starting",
        "profile": topology.profile,
        "env": dict(topology.env),
        "replica_url": topology.replica_url,
        "ports": dict(around.ports.given),
        "privileges": around.privileges.reason,
    }


def _report(event: Event) -> None:
    tell({"server": event.server, "status": event.status, "reason": event.reason})


def tell(fact: Mapping[str, Any]) -> None:
    """Say one fact to the starter."""
    try:
        print(json.dumps(fact), flush=True)
    except OSError:  # the starter has gone: nobody listens any more, and that is fine
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open as long as the process


def _redirect_errors(log: Path) -> None:
    """A daemon must not hold its starter's terminal."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, sys.stderr.fileno())
    os.close(handle)
