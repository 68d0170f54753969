"""The message: what is written is what is read, and what cannot be read is refused with a sentence."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import jsonschema
import pytest

from shared.contracts import (
    FleetHeader,
    TaskMessage,
    bucket_in,
    bucket_of,
    check_storable,
    checked_agent_name,
    keyed_task_id,
    message_schema,
    parse,
    parse_headers,
)
from shared.errors import BadInput, BadMessage
from shared.ledger.order import new_message

NOBODY = UUID("00000000-0000-4000-8000-000000000000")
BODY = b"[[], {}, null]"
FULL = TaskMessage(
    "chat",
    {"message": "hi", "deep": [1, {"two": None}]},
    ("first", 2.5),
    keyed_task_id("acme", "k", "s"),
    FleetHeader(
        tenant="acme", session="s", idempotency_key="k", deadline_at=datetime(2031, 1, 1, tzinfo=UTC), max_attempts=7
    ),
)


def headers(**changes: Any) -> dict[str, Any]:
    """Good headers with some of them changed; None removes one."""
    found = {"task": "agents.chat", "id": str(NOBODY), **changes}
    return {name: value for name, value in found.items() if value is not None}


def wire(message: TaskMessage) -> dict[str, Any]:
    """A message as a producer of another language would check it against the schema."""
    return {"headers": message.wire_headers(), "body": json.loads(message.wire_body())}


@pytest.mark.parametrize("message", [FULL, TaskMessage("a")], ids=["full", "bare"])
def test_a_message_comes_back_from_the_wire_as_it_went(message: TaskMessage) -> None:
    sent = json.loads(json.dumps(message.wire_headers()))
    assert parse(sent, message.wire_body()) == message


def test_celery_alone_is_enough_and_means_all_defaults() -> None:
    read = parse(headers(lang="py", retries=0, shadow="x"), BODY)
    assert (read.agent, read.id, read.fleet) == ("chat", NOBODY, FleetHeader())
    assert (read.fleet.tenant, read.fleet.session, read.fleet.max_attempts) == ("default", None, 3)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"task": None}, "task: field required"),
        ({"task": "chat"}, "task: string should match pattern"),
        ({"task": "agents.Chat"}, "task: string should match pattern"),
        ({"task": "agents." + "a" * 100}, "task: string should match pattern"),
        ({"id": None}, "id: field required"),
        ({"id": "42"}, "id: input should be a valid UUID"),
        ({"fleet": "x"}, "fleet: input should be a valid dictionary"),
        ({"fleet": {"version": 2}}, "fleet.version: input should be 1"),
        ({"fleet": {"tenat": "x"}}, "fleet.tenat: extra inputs are not permitted"),
        ({"fleet": {"tenant": ""}}, "fleet.tenant: string should have at least 1 character"),
        ({"fleet": {"tenant": "a\x00b"}}, "fleet.tenant: string should match pattern"),
        ({"fleet": {"session": "s" * 201}}, "fleet.session: string should have at most 200 characters"),
        ({"fleet": {"max_attempts": 0}}, "fleet.max_attempts: input should be greater than or equal to 1"),
        ({"fleet": {"max_attempts": 101}}, "fleet.max_attempts: input should be less than or equal to 100"),
        ({"fleet": {"deadline_at": "2031-01-01T00:00:00"}}, "fleet.deadline_at: input should have timezone info"),
        ({"fleet": {"deadline_at": "soon"}}, "fleet.deadline_at: input should be a valid datetime"),
        ({"fleet": {"idempotency_key": "k"}}, "header id must be the keyed task id of header fleet.tenant"),
    ],
)
def test_headers_that_do_not_fit_are_refused_by_the_name_of_the_field(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(BadMessage) as caught:
        parse(headers(**changed), BODY)
    assert caught.value.message.startswith(told)


def test_a_message_without_headers_is_refused() -> None:
    with pytest.raises(BadMessage, match="task: field required"):
        parse_headers(None)


@pytest.mark.parametrize("body", ["", b"[[], {", b"\xff\xfe", b"null", b"7", b"[[], {}]", b"[[], {}, null, 1]"])
def test_a_body_of_another_shape_is_refused(body: bytes | str) -> None:
    with pytest.raises(BadMessage, match=r"^the body is not JSON of the form \[args, kwargs, embed\]$"):
        parse(headers(), body)


@pytest.mark.parametrize("body", [b"[{}, {}, null]", b"[[], [], null]", b'"abc"', b'{"a":1,"b":2,"c":3}'])
def test_a_body_whose_inputs_are_of_other_types_is_refused(body: bytes) -> None:
    with pytest.raises(BadMessage, match=r"^the body must be \[array of inputs, object of inputs, embed\]$"):
        parse(headers(), body)


def test_a_body_nested_without_end_is_refused_like_any_other() -> None:
    with pytest.raises(BadMessage, match="the body is not JSON"):
        parse(headers(), b"[" * 100_000)


@pytest.mark.parametrize("value", [object(), float("nan"), float("inf"), {1, 2}, b"raw"])
def test_input_that_is_not_json_is_refused_before_it_is_sent(value: object) -> None:
    with pytest.raises(BadInput, match="the input of agent 'a' is not JSON") as caught:
        TaskMessage("a", {"x": value}).wire_body()
    assert caught.value.context == {"agent": "a"}


def test_the_same_tenant_and_key_are_the_same_task_for_ever() -> None:
    assert keyed_task_id("acme", "o-17") == UUID("44e33034-59ff-5231-a658-e4fc85ed816f")
    assert len({keyed_task_id(*pair) for pair in [("a", "bc"), ("ab", "c"), ("a\x00b", "c"), ("abc", "")]}) == 4


def test_a_keyed_message_is_read_when_its_id_is_the_keyed_one() -> None:
    fleet = {"tenant": "acme", "idempotency_key": "k"}
    assert parse(headers(id=str(keyed_task_id("acme", "k")), fleet=fleet), BODY).fleet.idempotency_key == "k"


def test_a_keyed_message_with_a_session_has_its_former_id_or_one_in_the_sessions_bucket() -> None:
    fleet = {"tenant": "acme", "idempotency_key": "o-17", "session": "s"}
    for task_id in ("44e33034-59ff-5231-a658-e4fc85ed816f", str(keyed_task_id("acme", "o-17", "s"))):
        assert parse(headers(id=task_id, fleet=fleet), BODY).fleet.session == "s"
    with pytest.raises(BadMessage, match="must be the keyed task id"):
        parse(headers(id=str(keyed_task_id("acme", "o-17", "other")), fleet=fleet), BODY)


@pytest.mark.parametrize("session", [None, "s", "other"])
def test_with_one_shard_a_key_is_one_task_whatever_its_session(session: str | None) -> None:
    made = new_message("a", {}, max_bytes=100, tenant="acme", session=session, idempotency_key="o-17")
    assert made.id == UUID("44e33034-59ff-5231-a658-e4fc85ed816f")


@pytest.mark.parametrize("session", ["s", "other"])
def test_with_several_shards_a_keyed_task_is_in_the_bucket_of_its_session(session: str) -> None:
    def keyed() -> TaskMessage:
        return new_message(
            "a", {}, max_bytes=100, tenant="acme", session=session, idempotency_key="o-17", is_sharded=True
        )  # fmt: skip

    assert bucket_in(keyed().id) == bucket_of("acme", session)
    assert keyed().id == keyed().id
    free = new_message("a", {}, max_bytes=100, tenant="acme", idempotency_key="o-17", is_sharded=True)
    assert free.id == keyed_task_id("acme", "o-17")


def test_inputs_are_named_in_the_headers_and_never_shown() -> None:
    sent = TaskMessage("a", {"password": "hunter2", "b": 1}, ("hunter2",)).wire_headers()
    assert (sent["argsrepr"], sent["kwargsrepr"]) == ("()", "{b, password}")
    assert "hunter2" not in json.dumps(sent)


@pytest.mark.parametrize("name", ["chat", "a", "a.b-c_d9", "a" * 99])
def test_a_plain_name_can_name_an_agent(name: str) -> None:
    assert checked_agent_name(name) == name


@pytest.mark.parametrize("name", ["", "9a", "A", "a b", "a/b", "a\n", "é", ".a", "a" * 100])
def test_any_other_name_is_refused_with_the_rule(name: str) -> None:
    with pytest.raises(BadInput, match=r"must start with a letter and hold only a-z, 0-9, '_', '\.', '-'"):
        checked_agent_name(name)


@pytest.mark.parametrize(
    ("values", "told"),
    [({"tenant": ""}, "tenant: "), ({"max_attempts": 0}, "max_attempts: "), ({"colour": 1}, "colour: ")],
)
def test_a_producers_own_values_are_refused_by_the_name_of_the_field(values: dict[str, Any], told: str) -> None:
    with pytest.raises(BadInput, match=f"^{told}"):
        FleetHeader.checked(**values)


@pytest.mark.parametrize("message", [FULL, TaskMessage("a", id=uuid4())], ids=["full", "bare"])
def test_the_schema_accepts_what_this_project_writes(message: TaskMessage) -> None:
    schema = message_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(schema).validate(wire(message))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("headers", {"task": "chat"}),
        ("headers", {"task": None}),
        ("headers", {"id": 7}),
        ("headers", {"fleet": {"version": 2}}),
        ("headers", {"fleet": {"tenat": "x"}}),
        ("headers", {"fleet": {"max_attempts": 0}}),
        ("properties", {"delivery_mode": 1}),
        ("properties", {"content_type": "application/x-python-serialize"}),
        ("body", [[], {}]),
        ("body", [{}, {}, None]),
        ("body", [[], [], None]),
        ("body", [[], {}, None, 1]),
    ],
)
def test_the_schema_refuses_what_a_worker_would_refuse(part: str, change: Any) -> None:
    bad = wire(FULL)
    bad[part] = {**bad.get(part, {}), **change} if isinstance(change, dict) else change
    assert not jsonschema.Draft202012Validator(message_schema()).is_valid(bad)


@pytest.mark.parametrize("inputs", [{1: "a"}, {None: "a"}, {"a": 1, 2: 3}])
def test_an_input_that_is_not_named_by_text_is_refused_before_it_is_sent(inputs: Any) -> None:
    with pytest.raises(BadInput, match="the inputs of agent 'a' must be named by text"):
        TaskMessage("a", inputs).wire_body()


@pytest.mark.parametrize("inputs", [{"a": "\x00"}, {"a\x00": 1}, [["x\x00"]], "\\\x00"])
def test_the_character_that_postgresql_cannot_store_is_named(inputs: Any) -> None:
    with pytest.raises(BadInput, match=r"the input holds the character U\+0000"):
        check_storable(inputs)


@pytest.mark.parametrize("inputs", [{"a": "\ud800"}, {"a": float("nan")}, [float("inf")], {"a": object()}])
def test_what_json_or_postgresql_do_not_know_cannot_be_stored(inputs: Any) -> None:
    with pytest.raises(BadInput, match="the input cannot be stored"):
        check_storable(inputs)


@pytest.mark.parametrize("text", ["what is \\u0000?", "\\\\u0000", "u0000", "\U0001f600", "\\", "\x01"])
def test_text_about_such_characters_can_be_stored(text: str) -> None:
    check_storable({"a": text})
