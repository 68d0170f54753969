"""Cancels that reach a running run: Redis says so at once, the ledger says so for certain."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol
from uuid import UUID

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.contracts import CANCEL_CHANNEL
from shared.errors import DatabaseUnavailable

log = structlog.get_logger()

PING_S = 5.0
"""Seconds of silence after which Redis is asked whether it is still there."""
REST_S = 1.0
"""Seconds between two tries to reach Redis; the ledger is looked at as often anyway."""


class Stoppable(Protocol):
    """A run that can be cancelled."""

    def cancel(self, reason: "str") -> None:
        """End it at its next await."""


class Hurry:
    """Cancels this worker's runs on request.

    Args:
        redis: Carries the word; while it is away only the ledger is asked.
        active: The worker's runs.
        asked: Which of them shall be cancelled, by the ledger.
        poll_s: Seconds between two looks into the ledger.
    """

    def __init__(
        self, *, redis: Redis, active: Mapping[UUID, Stoppable], asked: Callable[[], Awaitable[Sequence[UUID]]],
        poll_s: float,
    ) -> None:  # fmt: skip
        self._redis = redis
        self._active = active
        self._asked = asked
        self._poll_s = poll_s
        self._is_away = False

    async def listen(self) -> None:
        """Obey the word on the channel, for ever, through any number of lost connections."""
        while True:
            try:
                await self._listen()
            except (RedisError, OSError, TimeoutError) as error:
                if not self._is_away:
                    log.warning("hurry.redis_away", cause=repr(error))
                self._is_away = True
                await asyncio.sleep(REST_S)

    async def watch(self) -> None:
        """Ask the ledger, for ever."""
        while True:
            await asyncio.sleep(self._poll_s)
            if not self._active:
                continue
            try:
                for task_id in await self._asked():
                    self._cancel(task_id)
            except DatabaseUnavailable as error:
                log.info("hurry.database_away", cause=error.message)

    async def _listen(self) -> None:
        async with self._redis.pubsub() as ear:
            async with asyncio.timeout(PING_S):
                await ear.subscribe(CANCEL_CHANNEL)
            if self._is_away:
                log.info("hurry.redis_back")
            self._is_away = False
            is_asked = False
            while True:
                heard = await ear.get_message(ignore_subscribe_messages=False, timeout=PING_S)
                if heard is None and is_asked:
                    raise TimeoutError(f"Redis did not answer within {PING_S:g} s")
                is_asked = heard is None
                if heard is None:
                    await ear.ping()
                elif heard["type"] == "message":
                    self._obey(heard["data"])

    def _obey(self, data: object) -> None:
        try:
            self._cancel(UUID(data.decode() if isinstance(data, bytes) else str(data)))
        except ValueError:
            log.warning("hurry.not_a_task_id", data=repr(data)[:80])

    def _cancel(self, task_id: UUID) -> None:
        active = self._active.get(task_id)
        if active is not None:
            active.cancel("cancelled")
