"""What a connection concludes from the answers to COMMIT, without a server."""

from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
from psycopg.pq import ExecStatus
from sqlalchemy.exc import DBAPIError

from shared.db.link import Link
from shared.db.pools import is_unavailable


def answer(status: ExecStatus, command: bytes = b"", *values: bytes | None) -> Any:
    fields = {"status": status, "command_status": command, "get_value": lambda _row, column: values[column]}
    return SimpleNamespace(**fields, error_field=lambda _: None, get_error_message=lambda _: "failed")


def marked(*answers: Any) -> tuple[str, str | None] | None:
    """Where the log ended, as a connection remembers it."""
    link = cast(Any, SimpleNamespace(end=None, info=SimpleNamespace(encoding="utf-8")))
    Link._mark(link, list(answers))
    return cast("tuple[str, str | None] | None", link.end)


COMMITTED = answer(ExecStatus.COMMAND_OK, b"COMMIT")
FAILED = answer(ExecStatus.FATAL_ERROR)


def test_a_commit_and_where_it_ended_are_one_exchange() -> None:
    told = answer(ExecStatus.TUPLES_OK, b"SELECT 1", b"0/16B3748", b"000000020000000000000001")
    assert marked(COMMITTED, told) == ("0/16B3748", "000000020000000000000001")
    assert marked(COMMITTED, answer(ExecStatus.TUPLES_OK, b"SELECT 1", b"0/5", None)) == ("0/5", None)


def test_a_commit_stands_when_only_the_question_after_it_failed() -> None:
    assert marked(COMMITTED, FAILED) is None


def test_a_commit_that_failed_is_an_error_and_one_that_rolled_back_ended_nowhere() -> None:
    with pytest.raises(psycopg.Error):
        marked(FAILED)
    told = answer(ExecStatus.TUPLES_OK, b"SELECT 1", b"0/16B3748", None)
    assert marked(answer(ExecStatus.COMMAND_OK, b"ROLLBACK"), told) is None


def linked(sent: list[bytes], *, hears_role: bool = True) -> Any:
    """A connection that was welcomed by a standby."""
    return SimpleNamespace(
        is_standby=True, hears_role=hears_role, pgconn=SimpleNamespace(send_query=sent.append)
    )  # fmt: skip


def test_a_pooler_is_not_believed_that_its_server_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    """It greets with what it heard when it connected, also after a promotion: the server itself is to look."""

    def execute(_pgconn: Any) -> Any:
        yield from ()
        return [COMMITTED, answer(ExecStatus.TUPLES_OK, b"SELECT 1", b"0/9", b"000000020000000000000001")]

    sent: list[bytes] = []
    monkeypatch.setattr("shared.db.link.generators.execute", execute)
    with pytest.raises(StopIteration):
        next(Link._end_gen(linked(sent, hears_role=False)))
    assert len(sent) == 1
    assert b"pg_current_wal_flush_lsn" in sent[0]


@pytest.mark.parametrize("is_promoted", [False, True])
def test_a_replicas_position_counts_only_while_it_replays(is_promoted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a promotion it stands still, and what is read does not."""
    sent: list[bytes] = []
    answers = [
        [COMMITTED, answer(ExecStatus.TUPLES_OK, b"SELECT 1", b"0/5", None)],
        [answer(ExecStatus.TUPLES_OK, b"SELECT 1", b"0/9", b"000000020000000000000001")],
    ]

    def execute(_pgconn: Any) -> Any:
        link.is_standby = not is_promoted
        yield from ()
        return answers.pop(0)

    monkeypatch.setattr("shared.db.link.generators.execute", execute)
    link = linked(sent)
    with pytest.raises(StopIteration) as ended:
        next(Link._end_gen(link))
    if is_promoted:
        assert marked(*ended.value.value) == ("0/9", "000000020000000000000001")
        assert b"COMMIT" not in sent[1] and b"pg_current_wal_flush_lsn" in sent[1]
    else:
        assert marked(*ended.value.value) == ("0/5", None)
    assert len(sent) == 1 + is_promoted


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg.errors.AdminShutdown(), True),
        (psycopg.errors.TooManyConnections(), True),
        (psycopg.errors.QueryCanceled(), True),
        (psycopg.errors.InvalidSavepointSpecification(), False),
        (psycopg.errors.ObjectNotInPrerequisiteState(), False),
        (psycopg.errors.ProgramLimitExceeded(), False),
        (psycopg.errors.UniqueViolation(), False),
    ],
)
def test_what_the_driver_calls_operational_is_not_always_an_outage(error: psycopg.Error, expected: bool) -> None:
    assert is_unavailable(wrapped(error)) is expected


def wrapped(error: psycopg.Error) -> BaseException:
    """As SQLAlchemy raises it."""
    return DBAPIError.instance("SELECT", {}, error, psycopg.Error)
