"""The check of a message before it takes a slot: read as it is, or refused with one sentence."""

import json
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.message import Message

from shared.contracts import TaskMessage, keyed_task_id
from shared.errors import BadMessage
from workers.agents.consumer import check, hide_inputs

KNOWN = {"agents.chat", "celery.ping"}


def message(
    body: bytes | str = b"[[], {}, null]", *, content_type: str = "application/json", **headers: Any
) -> Message:
    """A message as it comes from the broker; a header of None is not there."""
    given = {"task": "agents.chat", "id": str(uuid4()), **headers}
    return Message(
        body=body,
        content_type=content_type,
        content_encoding="utf-8",
        headers={name: value for name, value in given.items() if value is not None},
        accept={"application/json"},
    )


def sent(task: TaskMessage) -> Message:
    return message(task.wire_body(), **task.wire_headers())


def test_what_a_producer_sends_passes_and_is_read_once() -> None:
    received = sent(TaskMessage("chat", {"message": "hi"}, (1,)))
    check(received, KNOWN)
    assert received.payload[:2] == [[1], {"message": "hi"}]


def test_what_a_celery_client_sends_passes() -> None:
    check(message("[[], {}, {}]", lang="py", argsrepr="()", eta=None, expires=None, retries=0), KNOWN)


def test_a_task_that_is_no_agent_needs_no_contract() -> None:
    check(message(task="celery.ping", id="not a uuid", eta="2031-01-01"), KNOWN)


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"task": None}, "the message has no header 'task'"),
        ({"task": 7}, "the message has no header 'task'"),
        ({"task": "nobody"}, "no worker has a task named 'nobody'"),
        ({"task": "agents.No body"}, "task: "),
        ({"eta": "2031-01-01T00:00:00"}, "headers eta and expires are not supported: use fleet.deadline_at"),
        ({"expires": "2031-01-01T00:00:00"}, "headers eta and expires are not supported: use fleet.deadline_at"),
        ({"id": "42"}, "id: input should be a valid UUID"),
        ({"fleet": {"version": 2}}, "fleet.version: input should be 1"),
        ({"fleet": {"idempotency_key": "k"}}, "header id must be the keyed task id"),
    ],
)
def test_headers_that_no_worker_could_use_are_refused(headers: dict[str, Any], told: str) -> None:
    with pytest.raises(BadMessage) as caught:
        check(message(**headers), KNOWN)
    assert caught.value.message.startswith(told)


def test_a_keyed_message_under_its_keyed_id_passes() -> None:
    task_id = str(keyed_task_id("acme", "k"))
    check(message(id=task_id, fleet={"tenant": "acme", "idempotency_key": "k"}), KNOWN)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "the body is not JSON"),
        (b"[[], {", "the body is not JSON"),
        (b"\xff\xff", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b'{"message": "hi"}', "the body must be [array of inputs, object of inputs, embed]"),
        (b"[[], {}]", "the body must be [array of inputs, object of inputs, embed]"),
        (b"[{}, {}, null]", "the body must be [array of inputs, object of inputs, embed]"),
        (b"[[], [], null]", "the body must be [array of inputs, object of inputs, embed]"),
        (b'[[], {"a": "\\u0000"}, null]', "the input holds the character U+0000"),
        (b'[[], {"a": "\\ud800"}, null]', "the input cannot be stored"),
        (b'[["\xed\xa0\x80"], {}, null]', "the input cannot be stored"),
        (b'[[], {"a": NaN}, null]', "the input cannot be stored"),
        (b"[[1e999], {}, null]", "the input cannot be stored"),
        (b"null", "the body must be [array of inputs, object of inputs, embed]"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_a_body_that_no_worker_could_use_is_refused(body: bytes, told: str) -> None:
    with pytest.raises(BadMessage) as caught:
        check(message(body), KNOWN)
    assert caught.value.message.startswith(told)


@pytest.mark.parametrize("content_type", ["application/x-python-serialize", "application/x-yaml", "text/plain", ""])
def test_a_body_of_another_type_is_never_opened(content_type: str) -> None:
    with pytest.raises(BadMessage, match="the body"):
        check(message(b"\x80\x04N.", content_type=content_type), KNOWN)


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        check(message(body), KNOWN)
    except BadMessage as error:
        refused = error.message
    else:
        refused = "the body was read"
    assert refused.startswith(("the body", "the input"))


def test_inputs_are_named_and_never_shown_in_what_celery_tells_about_a_task() -> None:
    received = message(
        json.dumps([["hunter2"], {"password": "hunter2", "b": 1}, None]).encode(),
        argsrepr="('hunter2',)",
        kwargsrepr="{'password': 'hunter2'}",
    )
    check(received, KNOWN)
    assert (received.headers["argsrepr"], received.headers["kwargsrepr"]) == ("()", "{b, password}")
    assert "hunter2" not in str(received.headers)


def test_a_task_without_inputs_shows_none() -> None:
    headers: dict[str, Any] = {}
    hide_inputs(headers, {})
    assert headers == {"argsrepr": "()", "kwargsrepr": "{}"}
