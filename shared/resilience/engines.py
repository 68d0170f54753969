"""Where a breaker's decisions are made: in this process, or in a store that the fleet shares."""

import asyncio
import itertools
import os
import random
import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol
from uuid import uuid4

from shared.resilience import circuit as machine
from shared.resilience.circuit import Circuit, Mode, Operate
from shared.resilience.exchange import Answer, Ask, BlockingStore, GateStore, KeyStats, Settlement
from shared.resilience.knobs import BreakerKnobs, KeyRules
from shared.resilience.outcome import Learn

_counter = itertools.count(1)
_origin = [os.getpid(), uuid4().hex[:12]]


def new_permit() -> str:
    """A name for one call, unlike any other in the fleet, after a fork too."""
    if _origin[0] != os.getpid():
        _origin[:] = [os.getpid(), uuid4().hex[:12]]
    return f"{_origin[1]}-{next(_counter)}"


class Entry(NamedTuple):
    """A call that was let through or refused."""

    is_refused: bool
    mode: Mode
    reason: str
    retry_after_s: float | None
    permit: str
    generation: int
    answer: Answer | None = None
    ask: Ask | None = None


class Engine(Protocol):
    """Decides for one breaker."""

    def enter(self) -> Entry:
        """May a call be sent?"""

    def leave(self, entry: Entry, learn: Learn, seconds: float) -> Mode:
        """A call has ended; the state now."""

    async def enter_async(self) -> Entry:
        """As `enter`."""

    async def leave_async(self, entry: Entry, learn: Learn, seconds: float) -> Mode:
        """As `leave`."""

    def operate(self, operate: Operate) -> Mode:
        """Do what an operator says."""

    async def operate_async(self, operate: Operate) -> Mode:
        """As `operate`."""

    def stats(self, name: str) -> KeyStats:
        """How things stand."""

    async def stats_async(self, name: str) -> KeyStats:
        """As `stats`."""

    def mode_now(self) -> Mode | None:
        """The state, where it can be said without asking anybody."""

    def successes(self) -> int:
        """Probes that succeeded, where that is known here."""

    def tune(self, knobs: BreakerKnobs) -> None:
        """Go on with other knobs."""


TOLD_AT_ONCE = 50
"""Fast successes of a well key that the machine is told of together: each by itself it would copy its window for."""


class LocalEngine:
    """The pure machine and a lock, held for the decision only."""

    def __init__(self, knobs: BreakerKnobs, clock: Callable[[], float]) -> None:
        self._knobs = knobs
        self._clock = clock
        self._lock = threading.Lock()
        self._circuit = Circuit()
        self._went_well: list[int] = []
        """Microseconds of successes that the circuit was not told of: whoever looks at more than its mode tells it."""
        self._usual = Entry(False, "closed", "", None, "", 0)

    def enter(self) -> Entry:
        """See `Engine`."""
        circuit = self._circuit
        if circuit.mode == "closed":  # the usual case needs neither lease nor lock: a tuple is read whole
            entry = self._usual
            if entry.generation != circuit.generation:
                entry = self._usual = Entry(False, "closed", "", None, "", circuit.generation)
            return entry
        permit = new_permit()
        with self._lock:
            now = self._clock()
            circuit, decision = machine.step(self._told(), machine.Ask(permit), now, self._knobs)
            self._circuit = circuit
        return Entry(
            decision.action == "reject", circuit.mode, decision.reason, decision.retry_after_s, permit,
            circuit.generation,
        )  # fmt: skip

    def leave(self, entry: Entry, learn: Learn, seconds: float) -> Mode:
        """See `Engine`."""
        if learn == "ok" and seconds < self._knobs.slow_call_s:
            with self._lock:
                if machine.is_well(self._circuit, entry.generation):
                    self._went_well.append(int(seconds * 1_000_000))
                    if len(self._went_well) >= TOLD_AT_ONCE:
                        self._told()
                    return "closed"
        jitter = random.uniform(-1.0, 1.0)
        record = machine.Record(entry.permit, entry.generation, learn, seconds, jitter)
        with self._lock:
            self._circuit, _ = machine.step(self._told(), record, self._clock(), self._knobs)
            return self._circuit.mode

    async def enter_async(self) -> Entry:
        """See `Engine`."""
        return self.enter()

    async def leave_async(self, entry: Entry, learn: Learn, seconds: float) -> Mode:
        """See `Engine`."""
        return self.leave(entry, learn, seconds)

    def operate(self, operate: Operate) -> Mode:
        """See `Engine`."""
        with self._lock:
            self._circuit, _ = machine.step(self._told(), operate, self._clock(), self._knobs)
            return self._circuit.mode

    async def operate_async(self, operate: Operate) -> Mode:
        """See `Engine`."""
        return self.operate(operate)

    def stats(self, name: str) -> KeyStats:
        """See `Engine`."""
        with self._lock:
            circuit, now = self._told(), self._clock()
        calls = len(circuit.window)
        return KeyStats(
            name=name,
            state=circuit.mode,
            failure_count=circuit.in_a_row,
            total_calls=calls,
            failure_rate=circuit.failures / calls if calls else 0.0,
            avg_latency_s=circuit.micros / 1e6 / calls if calls else 0.0,
            retry_after_s=machine.retry_after_s(circuit.mode, circuit.until_s, now),
            slow_rate=circuit.slow / calls if calls else 0.0,
            reason=circuit.reason,
            generation=circuit.generation,
            rounds=circuit.rounds,
            probes=sum(expires > now for _, expires in circuit.leases),
            shared=False,
        )

    async def stats_async(self, name: str) -> KeyStats:
        """See `Engine`."""
        return self.stats(name)

    def mode_now(self) -> Mode | None:
        """See `Engine`."""
        return self._circuit.mode

    def successes(self) -> int:
        """See `Engine`."""
        return self._circuit.successes

    def tune(self, knobs: BreakerKnobs) -> None:
        """See `Engine`."""
        with self._lock:
            self._told()
            self._knobs = knobs

    def _told(self) -> Circuit:
        """The circuit, with all that it should know; under the lock."""
        if self._went_well:
            self._circuit = machine.all_went_well(self._circuit, self._went_well, self._knobs)
            self._went_well.clear()
        return self._circuit


class SharedEngine:
    """One round trip a decision.

    Args:
        store: For threads.
        async_store: For asyncio; without it, the blocking store is asked from a thread.
    """

    def __init__(
        self, name: str, knobs: BreakerKnobs, store: BlockingStore | None, async_store: GateStore | None
    ) -> None:
        self._name = name
        self._rules = KeyRules(breaker=knobs)
        self._store = store
        self._async_store = async_store

    def enter(self) -> Entry:
        """See `Engine`."""
        ask = self._question()
        return _entry(ask, self._blocking().admit_now(ask))

    def leave(self, entry: Entry, learn: Learn, seconds: float) -> Mode:
        """See `Engine`."""
        return self._blocking().settle_now(_end(entry, learn, seconds)).new

    async def enter_async(self) -> Entry:
        """See `Engine`."""
        ask = self._question()
        if self._async_store is None:
            return _entry(ask, await asyncio.to_thread(self._blocking().admit_now, ask))
        return _entry(ask, await self._async_store.admit(ask))

    async def leave_async(self, entry: Entry, learn: Learn, seconds: float) -> Mode:
        """See `Engine`."""
        end = _end(entry, learn, seconds)
        if self._async_store is None:
            return (await asyncio.to_thread(self._blocking().settle_now, end)).new
        return (await self._async_store.settle(end)).new

    def operate(self, operate: Operate) -> Mode:
        """See `Engine`."""
        return self._blocking().operate_now(self._name, operate, self._rules).new

    async def operate_async(self, operate: Operate) -> Mode:
        """See `Engine`."""
        if self._async_store is None:
            return await asyncio.to_thread(self.operate, operate)
        return (await self._async_store.operate(self._name, operate, self._rules)).new

    def stats(self, name: str) -> KeyStats:
        """See `Engine`."""
        return self._blocking().stats_now(name, self._rules)

    async def stats_async(self, name: str) -> KeyStats:
        """See `Engine`."""
        if self._async_store is None:
            return await asyncio.to_thread(self.stats, name)
        return await self._async_store.stats(name, self._rules)

    def mode_now(self) -> Mode | None:
        """See `Engine`."""
        return None

    def successes(self) -> int:
        """See `Engine`."""
        return 0

    def tune(self, knobs: BreakerKnobs) -> None:
        """See `Engine`."""
        self._rules = KeyRules(breaker=knobs)

    def _question(self) -> Ask:
        return Ask(
            key=self._name, permit=new_permit(), rules=self._rules, lease_s=self._rules.breaker.probe_lease_s
        )  # fmt: skip

    def _blocking(self) -> BlockingStore:
        if self._store is None:
            raise RuntimeError(
                f"breaker {self._name} has a store for asyncio only: await its twins (call_async, acalling, "
                "get_stats_async, open_async, close_async, …), or give it `store=` for threads"
            )
        return self._store


def _entry(ask: Ask, answer: Answer) -> Entry:
    refused, wait_s = bool(answer.denial), answer.retry_after_s
    return Entry(refused, answer.mode, answer.reason, wait_s, ask.permit, answer.generation, answer, ask)


def _end(entry: Entry, learn: Learn, seconds: float) -> Settlement:
    if entry.ask is None:
        raise TypeError("an entry of another engine")
    return Settlement(
        ask=entry.ask, answer=entry.answer, learn=learn, seconds=seconds, tokens_in=0, tokens_out=0, cost=0.0,
        jitter=random.uniform(-1.0, 1.0),
    )  # fmt: skip
