"""`celery control` as Celery users know it: what it revokes ends in the ledger, what it cannot do it says."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from kombu import Queue

from shared.client import FleetClient, SubmittedTask
from shared.contracts import QUEUE
from shared.errors import FleetError, TaskCancelled, TaskFailed
from tests.integration.fleets import StartFleet
from tests.integration.live import eventually
from workers.ops.background import BackgroundSupervisor

NEVER = "/nowhere/to/be/found"
"""A run that waits for it has begun once its step is seen: a word to its worker comes to the run from then on."""


@pytest.fixture(scope="module")
def fleet(start_fleet: StartFleet) -> Iterator[BackgroundSupervisor]:
    with start_fleet(1, more={"FLEET_WORKER_CONCURRENCY": "1"}) as started:
        yield started


@pytest.fixture
def celery(fleet: BackgroundSupervisor) -> Iterator[Celery]:
    app = Celery(broker=fleet.broker_url)
    app.conf.task_queues = [Queue(QUEUE, no_declare=True)]
    app.conf.task_default_queue = QUEUE
    yield app
    app.close()


@pytest.fixture
def busy(client: FleetClient) -> Iterator[SubmittedTask]:
    """A run in the only slot."""
    task = client.submit("test.sleep", {"seconds": 600})
    eventually(lambda: task.status().state == "running")
    yield task
    if task.status().state == "running":
        client.cancel(task.id)
        with pytest.raises(TaskCancelled):
            task.result(30)


def state_of(client: FleetClient, task_id: str) -> str:
    try:
        return client.status(task_id).state
    except FleetError:
        return "unknown"


def test_a_queued_task_that_is_revoked_ends_as_cancelled_in_the_ledger_and_never_runs(
    celery: Celery, client: FleetClient, busy: SubmittedTask
) -> None:
    queued = client.submit("test.echo", {"text": "never"})
    (answer,) = celery.control.revoke(str(queued.id), reply=True, timeout=10, limit=1)
    assert "cancelled unless they run" in next(iter(answer.values()))["ok"]
    with pytest.raises(TaskCancelled):
        queued.result(30)
    assert queued.status().steps == ()


def test_a_running_task_goes_on_unless_it_is_to_be_terminated(
    celery: Celery, client: FleetClient, busy: SubmittedTask
) -> None:
    behind = client.submit("test.echo", {"text": "never"})
    celery.control.revoke([str(busy.id), str(behind.id)], reply=True, timeout=10, limit=1)
    with pytest.raises(TaskCancelled):
        behind.result(30)
    assert busy.status().state == "running"


@pytest.mark.parametrize("is_sent_first", [True, False])
def test_a_message_of_any_celery_client_is_revoked_before_or_after_it_has_come(
    celery: Celery, client: FleetClient, busy: SubmittedTask, is_sent_first: bool
) -> None:
    task_id, inspect = str(uuid4()), celery.control.inspect(timeout=10, limit=1)

    def send() -> None:
        celery.send_task("agents.test.echo", kwargs={"text": "never"}, task_id=task_id)

    def reserved() -> list[Any]:
        answers = inspect.reserved() or {}
        return [one for tasks in answers.values() for one in tasks if one["id"] == task_id]

    if is_sent_first:
        send()
        eventually(reserved)
    celery.control.revoke(task_id, reply=True, timeout=10, limit=1)
    if not is_sent_first:
        eventually(lambda: [ids for ids in (inspect.revoked() or {}).values() if task_id in ids])
        send()
    eventually(lambda: state_of(client, task_id) == "cancelled")
    client.replay(task_id)
    client.cancel(busy.id)
    eventually(lambda: state_of(client, task_id) == "succeeded")


@pytest.mark.parametrize("word", ["revoke", "terminate"])
def test_a_run_that_came_straight_from_the_ledger_is_terminated_like_any_other(
    celery: Celery, client: FleetClient, word: str
) -> None:
    task = client.submit("test.until", {"file": NEVER}, delay_s=0.2)
    eventually(lambda: task.status().steps)
    if word == "revoke":
        celery.control.revoke(str(task.id), terminate=True)
    else:
        celery.control.terminate(str(task.id))
    with pytest.raises(TaskFailed, match="revoked by an operator"):
        task.result(30)


def test_a_task_that_was_terminated_runs_again_when_it_is_replayed(celery: Celery, client: FleetClient) -> None:
    task = client.submit("test.until", {"file": NEVER})
    eventually(lambda: task.status().steps)
    celery.control.revoke(str(task.id), terminate=True)
    with pytest.raises(TaskFailed, match="revoked by an operator"):
        task.result(30)
    client.replay(task.id)
    eventually(lambda: task.status().state == "running")
    client.cancel(task.id)
    with pytest.raises(TaskCancelled):
        task.result(30)


def test_a_pool_that_cannot_grow_says_what_to_do(celery: Celery, fleet: BackgroundSupervisor) -> None:
    for command in (celery.control.pool_grow, celery.control.pool_shrink):
        (answer,) = command(1, reply=True, timeout=10, limit=1)
        assert "not supported: set FLEET_WORKER_CONCURRENCY" in next(iter(answer.values()))["error"]
