"""The copy of session memory: one sorted set a session in Redis, changed by one script."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from shared.db import tokens
from shared.db.tokens import CausalToken
from shared.errors import SessionUnavailable
from shared.llm.messages import Message
from shared.memory.context import token_key
from shared.memory.knobs import MemoryKnobs
from shared.memory.ports import Cached, StoredMessage

COMPLETE = b"complete"
DROP_AT_ONCE = 500


def open_redis(knobs: MemoryKnobs) -> Redis:
    """A client for `RedisCache`, which gives every call its limit; one retry, for a connection that had died idle.

    No socket_timeout here: with one, redis-py writes through `asyncio.wait_for`, which until Python 3.12 can lose
    the cancellation of the task around it (5 of 100 cancelled calls went on as if nothing had happened).
    """
    pool = BlockingConnectionPool.from_url(
        knobs.redis_url,
        max_connections=knobs.max_connections,
        timeout=knobs.timeout_s,
        socket_timeout=None,
        socket_connect_timeout=knobs.timeout_s,
        retry=Retry(NoBackoff(), 1),
    )
    return Redis.from_pool(pool)


class RedisCache:
    """`SessionCache` on a client that somebody else opens and closes.

    The client must return bytes (decode_responses=False, the default).
    """

    def __init__(self, redis: Redis, *, knobs: MemoryKnobs | None = None) -> None:
        self._redis = redis
        self._knobs = knobs or MemoryKnobs()
        self._push = redis.register_script((files("shared.memory") / "push.lua").read_text("utf-8"))

    async def read(self, key: str) -> Cached:
        """One round trip; an entry that this version cannot read is dropped. See `SessionCache.read`."""
        async with self._available():
            try:
                async with self._redis.pipeline(transaction=False) as both:
                    # The token last: one that is newer than the messages harms nobody.
                    both.zrange(key, 0, -1)
                    both.get(token_key(key))
                    members, text = await both.execute()
                token = tokens.parse(text.decode("ascii", "replace")) if text else None
                if not members or members[0] != COMPLETE:
                    return Cached(None, token)
                return Cached(tuple(_stored(member) for member in members[1:]), token)
            except (ResponseError, ValueError, KeyError, TypeError):  # another type or shape: written by other hands
                await self._redis.unlink(key, token_key(key))
                return Cached()

    async def push(
        self, key: str, stored: Sequence[StoredMessage], *, is_fill: bool, token: CausalToken | None = None
    ) -> None:
        """One script. See `SessionCache.push`."""
        if not stored and not is_fill:
            return
        arguments: list[str | int] = [self._knobs.ttl_s, self._knobs.context_messages, int(is_fill), str(token or "")]
        for one in stored:
            arguments += [one.id, json.dumps({"id": one.id, **one.message.to_json()})]
        async with self._available():
            await self._push(keys=[key, token_key(key)], args=arguments)

    async def drop(self, keys: Collection[str]) -> None:
        """UNLINK, a few hundred at once. See `SessionCache.drop`."""
        names = [name for key in keys for name in (key, token_key(key))]
        async with self._available():
            for start in range(0, len(names), DROP_AT_ONCE):
                await self._redis.unlink(*names[start : start + DROP_AT_ONCE])

    @asynccontextmanager
    async def _available(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._knobs.timeout_s):
                yield
        except TimeoutError as error:
            raise SessionUnavailable(f"Redis did not answer within {self._knobs.timeout_s:g} s") from error
        except (RedisError, OSError) as error:
            raise SessionUnavailable(f"Redis does not answer: {type(error).__name__}: {error}") from error


def _stored(member: bytes) -> StoredMessage:
    data = json.loads(member)
    return StoredMessage(int(data["id"]), Message.from_json(data))
