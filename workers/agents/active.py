"""A claimed run as those see it who stop it: the poller that learns of a cancel, the pool that drains."""

from typing import Protocol

from shared.ledger.journal import Journal
from shared.ledger.runs import Claim
from shared.ledger.suspension import Suspension
from workers.agents.pool import Reason

HANDED_BACK = Suspension(state="queued")
"""Whoever has a free slot goes on with it at once."""


class Cancellable(Protocol):
    """The delivery of a run."""

    cancel_reason: Reason | None

    def cancel(self, reason: Reason) -> None:
        """End the run at its next await."""


class Active:
    """One claimed run of this worker, from its claim to its last write. Every method is for the loop's thread."""

    __slots__ = ("_delivery", "_is_put_down", "_journal", "claim")

    def __init__(self, claim: Claim, delivery: Cancellable) -> None:
        self.claim = claim
        self._delivery = delivery
        self._journal: Journal | None = None
        self._is_put_down = False

    def follow(self, journal: Journal) -> None:
        """The run has loaded its journal: what was asked of it meanwhile holds from its first step on."""
        self._journal = journal
        journal.books_cuts = lambda: self._delivery.cancel_reason not in ("drain", "fenced")
        if self._is_put_down:
            journal.put_down(HANDED_BACK)

    def put_down(self) -> None:
        """Hand the run back at its next step boundary; a call in flight ends first."""
        self._is_put_down = True
        if self._journal is not None:
            self._journal.put_down(HANDED_BACK)

    def cancel(self, reason: Reason) -> None:
        """End the run at its next await, a call in flight included; a second time it changes nothing."""
        if reason == "cancelled":
            self.put_down()  # an agent that goes on all the same begins no further step
        self._delivery.cancel(reason)
