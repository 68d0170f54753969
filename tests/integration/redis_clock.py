"""A Redis whose scripts read a clock that the test turns: one line of the prelude is exchanged, nothing else."""

from functools import cache
from hashlib import sha1

import pytest
from redis.asyncio import Redis

from shared.resilience import wire

PRODUCTION_LINE = "local clock = redis.call('TIME')\n"
TEST_LINE = "local clock = redis.call('HMGET', 'test-clock', 's', 'us')\n"
START_S = 1_780_000_000.0


class RedisClock:
    """Seconds and microseconds under one key."""

    def __init__(self, redis: Redis, start_s: float = START_S) -> None:
        self._redis = redis
        self.now_s = start_s

    async def advance(self, seconds: float) -> None:
        """Turn it on."""
        self.now_s += seconds
        seconds_part = int(self.now_s)
        micros = round((self.now_s - seconds_part) * 1_000_000)
        await self._redis.execute_command("HSET", "test-clock", "s", seconds_part, "us", micros)  # type: ignore[no-untyped-call]


def give_scripts_the_clock(patch: pytest.MonkeyPatch) -> None:
    """Exchange the line in every script that is made from now on."""
    original = wire.script

    @cache
    def clocked(name: str) -> wire.Script:
        text = original(name).text
        assert text.count(PRODUCTION_LINE) == 1, "the server's clock decides, read once"
        text = text.replace(PRODUCTION_LINE, TEST_LINE)
        return wire.Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())

    patch.setattr(wire, "script", clocked)
