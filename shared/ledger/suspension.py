"""How a run is put down: a value that says what it waits for, and the signal that carries it out of the agent."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

NEVER_SEEN = 2**31 - 1
"""More wakes than there can be: nothing that comes meanwhile ends this wait early."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspension:
    """A run that gives its slot back.

    Attributes:
        state: `waiting` for something; `queued` to go on elsewhere at once; `parked` until an operator resumes it.
        kind: `sleep`, `retry`, `signal`, `children`, or `several` of them at once.
        wait_s: Seconds until it goes on whatever happens; None: only what it waits for wakes it.
        signals: Names of signals that wake it.
        children: Ids of children that must all have ended to wake it: for each branch that gathers some.
        seen_wakes: The task's count of wakes when it was last checked: more by now means that it goes on at once.
        error: Why it is parked.
    """

    state: Literal["waiting", "queued", "parked"] = "waiting"
    kind: str = ""
    wait_s: float | None = None
    signals: tuple[str, ...] = ()
    children: tuple[tuple[str, ...], ...] = ()
    seen_wakes: int = NEVER_SEEN
    error: dict[str, Any] | None = None

    @property
    def is_looked_for(self) -> bool:
        """Whether something else than time ends it."""
        return bool(self.signals or self.children)

    def row(self) -> dict[str, Any]:
        """The columns of the ledger's `suspend`."""
        waiting_for: dict[str, Any] | None = None
        if self.state == "waiting":
            waiting_for = {"kind": self.kind, **({"signals": self.signals} if self.signals else {})}
            waiting_for |= {"ids": _union(*self.children)} if self.children else {}
            waiting_for |= {"groups": self.children} if len(self.children) > 1 else {}
        return {
            "state": self.state, "wait_s": self.wait_s, "waiting_for": waiting_for, "seen_wakes": self.seen_wakes,
            "error": self.error,
        }  # fmt: skip


def merged(first: Suspension, second: Suspension) -> Suspension:
    """Two branches of one run wait at once: whatever comes first wakes it."""
    if first.state != "waiting" or second.state != "waiting":
        return min((first, second), key=lambda one: ("parked", "queued", "waiting").index(one.state))
    waits = [one.wait_s for one in (first, second) if one.wait_s is not None]
    return Suspension(
        kind="several",
        wait_s=min(waits, default=None),
        signals=_union(first.signals, second.signals),
        children=tuple(dict.fromkeys((*first.children, *second.children))),
        seen_wakes=min(first.seen_wakes, second.seen_wakes),
    )


def _union(*some: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain(*some)))


class Suspended(BaseException):
    """Leaves the agent where it stands. Not an `Exception`: an agent that catches those must not stop it."""
