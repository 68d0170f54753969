"""What a producer hands in is checked before any server is asked."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from shared.client import FleetClient
from shared.errors import BadInput, TooLarge
from shared.ledger.knobs import LedgerKnobs
from shared.settings import load


@pytest.fixture
def client() -> Iterator[FleetClient]:
    client = FleetClient(replace(load(), ledger=LedgerKnobs(input_max_bytes=1000)))
    yield client
    client.close()


@pytest.mark.parametrize("deadline_s", [-1.0, 1e12, float("nan"), float("inf")])
def test_a_deadline_that_is_no_deadline_is_refused(client: FleetClient, deadline_s: float) -> None:
    with pytest.raises(BadInput, match=r"deadline_s must be from 0 to"):
        client.submit("chat", {"message": "hi"}, deadline_s=deadline_s)


@pytest.mark.parametrize("given", ["hi", ["hi"], 5])
def test_an_input_that_is_not_an_object_is_refused(client: FleetClient, given: object) -> None:
    with pytest.raises(BadInput, match="input must be an object of named inputs"):
        client.submit("chat", given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"delay_s": -1}, "delay_s must be from 0 to"),
        ({"delay_s": float("inf")}, "delay_s must be from 0 to"),
        ({"available_at": datetime(2027, 1, 1, tzinfo=UTC).replace(tzinfo=None)}, "available_at has no time zone"),
        ({"available_at": datetime(2027, 1, 1, tzinfo=UTC), "delay_s": 1}, "give available_at or delay_s, not both"),
        ({"priority": "urgent"}, "priority: input should be 'interactive', 'normal' or 'batch'"),
    ],
)
def test_a_start_or_a_priority_that_cannot_be_is_refused(client: FleetClient, how: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        client.submit("chat", {"message": "hi"}, **how)


def test_an_input_over_the_limit_is_refused_with_both_sizes_and_the_remedy(client: FleetClient) -> None:
    with pytest.raises(TooLarge, match=r"is \d{4} bytes long as JSON, and the limit is 1000 .*pass a reference to it"):
        client.submit("chat", {"message": "x" * 1000})


@pytest.mark.parametrize("ask", ["result", "status", "cancel", "resume", "replay", "fork", "preview"])
def test_a_task_id_that_is_no_uuid_is_refused(client: FleetClient, ask: str) -> None:
    with pytest.raises(BadInput, match="task id '42' is not a UUID"):
        getattr(client, ask)("42")


@pytest.mark.parametrize("name", ["", "x" * 201, "a\x00", 5])
def test_a_signal_without_a_proper_name_is_refused(client: FleetClient, name: Any) -> None:
    with pytest.raises(BadInput, match="a signal's name is a text of 1 to 200 characters"):
        client.signal("00000000-0000-0000-0000-000000000001", name)


@pytest.mark.parametrize("payload", [{1, 2}, float("nan"), "a\x00"])
def test_a_signal_that_cannot_be_stored_is_refused(client: FleetClient, payload: Any) -> None:
    with pytest.raises(BadInput):
        client.signal("00000000-0000-0000-0000-000000000001", "go", payload)
