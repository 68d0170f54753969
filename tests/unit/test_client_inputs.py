"""What a producer hands in is checked before any server is asked."""

from collections.abc import Iterator

import pytest

from shared.client import FleetClient
from shared.errors import BadInput


@pytest.fixture
def client() -> Iterator[FleetClient]:
    client = FleetClient()
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


def test_a_task_id_that_is_no_uuid_is_refused(client: FleetClient) -> None:
    with pytest.raises(BadInput, match="task id '42' is not a UUID"):
        client.result("42", 0.1)
