"""Cron schedules: checked when they are made, one task a tick, in the schedule's own time zone."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError
from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from shared.contracts import (
    DEFAULT_MAX_ATTEMPTS,
    DEFAULT_TENANT,
    FleetHeader,
    Priority,
    check_storable,
    checked_agent_name,
    tick_task_id,
)
from shared.db.database import Database
from shared.db.tables import schedules, tasks
from shared.errors import BadInput
from shared.ledger.catalogue import Catalogue
from shared.ledger.knobs import LedgerKnobs
from shared.ledger.order import refuse_large
from shared.ledger.sealed_input import open_scheduled, seal_scheduled, tick_input
from shared.ledger.vault import NO_VAULT, Vault

LONGEST_CRON = 200
NAME_MAX = 200
LONGEST_DEADLINE_S = 366 * 86_400.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule as people read it, and as the keeper ticks it."""

    name: str
    agent: str
    input: dict[str, Any]
    cron: str
    timezone: str = "UTC"
    tenant: str = DEFAULT_TENANT
    session_id: str | None = None
    priority: Priority = "normal"
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    deadline_s: float | None = None
    is_paused: bool = False
    next_at: datetime | None = None
    last_at: datetime | None = None
    last_task_id: UUID | None = None


_COLUMNS = tuple(schedules.c[name] for name in Schedule.__dataclass_fields__)


def next_tick(cron: str, timezone: str, *, after: datetime) -> datetime:
    """The first tick strictly after a moment, in UTC.

    Debian cron's rules where clocks change: a fixed time that is skipped comes when the clock has jumped, one that
    comes twice counts once; `*` and steps in hours or minutes go by elapsed time.

    Args:
        cron: Five fields (minute hour day month weekday), or six with seconds first.
        after: Aware.

    Raises: BadInput naming the field, `cron` or `timezone`.
    """
    zone = _zone(timezone)
    if len(cron) > LONGEST_CRON:
        raise BadInput(f"cron must be at most {LONGEST_CRON} characters", field="cron")
    try:
        for tick in CronSim(cron, after.astimezone(zone)):
            at = tick.astimezone(UTC)
            if at > after:  # in the hour that comes twice, wall-clock order is not the order of time
                return at
    except (CronSimError, ValueError, IndexError) as error:
        raise BadInput(
            f"cron {cron!r} is not a cron expression: {str(error).lower()}; give minute hour day month weekday, "
            "such as '*/5 * * * *' or '30 8 * * MON-FRI'",
            field="cron",
        ) from None
    raise BadInput(f"cron {cron!r} never comes: no date in the next 50 years fits", field="cron")


def _zone(timezone: str) -> Any:
    if timezone == "UTC":
        return UTC
    try:
        return ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):
        known = available_timezones()
        near = difflib.get_close_matches(timezone, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; name it as in Europe/Berlin"
        hint = hint if known else ": this machine has no time zone database; install tzdata"
        raise BadInput(f"timezone {timezone!r} is not known{hint}", field="timezone") from None


async def create_schedule(
    database: Database, *, name: str, agent: str, cron: str, timezone: str = "UTC",
    input: Mapping[str, Any] | None = None, tenant: str = DEFAULT_TENANT, session: str | None = None,
    priority: Priority = "normal", max_attempts: int = DEFAULT_MAX_ATTEMPTS, deadline_s: float | None = None,
    vault: Vault = NO_VAULT, max_bytes: int = LedgerKnobs().input_max_bytes,
) -> Schedule:  # fmt: skip
    """Run an agent at every tick from now on.

    Args:
        max_bytes: How long its input may be, as JSON.
        deadline_s: Seconds that each task has from its creation.
        vault: Seals the input, once for all ticks.

    Raises: BadInput naming the field, also when the name is taken; TooLarge; UnknownAgent; DatabaseUnavailable.
    """
    checked = _checked(
        Schedule(name, agent, {"args": [], "kwargs": dict(input or {})}, cron, timezone, tenant, session, priority,
                 max_attempts, deadline_s)
    )  # fmt: skip
    refuse_large(len(json.dumps(checked.input)), max_bytes, what=f"the input of schedule {name!r}")
    await Catalogue(database).check(agent, checked.input["kwargs"])
    values = {field: getattr(checked, field) for field in Schedule.__dataclass_fields__}
    values["input"] = seal_scheduled(vault, name, checked.input["kwargs"])
    async with database.unit() as unit:
        values["next_at"] = next_tick(cron, timezone, after=await _now(unit))
        made = insert(schedules).values(**values).on_conflict_do_nothing().returning(*_COLUMNS)
        row = (await unit.execute(made)).one_or_none()
    if row is None:
        raise BadInput(f"there is a schedule {name!r} already: delete it first, or choose another name", field="name")
    return replace(Schedule(**row._mapping), input=checked.input)


def _checked(wanted: Schedule) -> Schedule:
    """A schedule that can tick. Raises: BadInput naming the field."""
    if not wanted.name or "\x00" in wanted.name or len(wanted.name) > NAME_MAX:
        raise BadInput(f"name must be text of 1 to {NAME_MAX} characters", field="name")
    if wanted.deadline_s is not None and not 0 < wanted.deadline_s <= LONGEST_DEADLINE_S:
        raise BadInput(f"deadline_s must be above 0 and at most {LONGEST_DEADLINE_S:g} (a year)", field="deadline_s")
    checked_agent_name(wanted.agent)
    header_of(wanted, now=datetime.now(UTC))
    check_storable(wanted.input)
    return wanted


def header_of(schedule: Schedule, *, now: datetime) -> FleetHeader:
    """What its tasks travel with.

    Raises: BadInput naming the field.
    """
    deadline_at = None if schedule.deadline_s is None else now + timedelta(seconds=schedule.deadline_s)
    return FleetHeader.checked(
        tenant=schedule.tenant, session=schedule.session_id, priority=schedule.priority,
        max_attempts=schedule.max_attempts, deadline_at=deadline_at,
    )  # fmt: skip


async def list_schedules(database: Database, *, vault: Vault = NO_VAULT) -> list[Schedule]:
    """Every schedule, by name; its input as it is stored where the vault cannot open it."""
    async with database.unit(mode="ro") as unit:
        rows = await unit.execute(select(*_COLUMNS).order_by(schedules.c.name))
        found = [Schedule(**row._mapping) for row in rows]
    return [replace(one, input=open_scheduled(vault, one.name, one.input)) for one in found]


async def pause_schedule(database: Database, name: str) -> Schedule:
    """Stop its ticks; pausing twice is pausing once.

    Raises: BadInput when there is none of that name.
    """
    async with database.unit() as unit:
        return await _change(unit, name, is_paused=True)


async def resume_schedule(database: Database, name: str) -> Schedule:
    """Let it tick again, from now on: what it missed while it was paused stays undone.

    Raises: BadInput when there is none of that name.
    """
    async with database.unit() as unit:
        query = select(*_COLUMNS).where(schedules.c.name == name).with_for_update()
        row = (await unit.execute(query)).one_or_none()
        if row is None:
            raise _unknown(name)
        if not row.is_paused:
            return Schedule(**row._mapping)
        next_at = next_tick(row.cron, row.timezone, after=await _now(unit))
        return await _change(unit, name, is_paused=False, next_at=next_at)


async def delete_schedule(database: Database, name: str) -> None:
    """Forget a schedule; tasks that it made go on.

    Raises: BadInput when there is none of that name.
    """
    async with database.unit() as unit:
        gone = await unit.execute(delete(schedules).where(schedules.c.name == name).returning(schedules.c.name))
        if gone.first() is None:
            raise _unknown(name)


async def is_any_due(database: Database) -> bool:
    """A look that costs nothing, for those who look often."""
    query = select(select(schedules.c.name).where(~schedules.c.is_paused, schedules.c.next_at <= func.now()).exists())
    async with database.unit(mode="ro") as unit:
        return bool((await unit.execute(query)).scalar_one())


async def due_schedules(unit: AsyncSession, *, limit: int) -> tuple[datetime, list[Schedule]]:
    """The database's time, and the schedules whose next tick has come; they are locked until the unit ends."""
    now = await _now(unit)
    query = (
        select(*_COLUMNS)
        .where(~schedules.c.is_paused, schedules.c.next_at <= now)
        .order_by(schedules.c.next_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return now, [Schedule(**row._mapping) for row in await unit.execute(query)]


async def tick(unit: AsyncSession, schedule: Schedule, header: FleetHeader, *, next_at: datetime) -> UUID | None:
    """Make the task of a schedule's `next_at`, held for whoever has a slot, and move on.

    Returns: Its id; None when this tick has been made already.
    """
    at = schedule.next_at
    if at is None:
        return None
    task_id = tick_task_id(schedule.name, at, tenant=header.tenant, session=header.session)
    moved = (
        update(schedules)
        .where(schedules.c.name == schedule.name, schedules.c.next_at == at)
        .values(next_at=next_at, last_at=at, last_task_id=task_id)
        .returning(schedules.c.name)
    )
    if (await unit.execute(moved)).first() is None:
        return None
    row = insert(tasks).values(
        id=task_id, tenant=header.tenant, agent=schedule.agent, session_id=header.session,
        input=tick_input(schedule.name, at, schedule.input), max_attempts=header.max_attempts,
        deadline_at=header.deadline_at, priority=header.priority, dispatch_at=func.now(),
    )  # fmt: skip
    made = await unit.execute(row.on_conflict_do_nothing().returning(tasks.c.id))
    is_new = made.first() is not None
    return task_id if is_new else None


async def stop_schedule(unit: AsyncSession, name: str) -> None:
    """Pause a schedule that cannot tick, within the caller's unit of work."""
    await _change(unit, name, is_paused=True)


async def _change(unit: AsyncSession, name: str, **values: Any) -> Schedule:
    changed = update(schedules).where(schedules.c.name == name).values(**values).returning(*_COLUMNS)
    row = (await unit.execute(changed)).one_or_none()
    if row is None:
        raise _unknown(name)
    return Schedule(**row._mapping)


async def _now(unit: AsyncSession) -> datetime:
    return (await unit.execute(select(func.now()))).scalar_one()


def _unknown(name: str) -> BadInput:
    return BadInput(f"there is no schedule {name!r}: `fleet schedule list` names them all", field="name")
