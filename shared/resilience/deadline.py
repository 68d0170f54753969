"""A point in time after which nobody waits for the answer; it travels with the task and only ever comes nearer."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from shared.errors import DeadlineSpent

_current: ContextVar["Deadline | None"] = ContextVar("deadline", default=None)


@dataclass(frozen=True, slots=True)
class Deadline:
    """Absolute, on the monotonic clock of this process; between processes send `left_s()`."""

    at_s: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """The deadline that is so many seconds away."""
        return cls(time.monotonic() + seconds)

    def left_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at_s - time.monotonic())

    @property
    def is_past(self) -> bool:
        """Whether no time is left."""
        return self.left_s() <= 0

    def clamp(self, seconds: float) -> float:
        """The shorter of `seconds` and the time that is left."""
        return min(seconds, self.left_s())

    def check(self) -> None:
        """Raises: DeadlineSpent when no time is left."""
        if self.is_past:
            raise DeadlineSpent("The deadline has passed")


def current() -> Deadline | None:
    """The deadline of the work under way, if it has one."""
    return _current.get()


def clamped(seconds: float) -> float:
    """`seconds`, but never beyond the current deadline."""
    deadline = _current.get()
    return seconds if deadline is None else deadline.clamp(seconds)


@contextmanager
def within(seconds: float | None) -> Iterator[Deadline | None]:
    """Set the deadline for what happens inside, tasks started there included; an earlier one stays in force."""
    outer = _current.get()
    deadline = outer
    if seconds is not None:
        deadline = Deadline.after(seconds)
        if outer is not None and outer.at_s < deadline.at_s:
            deadline = outer
    token = _current.set(deadline)
    try:
        yield deadline
    finally:
        _current.reset(token)
