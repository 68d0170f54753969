"""What one process holds of the LLM plane: its adapters, the gate, the answer cache, and who is coming back."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.clock import Clock, SystemClock
from shared.contracts import DEFAULT_TENANT
from shared.errors import BadInput, Transient
from shared.llm.adapters import open_adapter
from shared.llm.answer_cache import AnswerCache, NoAnswers, RedisAnswers, Seal
from shared.llm.config import Endpoint, LLMConfig, Model, unlisted_key
from shared.llm.config_file import Configured
from shared.llm.day_book import DayBook
from shared.llm.document import nearest
from shared.llm.gauges import show, show_left
from shared.llm.ladder import Passed
from shared.llm.port import Adapter
from shared.llm.recovery import Standing, observed, share
from shared.llm.roster import announce
from shared.llm.rules import adapter_knobs, key_rules, purses
from shared.resilience.exchange import GateStore, LimitsSeen
from shared.resilience.gate import Gate
from shared.resilience.spending import Budget
from shared.telemetry import llm_metrics as metrics

log = structlog.get_logger()

USUAL_AGENT = "chat"
TENANTS_SHOWN = 100
"""Tenants whose budgets are gauges: each is a question to Redis every few seconds. `fleet llm status` shows any."""
PENDING = 200
"""Answers on their way to the cache at the same time; more are not kept."""
LATENCY_WEIGHT = 0.1
"""Of the newest call in the running average of a model's latency."""
FIRST_GUESS_S = 1.0
TAKEN_OUT_EVERY_S = 5.0
PUBLISH_WITHIN_S = 0.5
PUBLISH_EVERY_S = 5.0
"""Seconds between two words to operators: what a worker spent since is lost to the day's book if it is killed."""

SEEN: ContextVar[list[LimitsSeen] | None] = ContextVar("limits_seen", default=None)
"""Where the adapter leaves what the provider said about its limits, for the call under way."""


def note_limits(seen: LimitsSeen) -> None:
    """Leave what a provider said for the call under way; adapters are opened with this as `on_limits`."""
    notes = SEEN.get()
    if notes is not None:
        notes.append(seen)


@dataclass(frozen=True, slots=True)
class Rung:
    """One model of a chain, ready to be asked."""

    model: str
    """As the configuration calls it."""
    name: str
    """As its endpoint calls it."""
    key: str
    endpoint_name: str
    endpoint: Endpoint
    spec: Model

    @property
    def labels(self) -> tuple[str, str]:
        """Of its metrics: as few as there are keys."""
        return self.endpoint_name, self.key.partition(":")[2]


class LLMPlane:
    """Build one per process; `GuardedChat` gives each run its own door to it."""

    def __init__(
        self, configured: Configured, *, gate: Gate, adapters: Mapping[str, Adapter], cache: AnswerCache | None = None,
        clock: Clock | None = None, draw: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self.config: LLMConfig = configured.config
        self.gate = gate
        self.cache = cache or NoAnswers()
        self.clock = clock or SystemClock()
        self.book = DayBook()
        self._adapters = adapters
        self.draw = draw
        self._standings: dict[str, Standing] = {}
        self._latency_s: dict[str, float] = {}
        self._taken_out: dict[str, float] = {}
        self._chores: set[asyncio.Task[Any]] = set()

    def rungs(self, agent: str, *, model: str | None) -> tuple[Rung, ...]:
        """The models of an agent's chain; one that the request names comes first, the others behind it.

        Raises: BadInput for a model that nobody configured.
        """
        chain = self.config.chain(agent)
        if model is None or model == chain[0]:
            return tuple(self._rung(name) for name in chain)
        if model in self.config.models:
            return tuple(self._rung(name) for name in (model, *(name for name in chain if name != model)))
        if not self.config.unlisted_models:
            known = nearest(model, list(self.config.models))
            raise BadInput(f"no model is named {model!r}; {known}", model=model)
        first = self._rung(chain[0])
        if model == first.name:
            return tuple(self._rung(name) for name in chain)
        spec = Model(endpoint=first.endpoint_name, name=model, max_tokens=first.spec.max_tokens)
        named = Rung(model, model, unlisted_key(first.endpoint_name), first.endpoint_name, first.endpoint, spec)
        return (named, *(self._rung(name) for name in chain[1:]))

    def order(self, rungs: Sequence[Rung]) -> tuple[list[Rung], list[Passed]]:
        """The order in which to ask: models that are coming back are spared some calls and go to the end."""
        first: list[Rung] = []
        spared: list[Rung] = []
        passed: list[Passed] = []
        ladder, now = self.config.ladder, self.clock.monotonic()
        for rung in rungs:
            standing = self._standings.get(rung.key, Standing())
            part = share(standing, now=now, recover_over_s=ladder.recover_over_s, first_share=ladder.first_share)
            if part.value < 1.0 and self.draw() >= part.value:
                spared.append(rung)
                passed.append(Passed(model=rung.model, way="returning", reason=f"{rung.model}: {part.reason}"))
            else:
                first.append(rung)
        return first + spared, passed

    def adapter(self, rung: Rung) -> Adapter:
        """The adapter of its endpoint."""
        return self._adapters[rung.endpoint_name]

    def usual_s(self, rung: Rung) -> float:
        """How long a call takes here, on average."""
        return self._latency_s.get(rung.key, FIRST_GUESS_S)

    def note_answer(self, rung: Rung, *, seconds: float) -> None:
        """A model answered."""
        usual_s = self._latency_s.get(rung.key, seconds)
        self._latency_s[rung.key] = usual_s + LATENCY_WEIGHT * (seconds - usual_s)
        if rung.key in self._standings:
            self._note(rung, self._standings[rung.key], "answered")

    def note_away(self, rung: Rung) -> None:
        """A model's breaker is open."""
        self._note(rung, self._standings.get(rung.key, Standing()), "away")

    async def take_out(self, rung: Rung, *, kind: str, reason: str) -> None:
        """Disable an endpoint for a while, with every model behind it: its key or its account is refused.

        Calls that were under way together are refused together: the first of them does it for all.
        """
        now = self.clock.monotonic()
        if now - self._taken_out.get(rung.endpoint_name, float("-inf")) < TAKEN_OUT_EVERY_S:
            return
        self._taken_out[rung.endpoint_name] = now
        log.error(
            "llm.endpoint_disabled", endpoint=rung.endpoint_name, for_s=rung.endpoint.disabled_s, cause=reason,
            hint="after repair: fleet llm close",
        )  # fmt: skip
        metrics.ALERTS.labels(rung.endpoint_name, kind).inc()
        keys = [key for key, endpoint in self.config.every_key().items() if endpoint == rung.endpoint_name]
        await asyncio.gather(*(self._disable(key, reason, for_s=rung.endpoint.disabled_s) for key in keys))

    async def _disable(self, key: str, reason: str, *, for_s: float) -> None:
        try:
            await self.gate.disable(key, reason=reason, for_s=for_s)
        except Transient as error:  # done here; the fleet finds out at its own first call
            log.warning("llm.disabled_here_alone", key=key, cause=error.message)

    def aside(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that nobody waits for, unless too much of it is under way."""
        if len(self._chores) >= PENDING:
            work.close()
            return
        chore = asyncio.create_task(work)
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)

    async def settled(self) -> None:
        """Wait for what was put aside."""
        await asyncio.gather(*self._chores, return_exceptions=True)

    async def publish(self, redis: Redis) -> None:
        """Tell operators: gauges of every model, spending, and the configuration."""
        for key in self.config.every_key():
            show(await self.gate.stats(key))
        for tenant in [DEFAULT_TENANT, *self.config.tenants][:TENANTS_SHOWN]:
            show_left(tenant, await self.gate.left(self._budgets_of(tenant), tenant=tenant))
        if await self.book.flush(redis):
            with suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(PUBLISH_WITHIN_S):
                    await announce(redis, self.config)

    def _budgets_of(self, tenant: str) -> list[Budget]:
        """Of all its runs together; a run's own is nobody's gauge."""
        agents = (USUAL_AGENT, *self.config.agents)
        each = [one for agent in agents for one in purses(self.config, tenant=tenant, agent=agent, run=None)]
        return list(dict.fromkeys(each))

    async def keep_publishing(self, redis: Redis) -> None:
        """Tell operators, for as long as the process lives; and know the cache's secret before it is needed."""
        while True:
            await self.cache.secret()
            await self.publish(redis)
            await asyncio.sleep(PUBLISH_EVERY_S)

    async def aclose(self) -> None:
        """Close every adapter; calls in flight fail. The gate's store and the cache's client are their openers'."""
        await self.settled()
        for adapter in self._adapters.values():
            await adapter.aclose()

    def _rung(self, name: str) -> Rung:
        spec = self.config.models[name]
        endpoint = self.config.endpoints[spec.endpoint]
        return Rung(name, self.config.model_name(name), self.config.key(name), spec.endpoint, endpoint, spec)

    def _note(self, rung: Rung, standing: Standing, event: Any) -> None:
        after = observed(standing, event, now=self.clock.monotonic(), recover_over_s=self.config.ladder.recover_over_s)
        if after == Standing():
            self._standings.pop(rung.key, None)
            if standing.is_away:
                log.info("llm.model_is_back", model=rung.model, endpoint=rung.endpoint_name)
        else:
            self._standings[rung.key] = after


def open_adapters(configured: Configured) -> dict[str, Adapter]:
    """One adapter per endpoint. Raises: Misconfigured when a dialect's SDK is not installed."""
    return {
        name: open_adapter(
            adapter_knobs(endpoint, key=configured.keys[name]),
            dialect=endpoint.dialect,
            name=name,
            on_limits=note_limits,
        )
        for name, endpoint in configured.config.endpoints.items()
    }


def open_plane(configured: Configured, *, store: GateStore, redis: Redis, seal: Seal | None = None) -> LLMPlane:
    """The plane of a process; the caller closes it, and then the store and the client.

    Args:
        store: Where breakers, limits and budgets are.
        redis: Where answers are kept; returns bytes (the default).
        seal: Seals them.

    Raises: Misconfigured when a dialect's SDK is not installed.
    """
    config, secret = configured.config, configured.cache_secret
    cache = RedisAnswers(
        redis, stale_s=config.cache.stale_s, max_answers=config.cache.max_answers,
        secret=None if secret is None else secret.get_secret_value().encode(), seal=seal,
    )  # fmt: skip
    gate = Gate(store, key_rules(config))
    return LLMPlane(configured, gate=gate, adapters=open_adapters(configured), cache=cache)
