"""Publishing over a link that the test breaks: every message is confirmed or fails, and nobody waits twice."""

from collections.abc import Iterator
from typing import Any

import pytest

from shared.broker import publisher as room
from shared.broker.knobs import BrokerKnobs
from shared.broker.publisher import Publisher
from shared.contracts import DEAD_QUEUE, QUEUE, TaskMessage
from shared.errors import BadInput, PublishUnconfirmed

KNOBS = BrokerKnobs(url="amqp://user:secret@far:5672//", retry_after_s=60)


class FakeLink:
    """Stands in for one connection: confirms what it is given, or fails as its script says."""

    opened: list["FakeLink"]
    script: list[BaseException | None]

    def __init__(self, knobs: BrokerKnobs) -> None:
        self.sent: list[Any] = []
        self.is_closed = False
        self.is_abandoned = False
        type(self).opened.append(self)

    def send(self, batch: list[Any], timeout_s: float) -> None:
        trouble = self.script.pop(0) if self.script else None
        if trouble is not None:
            raise trouble
        self.sent += batch
        for parcel in batch:
            parcel.done.set_result(None)

    def close(self) -> None:
        self.is_closed = True

    def abandon(self) -> None:
        self.is_abandoned = True


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> list[FakeLink]:
    FakeLink.opened, FakeLink.script = [], []
    monkeypatch.setattr(room, "_Link", FakeLink)
    return FakeLink.opened


@pytest.fixture
def publisher(links: list[FakeLink]) -> Iterator[Publisher]:
    publisher = Publisher(KNOBS)
    yield publisher
    publisher.close()


def test_a_published_task_carries_its_own_headers_body_and_id(publisher: Publisher, links: list[FakeLink]) -> None:
    message = TaskMessage("chat", {"message": "hi"})
    publisher.publish(message).result(5)
    (parcel,) = links[0].sent
    assert (parcel.body, parcel.headers) == (message.wire_body(), message.wire_headers())
    assert (parcel.task_id, parcel.routing_key) == (str(message.id), QUEUE)
    assert (parcel.content_type, parcel.content_encoding) == ("application/json", "utf-8")


def test_many_messages_share_one_connection_and_none_is_lost(publisher: Publisher, links: list[FakeLink]) -> None:
    waiting = [publisher.send({}, b"", task_id=str(n), routing_key=DEAD_QUEUE) for n in range(600)]
    assert [one.result(5) for one in waiting] == [None] * 600
    assert [parcel.task_id for parcel in links[0].sent] == [str(n) for n in range(600)]
    assert len(links) == 1


def test_a_connection_that_died_idle_costs_a_second_try_and_no_message(
    publisher: Publisher, links: list[FakeLink]
) -> None:
    publisher.publish(TaskMessage("a")).result(5)
    FakeLink.script[:] = [ConnectionResetError("idle for long")]
    publisher.publish(TaskMessage("a")).result(5)
    assert [link.is_abandoned for link in links] == [True, False]


def test_a_broker_that_is_down_fails_the_message_and_those_that_follow_at_once(
    publisher: Publisher, links: list[FakeLink]
) -> None:
    FakeLink.script[:] = [OSError("connection refused")]
    with pytest.raises(PublishUnconfirmed, match="did not confirm the message: connection refused") as caught:
        publisher.publish(TaskMessage("a")).result(5)
    assert caught.value.retry_after_s == 60
    assert "secret" not in caught.value.message
    follower = publisher.publish(TaskMessage("a"))
    assert isinstance(follower.exception(0), PublishUnconfirmed)
    assert len(links) == 1


def test_input_that_is_not_json_is_refused_before_anything_is_sent(publisher: Publisher, links: list[FakeLink]) -> None:
    with pytest.raises(BadInput):
        publisher.publish(TaskMessage("a", {"x": object()}))
    assert links == []


def test_closing_sends_what_waits_and_says_goodbye(links: list[FakeLink]) -> None:
    publisher = Publisher(KNOBS)
    waiting = [publisher.publish(TaskMessage("a")) for _ in range(10)]
    publisher.close()
    assert all(one.done() for one in waiting)
    assert links[0].is_closed


def test_closing_what_was_never_used_is_no_trouble(links: list[FakeLink]) -> None:
    Publisher(KNOBS).close()
    assert links == []


def test_a_mistake_in_one_message_fails_it_and_not_the_thread(publisher: Publisher, links: list[FakeLink]) -> None:
    FakeLink.script[:] = [TypeError("a header of no known type")]
    with pytest.raises(PublishUnconfirmed, match="a header of no known type"):
        publisher.publish(TaskMessage("a")).result(5)
    assert publisher._thread is not None
    assert publisher._thread.is_alive()
