"""What the keeper decides, without doing it: state in, action and sentence out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from shared.ledger.rescue import Pulse


@dataclass(frozen=True, slots=True)
class Dispatch:
    """How many of the due tasks to publish now, and why."""

    limit: int
    reason: str


def dispatch(*, due: int, queued: int, ready: int, batch: int) -> Dispatch:
    """How many tasks lack a message: a long queue is no reason to publish its tasks again.

    Args:
        due: Queued tasks whose time to be looked after has come.
        queued: All queued tasks of the ledger.
        ready: Messages that wait in the broker's queue.
        batch: The most that one round publishes.
    """
    missing = min(due, queued - ready)
    if due == 0:
        return Dispatch(0, "no task is due")
    if missing <= 0:
        return Dispatch(0, f"{due} tasks are due, but the queue holds {ready} messages for {queued} queued tasks")
    return Dispatch(min(missing, batch), f"{missing} of {queued} queued tasks have no message waiting ({ready} do)")


@dataclass(frozen=True, slots=True)
class Decision:
    """One action on one worker, and why."""

    action: Literal["bury", "leave"]
    worker: UUID
    reason: str


def judge(pulses: Iterable[Pulse], *, dead_after_s: float, watched_s: float) -> list[Decision]:
    """Which workers are dead.

    Args:
        dead_after_s: Heartbeat age from which a worker counts as dead.
        watched_s: For how long this keeper has seen the database answer: after an outage of the database every
            heartbeat is old, and workers get one full term to write a new one before anybody is buried.
    """
    return [_one(pulse, dead_after_s, watched_s) for pulse in pulses]


def _one(pulse: Pulse, dead_after_s: float, watched_s: float) -> Decision:
    age = f"{pulse.heartbeat_age_s:.1f} s"
    if pulse.heartbeat_age_s <= dead_after_s:
        return Decision("leave", pulse.id, f"worker {pulse.name} beat {age} ago, within {dead_after_s:g} s")
    if watched_s < dead_after_s / 3:
        return Decision("leave", pulse.id, f"worker {pulse.name} beat {age} ago, but the database has just come back")
    return Decision("bury", pulse.id, f"worker {pulse.name} beat {age} ago, more than {dead_after_s:g} s")
