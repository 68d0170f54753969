"""How long the answer cache waits for Redis, and what becomes of its secret when Redis forgets it."""

import asyncio
from typing import Any, cast

from redis.asyncio import Redis

from shared.llm.answer_cache import SECRET_S, RedisAnswers
from tests.fakes.fake_plane import HandClock

ANSWER = (
    b'{"text": "hello", "model": "m", "endpoint": "e", "input_tokens": 1, "output_tokens": 1, "created_at": 9999999999}'
)


class SlowRedis:
    """Answers late, and knows nothing but what it was told."""

    def __init__(self, *, late_s: float = 0.0) -> None:
        self.late_s = late_s
        self.known: dict[str, Any] = {}
        self.asked = 0

    def register_script(self, text: str) -> str:
        return text

    async def get(self, name: str) -> Any:
        self.asked += 1
        await asyncio.sleep(self.late_s)
        return self.known.get(name, ANSWER)

    async def set(self, name: str, value: Any, *, nx: bool) -> None:
        self.known.setdefault(name, value)


def answers(redis: SlowRedis, clock: HandClock | None = None) -> RedisAnswers:
    return RedisAnswers(cast(Redis, redis), timeout_s=0.01, last_timeout_s=5.0, clock=clock)


async def test_the_last_answer_that_there_is_is_worth_a_longer_wait_than_one_before_models_are_asked() -> None:
    redis = SlowRedis(late_s=0.1)
    cache = answers(redis)
    assert await cache.find("t", "k", max_age_s=60) is None
    assert await cache.find("t", "k", max_age_s=60) is None
    assert redis.asked == 1, "it rests"
    kept = await cache.find("t", "k", max_age_s=60, is_last=True)
    assert kept is not None and kept.text == "hello"


async def test_a_secret_that_redis_forgot_is_given_back_to_it_so_that_all_agree_again() -> None:
    redis, clock = SlowRedis(), HandClock()
    old = answers(redis, clock)
    secret = await old.secret()
    redis.known.clear()
    assert await old.secret() == secret
    clock.pass_s(SECRET_S)
    assert await old.secret() == secret
    assert await answers(redis).secret() == secret


async def test_a_worker_that_met_an_emptied_redis_first_is_believed_by_the_others() -> None:
    redis, clock = SlowRedis(), HandClock()
    old = answers(redis, clock)
    await old.secret()
    redis.known.clear()
    new = await answers(redis).secret()
    clock.pass_s(SECRET_S)
    assert await old.secret() == new
