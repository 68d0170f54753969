"""What a worker takes off a crowded queue: tasks for the ledger, and none that was revoked."""

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery import Celery
from celery.worker.state import revoked
from kombu.message import Message

from shared.broker.knobs import BrokerKnobs
from shared.contracts import TaskMessage
from workers.agents import queue_watch
from workers.agents.queue_watch import QueueWatch


class OnQueue(Message):  # type: ignore[misc]
    """A message whose broker only notes that it is acknowledged."""

    is_acked = False

    def __init__(self, task: TaskMessage) -> None:
        super().__init__(
            body=task.wire_body(), headers=task.wire_headers(), content_type="application/json",
            content_encoding="utf-8", accept={"application/json"},
        )  # fmt: skip

    def ack(self, *_: Any, **__: Any) -> None:
        self.is_acked = True


@pytest.fixture
def gone() -> Iterator[TaskMessage]:
    """A task whose id was revoked before its message came up."""
    task = TaskMessage("chat", {})
    revoked.add(str(task.id))
    yield task
    revoked.discard(str(task.id))


@pytest.mark.parametrize("is_held", [True, False])
async def test_a_revoked_message_of_a_crowd_ends_instead_of_being_shelved(
    gone: TaskMessage, is_held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[TaskMessage] = []

    async def hold_revoked(task: TaskMessage) -> bool:
        await asyncio.sleep(0)
        held.append(task)
        return is_held

    other = TaskMessage("chat", {})
    queue = [OnQueue(gone), OnQueue(other)]

    def take(*_: Any, read: Callable[[Any], TaskMessage | None], keep: Callable[[Any], None], **__: Any) -> int:
        kept = [task for one in queue if (task := read(one)) is not None]
        keep(kept)
        return len(kept)

    monkeypatch.setattr(queue_watch, "take_off", take)
    app = SimpleNamespace(tasks={"agents.chat": None}, fleet_host=SimpleNamespace(hold_revoked=hold_revoked))
    shelved: list[TaskMessage] = []
    watch = QueueWatch(BrokerKnobs(), cast(Celery, app))
    assert await watch.sort("normal", lambda tasks: shelved.extend(tasks)) == 1
    assert [one.id for one in shelved] == [other.id]
    assert [one.id for one in held] == [gone.id]
    assert [one.is_acked for one in queue] == [is_held, False], "what nobody has stays on the queue, to be refused"
