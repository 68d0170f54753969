"""Whatever JSON an agent is given arrives as it was sent, and whatever bytes arrive are read or refused."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from shared.contracts import (
    BUCKETS,
    FleetHeader,
    TaskMessage,
    bucket_in,
    bucket_of,
    child_task_id,
    is_tick,
    keyed_task_id,
    message_schema,
    new_task_id,
    parse,
    tick_task_id,
)
from shared.db.shard_map import bucket_for
from shared.errors import BadMessage

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=10
)
inputs = st.dictionaries(st.text(max_size=20), values, max_size=5)
names = st.from_regex(r"[a-z][a-z0-9_.-]{0,98}", fullmatch=True)
labels = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), min_size=1, max_size=200)
Keyed = tuple[str, str, str | None]
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


@given(*[st.tuples(labels, labels, st.none() | labels)] * 2)
def test_two_keys_share_a_task_only_when_tenant_key_and_session_are_equal(one: Keyed, other: Keyed) -> None:
    assert (keyed_task_id(*one) == keyed_task_id(*other)) == (one == other)


@given(labels, labels, labels, st.datetimes(timezones=st.just(UTC)))
def test_all_that_belongs_to_a_session_is_in_its_bucket(tenant: str, session: str, key: str, at: datetime) -> None:
    bucket = bucket_of(tenant, session)
    task_id = new_task_id(tenant, session)
    assert 0 <= bucket < BUCKETS
    tick = tick_task_id(key, at, tenant=tenant, session=session)
    assert is_tick(tick, key, at) and not is_tick(tick, key + "x", at) and not is_tick(task_id, key, at)
    for one in (task_id, tick, keyed_task_id(tenant, key, session), child_task_id(task_id, "a", 0)):
        assert bucket_in(one) == bucket_for(one) == bucket_for((tenant, session)) == bucket
    assert bucket_in(child_task_id(child_task_id(task_id, "a", 1), "b", 0)) == bucket


def test_a_bucket_is_for_ever() -> None:
    assert bucket_of("default", "s-1") == 596
    assert bucket_in(UUID("44e33034-59ff-5231-a658-e4fc85ed816f")) == 0x16F
