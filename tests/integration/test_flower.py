"""Flower sees the workers and the agents' tasks under their names and their ledger ids, and can change nothing."""

import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.fleets import client_of, fleet_of
from tests.integration.live import eventually
from workers.ops.background import BackgroundSupervisor


@pytest.fixture(scope="module")
def fleet(run_folder: Callable[[], Path]) -> Iterator[BackgroundSupervisor]:
    with fleet_of(1, folder=run_folder(), flower=True) as started:
        yield started


def page(fleet: BackgroundSupervisor, path: str) -> str:
    """What a browser gets; empty while the page does not exist."""
    (spec,) = (spec for spec in fleet.topology.specs if spec.name == "flower")
    try:
        with urllib.request.urlopen(f"{spec.url}{path}", timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            if error.code != 404:
                raise
            return ""


def test_flower_shows_a_task_under_its_name_and_its_ledger_id_and_not_its_input(fleet: BackgroundSupervisor) -> None:
    client = client_of(fleet)
    task = client.submit("test.echo", {"text": "for nobody's eyes"})
    task.result(30)
    shown = eventually(lambda: page(fleet, f"/task/{task.id}"))
    client.close()
    assert "agents.test.echo" in shown
    assert str(task.id) in shown
    assert "for nobody" not in shown


def test_flower_shows_the_worker(fleet: BackgroundSupervisor) -> None:
    assert eventually(lambda: re.search(r"worker-1@\S+", page(fleet, "/workers")))


def test_flower_can_change_nothing(fleet: BackgroundSupervisor) -> None:
    (spec,) = (spec for spec in fleet.topology.specs if spec.name == "flower")
    order = urllib.request.Request(f"{spec.url}/api/worker/shutdown/worker-1", method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(order, timeout=10)
    with refused.value as answer:
        assert answer.code in (401, 403)
