"""What the fleet spent today at each model: counted in every process, added up in Redis every few seconds."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.llm.messages import Usage

PREFIX = "fleet:llm:spent:"
KEPT_S = 40 * 86_400
"""Seconds a day's book stays: a month can be looked back at."""
TIMEOUT_S = 0.5


@dataclass(slots=True)
class Spending:
    """Calls, tokens and money at one model in one day."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    money: float = 0.0


class DayBook:
    """For people and dashboards; budgets keep books of their own, exact ones."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Spending] = {}

    def note(self, key: str, usage: Usage, *, money: float, now: datetime) -> None:
        """Count one call."""
        page = self._open.setdefault((now.date().isoformat(), key), Spending())
        page.calls += 1
        page.input_tokens += usage.input_tokens
        page.output_tokens += usage.output_tokens
        page.money += money

    async def flush(self, redis: Redis) -> bool:
        """Add to the fleet's book what was counted since the last time; False when Redis is away: it stays counted."""
        taken, self._open = self._open, {}
        if not taken:
            return True
        pipe = redis.pipeline(transaction=True)
        for (day, key), page in taken.items():
            name = PREFIX + day
            pipe.hincrby(name, f"{key}|calls", page.calls)
            pipe.hincrby(name, f"{key}|input_tokens", page.input_tokens)
            pipe.hincrby(name, f"{key}|output_tokens", page.output_tokens)
            pipe.hincrbyfloat(name, f"{key}|money", page.money)
            pipe.expire(name, KEPT_S)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await pipe.execute()
        except (RedisError, OSError, TimeoutError):
            self._put_back(taken)
            return False
        return True

    def _put_back(self, taken: Mapping[tuple[str, str], Spending]) -> None:
        for page_of, page in taken.items():
            mine = self._open.setdefault(page_of, Spending())
            mine.calls += page.calls
            mine.input_tokens += page.input_tokens
            mine.output_tokens += page.output_tokens
            mine.money += page.money


async def spent(redis: Redis, day: date) -> dict[str, Spending]:
    """The fleet's book of a day, by key. Raises: redis errors."""
    found = cast(Mapping[bytes, bytes], await redis.hgetall(PREFIX + day.isoformat()))
    book: dict[str, Spending] = {}
    for field, value in found.items():
        key, _, what = field.decode().rpartition("|")
        page = book.setdefault(key, Spending())
        setattr(page, what, float(value) if what == "money" else int(value))
    return book
