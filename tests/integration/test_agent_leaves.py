"""The only worker that has an agent leaves while tasks for it wait, and comes back: they are parked, and go on."""

from collections.abc import Iterator

import pytest

from shared.client import FleetClient
from shared.errors import ResultPending
from tests.integration.fleets import STEADY, StartFleet
from tests.integration.live import eventually
from tests.integration.worker_of import own_worker
from workers.ops.background import BackgroundSupervisor

GONE_S = 4.0
AGENTS = "tests.chaos.agents"
NOTHING = {"count": 0, "url": ""}


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    keeper = {"FLEET_KEEPER_PARK_AFTER_S": str(GONE_S), "FLEET_KEEPER_PARK_S": "0.5", "FLEET_KEEPER_UNPARK_S": "0.5"}
    with start_fleet(1, more={**STEADY, **keeper}) as started:
        yield started


def test_tasks_of_an_agent_that_was_removed_are_parked_with_a_reason_and_go_on_when_it_returns(
    fleet: BackgroundSupervisor, client: FleetClient
) -> None:
    with own_worker(fleet, 2, FLEET_AGENTS=AGENTS):
        assert eventually(lambda: client.submit("storm.steps", NOTHING)).result(60) == []
    waiting = [client.submit("storm.steps", NOTHING) for _ in range(3)]
    eventually(lambda: {one.status().state for one in waiting} == {"parked"})
    for one in waiting:
        error = one.status().error or {}
        assert (error["code"], error["context"]) == ("unknown_agent", {"agent": "storm.steps"})
        assert "start one that has it" in error["message"]
        with pytest.raises(ResultPending, match="is parked"):
            one.result(0)
    with own_worker(fleet, 2, FLEET_AGENTS=AGENTS):
        assert [one.result(60) for one in waiting] == [[]] * 3
    assert [(one.status().attempt, one.status().error) for one in waiting] == [(1, None)] * 3
