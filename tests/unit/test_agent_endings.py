"""How a run ends: by what its agent did, and by what was asked of it meanwhile."""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeLimitExceeded

from shared.errors import BadInput, Fenced, LLMTimeout
from shared.ledger.journal import Journal
from shared.ledger.runs import Claim
from shared.ledger.suspension import Suspended, Suspension
from tests.fakes.fake_ledger import FakeCommit
from workers.agents.active import HANDED_BACK, Active
from workers.agents.endings import Ending, as_recorded, ending_of
from workers.agents.pool import Reason

WAITS = Suspension(kind="sleep", wait_s=60)
PARKED = Suspension(state="parked", error={})
CUT = asyncio.CancelledError()


def ended(
    error: BaseException | None = None, reason: Reason | None = None, suspension: Suspension | None = None, **more: Any
) -> Ending:
    is_left = more.pop("is_left", suspension is not None)
    return ending_of(output="out", error=error, reason=reason, suspension=suspension, is_left=is_left)


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        (ended(), "succeeded"),
        (ended(ValueError("no")), "failed"),
        (ended(SystemExit(1)), "failed"),
        (ended(CUT), "failed"),
        (ended(Suspended(), suspension=WAITS), "suspended"),
        (ended(BaseExceptionGroup("group", [Suspended()]), suspension=WAITS), "suspended"),
        (ended(ValueError("after"), suspension=WAITS), "suspended"),
        (ended(suspension=WAITS), "suspended"),
        (ended(suspension=HANDED_BACK, is_left=False), "succeeded"),
        (ended(ValueError("own"), suspension=HANDED_BACK, is_left=False), "failed"),
        (ended(CUT, "cancelled"), "cancelled"),
        (ended(None, "cancelled"), "cancelled"),
        (ended(ValueError("while tidying up"), "cancelled"), "cancelled"),
        (ended(Suspended(), "cancelled", HANDED_BACK), "cancelled"),
        (ended(CUT, "revoked"), "failed"),
        (ended(CUT, "revoked", WAITS), "failed"),
        (ended(None, "revoked"), "succeeded"),
        (ended(CUT, "drain"), "suspended"),
        (ended(RuntimeError("a port made this of the cut"), "drain"), "suspended"),
        (ended(None, "drain"), "succeeded"),
        (ended(CUT, "fenced"), "fenced"),
        (ended(None, "fenced"), "fenced"),
        (ended(Fenced("gone")), "fenced"),
        (ended(Fenced("gone"), "cancelled"), "fenced"),
    ],
)
def test_what_a_run_ends_as(ending: Ending, kind: str) -> None:
    assert ending.kind == kind


def test_a_run_that_a_leaving_worker_cuts_off_goes_on_elsewhere_at_once_unless_it_is_parked() -> None:
    assert ended(CUT, "drain").suspension == HANDED_BACK
    assert ended(CUT, "drain", WAITS, is_left=False).suspension == HANDED_BACK
    assert ended(CUT, "drain", PARKED, is_left=False).suspension.state == "parked"


def test_a_run_that_waits_is_put_down_with_what_it_waits_for() -> None:
    assert ended(Suspended(), suspension=WAITS).suspension is WAITS


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (LLMTimeout("late"), "llm_timeout", "late"),
        (SoftTimeLimitExceeded(5), "permanent", "the soft time limit passed"),
        (TimeLimitExceeded(5), "permanent", "the hard time limit passed"),
        (ValueError("no luck"), "permanent", "ValueError: no luck"),
        (SystemExit(3), "permanent", "SystemExit: 3"),
        (CUT, "permanent", "the agent let a cancellation of its own work through"),
        (BadInput("x: wrong"), "bad_input", "x: wrong"),
    ],
)
def test_a_failure_is_recorded_with_a_code_and_a_sentence(error: BaseException, code: str, message: str) -> None:
    recorded = as_recorded(error)
    assert (recorded.code, recorded.message) == (code, message)


class FakeDelivery:
    """Keeps the first reason, as a delivery does."""

    def __init__(self) -> None:
        self.cancel_reason: Reason | None = None

    def cancel(self, reason: Reason) -> None:
        self.cancel_reason = self.cancel_reason or reason


@pytest.fixture
def delivery() -> FakeDelivery:
    return FakeDelivery()


@pytest.fixture
def active(delivery: FakeDelivery) -> Active:
    return Active(Claim(UUID(int=7), 1, 1), delivery)


def journal() -> Journal:
    return FakeCommit().journal(UUID(int=7))


def test_a_run_is_put_down_whether_its_journal_was_loaded_by_then_or_not(active: Active) -> None:
    early, late = journal(), journal()
    active.follow(early)
    assert early.suspension is None
    active.put_down()
    assert early.suspension == HANDED_BACK
    active.follow(late)
    assert late.suspension == HANDED_BACK


def test_a_cancelled_run_begins_no_further_step_and_what_was_in_flight_is_booked(
    active: Active, delivery: FakeDelivery
) -> None:
    one = journal()
    active.follow(one)
    active.cancel("cancelled")
    active.cancel("cancelled")
    assert (delivery.cancel_reason, one.suspension, one.books_cuts()) == ("cancelled", HANDED_BACK, True)


@pytest.mark.parametrize("reason", ["drain", "fenced"])
def test_a_call_that_the_worker_leaves_behind_is_in_doubt(
    active: Active, delivery: FakeDelivery, reason: Reason
) -> None:
    one = journal()
    active.follow(one)
    assert one.books_cuts(), "a call that the agent itself gives up is not"
    active.cancel(reason)
    assert (one.suspension, one.books_cuts()) == (None, False)
