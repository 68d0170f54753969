"""Work straight from the ledger: held tasks in their turn, and tasks whose message does not come.

One loop per worker. A priority is due every `poll_s`, at once after a poll that found something, and when somebody says
that work may be held. It asks the pool for slots first, so a claimed task always starts at once.
"""

import asyncio
import random
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Protocol
from uuid import UUID

import structlog

from shared.clock import Clock
from shared.contracts import Priority
from shared.errors import DatabaseUnavailable
from shared.ledger.poll import Polled
from shared.telemetry import metrics

log = structlog.get_logger()

PROBE = 16
"""Slots asked for as long as nothing is known to be held: few, because they stand idle while the ledger answers."""
GATHER_S = 0.02
"""Seconds for which a busy worker's freed slots are collected: one poll for many instead of one for each."""


class Slots(Protocol):
    """The pool, as the poller sees it."""

    limit: int

    @property
    def has_messages(self) -> bool:
        """Whether messages wait for a slot."""

    def ask(self, priority: Priority, slots: int) -> None:
        """How many slots tasks of the ledger could use now."""

    async def granted(self) -> Mapping[Priority, int]:
        """Slots that asking has brought."""

    def give_back(self, slots: int) -> None:
        """Slots that are of no use; fewer than none: borrowed ones, for tasks that run here anyway."""

    def adopt(self, work: Callable[[], Coroutine[Any, Any, Any]], *, name: str) -> Any:
        """Run a claimed task in a granted slot."""


class Ledger(Protocol):
    """Where held and lost tasks are."""

    async def held(self, priority: Priority, slots: int) -> Sequence[Polled]:
        """Claim held tasks, tenants in turn."""

    async def lost(self, priority: Priority, slots: int, *, lost_after_s: float) -> Sequence[Polled]:
        """Claim tasks that were published so many seconds ago and whose message nobody has got."""

    async def overlooked(self) -> Sequence[Polled]:
        """Tasks that are this worker's by the ledger and that it does not run."""


class Poller:
    """Polls for some priorities until cancelled.

    Args:
        start: The run of a claimed task.
        poll_s: Seconds between two looks, jittered by a quarter.
        lost_after_s: Seconds after which an idle worker takes a task whose message has not come.
        batch: Tasks that are claimed at once.
    Attributes:
        is_broker_away: Whether no message can come: then nothing published is waited for.
    """

    def __init__(
        self, *, slots: Slots, ledger: Ledger, start: Callable[[Polled], Coroutine[Any, Any, Any]],
        priorities: Collection[Priority], poll_s: float, lost_after_s: float, batch: int, clock: Clock,
        rng: random.Random | None = None,
    ) -> None:  # fmt: skip
        self.is_broker_away = False
        self._slots = slots
        self._ledger = ledger
        self._start = start
        self._poll_s = poll_s
        self._lost_after_s = lost_after_s
        self._batch = batch
        self._clock = clock
        self._rng = rng or random.Random()
        self._due_at: dict[Priority, float] = dict.fromkeys(priorities, 0.0)
        self._has_more: set[Priority] = set()
        self._is_hurried = asyncio.Event()
        self._hurries = 0
        self._suspects: set[UUID] | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """Claim nothing more; a poll under way ends first, so that nothing it claims is left lying."""
        self._is_stopped = True
        self._is_hurried.set()

    def hurry(self) -> None:
        """Something may be held that was not before: look at once."""
        for priority in self._due_at:
            self._due_at[priority] = 0.0
        self._hurries += 1
        self._is_hurried.set()

    async def run(self) -> None:
        """Poll until stopped; a database that is away makes it wait."""
        while not self._is_stopped:
            try:
                await self.turn()
            except DatabaseUnavailable as error:
                log.info("poller.database_away", cause=error.message)
                self._suspects = set()  # the answer to a poll may be lost, and the poll committed
                await self._rest(self._poll_s)
            except Exception:  # without polling, held tasks would wait for ever: logged, and tried again
                log.exception("poller.failed")
                self._suspects = set()
                await self._rest(self._poll_s)

    async def turn(self) -> None:
        """Wait until something is due and slots are there; then poll."""
        due = self._due()
        if not due:
            await self._rest(min(self._due_at.values()) - self._clock.monotonic())
            return
        if self._suspects is not None:
            await self._adopt_overlooked()
        for priority in self._due_at:
            self._slots.ask(priority, self._wish(priority) if priority in due else 0)
        granted = await self._granted(sum(map(self._wish, due)))
        try:
            for priority in list(granted):
                if self._is_stopped:
                    break
                await self._poll(priority, granted.pop(priority))
        finally:
            self._slots.give_back(sum(granted.values()))

    def _due(self) -> list[Priority]:
        now = self._clock.monotonic()
        return [priority for priority, at in self._due_at.items() if at <= now]

    def _wish(self, priority: Priority) -> int:
        return self._batch if priority in self._has_more else min(PROBE, self._batch)

    async def _rest(self, seconds: float) -> None:
        self._is_hurried.clear()
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._is_hurried.wait()
        except TimeoutError:
            return

    async def _granted(self, wished: int) -> dict[Priority, int]:
        """Slots by priority; a busy worker's are collected for a moment. Empty when none got free within `poll_s`."""
        try:
            async with asyncio.timeout(self._poll_s):
                granted = dict(await self._slots.granted())
        except TimeoutError:
            return {}
        if sum(granted.values()) * 4 < min(wished, self._slots.limit):
            await asyncio.sleep(GATHER_S)
            try:
                async with asyncio.timeout(0):
                    for priority, slots in (await self._slots.granted()).items():
                        granted[priority] = granted.get(priority, 0) + slots
            except TimeoutError:
                return granted
        return granted

    async def _poll(self, priority: Priority, slots: int) -> None:
        """Claim and start; the slots that are left over go back."""
        left, hurries = slots, self._hurries
        try:
            held = await self._ledger.held(priority, slots)
            left -= self._adopt(held, priority, "held")
            lost: Sequence[Polled] = ()
            if left and not self._is_stopped and (self.is_broker_away or not self._slots.has_messages):
                lost_after_s = 0.0 if self.is_broker_away else self._lost_after_s
                lost = await self._ledger.lost(priority, left, lost_after_s=lost_after_s)
                left -= self._adopt(lost, priority, "lost")
        finally:
            self._slots.give_back(left)
        if held or lost:
            self._has_more.add(priority)
            self._due_at[priority] = 0.0
            return
        self._has_more.discard(priority)
        if hurries == self._hurries:  # else somebody held a task after this look
            self._due_at[priority] = self._clock.monotonic() + self._poll_s * self._rng.uniform(0.75, 1.25)

    def _adopt(self, found: Sequence[Polled], priority: Priority, cause: str) -> int:
        for polled in found:
            self._slots.adopt(lambda one=polled: self._start(one), name=str(polled.claim.task_id))  # type: ignore[misc]
        if found:
            metrics.POLLED.labels(priority, cause).inc(len(found))
        return len(found)

    async def _adopt_overlooked(self) -> None:
        """Run what a poll claimed whose answer was lost: what is found in two looks is no claim on its way."""
        before = self._suspects or set()
        found = {polled.claim.task_id: polled for polled in await self._ledger.overlooked()}
        strays = [polled for task_id, polled in found.items() if task_id in before]
        self._suspects = (set(found) - before) or None
        if strays:
            log.warning("poller.overlooked", tasks=len(strays))
            self._slots.give_back(-len(strays))
        for polled in strays:
            self._slots.adopt(lambda one=polled: self._start(one), name=str(polled.claim.task_id))  # type: ignore[misc]
