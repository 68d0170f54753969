"""What a schedule that is due does next: one task, however many ticks were missed."""

from dataclasses import dataclass
from datetime import datetime

from shared.contracts import FleetHeader
from shared.errors import BadInput
from shared.ledger.schedules import Schedule, header_of, next_tick


@dataclass(frozen=True, slots=True)
class Tick:
    """What to do: a task with this header, and the next tick after it. Without them the schedule is paused."""

    header: FleetHeader | None
    next_at: datetime | None
    reason: str


def tick_of(schedule: Schedule, *, now: datetime) -> Tick:
    """One task for a tick that has come. After an outage all ticks that were missed are caught up by that one task.

    Args:
        schedule: One whose `next_at` has come.
        now: The database's time.
    """
    try:
        header = header_of(schedule, now=now)
        next_at = next_tick(schedule.cron, schedule.timezone, after=now)
    except BadInput as error:  # written past `create_schedule`, or its zone is gone from this machine
        return Tick(None, None, f"schedule {schedule.name} cannot tick and is paused: {error.message}")
    late_s = (now - schedule.next_at).total_seconds() if schedule.next_at else 0.0
    return Tick(header, next_at, f"tick of {schedule.next_at:%Y-%m-%d %H:%M:%S} UTC, {late_s:.1f} s late")
