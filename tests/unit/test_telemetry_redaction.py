"""Secrets do not reach the log: not by a field's name, not in a text, not in a traceback, not past a hook."""

import io
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import structlog

from shared.errors import Misconfigured
from shared.telemetry.logs import setup_logs
from shared.telemetry.redaction import REDACTED, Redaction, is_secret_name, load_hooks, redact, redact_text

SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    "name",
    ["api_key", "apiKey", "API_KEY", "X-Api-Key", "apikey", "authorization", "Authorization", "password", "db_password",
     "token", "access_token", "refreshToken", "secret", "client_secret", "secrets", "cookie", "Set-Cookie",
     "credentials", "private_key", "master_key", "FLEET_LEDGER_KEYS"],
)  # fmt: skip
def test_a_field_named_like_a_secret_is_redacted(name: str) -> None:
    assert is_secret_name(name)
    assert redact({name: SECRET}) == {name: REDACTED} and redact({name: [SECRET]}) == {name: REDACTED}


@pytest.mark.parametrize(
    "name",
    ["input_tokens", "output_tokens", "max_tokens_field", "key", "idempotency_key", "tokenizer", "author", "task_id",
     "secretary", "keyboard", "passed", "event"],
)  # fmt: skip
def test_a_field_that_only_sounds_like_one_is_shown(name: str) -> None:
    assert not is_secret_name(name) and redact({name: "seven"}) == {name: "seven"}


def test_a_figure_or_nothing_is_shown_under_any_name() -> None:
    event = {"token_count": 7, "password": None, "has_secret": True}
    assert redact(event) == event


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abc.def-123", f"Authorization: Bearer {REDACTED}"),
        ("authorization: Basic dXNlcjpwdw==", f"authorization: Basic {REDACTED}"),
        ("key sk-proj-abcdefgh12345678 refused", f"key {REDACTED} refused"),
        ("amqp://fleet:pa:ss@h:5672//", f"amqp://fleet:{REDACTED}@h:5672//"),
        ("redis://:pw@h/0 and http://u:pw@h2", f"redis://:{REDACTED}@h/0 and http://u:{REDACTED}@h2"),
        ("host=h password=pw dbname=d", f"host=h password={REDACTED} dbname=d"),
        ("GET /v1?api_key=abc&q=1", f"GET /v1?api_key={REDACTED}&q=1"),
        ('{"api_key": "abc", "q": 1}', f'{{"api_key": "{REDACTED}", "q": 1}}'),
        (r"{\"token\": \"abc\"}", rf"{{\"token\": \"{REDACTED}\"}}"),
        ("{'client_secret': 'abc'}", f"{{'client_secret': '{REDACTED}'}}"),
        ("FLEET_LEDGER_KEYS=k1:abc,k2:def", f"FLEET_LEDGER_KEYS={REDACTED}"),
        ("AKIAABCDEFGHIJKLMNOP", REDACTED),
        ("eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl", REDACTED),
        ("a -----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY----- b", f"a {REDACTED} b"),
    ],
)
def test_what_looks_like_a_secret_is_redacted_wherever_it_stands(text: str, shown: str) -> None:
    assert redact_text(text) == shown
    assert redact_text(shown) == shown
    assert redact({"cause": [text]}) == {"cause": [shown]}


@pytest.mark.parametrize(
    "text",
    ["http://127.0.0.1:8089/v1/chat", "task-scheduler of desk-12345678", "FLEET_DB_URL must start with postgresql://",
     "2026-11-24T00:00:00Z", "input_tokens=12", "the token is missing", "mail me@example.org at 12:30"],
)  # fmt: skip
def test_what_is_no_secret_is_left_to_the_letter(text: str) -> None:
    assert redact_text(text) == text


def test_containers_are_looked_through_and_what_lies_too_deep_is_left_out() -> None:
    @dataclass
    class Endpoint:
        url: str

    deep: Any = SECRET
    for _ in range(20):
        deep = [deep]
    seen = redact({"a": ({"b": {"password": SECRET}},), 1: b"Bearer " + SECRET.encode(), "deep": deep,
                   "at": Endpoint(f"http://u:{SECRET}@h"), "error": ValueError(f"token={SECRET}")})  # fmt: skip
    assert SECRET not in str(seen) and "http://u:" in str(seen) and seen["a"] == [{"b": {"password": REDACTED}}]


def test_an_object_without_secrets_is_left_to_the_renderer() -> None:
    at = object()
    assert redact(at) is at


@pytest.fixture
def hooks() -> Iterator[ModuleType]:
    module = ModuleType("hooks_of_a_test")
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def test_hooks_are_found_by_name_and_come_before_the_built_in_rules(hooks: ModuleType) -> None:
    vars(hooks).update(
        masked=lambda event: {**event, "email": "m…"}, careless=lambda event: {**event, "added": f"Bearer {SECRET}"}
    )
    found = load_hooks(" hooks_of_a_test:masked, hooks_of_a_test:careless ,")
    shown = Redaction(found)(None, "info", {"event": "e", "email": "grace@example.org"})
    assert shown == {"event": "e", "email": "m…", "added": f"Bearer {REDACTED}"}
    assert load_hooks("") == ()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("nowhere", "'nowhere' is not of the form module:function"),
        ("a:", "is not of the form"),
        (":f", "is not of the form"),
        ("no_such_module_here:f", "cannot import 'no_such_module_here'"),
        (".relative:f", "cannot import '.relative'"),
        ("json:no_such_function", "module 'json' has no function 'no_such_function'"),
        ("json:__name__", "module 'json' has no function '__name__'"),
    ],
)
def test_a_hook_that_cannot_be_had_is_refused_with_the_variable(names: str, told: str) -> None:
    with pytest.raises(Misconfigured, match=r"^FLEET_LOG_REDACT: ") as caught:
        load_hooks(names)
    assert told in caught.value.message and caught.value.context == {"variable": "FLEET_LOG_REDACT"}


def refuse(event: dict[str, Any]) -> dict[str, Any]:
    """A hook that fails."""
    raise KeyError(event["customer"])


def test_a_hook_that_fails_costs_the_line_all_but_its_name() -> None:
    event = {"event": "e", "level": "info", "timestamp": "t", "customer": "Grace"}
    shown = Redaction([refuse])(None, "info", event)
    assert shown == {"event": "e", "level": "info", "timestamp": "t", "redaction_failed": "refuse: KeyError"}


def test_a_hook_that_returns_no_fields_has_failed() -> None:
    nothing: Any = print
    assert Redaction([nothing])(None, "info", {"event": "e"})["redaction_failed"] == "print: TypeError"


def record_of(text: str) -> logging.LogRecord:
    return logging.LogRecord("kombu", logging.ERROR, "f.py", 1, "at %s", (text,), None)


def test_lines_of_the_standard_library_go_the_same_way() -> None:
    upper = Redaction([lambda event: {**event, "event": event["event"].replace("Grace", "G…")}])
    line = upper.formatter("%(levelname)s %(message)s").format(record_of(f"amqp://u:{SECRET}@h for Grace"))
    assert line == f"ERROR at amqp://u:{REDACTED}@h for G…"


def test_a_line_of_the_standard_library_whose_hook_fails_shows_nothing_of_its_text() -> None:
    line = Redaction([refuse]).formatter("%(message)s").format(record_of("Grace"))
    assert "Grace" not in line and "kombu" in line and "refuse: KeyError" in line


@contextmanager
def a_process_of_its_own() -> Iterator[io.StringIO]:
    """Standard error and logging as a new process has them, and afterwards as they were."""
    text, root, httpx = io.StringIO(), logging.getLogger(), logging.getLogger("httpx2")
    handlers, levels, configured = root.handlers[:], (root.level, httpx.level), structlog.get_config()
    root.handlers.clear()
    try:
        with redirect_stderr(text):
            yield text
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        httpx.setLevel(levels[1])
        structlog.configure(**configured)


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_process_writes_no_secret_by_either_way(style: Any) -> None:
    with a_process_of_its_own() as stderr, structlog.contextvars.bound_contextvars(api_key=SECRET):
        setup_logs(style=style, hooks=[lambda event: {**event, "hooked": True}])
        try:
            raise OSError(f"cannot reach redis://:{SECRET}@h")
        except OSError:
            structlog.get_logger().exception("room.failed", url=f"http://u:{SECRET}@h")
            logging.getLogger("kombu").exception("no way to amqp://u:%s@h", SECRET)
    written = stderr.getvalue()
    assert SECRET not in written and "hooked" in written and "ERROR kombu no way to amqp://u:[redacted]@h" in written
    if style == "json":
        first = json.loads(written.splitlines()[0])
        assert (first["event"], first["api_key"], first["url"]) == ("room.failed", REDACTED, f"http://u:{REDACTED}@h")
        assert first["exception"].endswith(f"OSError: cannot reach redis://:{REDACTED}@h")
