"""Fairness for messages: a tenant that fills a queue has its messages put on the ledger's shelf, so that others pass.

Only under pressure: its queue must be deep, and the tenant must hold a large part of what is reserved here. The shelf
is emptied by polling, tenants in turn.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import structlog

from shared.contracts import FleetHeader, Priority, TaskMessage
from shared.resilience.reconnect import until_available
from shared.telemetry import metrics

log = structlog.get_logger()

LOOK_S = 0.25
"""Seconds between two looks at what is reserved: the larger part of the time that a first task can lose to a crowd."""
LARGE_SHARE = 4
"""A tenant is a crowd with more than one in so many of a priority's reserved messages."""
Key = tuple[Priority, str]
Settle = Callable[[bool], Any]
"""Called on the loop with whether the message is in the ledger: then it is acknowledged, else it goes its usual way."""


def crowds(reserved: Mapping[Key, int], *, window: int) -> dict[Priority, set[str]]:
    """Tenants that hold a large share of a full window, by priority: worth a look at how deep the queue is.

    Args:
        reserved: Messages by priority and tenant that were reserved, or shelved, since the last look.
        window: Messages that can be reserved at once.
    """
    by_priority: Counter[Priority] = Counter()
    for (priority, _), number in reserved.items():
        by_priority[priority] += number
    found: dict[Priority, set[str]] = {}
    for (priority, tenant), number in reserved.items():
        total = by_priority[priority]
        if total * 2 >= window and number * LARGE_SHARE > total:
            found.setdefault(priority, set()).add(tenant)
    return found


class Shelf:
    """Takes messages from Celery's thread, stores them in batches on the loop, and has them acknowledged after that.

    Args:
        reserved: Counts what is reserved and not yet claimed.
        depth: How many messages of a priority wait on the broker.
        withdraw: Takes a crowd's messages that already wait for a slot, each with what settles it.
        store: Puts tasks into the ledger.
        deep: Messages on a queue from which on it is crowded.
        window: Messages that can be reserved at once.
    """

    def __init__(
        self, *, reserved: Callable[[], Counter[Key]], depth: Callable[[Priority], Awaitable[int]],
        withdraw: Callable[[Priority, str], Iterable[tuple[TaskMessage, Settle]]],
        store: Callable[[Sequence[TaskMessage]], Awaitable[None]], deep: int, window: int,
    ) -> None:  # fmt: skip
        self._reserved = reserved
        self._depth = depth
        self._withdraw = withdraw
        self._store = store
        self._deep = deep
        self.window = window
        self._crowds: frozenset[Key] = frozenset()
        self._taken: Counter[Key] = Counter()
        self._waiting: deque[tuple[TaskMessage, Settle]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived = asyncio.Event()
        self._is_called = False

    def wants(self, priority: Priority, header: FleetHeader) -> bool:
        """Whether a message shall be shelved rather than started; safe from any thread."""
        return (priority, header.tenant) in self._crowds and header.available_at is None

    def put(self, priority: Priority, message: TaskMessage, settle: Settle) -> None:
        """Shelve a message; safe from any thread."""
        self._taken[priority, message.fleet.tenant] += 1
        self._waiting.append((message, settle))
        if not self._is_called and self._loop is not None:
            self._is_called = True
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def keep(self) -> None:
        """Store what was put here, for ever."""
        self._loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            self._is_called = False
            batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if batch:
                await self._keep(batch)

    async def watch(self) -> None:
        """Look for crowds, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Decide whose messages are shelved until the next look."""
        reserved = self._reserved()
        reserved.update(self._taken)
        self._taken = Counter()
        found: set[Key] = set()
        for priority, tenants in crowds(reserved, window=self.window).items():
            if await self._is_deep(priority):
                found |= {(priority, tenant) for tenant in tenants}
        for key in found - self._crowds:
            log.info("shelf.crowd_came", priority=key[0], tenant=key[1])
        self._crowds = frozenset(found)
        for priority, tenant in found:
            for message, settle in self._withdraw(priority, tenant):
                self.put(priority, message, settle)

    async def _is_deep(self, priority: Priority) -> bool:
        try:
            return await self._depth(priority) >= self._deep
        except Exception as error:  # the broker may be gone in many ways: then nothing comes from it either
            log.info("shelf.depth_unknown", cause=repr(error))
            return False

    async def _keep(self, batch: Sequence[tuple[TaskMessage, Settle]]) -> None:
        messages = [message for message, _ in batch]
        try:
            await until_available(lambda: self._store(messages), what="PostgreSQL")
        except Exception as error:  # a row that cannot be stored must not stop the shelf: each takes its usual way
            log.error("shelf.not_stored", messages=len(messages), cause=repr(error))
            is_stored = False
        else:
            metrics.SHELVED.inc(len(messages))
            is_stored = True
        for _, settle in batch:
            settle(is_stored)
