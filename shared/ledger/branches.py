"""The branches of one run: which of them are at a step, which could give the slot back, and when the run is put down.

A run is put down between steps, once every branch of it waits: what one branch awaits for days does not stop another
that works. From then on no step begins, and `Suspended` leaves the agent wherever it goes on.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from shared.ledger.suspension import Suspended, Suspension, merged

LOOK_EVERY_S = 0.5
"""Seconds between two looks for what a branch awaits while the run holds its slot all the same."""
STILL_TURNS = 16
"""Turns of the loop without a step in flight until all branches are taken to wait: one that has just ended a step
begins its next within a few."""

in_step: ContextVar[bool] = ContextVar("in_step", default=False)
"""Whether a step's own work is asking: it is in flight as a whole and goes on until it is done."""


@dataclass(eq=False, slots=True)
class _Resting:
    """A branch that could give the slot back; `until` is when it goes on at the latest."""

    suspension: Suspension
    until: float | None


class Branches:
    """All that goes on at once in one run.

    Args:
        here_s: Waits up to this long are sat out.
    Attributes:
        suspension: Set once the run shall be put down.
        is_left: Whether the agent was told so: what it returned or raised after that means nothing.
    """

    def __init__(self, *, here_s: float) -> None:
        self.suspension: Suspension | None = None
        self.is_left = False
        self._here_s = here_s
        self._open = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._stop = asyncio.Event()
        self._resting: list[_Resting] = []

    @asynccontextmanager
    async def step(self) -> AsyncIterator[None]:
        """A step in flight; none begins once the run is to be put down.

        Raises: Suspended.
        """
        if self.suspension is not None and not in_step.get():
            await self.leave()
        self._open += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._open -= 1
            if self._open == 0:
                self._quiet.set()

    async def rest(self, suspension: Suspension, until: float | None) -> None:
        """Wait a while: here when it is short, else elsewhere as soon as every branch waits.

        Args:
            until: When it is over at the latest, in the loop's time.

        Returns: when it is time to look again.
        Raises: Suspended.
        """
        if in_step.get():
            await asyncio.sleep((until or 0.0) - now())
            return
        look_at = now() + LOOK_EVERY_S if suspension.is_looked_for else float("inf")
        if until is not None and until - now() <= self._here_s:
            async with self.step():  # it is about to go on: the waits of others do not put the run down meanwhile
                await _within(min(until, look_at) - now(), self._stop.wait())
            return
        mine = _Resting(suspension, until)
        self._resting.append(mine)
        try:
            await self._rest_with_others(look_at if until is None else min(look_at, until))
        finally:
            self._resting.remove(mine)

    async def leave(self) -> NoReturn:
        """Out of the agent, once its other branches have no step in flight: a TaskGroup would cut those off."""
        if not in_step.get():
            await self._quiet.wait()
        self.is_left = True
        raise Suspended

    def put_down(self, suspension: Suspension) -> None:
        """Let the run end at its next step boundary; what is in flight is finished first."""
        self.suspension = suspension if self.suspension is None else merged(self.suspension, suspension)
        self._stop.set()

    async def settled(self) -> None:
        """Return when no step is in flight any more."""
        await self._quiet.wait()

    async def _rest_with_others(self, look_at: float) -> None:
        while self.suspension is None:
            if await _within(look_at - now(), self._quiet.wait()) and await self._is_still():
                for one in self._resting:
                    left_s = None if one.until is None else max(0.0, one.until - now())
                    self.put_down(replace(one.suspension, wait_s=left_s))
            elif look_at <= now():
                return
        await self.leave()

    async def _is_still(self) -> bool:
        """Whether no branch begins a step for a few turns of the loop."""
        for _ in range(STILL_TURNS):
            await asyncio.sleep(0)
            if self._open or self.suspension is not None:
                return False
        return True


def now() -> float:
    """The loop's time, seconds."""
    return asyncio.get_running_loop().time()


async def _within(seconds: float, work: Awaitable[Any]) -> bool:
    """Whether it was done within the time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(None if seconds == float("inf") else seconds):
            await work
            return True
    return False
