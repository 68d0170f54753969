"""What the keeper decides, without doing it: state in, action and sentence out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from shared.ledger.rescue import Pulse


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
