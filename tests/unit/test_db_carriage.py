"""Tokens in headers: what is read of a stranger's, what is sent on, and that an older one never replaces a newer."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.signals import before_task_publish
from prometheus_client import REGISTRY

from shared.broker.app import carry_tokens
from shared.contracts import TaskMessage, parse, parse_headers
from shared.db import carriage
from shared.db.tokens import CausalToken, carrying, current

OLD, NEW = CausalToken(7, 1, 100, 5), CausalToken(7, 1, 200, 6)
GARBAGE: list[object] = [
    "nonsense",
    "wt1.7.0.64.5",
    "wt1." + "7" * 90,
    12,
    b"wt1.7.1.64.5",
    {"wt": 1},
    ["wt1.7.1.64.5"],
]


@pytest.fixture
def plain() -> Iterator[Celery]:
    """Any Celery client of this process, whose broker is a dict."""
    app = Celery("plain", broker="memory://", set_as_current=False)
    app.conf.update(task_ignore_result=True)
    carry_tokens(carriage.onward)
    yield app
    before_task_publish.disconnect(dispatch_uid="fleet-causal-tokens")
    app.close()


def sent(app: Celery, queue: str = "celery") -> Any:
    """The headers of the message that waits."""
    with app.connection() as connection:
        message = connection.default_channel.basic_get(queue, no_ack=True)
        assert message is not None
        return message.headers


def unreadable(source: str) -> float:
    return REGISTRY.get_sample_value("fleet_db_tokens_unreadable_total", {"source": source}) or 0.0


@pytest.mark.parametrize("value", GARBAGE)
def test_what_is_no_token_is_counted_and_ignored(value: object) -> None:
    before = unreadable("celery")
    assert carriage.read(value, source="celery") is None
    assert unreadable("celery") == before + 1


@pytest.mark.parametrize("value", [None, ""])
def test_a_header_that_is_not_there_is_nothing_to_count(value: object) -> None:
    before = unreadable("celery")
    assert carriage.read(value, source="celery") is None
    assert unreadable("celery") == before


@pytest.mark.parametrize("value", GARBAGE)
def test_a_message_with_a_header_that_is_no_token_is_a_message(value: object) -> None:
    headers = TaskMessage("a").wire_headers() | {"wt": value}
    assert parse_headers(headers).token == (value if isinstance(value, str) else None)


def test_a_message_brings_its_token_and_one_without_has_no_such_header() -> None:
    message = TaskMessage("a", token=str(NEW))
    assert parse(message.wire_headers(), message.wire_body()).token == str(NEW)
    assert "wt" not in TaskMessage("a").wire_headers()
    assert "wt" not in message.wire_headers()["fleet"], "older workers would refuse it there"


def test_any_celery_client_sends_what_its_work_has_written(plain: Celery) -> None:
    with carrying(NEW):
        plain.send_task("agents.chat", kwargs={"message": "hi"})
    assert sent(plain)["wt"] == str(NEW)
    plain.send_task("agents.chat")
    assert "wt" not in sent(plain)


@pytest.mark.parametrize(
    ("had", "seen", "expected"), [(OLD, NEW, NEW), (NEW, OLD, NEW), (NEW, None, NEW), ("garbage", OLD, OLD)]
)
def test_the_newer_token_stays_on_a_message_that_has_one(
    plain: Celery, had: object, seen: CausalToken | None, expected: CausalToken
) -> None:
    with carrying(seen):
        plain.send_task("agents.chat", headers={"wt": str(had)})
    assert sent(plain)["wt"] == str(expected)


def test_a_retry_keeps_the_newer_token(plain: Celery) -> None:
    @plain.task(name="agents.again", bind=True)  # type: ignore[untyped-decorator]
    def again(self: Any) -> None: ...

    for had, seen in ((OLD, NEW), (NEW, OLD)):
        again.push_request(
            id="1", called_directly=False, headers={"wt": str(had)}, wt=str(had), retries=0, is_eager=False
        )
        with carrying(seen):
            again.signature_from_request(retries=1, countdown=0).apply_async()
        again.pop_request()
        assert sent(plain)["wt"] == str(NEW)


def test_a_task_of_somebody_else_is_sent_as_it_is(plain: Celery) -> None:
    with carrying(NEW):
        plain.send_task("mail.send")
    assert "wt" not in sent(plain)


def test_an_http_client_gets_a_token_and_gives_it_back_in_whatever_case() -> None:
    with carrying(OLD):
        headers = carriage.for_response(NEW)
    assert headers == {"x-fleet-token": str(NEW)}
    for name in ("x-fleet-token", "X-Fleet-Token"):
        assert carriage.from_request({name: str(NEW), "accept": "*/*"}) == NEW
    assert carriage.from_request({"accept": "*/*"}) is None
    with carrying(None):
        assert carriage.for_response() == {}
    before = unreadable("http")
    assert carriage.from_request({"X-Fleet-Token": "x"}) is None
    assert unreadable("http") == before + 1


@pytest.mark.parametrize("unknown", ["position", "wal_file", "system_id"])
def test_a_place_of_which_something_is_unknown_is_no_token(unknown: str) -> None:
    place: dict[str, Any] = {"position": "1/2A", "wal_file": "0000000A000000010000000B", "system_id": 7}
    token = carriage.minted(place["position"], place["wal_file"], system_id=place["system_id"])
    assert token is not None
    assert (token.system_id, token.timeline, token.lsn) == (7, 10, 0x1_0000_002A)
    place[unknown] = None
    assert carriage.minted(place["position"], place["wal_file"], system_id=place["system_id"]) is None
    assert current() is None
