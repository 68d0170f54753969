"""What the keeper decides about workers and messages, without doing it: state in, action and sentence out."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from shared.ledger.dispatch import Fresh, Slots
from shared.ledger.parking import Wanting
from shared.ledger.rescue import Pulse


@dataclass(frozen=True, slots=True)
class Dispatch:
    """How many tasks to publish now, and why."""

    limit: int
    reason: str


def dispatch(*, due: int, queued: int, ready: int, batch: int) -> Dispatch:
    """How many published tasks have lost their message: a long queue is no reason to publish its tasks again.

    Args:
        due: Published tasks for which no worker has come in time.
        queued: All tasks that should have a message.
        ready: Messages that wait in the broker's queues.
        batch: The most that one round publishes.
    """
    missing = min(due, queued - ready)
    if due == 0:
        return Dispatch(0, "no task is due")
    if missing <= 0:
        return Dispatch(0, f"{due} tasks are due, but the queue holds {ready} messages for {queued} queued tasks")
    return Dispatch(min(missing, batch), f"{missing} of {queued} queued tasks have no message waiting ({ready} do)")


def relieve(*, held: int, slots: Slots, ready: int | None, batch: int) -> Dispatch:
    """How many held tasks to publish because nobody polls them; workers that do leave nothing to this.

    Args:
        held: Tasks that are held for longer than a polling worker with room would leave them.
        ready: Messages that wait in the broker's queues; None: the broker does not answer.
    """
    if held == 0:
        return Dispatch(0, "no held task is overdue")
    if ready is None:
        return Dispatch(0, f"{held} held tasks are overdue, but the broker does not answer")
    if slots.workers == 0:
        limit = max(0, min(held, batch - ready))
        return Dispatch(limit, f"{held} held tasks are overdue and no worker is alive: {ready} messages call for one")
    if ready > 0:
        return Dispatch(0, f"{held} held tasks are overdue, but workers have {ready} messages to come for first")
    free = slots.slots - slots.running
    if free <= 0:
        return Dispatch(0, f"{held} held tasks are overdue, but all {slots.slots} slots are taken")
    return Dispatch(min(held, free, batch), f"{held} held tasks are overdue although {free} slots are free")


def prompt(fresh: Iterable[Fresh], *, standing: Mapping[str, int], fair_window: int) -> list[UUID]:
    """Which tasks that are queued since this moment go to the queue at once, instead of waiting to be polled.

    Args:
        standing: Published tasks by tenant: with those a tenant keeps within its share of the queue, and what is more
            waits in the ledger for a fair turn.
    """
    have = Counter(dict(standing))
    chosen = []
    for one in fresh:
        if have[one.tenant] < fair_window:
            have[one.tenant] += 1
            chosen.append(one.id)
    return chosen


@dataclass(frozen=True, slots=True)
class Parking:
    """Whether tasks are put aside for want of their agent, and why."""

    tasks: Wanting
    action: Literal["park", "leave"]
    reason: str


def put_aside(found: Iterable[Wanting], *, workers: int, watched_s: float, after_s: float) -> list[Parking]:
    """Which tasks are parked because nobody offers their agent: they say so then, and stand in nobody's way.

    Args:
        workers: Living ones. Without any the fleet is down, or scaled to nothing: no agent is missing in particular.
        watched_s: For how long this keeper has seen the database answer: workers could offer nothing before.
        after_s: Seconds without an offer after which an agent counts as gone.
    """
    return [_put_aside(one, workers, watched_s, after_s) for one in found]


def _put_aside(one: Wanting, workers: int, watched_s: float, after_s: float) -> Parking:
    silence = "ever" if one.silent_s is None else f"for {one.silent_s:.0f} s"
    missing = f"no worker has offered agent {one.agent!r} {silence}"
    if workers == 0:
        return Parking(one, "leave", f"{missing}, but no worker is alive at all")
    if watched_s < after_s:
        return Parking(one, "leave", f"{missing}, but the database has just come back")
    return Parking(one, "park", f"{missing}: start one that has it, or cancel the task")


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
