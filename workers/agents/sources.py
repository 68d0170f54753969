"""Whose turn a free slot is: messages and tasks from the ledger of each priority by weight, tenants one after another.

Arithmetic only: the pool enforces it.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from shared.contracts import QUEUES, Priority

T = TypeVar("T")
Source = tuple[Priority, Literal["message", "held"]]


class Line(Generic[T]):
    """Those who wait, tenants in turn: one with a thousand in line delays the first of another by one place."""

    __slots__ = ("_tenants", "_turn", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self._tenants: dict[str, deque[T]] = {}
        self._turn: deque[str] = deque()

    def add(self, tenant: str, one: T) -> None:
        """To the end of its tenant's line."""
        line = self._tenants.get(tenant)
        if line is None:
            line = self._tenants[tenant] = deque()
            self._turn.append(tenant)
        line.append(one)
        self.waiting += 1

    def take(self) -> T:
        """The first of the tenant whose turn it is."""
        tenant = self._turn.popleft()
        line = self._tenants[tenant]
        one = line.popleft()
        self.waiting -= 1
        if line:
            self._turn.append(tenant)
        else:
            del self._tenants[tenant]
        return one


@dataclass(frozen=True, slots=True)
class Grant:
    """A slot for a held task of this priority: whoever asked goes and gets one from the ledger."""

    priority: Priority


class Sources(Generic[T]):
    """Who gets the next slot.

    Smooth weighted round robin over what has something to start: a priority's messages and its held tasks each count
    with its weight, so neither starves the other and no weight starves at all.
    Source: nginx, ngx_http_upstream_round_robin (smooth weighted balancing).

    Args:
        weights: Of each priority that is served here.
    """

    def __init__(self, weights: Mapping[Priority, int]) -> None:
        self._lines: dict[Priority, Line[T]] = {priority: Line() for priority in weights}
        self._asked: dict[Priority, int] = dict.fromkeys(weights, 0)
        self._credit: dict[Source, int] = {}
        for priority in weights:
            self._credit[priority, "message"] = self._credit[priority, "held"] = 0
        self._weights = dict(weights)
        self.waiting = 0

    def add(self, priority: Priority, tenant: str, one: T) -> None:
        """A message that waits for a slot; of a priority that is not served here it waits with the least urgent."""
        line = self._lines.get(priority)
        if line is None:
            line = self._lines[min(self._weights, key=self._weights.__getitem__)]
        line.add(tenant, one)
        self.waiting += 1

    def ask(self, priority: Priority, slots: int) -> None:
        """How many slots held tasks of this priority could use from now on."""
        self._asked[priority] = slots

    def next(self) -> T | Grant | None:
        """Whose turn it is; None when nobody wants a slot."""
        source = self._turn()
        if source is None:
            return None
        priority, kind = source
        if kind == "held":
            self._asked[priority] -= 1
            return Grant(priority)
        self.waiting -= 1
        return self._lines[priority].take()

    def asked(self) -> int:
        """Slots that held tasks still wait for."""
        return sum(self._asked.values())

    def _turn(self) -> Source | None:
        wanting = [(priority, "message") for priority, line in self._lines.items() if line.waiting]
        wanting += [(priority, "held") for priority, slots in self._asked.items() if slots > 0]
        if len(wanting) < 2:
            return wanting[0] if wanting else None  # type: ignore[return-value]
        chosen: Source = wanting[0]  # type: ignore[assignment]
        for each in wanting:
            self._credit[each] += self._weights[each[0]]  # type: ignore[index]
            if self._credit[each] > self._credit[chosen]:  # type: ignore[index]
                chosen = each  # type: ignore[assignment]
        self._credit[chosen] -= sum(self._weights[priority] for priority, _ in wanting)
        return chosen


def parse_queues(queues: str, weights: str) -> dict[Priority, int]:
    """The priorities that a worker serves, each with its weight.

    Args:
        queues: Names separated by commas, such as `interactive,normal,batch`.
        weights: As many whole numbers from 1 to 100, separated by colons, such as `8:4:1`.

    Raises: ValueError naming the knob.
    """
    known = tuple(QUEUES)
    names = [name.strip() for name in queues.split(",") if name.strip()]
    served = [priority for priority in known if priority in names]
    if not names or len(served) != len(names):
        raise ValueError(f"queues must name each of {', '.join(known)} at most once and at least one of them")
    shares = weights.split(":")
    if len(shares) != len(known) or not all(one.strip().isdecimal() and 1 <= int(one) <= 100 for one in shares):
        raise ValueError("weights must be three whole numbers from 1 to 100 for interactive:normal:batch, like 8:4:1")
    by_name = dict(zip(known, map(int, shares), strict=True))
    return {priority: by_name[priority] for priority in served}
