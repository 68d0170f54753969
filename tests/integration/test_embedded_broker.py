"""The broker of the embedded profile: a Redis asked how many messages wait, taken off, and gone."""

import time
from collections.abc import Sequence

import pytest

from shared.broker.connection import connect
from shared.broker.dead_letters import DeadLetter, dead_letter, drain_dead_letters
from shared.broker.depth import messages_ready
from shared.broker.knobs import BrokerKnobs
from shared.broker.publisher import BROKER_ERRORS, Publisher
from shared.broker.sorting import take_off
from shared.contracts import TaskMessage
from tests.integration.gate_fleet import OwnRedis

MESSAGES = 3


@pytest.fixture
def knobs(own_redis: OwnRedis) -> BrokerKnobs:
    return BrokerKnobs(url=own_redis.url)


def publish(knobs: BrokerKnobs, *messages: TaskMessage) -> None:
    publisher = Publisher(knobs)
    for sent in [publisher.publish(message) for message in messages]:
        sent.result(60)
    publisher.close()


def test_queues_without_messages_are_empty_not_missing(knobs: BrokerKnobs) -> None:
    assert messages_ready(knobs) == 0
    publish(knobs, *(TaskMessage("a") for _ in range(MESSAGES)))
    assert messages_ready(knobs) == MESSAGES


def test_a_queue_that_is_taken_off_counts_what_was_kept_until_its_time_was_over(knobs: BrokerKnobs) -> None:
    publish(knobs, *(TaskMessage("a") for _ in range(MESSAGES)))
    kept: list[str] = []

    def keep(read: Sequence[str]) -> None:
        kept.extend(read)

    told = take_off(knobs, "normal", read=lambda message: message.headers["id"], keep=keep, limit_s=0)
    assert (told, messages_ready(knobs)) == (len(kept), 0) == (MESSAGES, 0)


def test_a_broker_that_is_gone_raises_what_callers_expect_of_any_broker(
    knobs: BrokerKnobs, own_redis: OwnRedis
) -> None:
    own_redis.kill()
    with pytest.raises(BROKER_ERRORS):
        messages_ready(knobs)


class Unreadable:
    """A message with what PostgreSQL cannot keep in it."""

    headers = {"task": "agents.a", "fleet": {"bad\x00name": ["a\x00b", float("nan")]}}  # noqa: RUF012
    body = "{\x00\ud800"
    content_type = content_encoding = None


def test_a_letter_is_read_as_it_can_be_kept_whatever_is_in_its_reason_or_body(knobs: BrokerKnobs) -> None:
    publisher = Publisher(knobs)
    dead_letter(publisher, Unreadable(), "fleet.bad\x00name\ud800: extra inputs are not permitted").result(60)
    publisher.close()
    connection, letters = connect(knobs), list[DeadLetter]()
    try:
        until = time.monotonic() + 60
        while not letters and time.monotonic() < until:
            drain_dead_letters(connection, letters.append, limit=10)
    finally:
        connection.release()
    (letter,) = letters
    assert letter.reason == "fleet.bad\ufffdname?: extra inputs are not permitted"
    assert "\x00" not in letter.body
    assert letter.headers["fleet"] == {"bad\ufffdname": ["a\ufffdb", "nan"]}
    letter.body.encode()
