"""A gate's state in Redis: one script a decision, by the server's clock, for the whole fleet.

The keys of one endpoint share a hash slot ({key}), the purses of one tenant another ({tenant}): with budgets, the two
scripts travel in one pipeline. A refusal on one side gives back what the other side reserved. All of it goes over one
connection: behind a proxy that hides a Redis Cluster this works, to the nodes of one it does not speak, and says so.
"""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.client import NEVER_DECODE
from redis.exceptions import AskError, ClusterError, NoScriptError, RedisError
from redis.maint_notifications import MaintNotificationsConfig

from shared.errors import Transient
from shared.resilience import spending, wire
from shared.resilience.circuit import Operate
from shared.resilience.exchange import Answer, Ask, KeyStats, Settled, Settlement, unsent
from shared.resilience.knobs import KeyRules, StoreKnobs
from shared.resilience.line import Line
from shared.resilience.spending import Budget, Left
from shared.resilience.wire import Call

SHORT_ASKED_AGAIN = 2
SHORT_WAIT_S = 0.02


class StoreAway(Transient):
    """Redis does not answer. Never leaves this room: the gate goes on with what this process knows."""

    code = "store_away"


def open_redis(knobs: StoreKnobs) -> Redis:
    """A client for `RedisStore`, which gives every call its limit; one retry, for a connection that had died idle.

    No socket_timeout: with one, redis-py writes through `asyncio.wait_for`, which until Python 3.12 can lose the
    cancellation of the task around it.
    """
    pool = BlockingConnectionPool.from_url(
        knobs.redis_url,
        max_connections=knobs.max_connections,
        timeout=knobs.timeout_s,
        socket_timeout=None,
        socket_connect_timeout=knobs.timeout_s,
        retry=Retry(NoBackoff(), 1),
        maint_notifications_config=MaintNotificationsConfig(enabled=False),  # a line listens to answers alone
    )
    return Redis.from_pool(pool)


def open_blocking_redis(knobs: StoreKnobs) -> redis.Redis:
    """A client for `BlockingRedisStore`; safe from any thread."""
    return redis.Redis.from_url(
        knobs.redis_url,
        socket_timeout=knobs.timeout_s,
        socket_connect_timeout=knobs.timeout_s,
        max_connections=knobs.max_connections,
    )


class RedisStore:
    """`GateStore` on a client that returns bytes (the default) and that somebody else opened; `aclose` closes it.

    Raises: StoreAway from every method when Redis does not answer within `timeout_s`.
    """

    def __init__(self, client: Redis, *, knobs: StoreKnobs | None = None) -> None:
        self._redis = client
        self._line = Line(client)
        self._knobs = knobs or StoreKnobs()

    async def admit(self, ask: Ask) -> Answer:
        """See `GateStore`. One round trip; more only after a refusal.

        A call that the gate refuses holds its estimate until it is given back, a round trip later: a budget that seems
        too small because of that is asked again before it is believed.
        """
        if not ask.budgets:
            return wire.admitted(await self._ask(wire.admit(self._knobs.prefix, ask)))
        for _ in range(SHORT_ASKED_AGAIN):
            answer = await self._admit_paid(ask)
            if answer.denial != "budget":
                return answer
            await asyncio.sleep(random.uniform(0.0, SHORT_WAIT_S))
        return await self._admit_paid(ask)

    async def _admit_paid(self, ask: Ask) -> Answer:
        prefix = self._knobs.prefix
        tokens = ask.tokens_in + ask.tokens_out
        purses = wire.spend(prefix, ask.tenant, ask.budgets, how="check", tokens=tokens, money=ask.cost)
        gate_reply, purse_reply = await self._ask_all(wire.admit(prefix, ask), purses)
        answer = wire.admitted(gate_reply)
        short, spent = wire.spent(purse_reply)
        answer = replace(answer, spent=spent)
        if answer.denial:
            if short is None:
                await self._ask(
                    wire.spend(
                        prefix, ask.tenant, ask.budgets, how="force", tokens=-tokens, money=-ask.cost, meant=spent
                    )
                )
        elif short is not None:
            await self._ask(wire.settle(prefix, unsent(ask, answer)))
            return replace(answer, denial="budget", short=short)
        return answer

    async def settle(self, settlement: Settlement) -> Settled:
        """See `GateStore`. One round trip."""
        ask, answer, prefix = settlement.ask, settlement.answer, self._knobs.prefix
        if not ask.budgets:
            return wire.settled(await self._ask(wire.settle(prefix, settlement)))
        purses = wire.spend(
            prefix,
            ask.tenant,
            ask.budgets,
            how="force",
            tokens=sum(wire.off_by(settlement)),
            money=settlement.cost - (ask.cost if answer else 0.0),
            meant=answer.spent if answer else None,
        )
        reply, _ = await self._ask_all(wire.settle(prefix, settlement), purses)
        return wire.settled(reply)

    async def operate(self, key: str, operate: Operate, rules: KeyRules) -> Settled:
        """See `GateStore`."""
        return wire.settled(await self._ask(wire.operate(self._knobs.prefix, key, operate, rules)))

    async def stats(self, key: str, rules: KeyRules) -> KeyStats:
        """See `GateStore`."""
        return wire.stats_of(key, rules, await self._ask(wire.stats(self._knobs.prefix, key, rules)))

    async def left(self, tenant: str, budgets: tuple[Budget, ...]) -> tuple[Left, ...]:
        """See `GateStore`."""
        if not budgets:
            return ()
        _, spent = wire.spent(await self._ask(wire.spend(self._knobs.prefix, tenant, budgets, how="read")))
        return tuple(map(spending.left, budgets, spent))

    async def charge(self, tenant: str, budgets: tuple[Budget, ...], *, tokens: int, cost: float) -> None:
        """See `GateStore`."""
        if budgets:
            call = wire.spend(self._knobs.prefix, tenant, budgets, how="force", tokens=tokens, money=cost)
            await self._ask(call)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._line.aclose()
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def _ask(self, call: Call) -> bytes:
        """One script."""
        (reply,) = await self._ask_all(call)
        return reply

    async def _ask_all(self, *calls: Call) -> list[bytes]:
        """Scripts in one round trip; a server that does not know them yet is told."""
        within_s = self._knobs.timeout_s
        end = time.monotonic() + within_s
        try:
            packed = [wire.command(call, knows_script=True) for call in calls]
            replies = await self._line.ask(*packed, within_s=within_s)
            missing = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if missing:
                texts = [wire.command(calls[at], knows_script=False) for at in missing]
                again = await self._line.ask(*texts, within_s=end - time.monotonic())
                for at, reply in zip(missing, again, strict=True):
                    replies[at] = reply
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
            return replies
        except TimeoutError as error:
            raise StoreAway(f"Redis did not answer within {within_s:g} s") from error
        except (RedisError, OSError) as error:
            raise StoreAway(_why(error)) from error


class BlockingRedisStore:
    """`BlockingStore` for threads, on a client that may decode responses; without budgets, which belong to gates."""

    def __init__(self, client: redis.Redis, *, knobs: StoreKnobs | None = None) -> None:
        self._redis = client
        self._prefix = (knobs or StoreKnobs()).prefix

    def admit_now(self, ask: Ask) -> Answer:
        """See `BlockingStore`."""
        return wire.admitted(self._ask(wire.admit(self._prefix, ask)))

    def settle_now(self, settlement: Settlement) -> Settled:
        """See `BlockingStore`."""
        return wire.settled(self._ask(wire.settle(self._prefix, settlement)))

    def operate_now(self, key: str, operate: Operate, rules: KeyRules) -> Settled:
        """See `BlockingStore`."""
        return wire.settled(self._ask(wire.operate(self._prefix, key, operate, rules)))

    def stats_now(self, key: str, rules: KeyRules) -> KeyStats:
        """See `BlockingStore`."""
        return wire.stats_of(key, rules, self._ask(wire.stats(self._prefix, key, rules)))

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _ask(self, call: Call) -> bytes:
        with _answering():
            try:
                return self._execute("EVALSHA", call, call.script.sha)
            except NoScriptError:
                return self._execute("EVAL", call, call.script.text)

    def _execute(self, command: str, call: Call, body: str) -> bytes:
        words = (body, len(call.keys), *call.keys, *call.args)
        return cast(bytes, self._redis.execute_command(command, *words, **{NEVER_DECODE: True}))  # type: ignore[no-untyped-call]


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise StoreAway(_why(error)) from error


def _why(error: Exception) -> str:
    """What to do about it, where that is known."""
    if isinstance(error, AskError | ClusterError) or "cluster mode" in str(error):
        return f"Redis is a node of a cluster ({error}): name one primary, or a proxy that hides the cluster"
    return f"Redis does not answer: {type(error).__name__}: {error}"
