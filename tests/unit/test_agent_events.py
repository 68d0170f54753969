"""What Celery's watchers learn of a run that failed, was put down or was cancelled."""

import pytest

from workers.agents.events import failed, left


def test_a_failure_is_told_without_its_secrets() -> None:
    kind, told = failed("RuntimeError('api_key=sk-ant-api03-abcdefgh refused')", "at password=hunter2\n")
    assert kind == "task-failed"
    assert told == {"exception": "RuntimeError('api_key=[redacted] refused')", "traceback": "at password=[redacted]\n"}


@pytest.mark.parametrize("state", ["waiting", "queued", "parked"])
def test_a_run_that_was_put_down_is_not_told_as_started_for_ever(state: str) -> None:
    assert left(state) == ("task-retried", {"exception": f"{state}: it goes on later", "traceback": ""})


def test_a_cancelled_run_is_told_as_revoked() -> None:
    event = left("cancelled")
    assert event is not None and event[0] == "task-revoked"


@pytest.mark.parametrize("state", ["fenced", "failed"])
def test_of_a_run_that_belongs_to_others_nothing_is_told(state: str) -> None:
    assert left(state) is None
