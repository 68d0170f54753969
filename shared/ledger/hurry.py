"""Telling workers of a cancel at once, if Redis is there; those that do not hear it see the flag in the ledger."""

import asyncio
from collections.abc import Sequence
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.contracts import CANCEL_CHANNEL

log = structlog.get_logger()

WAIT_S = 0.5
"""Seconds for all of it: the ledger has the cancel already, and workers look there every second."""


async def hurry(running: Sequence[UUID], *, redis_url: str) -> None:
    """Say that these runs shall stop; best effort."""
    if not running:
        return
    redis = Redis.from_url(redis_url, socket_connect_timeout=WAIT_S)
    try:
        async with asyncio.timeout(WAIT_S), redis.pipeline(transaction=False) as pipe:
            for task_id in running:
                pipe.publish(CANCEL_CHANNEL, str(task_id))
            await pipe.execute()
    except (RedisError, OSError, TimeoutError) as error:
        log.info("client.cancel_not_hurried", tasks=len(running), cause=repr(error))
    finally:
        await redis.aclose()
