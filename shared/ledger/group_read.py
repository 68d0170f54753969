"""Group read: what many runs ask at once is one statement on one connection.

A worker that takes over hundreds of runs would else take every connection of its process for seconds, and its own
heartbeat would wait behind them.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

import structlog

from shared.resilience.reconnect import until_available

log = structlog.get_logger()

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

BATCH_MAX = 64
"""Runs whose answers share a round trip: more would only hold the loop while they are decoded."""


class GroupRead(Generic[Asked, Answer]):
    """Collects questions of one kind while the last ones are being answered; waits for a database that is away.

    Args:
        read: Answers many, each in its place.
    """

    def __init__(self, read: Callable[[Sequence[Asked]], Awaitable[Sequence[Answer]]]) -> None:
        self._read = read
        self._waiting: deque[tuple[Asked, asyncio.Future[Answer]]] = deque()
        self._reader: asyncio.Task[None] | None = None

    async def ask(self, asked: Asked) -> Answer:
        """The answer to one question, as the ledger has it at some time after it was asked."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        if self._reader is None:
            self._reader = asyncio.get_running_loop().create_task(self._answer_all(), context=Context())
        return await future

    async def _answer_all(self) -> None:
        try:
            while self._waiting:
                await self._answer([self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))])
        finally:
            self._reader = None

    async def _answer(self, batch: list[tuple[Asked, "asyncio.Future[Answer]"]]) -> None:
        batch = [one for one in batch if not one[1].done()]  # the others were cancelled meanwhile
        if not batch:
            return
        try:
            answers = await until_available(lambda: self._read([asked for asked, _ in batch]), what="PostgreSQL")
        except Exception as error:  # the reader of all runs must outlive one batch: told to those who asked
            await self._blame(batch, error)
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(answer)

    async def _blame(self, batch: list[tuple[Asked, "asyncio.Future[Answer]"]], error: Exception) -> None:
        """A question that cannot be answered must not fail its neighbours."""
        if len(batch) == 1:
            if not batch[0][1].done():
                batch[0][1].set_exception(error)
            return
        log.warning("ledger.read_failed", questions=len(batch), cause=repr(error))
        for one in batch:
            await self._answer([one])
