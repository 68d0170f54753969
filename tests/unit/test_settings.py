"""Every knob is read from its own variable, and a wrong one is named before anything starts."""

import os
from dataclasses import dataclass, fields
from typing import Any

import pytest
from pydantic import SecretStr

from shared.errors import Misconfigured
from shared.settings import SHARED_ROOMS, General, Settings, load, load_room

DIFFERENT: dict[str, str] = {
    "FLEET_DB_URL": "postgresql+psycopg://u@h:1/d",
    "FLEET_BROKER_URL": "amqps://h//",
    "FLEET_BROKER_QUEUE_TYPE": "quorum",
    "FLEET_BROKER_CONFIRM_PUBLISH": "true",
    "FLEET_LEDGER_DEAD_AFTER_S": "99.5",
    "FLEET_LEDGER_KEYS": f"k1:{'a' * 42}c=",
    "FLEET_LLM_BASE_URL": "https://h/v1",
    "FLEET_LLM_MAX_TOKENS_FIELD": "max_completion_tokens",
    "FLEET_LLM_PROXY_URL": "http://p:3128",
    "FLEET_LLM_STREAM_ANSWERS": "true",
    "FLEET_LLM_STREAM_USAGE": "false",
    "FLEET_LLM_KEY_HEADER": "api-key",
    "FLEET_LLM_DIALECT": "anthropic",
    "FLEET_DB_SHARDS": "deploy/shards.example.yaml",
    "FLEET_DB_REPLICAS": "postgresql+psycopg://h/d,postgresql+psycopg://i/d",
    "FLEET_DB_POOLER": "pgbouncer",
    "FLEET_DB_DIRECT_URL": "postgresql+psycopg://h/d",
    "FLEET_LLM_EXTRA_BODY": '{"top_k": 3}',
    "FLEET_MEMORY_REDIS_URL": "rediss://h/3",
    "FLEET_VECTORS_URI": "https://h:19530",
    "FLEET_LOG_STYLE": "console",
    "FLEET_LOG_LEVEL": "ERROR",
}
"""Values for knobs that do not take just any; a number is otherwise made half as large again, a text gets an x."""

KNOBS = [(room, kind, one.name) for room, kind in SHARED_ROOMS.items() for one in fields(kind) if one.name != "shard"]


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FLEET_") or name == "NOTIFY_SOCKET"]:
        monkeypatch.delenv(name)


def refused(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Misconfigured:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Misconfigured) as caught:
        load()
    return caught.value


def plain(value: Any) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value).lower()


def other(variable: str, default: Any) -> str:
    if variable in DIFFERENT:
        return DIFFERENT[variable]
    if isinstance(default, SecretStr):
        return "sesame"
    if isinstance(default, int | float):
        return str(type(default)(default * 1.5 if default else 3))
    return f"{default}x"


@pytest.mark.parametrize(("room", "kind", "knob"), KNOBS, ids=[f"{room}.{knob}" for room, _, knob in KNOBS])
def test_every_knob_is_read_from_its_own_variable(
    monkeypatch: pytest.MonkeyPatch, room: str, kind: type[Any], knob: str
) -> None:
    variable = f"FLEET_{room.upper()}_{knob.upper()}"
    given = other(variable, getattr(kind(), knob))
    monkeypatch.setenv(variable, given)
    read = getattr(load(), room)
    assert plain(getattr(read, knob)) == given.lower()
    assert [one.name for one in fields(kind) if getattr(read, one.name) != getattr(kind(), one.name)] in ([knob], [])


def test_a_process_takes_from_the_broker_of_its_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_BROKER_URL", "amqp://fleet:pw@main//")
    monkeypatch.setenv("FLEET_DB_SHARDS", "deploy/shards.example.yaml")
    assert load().broker.url == "amqp://fleet:pw@main//"
    monkeypatch.setenv("FLEET_DB_SHARD", "second")
    read = load()
    assert read.broker.url == "amqp://fleet:pw@broker-second.example/second"
    assert [one.name for one in read.shards] == ["main", "second"]


def test_a_shard_that_no_file_names_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "FLEET_DB_SHARD needs shards" in refused(monkeypatch, FLEET_DB_SHARD="second").message


def test_without_any_variable_everything_has_its_default() -> None:
    assert load() == Settings(general=General(), notify_socket=None, **{r: kind() for r, kind in SHARED_ROOMS.items()})


def test_what_belongs_to_no_room_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_PROFILE", "embedded")
    monkeypatch.setenv("FLEET_AGENTS", " my.agents, more ,,")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/n")
    settings = load()
    assert (settings.general.profile, settings.notify_socket) == ("embedded", "/run/n")
    assert settings.general.agent_modules == ("my.agents", "more")


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("FLEET_PROFILE", "huge", "input should be 'embedded' or 'full' (got 'huge')"),
        ("FLEET_DB_POOL_SIZE", "many", "input should be a valid integer"),
        ("FLEET_LOG_LEVEL", "loud", "input should be 'DEBUG'"),
        ("FLEET_BROKER_CONFIRM_PUBLISH", "maybe", "input should be a valid boolean"),
        ("FLEET_LEDGER_HEARTBEAT_S", "", "input should be a valid number"),
    ],
)
def test_a_value_of_the_wrong_type_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    error = refused(monkeypatch, **{variable: value})
    assert error.message.startswith(f"{variable}: {told}")
    assert error.context["variable"] == variable


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("FLEET_BROKER_URL", "amqp://a//;amqp://b//", "must be one URL: put a load balancer or a DNS name in front"),
        ("FLEET_BROKER_URL", "kafka://a", "must start with amqp://"),
        ("FLEET_BROKER_URL", "redis://a/0", "must be amqp:// in profile 'full': Redis has no confirms and no quorum"),
        ("FLEET_BROKER_QUEUE_TYPE", "classic", "must be 'quorum': a classic queue loses messages with its node"),
        ("FLEET_BROKER_CONFIRM_PUBLISH", "false", "must be true: an unconfirmed publish can be lost"),
        ("FLEET_BROKER_DELIVERY_LIMIT", "0", "must be between 1 and 1000"),
        ("FLEET_BROKER_CONFIRM_TIMEOUT_S", "0", "must be positive"),
        ("FLEET_VECTORS_URI", "h:1", "must start with http:// or https://"),
        ("FLEET_DB_URL", "postgres://h/d", "must start with postgresql+psycopg://"),
        ("FLEET_LEDGER_DEAD_AFTER_S", "9", "must be at least twice heartbeat_s"),
        ("FLEET_LEDGER_BATCH_MAX", "0", "must be at least 1"),
        ("FLEET_LEDGER_REDISPATCH_S", "0", "must be positive"),
        ("FLEET_LEDGER_KEYS", "k1:c2hvcnQ=", "must have 32 bytes each: entry 1 has 5"),
        ("FLEET_LEDGER_KEYS", "sesame", "must be id:base64 pairs, separated by commas: entry 1 is not one"),
        ("FLEET_LLM_BASE_URL", "h/v1", "must start with http:// or https://"),
        ("FLEET_LLM_MAX_TOKENS", "0", "must be positive"),
        ("FLEET_MEMORY_REDIS_URL", "h", "must start with redis://"),
        ("FLEET_MEMORY_TTL_S", "0", "must be positive"),
        ("FLEET_MEMORY_REST_S", "-1", "must not be negative"),
    ],
)
def test_a_value_that_would_lose_work_or_cannot_work_refuses_to_start(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    assert refused(monkeypatch, **{variable: value}).message.startswith(f"{variable} {told}")


def test_the_embedded_profile_admits_redis_as_the_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_PROFILE", "embedded")
    monkeypatch.setenv("FLEET_BROKER_URL", "redis://127.0.0.1/0")
    assert not load().broker.is_amqp


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("FLEET_DB_ULR", "FLEET_DB_URL"),
        ("FLEET_LLM_APIKEY", "FLEET_LLM_API_KEY"),
        ("FLEET_AGENT", "FLEET_AGENTS"),
        ("FLEET_BROKER_DELIVERYLIMIT", "FLEET_BROKER_DELIVERY_LIMIT"),
    ],
)
def test_a_misspelt_variable_suggests_the_near_one(monkeypatch: pytest.MonkeyPatch, typo: str, meant: str) -> None:
    error = refused(monkeypatch, **{typo: "x"})
    assert error.message == f"{typo}: no such setting; did you mean {meant}?"


def test_a_variable_near_to_nothing_points_to_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(monkeypatch, FLEET_QQQQQQQQQQQQ="x").message.endswith("; see the settings in the README")


def test_variables_of_other_projects_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETING", "x")
    load()


def test_secrets_and_addresses_are_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_LLM_API_KEY", "sk-secret")
    monkeypatch.setenv("FLEET_VECTORS_TOKEN", "u:secret")
    settings = load()
    assert settings.llm.api_key.get_secret_value() == "sk-secret"
    assert "secret" not in repr(settings) + str(settings)
    for variable in ("FLEET_BROKER_URL", "FLEET_DB_URL", "FLEET_MEMORY_REDIS_URL", "FLEET_LLM_BASE_URL"):
        with monkeypatch.context() as alone:
            error = refused(alone, **{variable: "nonsense://user:secret@h"})
            assert "secret" not in f"{error.message} {error.context}"


@dataclass(frozen=True, slots=True)
class RoomKnobs:
    """A room of workers."""

    url: int = 1
    size: int = 2

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("size must not be negative")


def test_a_room_of_workers_reads_its_own_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_WORKER_SIZE", "7")
    assert load_room("worker", RoomKnobs) == RoomKnobs(size=7)
    load()


def test_a_wrong_address_is_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_WORKER_URL", "amqp://u:secret@h")
    with pytest.raises(Misconfigured, match=r"^FLEET_WORKER_URL: input should be a valid integer") as caught:
        load_room("worker", RoomKnobs)
    assert "secret" not in caught.value.message


def test_a_room_of_workers_names_the_variable_of_a_short_knob(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEET_WORKER_SIZE", "-1")
    with pytest.raises(Misconfigured, match=r"^FLEET_WORKER_SIZE must not be negative$"):
        load_room("worker", RoomKnobs)


def test_a_misspelt_variable_of_a_room_of_workers_is_refused_by_the_process_that_is_that_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLEET_WORKER_SZE", "7")
    load()
    load_room("keeper", RoomKnobs)
    with pytest.raises(Misconfigured, match=r"^FLEET_WORKER_SZE: no such setting; did you mean FLEET_WORKER_SIZE\?$"):
        load_room("worker", RoomKnobs)
