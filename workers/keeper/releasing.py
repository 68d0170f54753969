"""Which tasks under a limit may run next: a pure count."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from uuid import UUID

from shared.ledger.limits import Held, Limit, Occupied


@dataclass(frozen=True, slots=True)
class Release:
    """Who is let go, and why no more."""

    ids: tuple[UUID, ...]
    reason: str


def rooms_of(limits: Iterable[Limit], occupied: Iterable[Occupied]) -> dict[Limit, int]:
    """How many more may run under each limit; below 0: so many too many are released."""
    rooms = {limit: limit.max_running for limit in limits}
    for one in occupied:
        for limit in rooms:
            if covers(limit, one):
                rooms[limit] -= one.tasks
    return rooms


def covers(limit: Limit, task: Held | Occupied) -> bool:
    """Whether a task counts against a limit: by its tenant, its own agent, or the one at the root of its tree."""
    if limit.scope == "tenant":
        return limit.name == task.tenant
    return limit.name in (task.agent, task.root_agent)


def choose(held: Sequence[Held], rooms: dict[Limit, int]) -> Release:
    """Let as many go as all their limits have room for: urgent ones first, tenants in turn.

    Args:
        held: Each tenant's tasks in their order, the urgent before the others.
        rooms: As `rooms_of` gives them.
    """
    left = dict(rooms)
    chosen = []
    for one in _in_turn(held):
        mine = [limit for limit in left if covers(limit, one)]
        if all(left[limit] > 0 for limit in mine):
            chosen.append(one.id)
            for limit in mine:
                left[limit] -= 1
    full = [f"{limit.scope} {limit.name} ({limit.max_running})" for limit, room in left.items() if room <= 0]
    told = f"; full: {', '.join(full)}" if full else ""
    return Release(tuple(chosen), f"{len(chosen)} of {len(held)} held tasks have room under their limits{told}")


def _in_turn(held: Sequence[Held]) -> Iterable[Held]:
    for priority in dict.fromkeys(one.priority for one in held):
        lines: dict[str, list[Held]] = {}
        for one in held:
            if one.priority == priority:
                lines.setdefault(one.tenant, []).append(one)
        for turn in zip_longest(*lines.values()):
            yield from (one for one in turn if one is not None)
