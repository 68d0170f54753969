"""Sessions whose cached messages count no more are dropped from the cache; the truth fills it again."""

from collections.abc import Sequence

from shared.memory.cache import RedisCache, open_redis
from shared.memory.context import session_key
from shared.memory.knobs import MemoryKnobs


async def forget_sessions(knobs: MemoryKnobs, sessions: Sequence[tuple[str, str]]) -> None:
    """Drop these sessions, (tenant, session). Raises: SessionUnavailable."""
    if sessions:
        redis = open_redis(knobs)
        try:
            await RedisCache(redis, knobs=knobs).drop([session_key(*one) for one in sessions])
        finally:
            await redis.aclose()
