"""The broker or the database goes away: submits are accepted by the other, and all that was accepted is finished."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared.client import FleetClient
from shared.errors import NotAccepted
from shared.ledger.catalogue import READ_S
from shared.ledger.intake import CONFIRM_WAIT_S, LEDGER_WAIT_S
from tests.integration.fleets import PATIENCE_S, QUICK, client_of, fleet_of
from tests.integration.live import eventually
from workers.ops.background import BackgroundSupervisor

TERM_S = 9.0
"""For how long a worker's heartbeat counts: shorter than the long outage below, longer than a busy machine stalls."""
TERM = {"FLEET_LEDGER_HEARTBEAT_S": "2", "FLEET_LEDGER_DEAD_AFTER_S": f"{TERM_S}"}
"""The first heartbeat after an outage may take as long as one interval: enough for a server that has just come up."""


@pytest.fixture
def ledger_first_s() -> None:
    """A submit waits for a server that hangs no longer than in production."""


@pytest.fixture(scope="module")
def fleet(run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    with fleet_of(1, folder=run_folder(), more={**QUICK, **TERM}) as started:
        yield started


@pytest.fixture
def client(fleet: BackgroundSupervisor) -> Iterator[FleetClient]:
    client = client_of(fleet)
    assert client.submit("test.echo", {"text": "before"}).result(60)
    yield client
    client.close()


def away(fleet: BackgroundSupervisor, *names: str) -> None:
    """PostgreSQL is killed; RabbitMQ stopped: 3.10 forgets a quorum queue killed within 8 s of its creation."""
    for name in names:
        if name == "rabbitmq":
            fleet.stop(name)
        else:
            fleet.suspend(name)
            fleet.kill(name)


def back(fleet: BackgroundSupervisor, *names: str) -> None:
    for name in names:
        fleet.resume(name)
        fleet.start(name)


def test_without_the_broker_a_submit_is_accepted_by_the_ledger_and_finished_later(
    fleet: BackgroundSupervisor, client: FleetClient
) -> None:
    away(fleet, "rabbitmq")
    tasks = [client.submit("test.echo", {"text": str(number)}) for number in range(20)]
    assert {task.accepted_by for task in tasks} == {"ledger"}
    back(fleet, "rabbitmq")
    assert [task.result(60)["said"] for task in tasks] == [[str(number)] for number in range(20)]
    assert {task.status().epoch for task in tasks} == {1}


def test_without_the_database_a_submit_is_accepted_by_the_broker_and_finished_later(
    fleet: BackgroundSupervisor, client: FleetClient
) -> None:
    away(fleet, "postgres")
    tasks = [client.submit("test.echo", {"text": str(number)}, idempotency_key=f"k{number}") for number in range(5)]
    assert {task.accepted_by for task in tasks} == {"broker"}
    pid = fleet.pid("worker-1")
    back(fleet, "postgres")
    assert [task.result(60)["said"] for task in tasks] == [[str(number)] for number in range(5)]

    def is_in_the_ledger_again() -> bool:
        again = client.submit("test.echo", {"text": "0"}, idempotency_key="k0")
        assert again.id == tasks[0].id
        return again.accepted_by == "ledger"  # a server that has just come up may be slower than the broker

    eventually(is_in_the_ledger_again)
    assert fleet.pid("worker-1") == pid, "no worker dies with the database"


def test_a_submit_waits_for_less_than_a_second_for_whichever_server_hangs() -> None:
    assert max(READ_S, LEDGER_WAIT_S) + CONFIRM_WAIT_S < 1.0


@pytest.mark.parametrize("name", ["postgres", "rabbitmq"])
def test_while_one_server_hangs_submits_wait_for_the_other_alone(
    name: str, fleet: BackgroundSupervisor, client: FleetClient
) -> None:
    """Also by a producer that has just started, and has to ask first which agents there are."""
    took_s = []
    warm, fresh = client_of(fleet, is_patient=True), client_of(fleet, is_patient=True)
    assert warm.submit("test.echo", {"text": "before"}).result(60)
    fleet.freeze(name)
    try:
        for number in range(6):
            began = time.monotonic()
            (fresh if number < 3 else warm).submit("test.echo", {"text": f"{name}-{number}"}, tenant=name)
            took_s.append(time.monotonic() - began)
    finally:
        fleet.thaw(name)
    for one in (warm, fresh):
        one.close()
    print(f"{name} hung: submits took", ", ".join(f"{one:.2f} s" for one in took_s))
    assert max(took_s) < PATIENCE_S / 2, "none has waited for the server that hangs"
    eventually(lambda: [view.state for view in client.tasks(tenant=name)] == ["succeeded"] * 6)


def test_without_both_a_submit_fails_clearly_and_nothing_is_half_done(
    fleet: BackgroundSupervisor, client: FleetClient
) -> None:
    away(fleet, "postgres", "rabbitmq")
    with pytest.raises(
        NotAccepted, match=r"the task was not accepted: PostgreSQL .*; and the broker at amqp://guest:\*\*@"
    ):
        client.submit("test.echo", {"text": "lost?"}, tenant="nowhere")
    back(fleet, "postgres", "rabbitmq")
    assert client.submit("test.echo", {"text": "after"}).result(60)["said"] == ["after"]
    assert client.tasks(tenant="nowhere") == []


def test_a_run_outlives_both_servers(
    fleet: BackgroundSupervisor, client: FleetClient, run_folder: Callable[[], Path]
) -> None:
    folder = run_folder()
    folder.mkdir()
    folder.chmod(0o777)
    diary = folder / "diary"
    task = client.submit("test.steps", {"count": 4, "step_s": 0.5, "diary": str(diary)})
    eventually(diary.exists)
    away(fleet, "rabbitmq")
    away(fleet, "postgres")
    back(fleet, "postgres", "rabbitmq")
    assert task.result(60) == [0, 1, 2, 3]
    assert task.status().repeated_steps == 0
    assert diary.read_text().split() == ["0", "1", "2", "3"]


def test_a_step_under_way_outlives_an_outage_of_the_database_that_is_longer_than_its_workers_term(
    fleet: BackgroundSupervisor, client: FleetClient, run_folder: Callable[[], Path]
) -> None:
    """Nobody can take a run over while PostgreSQL serves nobody: so nothing is cut, and nothing is in doubt."""
    folder = run_folder()
    folder.mkdir()
    folder.chmod(0o777)
    diary = folder / "diary"
    task = client.submit("test.steps", {"count": 2, "step_s": 1.2 * TERM_S, "diary": str(diary)})
    eventually(lambda: task.status().steps)
    pid = fleet.pid("worker-1")
    away(fleet, "postgres")
    away_at = time.monotonic()
    eventually(diary.exists, within_s=10 * TERM_S)  # the first step ended while its ledger was away
    time.sleep(max(0.0, away_at + 1.2 * TERM_S - time.monotonic()))
    back(fleet, "postgres")
    assert task.result(60) == [0, 1]
    view = task.status()
    assert (view.epoch, view.attempt, view.in_doubt_steps) == (1, 1, 0)
    assert diary.read_text().split() == ["0", "1"]
    assert fleet.pid("worker-1") == pid
