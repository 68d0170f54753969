"""Flower sees the workers and the agents' tasks under their names and their ledger ids, and can change nothing."""

import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from uuid import UUID

import pytest

from tests.integration.fleets import StartFleet, client_of
from tests.integration.live import eventually
from workers.ops.background import BackgroundSupervisor


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    """Once Flower hears of events: it answers sooner, and what is told until then it never shows."""
    with start_fleet(1, with_flower=True) as started:
        eventually(lambda: "worker-1@" in page(started, "/workers"), within_s=60)
        yield started


def page(fleet: BackgroundSupervisor, path: str) -> str:
    """What a browser gets; empty while the page does not exist."""
    (spec,) = (spec for spec in fleet.topology.specs if spec.name == "flower")
    try:
        with urllib.request.urlopen(f"{spec.url}{path}", timeout=60) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 404:
                raise
            return ""


def shows(fleet: BackgroundSupervisor, task_id: UUID, state: str) -> str:
    """The task's page once it has come to this state; Flower reads no events while it is asked all the time."""

    def look() -> str:
        time.sleep(0.5)
        found = page(fleet, f"/task/{task_id}")
        return found if state in found else ""

    return str(eventually(look))


def test_flower_shows_a_task_under_its_name_and_its_ledger_id_and_not_its_input(fleet: BackgroundSupervisor) -> None:
    client = client_of(fleet)
    task = client.submit("test.echo", {"text": "for nobody's eyes"})
    task.result(30)
    shown = eventually(lambda: page(fleet, f"/task/{task.id}"))
    client.close()
    assert "agents.test.echo" in shown
    assert str(task.id) in shown
    assert "for nobody" not in shown


def test_flower_shows_neither_secrets_of_a_failure_nor_a_waiting_task_as_started(fleet: BackgroundSupervisor) -> None:
    client = client_of(fleet)
    failed = client.submit("test.fail", {"message": "api_key=sk-ant-api03-abcdefgh was refused"})
    waiting = client.submit("test.nap", {"seconds": 600, "diary": "/dev/null"})
    stopped = client.submit("test.sleep", {"seconds": 600})
    eventually(lambda: stopped.status().state == "running")
    client.cancel(stopped.id)
    shown = shows(fleet, failed.id, "FAILURE")
    assert "api_key=[redacted] was refused" in shown
    assert "abcdefgh" not in shown
    assert shows(fleet, waiting.id, "RETRY")
    assert shows(fleet, stopped.id, "REVOKED")
    client.cancel(waiting.id)
    client.close()


def test_flower_shows_the_worker(fleet: BackgroundSupervisor) -> None:
    assert eventually(lambda: re.search(r"worker-1@\S+", page(fleet, "/workers")))


def test_flower_can_change_nothing(fleet: BackgroundSupervisor) -> None:
    (spec,) = (spec for spec in fleet.topology.specs if spec.name == "flower")
    order = urllib.request.Request(f"{spec.url}/api/worker/shutdown/worker-1", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(order, timeout=10)
    with refused.value as answer:
        assert answer.code in (401, 403)
