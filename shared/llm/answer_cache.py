"""Answers kept for when no model is up: found by the exact question only, one partition a tenant, erased by tenant."""

import json
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, Protocol, cast

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.clock import Clock, SystemClock
from shared.errors import SealBroken, SealKeyUnknown, SessionUnavailable
from shared.llm.answer_key import tenant_mark
from shared.llm.messages import ChatReply, Usage
from shared.resilience.line import heard_within
from shared.telemetry import llm_metrics as metrics

log = structlog.get_logger()

JITTER = 0.1
"""Part of an answer's life that chance takes away, so that answers kept together do not all go together."""

SECRET_S = 60.0
"""Seconds for which a shared secret is good: a Redis that lost it is given it back, and all agree on it again."""
QUIET_S = 60.0
"""Seconds between two log lines about a Redis that is away."""


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer as it was given at L0."""

    text: str
    model: str
    endpoint: str
    input_tokens: int
    output_tokens: int
    created_at: float
    """Unix time."""

    @classmethod
    def of(cls, reply: ChatReply, *, now: datetime) -> "Kept":
        """What is kept of a reply."""
        usage = reply.usage
        return cls(
            reply.text, reply.model, reply.endpoint, usage.input_tokens, usage.output_tokens, round(now.timestamp(), 3)
        )

    def reply(self, *, now: datetime, level: str, reasons: tuple[str, ...]) -> ChatReply:
        """The answer given again: it cost nothing this time, and says how old it is."""
        return ChatReply(
            text=self.text,
            tool_calls=(),
            model=self.model,
            endpoint=self.endpoint,
            usage=Usage(0, 0),
            finish_reason="stop",
            seconds=0.0,
            level=level,
            reasons=reasons,
            cached_at=datetime.fromtimestamp(self.created_at, UTC).isoformat(),
            age_s=self.age_s(now),
            cost=0.0,
        )

    def age_s(self, now: datetime) -> float:
        """Seconds since it was made; clocks of two workers may differ, and no age is negative."""
        return round(max(0.0, now.timestamp() - self.created_at), 3)


class AnswerCache(Protocol):
    """Where answers are kept. Unavailable is the same as empty: nobody waits for a cache, nobody fails for it."""

    async def secret(self, *, is_last: bool = False) -> bytes | None:
        """The fleet's secret for keys; None while nobody knows it. `is_last` as for `find`."""

    async def find(self, tenant: str, key: str, *, max_age_s: float, is_last: bool = False) -> Kept | None:
        """The answer under a key, unless it is older. `is_last`: no better one will come, so it is worth a wait."""

    async def keep(self, tenant: str, key: str, answer: Kept) -> None:
        """Keep an answer for as long as it may be given again."""

    async def erase(self, tenant: str) -> int:
        """Forget all of a tenant's answers; returns how many. Raises: SessionUnavailable."""


class Seal(Protocol):
    """Keeps answers from those who can read Redis."""

    def seal(self, text: str, *, tenant: str, place: str) -> str:
        """A text as it may be kept."""

    def open(self, text: str, *, tenant: str, place: str) -> str:
        """A text as it was. Raises: SealKeyUnknown; SealBroken."""


class RedisAnswers:
    """`AnswerCache` on a client that somebody else opens and closes; the client returns bytes (the default).

    Args:
        seal: Seals what is kept; None: it is kept in clear text. What it cannot open is no answer.
    """

    def __init__(
        self, redis: Redis, *, stale_s: float = 86_400.0, max_answers: int = 10_000, secret: bytes | None = None,
        timeout_s: float = 0.25, last_timeout_s: float = 1.0, rest_s: float = 1.0, prefix: str = "fleet:llm:answers",
        clock: Clock | None = None, seal: Seal | None = None,
    ) -> None:  # fmt: skip
        self._redis = redis
        self._seal = seal
        self._stale_s = stale_s
        self._max_answers = max_answers
        self._secret = secret
        self._secret_until = float("-inf") if secret is None else float("inf")
        self._timeout_s = timeout_s
        self._last_timeout_s = last_timeout_s
        self._rest_s = rest_s
        self._prefix = prefix
        self._clock = clock or SystemClock()
        self._rests_until = {False: float("-inf"), True: float("-inf")}
        self._quiet_until = float("-inf")
        room = files("shared.llm")
        self._keep = redis.register_script((room / "keep.lua").read_text("utf-8"))
        self._erase = redis.register_script((room / "erase.lua").read_text("utf-8"))

    async def secret(self, *, is_last: bool = False) -> bytes | None:
        """The configured one, or one that the first worker made up and left in Redis for all."""
        if self._clock.monotonic() >= self._secret_until:
            found = await self._quietly(self._shared_secret, is_last=is_last)
            if found is not None:
                self._secret, self._secret_until = found, self._clock.monotonic() + SECRET_S
        return self._secret

    async def find(self, tenant: str, key: str, *, max_age_s: float, is_last: bool = False) -> Kept | None:
        """One GET. See `AnswerCache.find`."""

        async def get() -> Kept | None:
            found = cast(bytes | None, await self._redis.get(self._answer(tenant) + key))
            return None if found is None else _kept(self._opened(found, tenant, key))

        kept = await self._quietly(get, is_last=is_last)
        return kept if kept is not None and kept.age_s(self._clock.now()) <= max_age_s else None

    async def keep(self, tenant: str, key: str, answer: Kept) -> None:
        """One script. See `AnswerCache.keep`."""
        life_s = max(1, round(self._stale_s * (1 - JITTER * random.random())))
        prefix, text = self._answer(tenant), json.dumps(asdict(answer))
        kept = text if self._seal is None else self._seal.seal(text, tenant=tenant, place=key)

        async def put() -> None:
            await self._keep(
                keys=[prefix + key, prefix + "index"],
                args=[kept, life_s, self._max_answers, prefix, key],
            )
            metrics.CACHE.labels("kept").inc()

        await self._quietly(put)

    async def erase(self, tenant: str) -> int:
        """One script. See `AnswerCache.erase`."""
        prefix = self._answer(tenant)
        async with self._available(self._timeout_s):
            return cast(int, await self._erase(keys=[prefix + "index"], args=[prefix]))

    def _opened(self, found: bytes, tenant: str, key: str) -> bytes | str:
        if self._seal is None:
            return found
        try:
            return self._seal.open(found.decode(errors="replace"), tenant=tenant, place=key)
        except (SealKeyUnknown, SealBroken):
            return b""

    def _answer(self, tenant: str) -> str:
        return f"{self._prefix}:{{{tenant_mark(tenant)}}}:"

    async def _shared_secret(self) -> bytes:
        name = f"{self._prefix}:secret"
        await self._redis.set(name, self._secret or secrets.token_hex(32), nx=True)
        return cast(bytes, await self._redis.get(name))

    async def _quietly(self, ask: Callable[[], Awaitable[Any]], *, is_last: bool = False) -> Any:
        """Ask unless Redis failed just now; a failure is None, and one log line a minute.

        A call that was worth but a short wait says nothing to those that are worth a longer one.
        """
        if self._clock.monotonic() < self._rests_until[is_last]:
            return None
        try:
            async with self._available(self._last_timeout_s if is_last else self._timeout_s):
                return await ask()
        except SessionUnavailable as error:
            now = self._clock.monotonic()
            self._rests_until |= dict.fromkeys({False, is_last}, now + self._rest_s)
            metrics.CACHE.labels("unavailable").inc()
            if now >= self._quiet_until:
                self._quiet_until = now + QUIET_S
                log.warning("llm.cache_unavailable", cause=error.message, rest_s=self._rest_s)
            return None

    @asynccontextmanager
    async def _available(self, within_s: float) -> AsyncIterator[None]:
        try:
            async with heard_within(within_s):  # a process that is busy with 200 runs may be late itself
                yield
        except TimeoutError as error:
            raise SessionUnavailable(f"Redis did not answer within {within_s:g} s") from error
        except (RedisError, OSError) as error:
            raise SessionUnavailable(f"Redis does not answer: {type(error).__name__}: {error}") from error


class NoAnswers:
    """`AnswerCache` that keeps nothing."""

    async def secret(self, *, is_last: bool = False) -> bytes | None:
        """None: there are no keys."""
        return None

    async def find(self, tenant: str, key: str, *, max_age_s: float, is_last: bool = False) -> Kept | None:
        """Nothing."""
        return None

    async def keep(self, tenant: str, key: str, answer: Kept) -> None:
        """Not kept."""

    async def erase(self, tenant: str) -> int:
        """None were there."""
        return 0


def _kept(found: bytes | str) -> Kept | None:
    """What this version can read; anything else is no answer."""
    try:
        data = json.loads(found)
        return replace(Kept(**data), created_at=float(data["created_at"]))
    except (ValueError, KeyError, TypeError):
        return None
