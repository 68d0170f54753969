"""Whatever JSON an agent is given arrives as it was sent, and whatever bytes arrive are read or refused."""

import json
from datetime import UTC
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from shared.contracts import FleetHeader, TaskMessage, keyed_task_id, message_schema, parse
from shared.errors import BadMessage

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=10
)
inputs = st.dictionaries(st.text(max_size=20), values, max_size=5)
names = st.from_regex(r"[a-z][a-z0-9_.-]{0,98}", fullmatch=True)
labels = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=200)
fleets = st.builds(
    FleetHeader,
    tenant=labels,
    session=st.none() | labels,
    max_attempts=st.integers(1, 100),
    deadline_at=st.none() | st.datetimes(timezones=st.just(UTC)),
)
messages = st.builds(TaskMessage, names, inputs, st.lists(values, max_size=3).map(tuple), st.uuids(), fleets)
validator = Draft202012Validator(message_schema())


def refusal(headers: dict[str, Any], body: bytes) -> str | None:
    try:
        parse(headers, body)
    except BadMessage as error:
        return error.message
    return None


@given(messages)
def test_any_json_input_arrives_as_it_was_sent(message: TaskMessage) -> None:
    headers = json.loads(json.dumps(message.wire_headers()))
    assert parse(headers, message.wire_body()) == message
    validator.validate({"headers": headers, "body": json.loads(message.wire_body())})


@given(inputs, st.lists(scalars, max_size=3).map(tuple))
def test_headers_depend_on_the_names_of_inputs_and_never_on_their_values(kwargs: Any, args: tuple[Any, ...]) -> None:
    shown = TaskMessage("a", kwargs, args).wire_headers()
    blank = TaskMessage("a", dict.fromkeys(kwargs), ()).wire_headers()
    assert (shown["argsrepr"], shown["kwargsrepr"]) == (blank["argsrepr"], blank["kwargsrepr"])


@given(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    told = refusal({"task": "agents.a", "id": "00000000-0000-4000-8000-000000000000"}, body)
    assert told is None or told.startswith("the body")


@given(st.dictionaries(st.sampled_from(["task", "id", "fleet", "lang"]), values))
def test_any_headers_are_read_or_refused_in_one_sentence(headers: dict[str, Any]) -> None:
    told = refusal(headers, b"[[], {}, null]")
    assert told is None or (": " in told and "\n" not in told)


@given(labels, labels, labels, labels)
def test_two_keys_share_a_task_only_when_tenant_and_key_are_equal(a: str, b: str, c: str, d: str) -> None:
    assert (keyed_task_id(a, b) == keyed_task_id(c, d)) == ((a, b) == (c, d))
