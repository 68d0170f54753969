"""Fairness for messages: a queue that one tenant fills is taken off into the ledger, where tenants have turns.

Only under pressure: what is reserved here must be largely one tenant's, and its queue deep. What was taken off comes
back by polling.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping

import structlog

from shared.contracts import Priority
from shared.telemetry import metrics

log = structlog.get_logger()

LOOK_S = 0.25
"""Seconds between two looks at what is reserved: part of the time that a first task can lose to a crowd."""
LARGE_SHARE = 4
"""A tenant is a crowd with more than one in so many of a priority's reserved messages."""
Key = tuple[Priority, str]


def crowded(reserved: Mapping[Key, int], *, window: int) -> list[Priority]:
    """Priorities whose window is largely one tenant's: worth a look at how deep the queue is.

    Args:
        reserved: Messages that are not claimed yet, by priority and tenant.
        window: Messages that can be reserved at once.
    """
    totals: Counter[Priority] = Counter()
    for (priority, _), number in reserved.items():
        totals[priority] += number
    return [
        priority
        for priority, total in totals.items()
        if total * 2 >= window
        and any(number * LARGE_SHARE > total for (one, _), number in reserved.items() if one == priority)
    ]


class Shelf:
    """Looks for crowded queues, and has them taken off.

    Args:
        reserved: Counts what is reserved and not yet claimed.
        depth: How many messages of a priority wait on the broker.
        take_off: Moves a priority's messages into the ledger and says how many they were.
        deep: Messages on a queue from which on it is crowded.
        window: Messages that can be reserved at once.
    """

    def __init__(
        self, *, reserved: Callable[[], Mapping[Key, int]], depth: Callable[[Priority], Awaitable[int]],
        take_off: Callable[[Priority], Awaitable[int]], deep: int, window: int,
    ) -> None:  # fmt: skip
        self.window = window
        self._reserved = reserved
        self._depth = depth
        self._take_off = take_off
        self._deep = deep

    async def watch(self) -> None:
        """Look, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except Exception as error:  # the broker may be gone in many ways: then nothing comes from it either
                log.info("shelf.failed", cause=repr(error))

    async def look(self) -> None:
        """Take off what is crowded now."""
        for priority in crowded(self._reserved(), window=self.window):
            depth = await self._depth(priority)
            if depth >= self._deep:
                moved = await self._take_off(priority)
                metrics.SHELVED.inc(moved)
                log.info("shelf.taken_off", priority=priority, depth=depth, messages=moved)
