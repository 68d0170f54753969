"""RabbitMQ is stopped, wiped, in a disk alarm, or hangs: submits go on, workers poll the ledger, all by themselves."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest

from shared.client import FleetClient
from tests.integration.fleets import PATIENCE_S, STEADY, client_of, fleet_of
from tests.integration.live import eventually
from tests.integration.load import Stream, celery_of, epochs, send_plain, started_at
from workers.ops.background import BackgroundSupervisor
from workers.ops.recipes.broker import scripts

STARTED = 10
"""As many tasks that were submitted during each fault have to start while it lasts."""


@dataclass(frozen=True, slots=True)
class Fault:
    """How the broker goes away, and how it comes back."""

    strike: Callable[[BackgroundSupervisor], None]
    mend: Callable[[BackgroundSupervisor], None]


def wipe(fleet: BackgroundSupervisor) -> None:
    fleet.stop("rabbitmq")
    shutil.rmtree(fleet.around.folder("rabbitmq") / "mnesia")


def disk_limit(limit: str) -> Callable[[BackgroundSupervisor], None]:
    def set_limit(fleet: BackgroundSupervisor) -> None:
        env = next(spec.env for spec in fleet.topology.specs if spec.name == "rabbitmq")
        subprocess.run(
            [scripts() / "rabbitmqctl", "-n", "fleet@localhost", "set_disk_free_limit", limit],
            env=dict(env), check=True, capture_output=True, timeout=60,
        )  # fmt: skip

    return set_limit


FAULTS = {
    "stopped": Fault(lambda fleet: fleet.stop("rabbitmq"), lambda fleet: fleet.start("rabbitmq")),
    "wiped": Fault(wipe, lambda fleet: fleet.start("rabbitmq")),
    "in a disk alarm": Fault(disk_limit("900000GB"), disk_limit("50MB")),
    "hung": Fault(lambda fleet: fleet.freeze("rabbitmq"), lambda fleet: fleet.thaw("rabbitmq")),
}


@pytest.fixture(scope="module")
def fleet(run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    more = {**STEADY, "FLEET_AGENTS": "tests.integration.diary_agents", "FLEET_BROKER_HEARTBEAT_S": "2"}
    with fleet_of(2, folder=run_folder(), more=more) as started:
        yield started


@pytest.fixture
def client(fleet: BackgroundSupervisor) -> Iterator[FleetClient]:
    client = client_of(fleet, is_patient=True)
    yield client
    client.close()


@pytest.mark.parametrize("name", FAULTS)
def test_while_the_broker_is_away_tasks_are_accepted_and_started_and_afterwards_the_queue_is_used_again(
    name: str,
    fleet: BackgroundSupervisor,
    client: FleetClient,
    diary: Path,
) -> None:
    fault = FAULTS[name]
    client.submit("diary.start", {"diary": str(diary.with_name("warm")), "number": 0}).result(60)
    with Stream(client, diary) as stream:
        eventually(lambda: len(stream.sent) > 5)
        fault.strike(fleet)
        struck_at = time.time()
        eventually(lambda: len(started_at(fleet, [one.id for one in stream.since(struck_at)])) >= STARTED, within_s=120)
        during = stream.since(struck_at)
        fault.mend(fleet)
        mended_at = time.time()
        returned_s = seconds_until_the_queue_is_used(fleet, diary, since=mended_at)
    ids = [one.id for one in stream.sent]
    eventually(lambda: epochs(fleet, ids) == {("succeeded", 1): len(ids)}, within_s=60)

    began = started_at(fleet, ids)
    waits = [began[one.id] - one.at for one in during]
    slowest_s = max(one.took_s for one in stream.sent)
    told = {
        "first start": min(began[one.id] for one in during) - struck_at, "mean wait": sum(waits) / len(waits),
        "longest wait": max(waits), "slowest submit": slowest_s, "queue used again after": returned_s,
    }  # fmt: skip
    print(f"{name}: {len(ids)} tasks;", ", ".join(f"{what} {seconds:.2f} s" for what, seconds in told.items()))
    assert stream.errors == []
    assert slowest_s < PATIENCE_S / 2, "no submit has waited for a connection to the broker"
    lines = sorted(int(line) for line in diary.read_text().split())
    assert lines == list(range(len(ids))), "every task began, and began once"


def seconds_until_the_queue_is_used(fleet: BackgroundSupervisor, diary: Path, *, since: float) -> float:
    """A task that only a message knows of has been started: it cannot have come from the ledger."""
    app = celery_of(fleet)
    plain: list[UUID] = []

    def is_started() -> bool:
        try:
            plain.append(send_plain(app, "diary.start", diary=str(diary.with_name("plain")), number=len(plain)))
        except Exception:  # the broker may need a moment
            return False
        time.sleep(0.3)
        return bool(started_at(fleet, plain))

    eventually(is_started, within_s=60)
    app.close()
    return time.time() - since
